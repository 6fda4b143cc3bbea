"""`vgg-flax features`: rows equal `net.features`, whatever stops and shares them."""

import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest
import samples
from conftest import random_net, save_run

import vgg_flax
from tests import processes
from vgg_flax import cli

LAYERS = ("relu3_1", "block5_pool", "fc7", "logits")
COUNT = 20

# The command, with parts of four images; tells of each image that it has read.
PROGRAM = """
import sys
from vgg_flax import cli, console
from vgg_flax.inference import extraction

class Bar:
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def update(self, count):
        print("read", count, flush=True)

extraction.PART = 4
console.bar = lambda *_, **__: Bar()
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("runs") / "random"
    return str(save_run(random_net("vgg11_bn"), path))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twenty crops in two folders."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        photo, name = samples.pictures()[i % 2], ("temple", "flower")[i % 2]
        (folder / name).mkdir(exist_ok=True)
        box = (7 * i, 5 * i, 7 * i + 60, 5 * i + 50)
        photo.crop(box).save(folder / name / f"{i:02}.png")
    return folder


def expected(
    run: str, paths: list[str], pool: str, layers: tuple[str, ...] = LAYERS
) -> dict[str, np.ndarray]:
    """Of each image alone."""
    net = vgg_flax.load(run)
    views = np.stack([net.preprocessing.test_view(path) for path in paths])
    with jax.default_matmul_precision("highest"):
        maps = net.features(views, layers)
    pools = {"mean": np.mean, "max": np.max, "none": lambda x, **_: x}
    return {
        name: np.asarray(x) if x.ndim == 2 else pools[pool](x, axis=(1, 2))
        for name, x in maps.items()
    }


def check(rows: Any, run: str, images: pathlib.Path, pool: str) -> None:
    """All rows, in order, against single images."""
    paths = [str(path) for path in sorted(images.rglob("*.png"))]
    assert list(rows["image"]) == paths
    assert list(rows["label"]) == ["flower"] * 10 + ["temple"] * 10
    for name, values in expected(run, paths, pool).items():
        found = np.asarray(rows[name])
        assert found.dtype == np.float32
        largest = np.abs(values).max()
        assert largest > 0
        np.testing.assert_allclose(found, values, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("pool", ["mean", "max", "none"])
def test_rows_are_the_nets_features(
    pool: str, run: str, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """At a batch size that leaves a rest, on eight devices."""
    output = tmp_path / "new" / "rows.npz"
    line = ["features", run, str(images), "--layers", ",".join(LAYERS)]
    line += ["--pool", pool, "--output", str(output), "--batch-size", "6"]
    assert cli.main(line) == 0
    with np.load(output) as rows:
        check(rows, run, images, pool)
    assert [path.name for path in output.parent.iterdir()] == ["rows.npz"]


def test_a_table_has_a_column_a_layer(
    run: str, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "rows.parquet"
    line = ["features", run, str(images), "--layers", ",".join(LAYERS)]
    assert cli.main([*line, "--output", str(output)]) == 0
    columns = parquet.read_table(output).to_pydict()
    assert list(columns) == ["image", "label", *LAYERS]
    rows = {
        k: np.array(v, None if k in ("image", "label") else np.float32)
        for k, v in columns.items()
    }
    check(rows, run, images, "mean")


def test_a_file_that_is_no_image_is_told_and_has_no_row(
    run: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    samples.pictures()[0].crop((0, 0, 50, 50)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"not an image")
    output = tmp_path / "rows.npz"
    line = ["features", run, str(folder), "--output", str(output)]
    assert cli.main(line) == 2
    printed = capsys.readouterr()
    assert f"unreadable: {folder / 'b.png'}: cannot decode 12 bytes" in printed.err
    assert "1 of 2 images could not be read" in printed.err
    assert "1 rows of pool5" in printed.out
    with np.load(output) as rows:
        assert list(rows["image"]) == [str(folder / "a.png")]
        assert rows["pool5"].shape == (1, 32)
    assert cli.main([*line, "--skip-bad"]) == 0
    (folder / "a.png").unlink()
    assert cli.main(line) == 1
    assert "none of 1 files is an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "relu9_1"], "error: --layers: layer 'relu9_1' is none of this"),
        (["--layers", ""], "error: --layers: layer ''"),
        (["--pool", "median"], "error: --pool median; expected mean, max, none"),
        (["--batch-size", "0"], "error: --batch-size 0; expected at least 1"),
        (["--output", "rows.txt"], "expected a name in .npz or .parquet"),
        (["--output", "http://x/rows.npz"], "--output starts with http://"),
        (["--output", "/proc/rows.npz"], "error: --output /proc/rows.npz cannot be"),
    ],
)
def test_options_that_cannot_be_are_told(
    options: list[str],
    said: str,
    run: str,
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["features", run, str(images), "--output", str(tmp_path / "x.npz")]
    assert cli.main([*line, *options]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_stopped_call_goes_on_with_the_next_part(
    run: str, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """SIGTERM after a few images; then what was whole is not read again."""
    output = tmp_path / "rows.npz"
    line = ["features", run, str(images), "--layers", ",".join(LAYERS)]
    line = ["-c", PROGRAM, *line, "--output", str(output), "--batch-size", "2"]
    (process,) = processes.start_python([line], devices=1)
    assert process.stdout is not None
    for _ in range(13):
        assert process.stdout.readline() == "read 1\n"
    process.send_signal(signal.SIGTERM)
    code, _, err = processes.finish(process, 100)
    assert code in (128 + signal.SIGTERM, 0), err
    if code:
        assert "stopped by SIGTERM: whole parts of 4 images are kept" in err
        assert not output.exists()
    (process,) = processes.start_python([line], devices=1)
    again, out, err = processes.finish(process, 100)
    assert again == 0, err
    if code:
        whole = out.count("read 4\n")
        assert whole >= 2 and out.count("read 1\n") == COUNT - 4 * whole
    with np.load(output) as rows:
        check(rows, run, images, "mean")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npz"]


@pytest.mark.slow
def test_two_processes_share_the_parts(
    run: str, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "rows.npz"
    line = ["-c", PROGRAM, "features", run, str(images), "--output", str(output)]
    line += ["--layers", ",".join(LAYERS)]
    reads = []
    for process in processes.start_python([line] * 2, devices=2):
        code, out, err = processes.finish(process, 200)
        assert code == 0, err[-2000:]
        reads.append(out.count("read 1\n"))
    assert reads == [12, 8]
    with np.load(output) as rows:
        check(rows, run, images, "mean")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npz"]
