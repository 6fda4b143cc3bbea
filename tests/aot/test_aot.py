"""Steps compiled for TPUs that are not here; needs the package libtpu."""

import json
import os
import pathlib
import subprocess
import sys
import types
from typing import Any

import jax
import pytest
from conftest import changed

from vgg_flax import config as config_lib
from vgg_flax import model
from vgg_flax.aot import chips, hlo, roofline
from vgg_flax.aot import program as program_lib
from vgg_flax.aot.program import ShortageError

RECIPE = """
from vgg_flax import config

def get_config():
    return config.Config(
        model=config.ModelConfig(
            variant="vgg11_bn", num_classes=10, width_multiplier=1 / 8,
            fc_widths=(512, 256), fc6_window=2, dtype="bfloat16",
        ),
        data=config.DataConfig(batch_size=128, crop_size=64, test_scale=64,
                               train_scale=(64, 64)),
        shard_fc=True,
    )
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vgg_flax", "compile", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )


# Compiles the gradient of two convolutions for a TPU, ours and XLA's: one program,
# up to the names of what it computes and the lines that they come from.
SAME_PROGRAM = """
import re, sys
import jax, jax.numpy as jnp
from vgg_flax.aot import program
from vgg_flax.model import convolution

chip = jax.sharding.SingleDeviceSharding(program.devices_of("v5e:2x2")[0])

def plain(x, kernel, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

def text(convolve):
    def loss(kernels, x):
        x = jax.nn.relu(convolve(x, kernels[0], "SAME"))
        return jnp.square(convolve(x, kernels[1], "VALID")).sum()

    shapes = (3, 3, 32, 32), (3, 3, 32, 32), (32, 16, 16, 32)
    *kernels, x = (
        jax.ShapeDtypeStruct(shape, sys.argv[1], sharding=chip) for shape in shapes)
    step = jax.jit(jax.value_and_grad(loss)).lower(kernels, x)
    body = step.compile().as_text()
    body = body[body.index(chr(10) + "%"):]  # after the tables of files and lines
    names = {}
    body = re.sub(r", metadata=\\{[^}]*\\}|stack_frame_id=\\d+", "", body)
    return re.sub(
        r"%[\\w.-]+", lambda name: names.setdefault(name[0], f"%{len(names)}"), body)

assert "convolution(" in text(plain)
assert text(convolution.convolve) == text(plain)
"""


@pytest.fixture
def recipe(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(RECIPE)
    return str(path)


def compiled(recipe: str, output: pathlib.Path, *more: str) -> dict[str, Any]:
    pytest.importorskip("libtpu")
    done = run(
        *("--config", recipe, "--topology", "v5e:2x4", "--output", str(output), *more)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(output.read_text())
    assert f"{told['flops']['image'] / 1e9:,.1f} GFLOP an image" in done.stdout
    return told


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolutions_for_cpus_leave_a_tpus_program_as_it_is(dtype: str) -> None:
    pytest.importorskip("libtpu")
    done = subprocess.run(
        [sys.executable, "-c", SAME_PROGRAM, dtype],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_training_step(recipe: str, tmp_path: pathlib.Path) -> None:
    told = compiled(recipe, tmp_path / "report.json", "--per-chip-batch", "16")
    assert (told["chips"], told["per_chip_batch"]) == (8, 16)
    # Forward 2 FLOPs a multiply-add, backward twice as many; conv1_1 gets no gradient
    # with respect to the images.
    every, first = _multiply_adds()
    assert told["flops"]["image"] == pytest.approx(6 * every - 2 * first, rel=0.01)
    memory = told["memory"]
    kernels = 4 * 64 * 512 + 512 * 256 + 256 * 10
    whole = told["parameter_bytes"]
    # Params and momentum, an eighth of the FC kernels.
    assert memory["params"] == whole - kernels * 4 * 7 // 8
    assert memory["optimizer"] == memory["params"]
    assert memory["batch"] == 16 * (64 * 64 * 3 + 4 + 1 + 4)
    assert told["donation"]["complete"]
    permutes = [e for e in told["collectives"] if e["kind"] == "collective-permute"]
    assert permutes and all(e["asynchronous"] for e in permutes)
    assert "libtpu" in told["versions"]
    assert "estimate" in told["roofline"]["is"]


def _multiply_adds(height: int = 64, width: int = 64) -> tuple[int, int]:
    """Of an image's forward pass, and of its first layer, margins left out."""
    layers, channels = [], 3
    for stage, out in zip(
        model.VARIANTS["vgg11"].stages, model.STAGE_WIDTHS, strict=True
    ):
        for window in stage:
            pixels = (window * height - 2) * (window * width - 2)
            layers.append(pixels * channels * (out // 8))
            channels = out // 8
        height, width = height // 2, width // 2
    places = (height - 1) * (width - 1)
    layers.append(places * (4 * 64 * 512 + 512 * 256 + 256 * 10))
    return sum(layers), layers[0]


@pytest.mark.slow
def test_loops_are_counted_as_often_as_they_turn(
    recipe: str, tmp_path: pathlib.Path
) -> None:
    told = compiled(
        recipe,
        tmp_path / "report.json",
        *("--per-chip-batch", "64", "--config.remat=true"),
        *("--config.optimizer.accumulation_steps=2", "--config.model.variant=vgg11"),
    )
    # Two turns of the step, in them two of 16 images: forward, again, and backward.
    every, first = _multiply_adds()
    assert told["flops"]["image"] == pytest.approx(8 * every - 2 * first, rel=0.05)
    permutes = [e for e in told["collectives"] if e["kind"] == "collective-permute"]
    halves = 4 * 64 * 512 + 512 * 256 + 256 * 10  # of the FC gradients, as bfloat16
    exchanged = sum(e["bytes"] for e in permutes)
    assert exchanged == pytest.approx(2 * halves * 2 * 7 / 8, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "size"), [("evaluate", (64, 64)), ("dense", (96, 128))]
)
def test_evaluation_steps(
    recipe: str, tmp_path: pathlib.Path, program: str, size: tuple[int, int]
) -> None:
    more = ["--program", program, "--per-chip-batch", "8"]
    more += ["--image-size", "96x128"] if program == "dense" else []
    told = compiled(recipe, tmp_path / "report.json", *more)
    assert told["image_size"] == [*size]
    every, _ = _multiply_adds(*size)
    assert told["flops"]["image"] == pytest.approx(2 * every, rel=0.01)
    assert "optimizer" not in told["memory"] and "params" in told["memory"]


@pytest.mark.slow
def test_what_does_not_fit_says_how_much_is_missing(recipe: str) -> None:
    pytest.importorskip("libtpu")
    done = run(
        *("--config", recipe, "--topology", "v5e:2x4", "--per-chip-batch", "200000")
    )
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert "error: vgg11_bn, program train, does not fit into a v5e chip" in error
    assert "GiB too many" in error


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--topology", "v5e"], "expected a generation and sides"),
        (["--topology", "v5e:3x77"], "libtpu knows no such slice"),
        (["--topology", "v5e:2x4", "--config.model.variat=D"], "did you mean"),
        (["--topology", "v5e:2x4", "--config.data.batch_size=100"], "8 chip(s)"),
    ],
)
def test_bad_input(recipe: str, more: list[str], said: str) -> None:
    if "libtpu" in said or "chip" in said:
        pytest.importorskip("libtpu")
    done = run("--config", recipe, *more)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert said in done.stderr.splitlines()[-1]


def test_a_step_takes_as_many_channels_as_the_net_also_where_weights_tell_the_pixels(
    bare_config: config_lib.Config,
) -> None:
    config = changed(bare_config, init_from="run", data__mean=None, data__std=None)
    assert config.model.in_channels == 1
    program = program_lib.compile_program("train", config, jax.devices()[:2], 2)
    assert program.per_chip_batch == 2


def test_the_training_step_is_that_of_the_largest_views(
    bare_config: config_lib.Config,
) -> None:
    sides = ((0.0, 32), (1.0, 40), (2.0, 36))
    config = changed(
        bare_config, data__crop_size_by_epoch=sides, data__train_scale=(40, 40)
    )
    for name, side in (("train", 40), ("evaluate", 32)):
        program = program_lib.compile_program(name, config, jax.devices()[:2], 2)
        assert program.image_size == (side, side)


def test_the_largest_batch_is_found() -> None:
    tried = []

    def compile_batch(batch: int) -> Any:
        tried.append(batch)
        if batch > 203:
            raise ShortageError("too many")
        return batch

    assert program_lib.find_batch(compile_batch, lambda _: None) == 200
    assert tried[:4] == [32, 64, 128, 256] and len(tried) == len(set(tried))
    tried.clear()
    assert program_lib.find_batch(compile_batch, lambda _: None, start=1000) == 200
    with pytest.raises(ShortageError):
        program_lib.find_batch(compile_batch, lambda _: None, start=500, multiple=300)


def test_a_transfer_needs_its_busiest_link() -> None:
    places = [(x, y, 0) for y in range(4) for x in range(4)]
    program: Any = types.SimpleNamespace(
        devices=[types.SimpleNamespace(coords=place) for place in places],
        chip=chips.CHIPS["TPU v5 lite"],
    )

    def seconds(kind: str, distance: int = 0) -> float:
        pairs = tuple((i, i ^ distance) for i in range(16)) if distance else ()
        exchange = hlo.Collective(kind, 10**9, None, pairs, "")
        return roofline.exchange_seconds(program, exchange)

    assert seconds("collective-permute", 1) == pytest.approx(0.02)  # 50 GB/s
    assert seconds("collective-permute", 2) == pytest.approx(0.04)  # two share a link
    assert seconds("collective-permute", 4) == pytest.approx(0.02)
    assert seconds("all-gather") == pytest.approx(15 / 16 / 200)
    assert seconds("all-reduce") == pytest.approx(30 / 16 / 200)


# ml_collections loads recipes in a way that Python deprecates.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_recipes_for_pods_cut_their_fc_layers() -> None:
    from vgg_flax.config import recipe as recipe_lib

    folder = pathlib.Path(__file__).parents[2] / "configs"
    settings = recipe_lib.read(str(folder / "vgg16_imagenet.py"), ["--config.seed=3"])
    assert isinstance(settings, config_lib.Config)
    assert settings.shard_fc and settings.seed == 3
