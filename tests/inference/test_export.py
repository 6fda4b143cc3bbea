"""The exported artifact, run by a program that knows nothing of this package."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import PIL.Image
import pytest
from conftest import random_net, save_run

from vgg_flax import cli
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.inference import export

pytestmark = pytest.mark.usefixtures("shallow")

MANUAL = pathlib.Path(__file__).parents[2] / "docs" / "weights.md"


def loader() -> str:
    """The manual's program of ten lines."""
    blocks = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    (program,) = [block for block in blocks if "jax.export" in block]
    assert len(program.split("\n")) == 12  # one is blank, and the last ends
    return program


def views(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    "variant", ["vgg8_bn", pytest.param("vgg16_1x1", marks=pytest.mark.slow)]
)
def test_the_loader_alone_gives_the_nets_logits(
    variant: str, tmp_path: pathlib.Path
) -> None:
    net = random_net(variant)
    size = export.save(net, tmp_path / "vgg16.jax")
    files = sorted(tmp_path.iterdir())
    assert [p.name for p in files] == ["vgg16.jax", "vgg16.jax.json"]
    assert size == files[0].stat().st_size
    batch = views(3, 32, 32, 3)
    PIL.Image.fromarray(views(50, 61, 3)).save(tmp_path / "photo.jpg")
    np.save(tmp_path / "batch.npy", batch)
    program = loader() + (
        "import sys\n"
        "assert not {'vgg_flax', 'flax'} & set(sys.modules)\n"
        "three = net.call(np.load('batch.npy'))\n"
        "np.savez('logits.npz', one=scores, three=three)\n"
    )
    run = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    with np.load(tmp_path / "logits.npz") as file:
        logits = dict(file)
    view = net.preprocessing.test_view((tmp_path / "photo.jpg").read_bytes())
    scores = jax.nn.softmax(net(view[None])[0])
    np.testing.assert_allclose(logits["one"], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits["three"], net(batch), rtol=1e-5, atol=1e-5)
    assert np.ptp(logits["three"], axis=0).max() > 0.01  # the images matter
    best = int(logits["one"].argmax())
    assert done.stdout.startswith(f"[('class {best}', 0.")
    assert done.stdout.count("class ") == 5


def test_the_json_beside_it_says_what_it_is(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg8").replace(class_names=())
    export.save(net, tmp_path / "net.jax", ("cpu",))
    about = json.loads((tmp_path / "net.jax.json").read_text())
    preprocessing = Preprocessing.from_dict(about["preprocessing"])
    assert preprocessing == net.preprocessing
    assert about["class_names"] == list("0123456789")
    assert (about["source"], about["sha256"]) == (net.source, net.sha256)
    assert (about["variant"], about["platforms"]) == ("vgg8", ["cpu"])
    assert about["versions"]["jax"] == jax.__version__


def test_float32_is_computed_at_the_highest_precision_on_every_platform() -> None:
    artifact = export.export(random_net("vgg8"), ("tpu", "cuda"))
    exported = jax.export.deserialize(artifact)
    assert exported.platforms == ("tpu", "cuda")
    lines = exported.mlir_module().splitlines()
    products = [s for s in lines if "stablehlo.convol" in s or "stablehlo.dot_g" in s]
    assert len(products) == 2 * (5 + 3)  # JAX lowers them for each platform
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_the_interface_is_uint8_in_any_batch_to_logits() -> None:
    exported = jax.export.deserialize(export.export(random_net("vgg8"), ("cpu",)))
    (images,), (logits,) = exported.in_avals, exported.out_avals
    assert (images.dtype, images.shape[1:]) == (np.uint8, (32, 32, 3))
    assert (logits.dtype, logits.shape[1:]) == (np.float32, (10,))
    assert images.shape[0] == logits.shape[0] and not isinstance(images.shape[0], int)


@pytest.mark.parametrize("platforms", [(), ("cpu", "gpu")])
def test_unknown_platforms_are_refused(platforms: tuple[str, ...]) -> None:
    with pytest.raises(export.ExportError, match="expected some of cpu,cuda"):
        export.export(random_net("vgg8"), platforms)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg8")
    with pytest.raises(export.ExportError, match="there is no folder"):
        export.save(net, tmp_path / "missing" / "net.jax")
    for there in ("net.jax.json", "net.jax"):  # weights, perhaps
        (tmp_path / there).write_text("precious")
        with pytest.raises(export.ExportError, match=f"{there} exists; choose"):
            export.save(net, tmp_path / "net.jax", ("cpu",))
        assert [p.name for p in tmp_path.iterdir()] == [there]
        assert (tmp_path / there).read_text() == "precious"
        (tmp_path / there).unlink()


def test_features_have_no_class_names(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg8", head="none", num_classes=1000).replace(class_names=())
    export.save(net, tmp_path / "net.jax", ("cpu",))
    assert json.loads((tmp_path / "net.jax.json").read_text())["class_names"] == []


def test_the_command_writes_a_folded_net(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = random_net("vgg8_bn", conv_bias=False)
    run = save_run(net, tmp_path / "run")
    target = tmp_path / "net.jax"
    command = ["export", str(run), str(target), "--platforms", "cpu", "--fold-bn"]
    assert cli.main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("folded BatchNorm: logits move by ")
    assert float(first.split()[5]) < 1e-5
    assert second.startswith(f"wrote vgg8 to {target} (")
    batch = views(2, 32, 32, 3)
    logits = jax.export.deserialize(bytearray(target.read_bytes())).call(batch)
    np.testing.assert_allclose(logits, net(batch), rtol=1e-4, atol=1e-5)
    about = json.loads((tmp_path / "net.jax.json").read_text())
    assert (about["variant"], about["source"]) == ("vgg8", str(run))
    command[2] = str(tmp_path / "other.jax")
    assert cli.main([*command, "--platforms", "gpu"]) == 1
    assert "expected some of cpu,cuda,rocm,tpu" in capsys.readouterr().err
