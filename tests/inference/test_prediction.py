"""`vgg-flax predict`: files found, classes said, pictures drawn, bad images named."""

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import samples
from conftest import random_net, save_run
from etils import epath

from vgg_flax import cli, loading, net
from vgg_flax.data import imagenet
from vgg_flax.images import codec, preprocessing
from vgg_flax.inference import prediction

PHOTOS = dict(zip(("china", "flower"), samples.photos(), strict=True))


@pytest.fixture(scope="module")
def tested(shallow: None) -> net.Net:
    return random_net("vgg8_bn")


@pytest.fixture(scope="module")
def run(tested: net.Net, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_run(tested, tmp_path_factory.mktemp("run")))


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    """Seven pictures in three folders, besides things that are none."""
    root = tmp_path / "images"
    (root / "more" / "deep").mkdir(parents=True)
    (root / ".cache").mkdir()
    for name, photo in PHOTOS.items():
        picture = PIL.Image.fromarray(photo).resize((96, 64))
        picture.save(root / f"{name}.png")
        picture.rotate(90, expand=True).save(root / "more" / f"{name}.JPG")
        picture.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM).save(
            root / "more" / "deep" / f"{name}.webp"
        )
    PIL.Image.new("L", (70, 33), 99).save(root / "more" / "grey.jpeg")
    (root / "notes.txt").write_text("no image")
    shutil.copy(root / "china.png", root / ".cache" / "china.png")
    shutil.copy(root / "china.png", root / "._china.png")
    return root


def names(paths: list[epath.Path], root: pathlib.Path) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def expected_top(tested: net.Net, path: str, top: int) -> tuple[list[int], np.ndarray]:
    """The best classes of one image alone, by NumPy's softmax of the logits."""
    view = tested.preprocessing.test_view(pathlib.Path(path).read_bytes())
    logits = np.asarray(tested(view[None]), np.float64)[0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-probabilities)[:top]
    return best.tolist(), probabilities[best]


def test_folders_are_searched_and_files_taken_as_they_are(images: pathlib.Path) -> None:
    assert names(prediction.find_images([images])[0], images) == [
        "china.png",
        "flower.png",
        "more/china.JPG",
        "more/deep/china.webp",
        "more/deep/flower.webp",
        "more/flower.JPG",
        "more/grey.jpeg",
    ]
    deep = images / "more" / "deep"
    chosen = [images / "notes.txt", deep / "flower.webp", deep]
    assert names(prediction.find_images(chosen)[0], images) == [
        "notes.txt",
        "more/deep/flower.webp",
        "more/deep/china.webp",
    ]


def test_no_such_path_and_no_image_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(prediction.PredictionError, match=r"cat\.jpg: no such file"):
        prediction.find_images([tmp_path / "cat.jpg"])
    with pytest.raises(prediction.PredictionError, match=r"holds no image.*\.webp"):
        prediction.find_images([tmp_path])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_each_image_gets_its_own_classes_in_any_batch(
    tested: net.Net, images: pathlib.Path, batch_size: int
) -> None:
    paths, _ = prediction.find_images([images])
    counts: list[int] = []
    predictions, unreadable = prediction.predict(
        tested, paths, top=4, batch_size=batch_size, after_image=counts.append
    )
    assert unreadable == {}
    assert [p.path for p in predictions] == [str(path) for path in paths]
    assert sum(counts) == len(paths) == 7
    for found in predictions:
        indices, probabilities = expected_top(tested, found.path, 4)
        assert [guess.index for guess in found.top] == indices
        assert [guess.name for guess in found.top] == [f"class {i}" for i in indices]
        np.testing.assert_allclose(
            [guess.probability for guess in found.top], probabilities, rtol=1e-4
        )
    assert len({found.top for found in predictions}) == 7


def test_all_classes_are_given_where_there_are_fewer_than_asked(
    tested: net.Net, images: pathlib.Path
) -> None:
    paths, _ = prediction.find_images([images / "china.png"])
    ((found,), _) = prediction.predict(tested, paths, top=99)
    assert sorted(guess.index for guess in found.top) == list(range(10))
    assert sum(guess.probability for guess in found.top) == pytest.approx(1)
    for options in ({"top": 0}, {"batch_size": -1}):
        with pytest.raises(prediction.PredictionError, match="expected at least 1"):
            prediction.predict(tested, paths, **options)


def test_bad_images_are_told_apart_wherever_they_stand(
    tested: net.Net, images: pathlib.Path
) -> None:
    (images / "bad.png").write_bytes(b"no picture")
    cut = (images / "china.png").read_bytes()[:500]
    (images / "more" / "zz.png").write_bytes(cut)
    (images / "empty.jpg").write_bytes(b"")
    paths = [*prediction.find_images([images])[0], epath.Path(images / "gone.png")]
    predictions, unreadable = prediction.predict(tested, paths, batch_size=2)
    assert names([epath.Path(path) for path in unreadable], images) == [
        "bad.png",
        "empty.jpg",
        "more/zz.png",
        "gone.png",
    ]
    assert "no known format" in unreadable[str(images / "bad.png")]
    assert "No such file" in unreadable[str(images / "gone.png")]
    assert len(predictions) == 7
    for found in predictions:
        assert found.top[0].index == expected_top(tested, found.path, 1)[0][0]


def test_imagenets_classes_have_names(images: pathlib.Path) -> None:
    tested = random_net("vgg11", num_classes=1000)
    paths, _ = prediction.find_images([images / "china.png"])
    for class_names in (imagenet.synsets(), ()):
        named = tested.replace(class_names=class_names)
        named.variables["params"]["fc8"]["bias"] = np.eye(1000)[980] * 50
        ((found,), _) = prediction.predict(named, paths)
        assert found.top[0].name == "volcano"


def test_the_command_prints_a_table(
    run: str,
    tested: net.Net,
    images: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    china, flower = str(images / "china.png"), str(images / "flower.png")
    assert cli.main(["predict", run, china, flower, "--top", "2"]) == 0
    captured = capsys.readouterr()
    header, _, *rows = [line.split("  ") for line in captured.out.splitlines()]
    assert [cell.strip() for cell in header if cell] == [
        "image",
        "class",
        "name",
        "probability",
    ]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    expected = []
    for path in (china, flower):
        for i, (index, probability) in enumerate(
            zip(*expected_top(tested, path, 2), strict=True)
        ):
            row = [str(index), f"class {index}", f"{probability:.2%}"]
            expected.append(row if i else [path, *row])
    assert cells == expected
    assert captured.err.startswith("loaded ") and captured.err.count("\n") == 1


def test_the_commands_json_says_everything(
    run: str,
    tested: net.Net,
    images: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (images / "bad.png").write_bytes(b"no picture")
    assert cli.main(["predict", run, str(images), "--json"]) == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["source"] == run and len(found["sha256"]) == 64
    assert found["variant"] == "vgg8_bn"
    assert found["matmul_precision"] == "highest"
    pixels = preprocessing.Preprocessing.from_dict(found["preprocessing"])
    assert pixels == tested.preprocessing
    assert len(found["images"]) == 7
    for image in found["images"]:
        indices, probabilities = expected_top(tested, image["path"], 5)
        assert [guess["index"] for guess in image["top"]] == indices
        assert image["top"][0]["name"] == f"class {indices[0]}"
        assert image["top"][4]["probability"] == pytest.approx(
            probabilities[4], rel=1e-4
        )
    assert [bad["path"] for bad in found["unreadable"]] == [str(images / "bad.png")]
    assert captured.err.splitlines()[1:] == [
        "left out: 1 .txt",
        f"unreadable: {images}/bad.png: cannot decode 10 bytes as an image: "
        "no known format",
        "1 of 8 images could not be read",
    ]


def test_bad_images_may_be_skipped(
    run: str, images: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "bad.png").write_bytes(b"no picture")
    assert cli.main(["predict", run, str(images), "--skip-bad"]) == 0
    captured = capsys.readouterr()
    assert "flower.webp" in captured.out and "bad.png" not in captured.out
    assert "1 of 8 images could not be read" in captured.err


def test_the_command_draws_a_picture_of_each_image(
    run: str,
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "maps"
    deep = images / "more" / "deep"
    (deep / "china.webp").rename(deep / "china_2.webp")
    chosen = [str(images / "china.png"), str(images / "more" / "china.JPG"), str(deep)]
    command = ["predict", run, *chosen, "--json", f"--heatmap={out}", "--scale=64"]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    drawn = [image["heatmap"] for image in found["images"]]
    assert [pathlib.Path(path).name for path in drawn] == [
        "china_heatmap.png",
        "china_2_heatmap.png",
        "china_2_2_heatmap.png",
        "flower_heatmap.png",
    ]
    assert sorted(map(str, out.iterdir())) == sorted(drawn)
    wide, tall = (np.asarray(PIL.Image.open(path)) for path in drawn[:2])
    assert wide.shape[0] < tall.shape[0] and wide.shape[1] > tall.shape[1]
    assert wide.std() > 20  # it is not blank


def test_a_picture_that_cannot_be_drawn_costs_no_other(
    run: str,
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    narrow, china = tmp_path / "narrow.png", images / "china.png"
    PIL.Image.new("L", (60_000, 1)).save(narrow)
    pictures = tmp_path / "pictures"
    arguments = [str(narrow), str(china), f"--heatmap={pictures}", "--scale=128"]
    assert cli.main(["predict", run, *arguments]) == 2
    captured = capsys.readouterr()
    assert str(china) in captured.out and str(narrow) in captured.out
    assert [path.name for path in pictures.iterdir()] == ["china_heatmap.png"]
    assert f"no heat map: {narrow}: rescaled from 60000 x 1, " in captured.err


def test_a_picture_that_cannot_be_written_costs_no_answer(
    run: str,
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "china_heatmap.png").mkdir()
    arguments = [str(images / "china.png"), f"--heatmap={tmp_path}", "--scale=64"]
    assert cli.main(["predict", run, *arguments, "--json"]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["images"]) == 1
    assert "error: cannot write" in captured.err


def test_a_picture_of_an_image_that_has_vanished_is_not_drawn(
    run: str, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    loaded, path = loading.load(run), tmp_path / "a.png"
    path.write_bytes((images / "china.png").read_bytes())
    predictions, _ = prediction.predict(loaded, [epath.Path(path)])
    path.unlink()
    ((_, picture),) = prediction.draw_heatmaps(loaded, predictions, tmp_path, 64)
    assert isinstance(picture, codec.ImageError) and "No such file" in str(picture)


def test_what_cannot_be_done_is_an_error(
    run: str,
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    china = str(images / "china.png")
    for arguments, reason in (
        ([str(tmp_path), china], "checkpoints"),
        ([run, str(tmp_path / "cat.jpg")], "no such file or folder"),
        ([run, china, "--top", "0"], "top=0; expected at least 1"),
        ([run, china, "--heatmap", str(tmp_path / "file")], "cannot be written"),
        ([run, china, "--scale", "64"], "--scale 64 is of heat maps"),
        ([run, china, f"--heatmap={tmp_path}", "--scale", "16"], "at least 32 pixels"),
    ):
        assert cli.main(["predict", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        last = captured.err.splitlines()[-1]
        assert last.startswith("error: ") and reason in last
