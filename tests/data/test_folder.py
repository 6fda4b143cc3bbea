"""Plain folders of images: their layout, order, labels and errors."""

import dataclasses
import io
import os
import pathlib
import re
import socket

import numpy as np
import PIL.Image
import pytest

from vgg_flax import config, errors
from vgg_flax.data import SUFFIXES, DataError, batches, folder, imagenet, splits
from vgg_flax.images import codec


def write_image(path: pathlib.Path, red: int = 0) -> None:
    """A 4 x 4 PNG, whatever its name says, that `red` tells from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    path.write_bytes(stream.getvalue())


def write_split(root: pathlib.Path, split: str, **counts: int) -> None:
    for name, count in counts.items():
        for i in range(count):
            write_image(root / split / name / f"{i:03}.png")


def listed(root: pathlib.Path, split: str, num_classes: int = 3) -> dict[str, int]:
    """`{"train/cat/000.png": label}` as `list_images` says."""
    class_names = folder.class_names(str(root), [split], num_classes)
    items = folder.list_images(str(root), split, class_names).items
    found = {str(item.path.relative_to(root)): item.label for item in items}
    assert len(found) == len(items)
    return found


def settings(root: pathlib.Path) -> config.DataConfig:
    return config.DataConfig(
        name="folder",
        data_dir=str(root),
        crop_size=4,
        test_scale=4,
        eval_batch_size=8,
        num_threads=1,
        prefetch=1,
    )


def keys(root: pathlib.Path, split: str, num_classes: int = 3) -> list[str]:
    opened = splits.open_split(settings(root), split, num_classes)
    return [record["key"] for record in opened.records]


# ROOT/SPLIT/CLASS/*


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_can_be_decoded_is_an_image(suffix: str, tmp_path: pathlib.Path):
    path = tmp_path / "train" / "cat" / f"a{suffix.upper()}"
    path.parent.mkdir(parents=True)
    kind = PIL.Image.registered_extensions()[suffix]
    mode = "1" if suffix == ".pbm" else "RGB"
    PIL.Image.new(mode, (4, 5), 1).save(path, "PNG" if suffix == ".apng" else kind)
    opened = splits.open_split(settings(tmp_path), "train", 1)
    assert codec.decode(opened.records[0]["image"]).shape == (5, 4, 3)
    assert opened.remarks == ()


def test_files_that_are_left_out_are_told_by_kind(tmp_path: pathlib.Path):
    root = tmp_path / "train"
    for name in ("a.jpg", "b.JPEG", "c.WebP", "deep/er/d.gif", "deep/e.bmp"):
        write_image(root / "cat" / name)
    others = ["i.txt", "deep/j.TXT", "k.npy", "jpg", "l.jpg.part", "Thumbs.db"]
    for name in [*others, ".hidden.jpg", "._a.jpg", "__MACOSX/a.jpg"]:
        write_image(root / "cat" / name)
    write_image(root / "stray.jpg")
    write_image(root / "__MACOSX" / "cat" / "f.jpg")
    names = ["a.jpg", "b.JPEG", "c.WebP", "deep/e.bmp", "deep/er/d.gif"]
    assert listed(tmp_path, "train") == {f"train/cat/{name}": 0 for name in names}
    assert splits.open_split(settings(tmp_path), "train", 1).remarks == (
        "left out in train: 1 .db, 1 .jpg beside the class folders, 1 .npy, 1 .part, "
        "2 .txt, 1 without a suffix",
    )


def test_links_are_followed_but_not_round_in_circles(tmp_path: pathlib.Path):
    write_image(tmp_path / "elsewhere" / "deep" / "a.png")
    cat = tmp_path / "train" / "cat"
    write_image(cat / "b.png")
    (cat / "linked").symlink_to(tmp_path / "elsewhere")
    (cat / "round").symlink_to(tmp_path / "train")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    names = ("b.png", "linked/deep/a.png")
    assert listed(tmp_path, "train") == {f"train/cat/{name}": 0 for name in names}


def test_the_first_level_is_the_class(tmp_path: pathlib.Path):
    for name in ("ant/1/a.png", "ant/2/a.png", "bee/ant/a.png"):
        write_image(tmp_path / "train" / name)
    assert listed(tmp_path, "train") == {
        "train/ant/1/a.png": 0,
        "train/ant/2/a.png": 0,
        "train/bee/ant/a.png": 1,
    }


def test_classes_are_the_sorted_folders(tmp_path: pathlib.Path):
    for name in ("wolf", "Ant", "bee"):
        write_split(tmp_path, "train", **{name: 2})
    class_names = folder.class_names(str(tmp_path), ["train"], 3)
    assert class_names == ("Ant", "bee", "wolf")
    found = listed(tmp_path, "train")
    assert len(found) == 6
    assert all(name.split("/")[1] == class_names[i] for name, i in found.items())


def test_records_hold_the_files_bytes_label_and_path(tmp_path: pathlib.Path):
    for red, name in enumerate(("ant", "bee", "cat")):
        write_image(tmp_path / "train" / name / "only.JPEG", red)
    opened = splits.open_split(settings(tmp_path), "train", 3)
    assert opened.name == "folder/train" and len(opened) == 3
    found = {record["label"]: record for record in opened.records}
    for label, name in enumerate(("ant", "bee", "cat")):
        path = tmp_path / "train" / name / "only.JPEG"
        assert found[label]["key"] == str(path)
        assert found[label]["image"] == path.read_bytes()


def test_batches_hold_the_images_under_their_labels(tmp_path: pathlib.Path):
    reds = {"ant": (10, 20), "bee": (30, 40), "cat": (50, 60)}
    for name, values in reds.items():
        for red in values:
            write_image(tmp_path / "train" / name / f"{red}.jpg", red)
    data = settings(tmp_path)
    split = splits.open_split(data, "train", 3)
    (batch,) = batches.eval_batches(data, split, shard=batches.Shard())
    seen = set(zip(batch["image"][:6, 0, 0, 0], batch["label"][:6], strict=True))
    assert seen == {(10, 0), (20, 0), (30, 1), (40, 1), (50, 2), (60, 2)}
    np.testing.assert_array_equal(batch["mask"], np.arange(8) < 6)


def test_slices_hold_every_class_and_together_the_whole(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=60, bee=60, cat=60)
    whole, most, rest = (
        keys(tmp_path, split) for split in ("train", "train[:90%]", "train[90%:]")
    )
    assert [len(whole), len(most), len(rest)] == [180, 162, 18]
    assert most + rest == whole and len(set(whole)) == 180
    for part in (most, rest):
        assert {pathlib.Path(key).parent.name for key in part} == {"ant", "bee", "cat"}
    assert whole != sorted(whole)


@pytest.mark.parametrize("written", ["abcdefghijkl", "lkjihgfedcba", "ahbgcifdjelk"])
def test_the_order_depends_on_the_names_alone(written: str, tmp_path: pathlib.Path):
    for name in written:
        write_image(tmp_path / "train" / "letter" / f"{name}.png")
    order = [pathlib.Path(key).stem for key in keys(tmp_path, "train", 1)]
    # A promise for good: `train[90%:]` is the same set on every machine.
    assert "".join(order) == "bjifkcdhealg"


def test_splits_can_be_added_and_cut_by_number(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=5, bee=5, cat=5)
    write_split(tmp_path, "val", ant=2, bee=2, cat=2)
    train, val = keys(tmp_path, "train"), keys(tmp_path, "val")
    assert len(train) == 15 and len(val) == 6
    assert keys(tmp_path, "train+val") == train + val
    assert keys(tmp_path, "val[-2:]+train[3:5]") == val[-2:] + train[3:5]
    assert keys(tmp_path, "train[-4:]") == train[-4:]


# What can't be read


def test_an_empty_class_is_named(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=1, cat=1)
    (tmp_path / "train" / "bee").mkdir()
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no bees yet")
    with pytest.raises(DataError, match=r"no image.*in \['train/bee'\].*remove the"):
        splits.open_split(settings(tmp_path), "train", 3)
    (tmp_path / "train" / "bee" / "notes.txt").unlink()
    (tmp_path / "train" / "bee").rmdir()  # as it says
    assert len(splits.open_split(settings(tmp_path), "train", 2)) == 2


def test_a_missing_split_is_named_beside_those_there_are(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=1)
    write_split(tmp_path, "test", ant=1)
    with pytest.raises(folder.FolderError, match=r"val is not a folder.*test, train"):
        listed(tmp_path, "val")
    with pytest.raises(folder.FolderError, match=r"val is not a folder"):
        splits.open_split(settings(tmp_path), "train+val[:5]", 1)


def test_a_missing_root_is_named(tmp_path: pathlib.Path):
    with pytest.raises(folder.FolderError, match=r"nowhere/train is not a folder"):
        listed(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("files", [(), ("a.jpg", "b.jpg"), ("readme.txt",)], ids=str)
def test_a_split_without_class_folders_is_refused(
    files: tuple[str, ...], tmp_path: pathlib.Path
):
    (tmp_path / "train").mkdir()
    for name in files:
        write_image(tmp_path / "train" / name)
    with pytest.raises(folder.FolderError, match="train holds no class folders"):
        listed(tmp_path, "train")


@pytest.mark.parametrize("there", [True, False], ids=["empty", "deleted"])
def test_a_split_may_lack_classes_and_tells_which(there: bool, tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=1, bee=1, cat=1)
    write_split(tmp_path, "val", bee=2)
    if there:
        (tmp_path / "val" / "ant").mkdir()
    train = splits.open_split(settings(tmp_path), "train", 3)
    opened = splits.open_split(settings(tmp_path), "val", 3, train.class_names)
    assert opened.class_names == ("ant", "bee", "cat") and train.remarks == ()
    assert {record["label"] for record in opened.records} == {1}
    assert opened.remarks == ("no image of 'ant', 'cat'",)


def test_images_of_unknown_classes_are_refused(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=1, bee=1)
    write_split(tmp_path, "val", ant=1, cat=1)
    train = splits.open_split(settings(tmp_path), "train", 2)
    with pytest.raises(folder.FolderError, match=r"val has images of 'cat', and labe"):
        splits.open_split(settings(tmp_path), "val", 2, train.class_names)
    (tmp_path / "val" / "cat" / "000.png").unlink()  # an empty folder of one is none
    opened = splits.open_split(settings(tmp_path), "val", 2, train.class_names)
    assert len(opened) == 1


def test_splits_that_are_not_in_use_are_not_looked_at(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=1, bee=1)
    for name in ("runs/mine/checkpoints", "__MACOSX/train/ant", "annotations/xml"):
        (tmp_path / name).mkdir(parents=True)
    assert len(splits.open_split(settings(tmp_path), "train", 2)) == 2


def test_added_splits_have_their_classes_together(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=1, cat=1)
    write_split(tmp_path, "more", bee=2)
    opened = splits.open_split(settings(tmp_path), "train+more", 3)
    assert opened.class_names == ("ant", "bee", "cat")
    labels = {r["key"].split("/")[-2]: r["label"] for r in opened.records}
    assert labels == {"ant": 0, "bee": 1, "cat": 2} and opened.remarks == ()


def test_a_fingerprint_is_of_the_images_and_not_of_the_place(tmp_path: pathlib.Path):
    for place in ("here", "there"):
        write_split(tmp_path / place, "train", ant=2, bee=2)
    here, there = (
        splits.fingerprint(splits.open_split(settings(tmp_path / place), "train", 2))
        for place in ("here", "there")
    )
    assert here == there
    (tmp_path / "there/train/bee").rename(tmp_path / "there/train/eel")
    moved = splits.open_split(settings(tmp_path / "there"), "train", 2)
    assert splits.fingerprint(moved) != here


@pytest.mark.parametrize(
    "split", ["train[", "train[:9x]", "train[:99]", "train[:1shard]", "train+", ""]
)
def test_a_malformed_split_is_refused(split: str, tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=2, bee=2)
    with pytest.raises(errors.VGGFlaxError, match=re.escape(repr(split))):
        splits.open_split(settings(tmp_path), split, 2)


def test_an_empty_slice_is_refused(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=2, bee=2)
    with pytest.raises(batches.DataError, match=r"folder/train\[:0\] is empty"):
        splits.open_split(settings(tmp_path), "train[:0]", 2)


def test_another_number_of_classes_is_refused(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", ant=1, bee=1)
    with pytest.raises(batches.DataError, match=r"2 classes.*num_classes=2$"):
        splits.open_split(settings(tmp_path), "train", 1000)


# ImageNet

# Known facts of ILSVRC-2012: tench, tabby and toilet tissue.
SYNSETS = {"n01440764": 0, "n02123045": 281, "n15075141": 999}


def test_the_synsets_are_1000_in_sorted_order():
    synsets = imagenet.synsets()
    assert len(synsets) == 1000 and list(synsets) == sorted(set(synsets))
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in synsets)
    assert {synset: synsets.index(synset) for synset in SYNSETS} == SYNSETS


def test_synset_folders_have_imagenets_labels(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", n15075141=1, n01440764=1, n02123045=1)
    opened = splits.open_split(settings(tmp_path), "train", 1000)
    assert len(opened.class_names) == 1000
    found = {
        pathlib.Path(record["key"]).parent.name: record["label"]
        for record in opened.records
    }
    assert found == SYNSETS


def test_synset_folders_of_a_smaller_net_have_their_own_labels(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", n15075141=1, n01440764=1, n02123045=1)
    opened = splits.open_split(settings(tmp_path), "train", 3)
    assert opened.class_names == ("n01440764", "n02123045", "n15075141")
    labels = {r["key"].split("/")[-2]: r["label"] for r in opened.records}
    assert labels == {"n01440764": 0, "n02123045": 1, "n15075141": 2}


def test_one_foreign_class_makes_it_another_data_set(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", n15075141=1, n01440764=1, zebra=1)
    with pytest.raises(batches.DataError, match="3 classes"):
        splits.open_split(settings(tmp_path), "train", 1000)


def validation(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}.JPEG"


def test_flat_validation_images_have_imagenets_labels(tmp_path: pathlib.Path):
    # Image 1 shows a sea snake, n01751748; image 2 an alp, n09193705. Others, and
    # the rest of the 50,000, may be missing.
    for number in (1, 2, 50_000):
        write_image(tmp_path / "val" / validation(number), number % 256)
    write_split(tmp_path, "train", n01751748=1, n09193705=1)
    opened = splits.open_split(settings(tmp_path), "val", 1000)
    labels = {pathlib.Path(r["key"]).name: r["label"] for r in opened.records}
    assert labels.keys() == {validation(1), validation(2), validation(50_000)}
    assert (labels[validation(1)], labels[validation(2)]) == (65, 970)
    assert opened.class_names[65] == "n01751748"
    assert opened.class_names[970] == "n09193705"

    train = splits.open_split(settings(tmp_path), "train", 1000)
    assert {r["label"] for r in train.records} == {65, 970}


def test_a_flat_validation_image_keeps_its_label_without_its_neighbours(
    tmp_path: pathlib.Path,
):
    write_image(tmp_path / "val" / validation(2))
    assert listed(tmp_path, "val", 1000) == {f"val/{validation(2)}": 970}


@pytest.mark.parametrize(
    "name",
    [
        "cat.JPEG",
        "ILSVRC2012_val_1.JPEG",
        "ILSVRC2012_val_00000003.jpg",
        "ILSVRC2012_test_00000003.JPEG",
        "my_ILSVRC2012_val_00000003.JPEG",
    ],
)
def test_a_foreign_name_among_the_flat_ones_is_refused(
    name: str, tmp_path: pathlib.Path
):
    write_image(tmp_path / "val" / validation(1))
    write_image(tmp_path / "val" / name)
    with pytest.raises(folder.FolderError, match="val holds no class folders"):
        listed(tmp_path, "val", 1000)


@pytest.mark.parametrize("number", [0, 50_001])
def test_an_impossible_validation_number_is_named(number: int, tmp_path: pathlib.Path):
    for present in (1, 7, number):
        write_image(tmp_path / "val" / validation(present))
    with pytest.raises(folder.FolderError, match=rf"image number {number};.*50000"):
        listed(tmp_path, "val", 1000)


# Splits by other names, and what is no image


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
@pytest.mark.parametrize("asked", ["validation", "val"])
def test_validation_is_found_by_each_of_its_names(
    name: str, asked: str, tmp_path: pathlib.Path
):
    write_split(tmp_path, "train", cat=2, dog=2)
    write_split(tmp_path, name, cat=1, dog=1)
    assert len(keys(tmp_path, asked, 2)) == 2
    assert len(keys(tmp_path, f"{asked}[:1]+train", 2)) == 5


def test_of_two_validations_none_is_chosen(tmp_path: pathlib.Path):
    for split in ("train", "val", "valid"):
        write_split(tmp_path, split, cat=1, dog=1)
    with pytest.raises(DataError, match=r"validation is not a .*train, val, valid"):
        keys(tmp_path, "validation", 2)


AUTO: dict[str, tuple[tuple[str, ...], tuple[str, str, str]]] = {
    "train alone": (("train",), ("train[:90%]", "train[90%:]", "")),
    "with test": (("train", "test"), ("train[:90%]", "train[90%:]", "test")),
    "with val": (("train", "val"), ("train", "val", "")),
    "all": (("train", "valid", "test"), ("train", "valid", "test")),
}


@pytest.mark.parametrize("case", AUTO)
def test_auto_is_what_there_is(case: str, tmp_path: pathlib.Path):
    there, expected = AUTO[case]
    for split in there:
        write_split(tmp_path, split, cat=1, dog=1)
    data = dataclasses.replace(
        settings(tmp_path),
        train_split="auto",
        validation_split="auto",
        test_split="auto",
    )
    found = splits.resolved(data)
    assert (found.train_split, found.validation_split, found.test_split) == expected


def test_a_folder_that_is_not_named_is_asked_for() -> None:
    data = config.DataConfig(name="folder", train_split="auto")
    with pytest.raises(DataError, match=r"--config\.data\.data_dir=DIR"):
        splits.resolved(data)


def test_auto_never_trains_on_what_it_validates_with(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", cat=2, dog=2)
    whole = dataclasses.replace(settings(tmp_path), train_split="train")
    with pytest.raises(DataError, match="leaves nothing of train"):
        splits.resolved(dataclasses.replace(whole, validation_split="auto"))
    auto = dataclasses.replace(whole, train_split="auto")
    with pytest.raises(DataError, match=r"--config.data.train_split='train\[:90%\]'"):
        splits.resolved(dataclasses.replace(auto, validation_split="train[80%:]"))
    with pytest.raises(DataError, match="is what a folder or a table has"):
        splits.resolved(dataclasses.replace(auto, name="digits"))


def test_pipes_and_devices_are_no_images(tmp_path: pathlib.Path):
    write_split(tmp_path, "train", cat=2, dog=2)
    os.mkfifo(tmp_path / "train/cat/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "train/dog/socket.png"))
        opened = splits.open_split(settings(tmp_path), "train", 2)
    assert len(opened) == 4
    (remark,) = opened.remarks
    assert "1 .jpg that is no file, 1 .png that is no file" in remark


@pytest.mark.parametrize("which", ["train", "test"])
def test_photos_are_turned_in_training_and_in_testing(
    which: str, tmp_path: pathlib.Path
):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera's right was up
    picture = PIL.Image.new("RGB", (4, 4), "black")
    picture.paste("white", (0, 0, 2, 4))  # its left half; upright the upper one
    (tmp_path / "train/a").mkdir(parents=True)
    picture.save(tmp_path / "train/a/1.png", exif=exif)
    halves = {}
    for orientation in ("ignore", "exif"):
        data = dataclasses.replace(
            settings(tmp_path),
            orientation=orientation,
            train_view="paper",
            train_scale=(4, 4),
            batch_size=1,
            eval_batch_size=1,
            flip=False,
        )
        split = splits.open_split(data, "train", 1)
        if which == "train":
            made = batches.train_batches(
                data, split, seed=0, start_example=0, shard=batches.Shard()
            )
        else:
            made = batches.eval_batches(data, split, shard=batches.Shard())
        image = next(made)["image"][0]
        halves[orientation] = (image[:, :2].mean(), image[:2].mean())
    assert halves == {"ignore": (255, 127.5), "exif": (127.5, 255)}
