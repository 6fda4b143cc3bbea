"""Eight CPU devices, strict JAX settings, and small things that several tests use."""

import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = os.environ.get("VGG_FLAX_TEST_PLATFORM", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Random numbers that XLA need not partition compile five times as fast, and drawing a
# net's first params was most of what the tests compile.
os.environ["JAX_THREEFRY_PARTITIONABLE"] = "0"
# Short runs are not worth LLVM's long thoughts, nor the newer of jaxlib 0.10's two ways
# to fused loops: a third less compiling, at the same speed. With XLA_FLAGS= in the
# environment, as for some of CI, programs are what users get.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
    if importlib.metadata.version("jaxlib").startswith("0.10.")
    else "--xla_backend_optimization_level=1",
)

import dataclasses
import gc
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets import shapes
from tests.shallow import NETS
from vgg_flax import config as config_lib
from vgg_flax import model
from vgg_flax import net as net_lib
from vgg_flax.images import preprocessing
from vgg_flax.runs import checkpoint
from vgg_flax.weights.card import ModelCard

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests call a program once or twice, so here LLVM thinks not at all: a third less.
# The processes that they start take many steps, each a quarter as long as it is so.
jax.config.update("jax_disable_most_optimizations", bool(os.environ["XLA_FLAGS"]))


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs are kept in pytest's cache, which `--cache-clear` empties.

    Compiling is most of what tests do, and much of it twice: in other tests, in the
    processes that they start, and in the next run.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and hasattr(config, "cache"):
        kept = str(config.cache.mkdir("compiled"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = kept  # of those processes
        jax.config.update("jax_compilation_cache_dir", kept)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rooms with long tests first: no process is left with one at the end."""
    first = ("training", "parallel", "evaluation", "config")
    items.sort(key=lambda item: not {*first} & {*item.path.parts})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.option.markexpr == "not slow":
        terminalreporter.write_line(
            "left out what is long by nature (marker slow); all: pytest -m ''"
        )


# Orbax leaves coroutines of failed reads behind; Python reports their end when it
# collects them, which is made to happen in their own test and not in another file's.
ORBAX_LEAVES_COROUTINES = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]


@pytest.fixture
def collect_garbage() -> Iterator[None]:
    gc.freeze()  # what was there before takes a second to look through
    yield
    gc.collect()
    gc.unfreeze()


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data_dir in which `digits` is written on first use."""
    return str(tmp_path_factory.mktemp("tensorflow_datasets"))


@pytest.fixture
def tiny_config(digits_dir: str) -> config_lib.Config:
    """A net of 0.1 MB on digits at 32 pixels, 64 examples a step, 8 devices."""
    return tiny(digits_dir)


@pytest.fixture
def bare_config(shallow: None, tiny_config: config_lib.Config) -> config_lib.Config:
    """One convolution a stage, no BatchNorm, dropout and hidden FC layers."""
    return changed(tiny_config, model__variant="vgg8", model__head="gap")


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """`vgg8` and `vgg8_bn`: one convolution a stage; Table 1 has no shorter than 8."""
    with pytest.MonkeyPatch.context() as patch:
        for name, net in NETS.items():
            patch.setitem(model.VARIANTS, name, net)
        yield


def tiny(digits_dir: str) -> config_lib.Config:
    """`tiny_config`, for fixtures that live longer."""
    return config_lib.Config(
        model=config_lib.ModelConfig(
            variant="vgg11_bn",
            num_classes=10,
            in_channels=1,
            width_multiplier=1 / 16,
            fc_widths=(16, 16),
            fc6_window=1,
            initializer="glorot",
        ),
        data=config_lib.DataConfig(
            name="digits",
            data_dir=digits_dir,
            train_split="train[:90%]",
            validation_split="train[90%:]",
            test_split="test",
            batch_size=64,
            eval_batch_size=64,
            train_view="pad_crop",
            train_scale=(28, 40),
            crop_size=32,
            test_scale=32,
            flip=False,
            mean=(0.305,),
            std=(0.376,),
            num_threads=2,
            prefetch=4,
        ),
        optimizer=config_lib.OptimizerConfig(learning_rate=0.05, schedule="constant"),
        num_epochs=1.0,
        log_every_steps=5,
    )


def changed(config: config_lib.Config, **fields: Any) -> config_lib.Config:
    """A copy of `config`; `model__variant="vgg13"` sets `config.model.variant`."""
    values = dataclasses.asdict(config)
    for name, value in fields.items():
        *outer, last = name.split("__")
        (values[outer[0]] if outer else values)[last] = value
    return config_lib.from_dict(values)


def random_net(variant: str, **fields: Any) -> net_lib.Net:
    """A small net for 32 pixels, nothing in which is zero or one."""
    small = {"num_classes": 10, "width_multiplier": 1 / 16, "fc_widths": (16, 16)}
    module = model.VGG(variant, **{**small, "fc6_window": 1, **fields})
    side, channels = module.smallest_image, module.in_channels
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "kernel":
            value = random.normal(0, np.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape)
        elif path[-1].key in ("scale", "var"):
            value = random.uniform(0.5, 1.5, leaf.shape)
        else:
            value = random.normal(0, 0.2, leaf.shape)
        return jnp.asarray(value, module.param_dtype)  # linen's statistics: float32

    card = ModelCard(
        model=module,
        preprocessing=preprocessing.Preprocessing(
            (0.5,) * channels, (0.25,) * channels, side * 8 // 7, side
        ),
        class_names=tuple(f"class {i}" for i in range(module.num_classes)),
        source="random.safetensors",
        sha256="0" * 64,
    )
    return net_lib.Net(jax.tree_util.tree_map_with_path(draw, shapes(module)), card)


def save_run(net: net_lib.Net, workdir: pathlib.Path) -> pathlib.Path:
    """`net` as a run directory that `vgg_flax.load` reads; returns `workdir`."""
    checkpoint.save_variables(workdir, net.variables, net.card.to_json())
    return workdir
