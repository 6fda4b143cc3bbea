"""Classes and photos of any name, through the commands, into files, on a terminal."""

import contextlib
import csv
import io
import json
import os
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from conftest import changed, save_run
from nets import tiny_net

from vgg_flax import cli, loading, spelling
from vgg_flax import config as config_lib
from vgg_flax.errors import ConfigError
from vgg_flax.inference import prediction
from vgg_flax.net import Net
from vgg_flax.runs import checkpoint, log
from vgg_flax.training import trainer

pytestmark = pytest.mark.usefixtures("shallow")

CLASSES = (
    b" lead",
    b'a "b", c',
    b"caf\xe9",
    b"esc\x1b[31mred",
    b"new\nline",
    b"back\\slash",
    "\u6771\u4eac".encode(),
    "\u202ertl".encode(),
)
NAMES = tuple(map(os.fsdecode, CLASSES))


def write(root: pathlib.Path, split: str, count: int) -> list[str]:
    """So many photos of each class, whose names are no UTF-8; their paths."""
    paths = []
    for i, name in enumerate(NAMES):
        folder = root / split / name
        folder.mkdir(parents=True)
        for k in range(count):
            path = folder / os.fsdecode(b"\xff%d.png" % k)
            with path.open("wb") as stream:
                PIL.Image.new("RGB", (40, 40), (25 * i, 9 * k, 0)).save(stream, "png")
            paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    root = tmp_path_factory.mktemp("photos")
    write(root, "train", 3)
    return str(root), write(root, "test", 1)


@pytest.fixture(scope="module")
def net(shallow: None) -> Net:
    tested = tiny_net(num_classes=len(NAMES)).replace(class_names=NAMES)
    kernel = tested.variables["params"]["fc8"]["kernel"]
    tested.variables["params"]["fc8"]["kernel"] = jnp.asarray(kernel) * 30
    return tested


@pytest.fixture(scope="module")
def run(net: Net, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_run(net, tmp_path_factory.mktemp("run")))


def said(*arguments: str, code: int = 0) -> str:
    """What a command prints to a terminal that has UTF-8 and no more."""
    screens = [io.BytesIO(), io.BytesIO()]
    streams = [
        io.TextIOWrapper(screen, "utf-8", errors=errors, write_through=True)
        for screen, errors in zip(screens, ("strict", "backslashreplace"), strict=True)
    ]
    with (
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        assert cli.main(arguments) == code
    texts = [screen.getvalue().decode() for screen in screens]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n"))
    return texts[0]


def test_predictions_are_told_by_number_and_name(
    run: str, net: Net, photos: tuple[str, list[str]], tmp_path: pathlib.Path
) -> None:
    root, paths = photos
    text = said("predict", run, f"{root}/test", "--top=2")
    found = json.loads(said("predict", run, f"{root}/test", "--top=2", "--json"))
    assert [spelling.restored(i["path"]) for i in found["images"]] == sorted(paths)
    rows = text.splitlines()
    assert rows[0].split() == ["image", "class", "name", "probability"]
    for row, image in zip(rows[2::2], found["images"], strict=True):
        best = image["top"][0]
        assert spelling.restored(best["name"]) == NAMES[best["index"]]
        shown = spelling.shown(NAMES[best["index"]])
        assert f" {best['index']}  {shown} " in row
        assert spelling.shown(spelling.restored(image["path"])) in row


def test_evaluations_hold_names_beside_numbers(
    run: str, photos: tuple[str, list[str]], tmp_path: pathlib.Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    root, paths = photos
    tables = []
    for suffix in ("csv", "parquet"):
        rows, picture = tmp_path / f"rows.{suffix}", tmp_path / "confusion.png"
        outputs = [f"--predictions={rows}", f"--confusion={picture}"]
        outputs += [f"--output={tmp_path / suffix}.json"]
        said("evaluate", run, f"--data={root}", "--split=test", *outputs)
        with PIL.Image.open(picture) as drawn:
            assert drawn.size[0] > 100
        tables.append(rows)
    with tables[0].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    table = parquet.read_table(str(tables[1])).to_pylist()
    assert [{k: str(v) for k, v in row.items()} for row in table] == rows
    assert sorted(spelling.restored(row["key"]) for row in rows) == sorted(paths)
    for row in rows:
        name = NAMES[int(row["labels"])]
        assert spelling.restored(row["label_names"]) == name
        assert name == pathlib.Path(spelling.restored(row["key"])).parent.name
        assert spelling.restored(row["name_1"]) == NAMES[int(row["class_1"])]


def test_features_and_a_probe_take_any_name(
    run: str, photos: tuple[str, list[str]], tmp_path: pathlib.Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    root, paths = photos
    files = [tmp_path / os.fsdecode(b"\xe9.npz"), tmp_path / "f.parquet"]
    for file in files:
        said("features", run, f"{root}/test", f"--output={file}")
    with np.load(files[0]) as found:
        images, labels = found["image"].tolist(), found["label"].tolist()
    table = parquet.read_table(str(files[1]))
    assert table.column("image").to_pylist() == images
    assert [spelling.restored(image) for image in images] == sorted(paths)
    assert {spelling.restored(label) for label in labels} == set(NAMES)
    assert " test top-1 " in said("probe", run, f"--data={root}")
    probed = json.loads(said("probe", run, f"--data={root}", "--json"))
    assert [spelling.restored(name) for name in probed["classes"]] == sorted(NAMES)


@pytest.mark.parametrize("asked", ["6", "\u6771\u4eac", "caf\\xe9", "new\\nline"])
def test_a_heat_map_is_of_the_class_that_is_asked_for(
    asked: str,
    run: str,
    net: Net,
    photos: tuple[str, list[str]],
    tmp_path: pathlib.Path,
) -> None:
    index = {"6": 6, "\u6771\u4eac": 6, "caf\\xe9": 2, "new\\nline": 4}[asked]
    arguments = [f"--heatmap={tmp_path}", "--scale=48", f"--heatmap-class={asked}"]
    path = photos[1][0]
    found = json.loads(said("predict", run, path, *arguments, "--json", "--top=1"))
    (image,) = found["images"]
    assert image["chosen"]["index"] == index
    view = net.preprocessing.test_view(pathlib.Path(path).read_bytes())
    logits = np.asarray(net(view[None]), np.float64)[0]
    expected = np.exp(logits)[index] / np.exp(logits).sum()
    assert image["chosen"]["probability"] == pytest.approx(expected, rel=1e-4)
    assert pathlib.Path(spelling.restored(image["heatmap"])).is_file()


def test_a_class_that_there_is_not_is_refused(
    run: str, photos: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    net = loading.load(run)
    for asked, match in (("8", "0 to 7"), ("-1", "0 to 7"), ("lead", "' lead'")):
        with pytest.raises(prediction.PredictionError, match=match):
            prediction.find_class(net, asked)
    # A name that is a number is a name.
    numbered = net.replace(class_names=tuple("76543210"))
    assert prediction.find_class(numbered, "7") == 0
    twice = net.replace(class_names=("a", "a", *NAMES[2:]))
    with pytest.raises(prediction.PredictionError, match="number: 0, 1"):
        prediction.find_class(twice, "a")
    assert cli.main(["predict", run, photos[1][0], "--heatmap-class=1"]) == 1
    assert "--heatmap-class 1 is of heat maps: --heatmap" in capsys.readouterr().err


def test_a_run_learns_them_skips_one_once_and_logs_a_short_run(
    bare_config: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "data", "train", 2)
    write(tmp_path / "data", "test", 1)
    bad = tmp_path / "data" / "train" / NAMES[2] / os.fsdecode(b"\xff0.png")
    bad.write_bytes(b"no image")
    config = changed(
        bare_config,
        model__num_classes=0,
        model__in_channels=3,
        data__mean=(0.5,) * 3,
        data__std=(0.5,) * 3,
        data__name="folder",
        data__data_dir=str(tmp_path / "data"),
        data__train_split="train",
        data__validation_split="",
        data__batch_size=8,
        data__eval_batch_size=8,
        data__on_bad_image="skip",
        num_epochs=3.0,
        log_every_steps=1000,
    )
    record = trainer.train_and_evaluate(config, tmp_path / "run")
    captured = capsys.readouterr()
    (told,) = captured.err.splitlines()  # in three epochs
    assert told.startswith("skipped ") and "caf\\xe9/\\xff0.png: cannot" in told
    assert "images skipped since this start, each told once: 1\n" in captured.out
    trained = [r for r in log.read_records(tmp_path / "run") if r["split"] == "train"]
    assert [r["step"] for r in trained] == [6] and trained[0]["skipped"] == 3
    assert record["count"] == len(NAMES)
    meta = checkpoint.load(tmp_path / "run").meta
    assert tuple(meta["class_names"]) == tuple(sorted(NAMES))


def test_a_run_directory_that_is_no_utf8_is_refused_before_anything_is_made(
    bare_config: config_lib.Config, tmp_path: pathlib.Path, run: str
) -> None:
    named = tmp_path / os.fsdecode(b"run\xe9")
    with pytest.raises(ConfigError, match=r"run\\xe9 is no UTF-8.*rename"):
        trainer.train_and_evaluate(bare_config, named)
    assert not named.exists()
    pathlib.Path(run).rename(tmp_path / os.fsdecode(b"moved\xe9"))
    try:
        with pytest.raises(ConfigError, match=r"moved\\xe9/checkpoints is no UTF-8"):
            loading.load(tmp_path / os.fsdecode(b"moved\xe9"))
    finally:
        (tmp_path / os.fsdecode(b"moved\xe9")).rename(run)


def test_a_terminal_without_a_letter_shows_its_escape(
    run: str, photos: tuple[str, list[str]]
) -> None:
    screen = io.BytesIO()
    stream = io.TextIOWrapper(screen, "ascii", write_through=True)
    with contextlib.redirect_stdout(stream):
        assert cli.main(["predict", run, *photos[1], "--top=8"]) == 0
    text = screen.getvalue().decode("ascii")
    assert "\\u6771\\u4eac" in text and sys.stdout is not stream
