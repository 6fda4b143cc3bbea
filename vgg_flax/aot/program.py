"""The real steps, compiled for TPUs that are not here, and what the programs tell.

Nothing is run: shapes go in, and the compiler for the chips (package libtpu) says what
it made of them. Times are estimates from published peaks, never measurements.
"""

import dataclasses
import importlib.metadata
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vgg_flax import config as config_lib
from vgg_flax import errors, parallel
from vgg_flax.aot.chips import CHIPS, Chip
from vgg_flax.config import Config, DataConfig
from vgg_flax.data import batches
from vgg_flax.errors import VGGFlaxError
from vgg_flax.evaluation import posteriors
from vgg_flax.images import preprocessing
from vgg_flax.training import objectives, schedules, step
from vgg_flax.training import state as state_lib
from vgg_flax.training.objectives import CLASSIFICATION, Objective

PROGRAMS = ("train", "evaluate", "dense")


class ShortageError(VGGFlaxError):
    """A program that needs more memory than a chip has."""


def devices_of(topology: str) -> list[Any]:
    """The devices of a slice such as "v5e:16x16", one a chip, as the compiler has them.

    Raises:
      ConfigError: no such slice.
      VGGFlaxError: libtpu is not installed.
    """
    # libtpu: ask no TPU machine what it is, claim no chips, complain of neither.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "true"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-16"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    if not re.fullmatch(r"v\d\w*:\d+x\d+(x\d+)?", topology):
        raise errors.ConfigError(
            f"--topology={topology}: expected a generation and sides, such as "
            "v5e:16x16 or v5p:8x8x4"
        )
    try:
        libtpu_version()
        # One device a chip, where a chip has two cores.
        cores = {"v4": "megacore", "v5p": "megacore"}.get(topology.split(":")[0])
        options = {"chip_config_name": cores} if cores else {}
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except importlib.metadata.PackageNotFoundError as error:
        raise VGGFlaxError(
            "compiling for TPUs needs the package libtpu: pip install "
            "'vgg-flax[tpu-aot]'"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise errors.ConfigError(
            f"--topology={topology}: libtpu knows no such slice: {error}"
        ) from error
    devices = list(described.devices)
    if devices[0].device_kind not in CHIPS:
        raise errors.ConfigError(
            f"--topology={topology}: no figures for {devices[0].device_kind}; known: "
            f"{', '.join(chip.name for chip in CHIPS.values())}"
        )
    return devices


def libtpu_version() -> str:
    """The installed compiler's version."""
    return importlib.metadata.version("libtpu")


@dataclasses.dataclass(frozen=True)
class Program:
    """A step compiled for `devices`.

    Attributes:
      name: one of `PROGRAMS`.
      config: what it was made of, with its batch sizes.
      devices: of the slice.
      per_chip_batch: images.
      image_size: height and width.
      compiled: what JAX returned.
      argument_bytes: a chip's, by kind: params, optimizer, batch_stats, batch.
      parameter_bytes: of the whole net.
    """

    name: str
    config: Config
    devices: Sequence[Any]
    per_chip_batch: int
    image_size: tuple[int, int]
    compiled: Any
    argument_bytes: dict[str, int]
    parameter_bytes: int

    @property
    def chip(self) -> Chip:
        """The kind of the devices."""
        return CHIPS[self.devices[0].device_kind]


def compile_program(
    name: str,
    config: Config,
    devices: Sequence[Any],
    per_chip_batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    objective: Objective = CLASSIFICATION,
    optimizer: optax.GradientTransformation | None = None,
) -> Program:
    """Compiles the very step that training or evaluation would run on `devices`.

    Args:
      name: "train"; "evaluate", the centre crops of a training run; "dense", whole
        images, padded to one size.
      config: the recipe.
      devices: of `devices_of`.
      per_chip_batch: images; None: the recipe's global batch over the chips.
      image_size: of "dense": height and width; None: 4:3 at the recipe's test_scale.
      objective: the recipe's.
      optimizer: the recipe's own, if it has one.

    Raises:
      ConfigError: the recipe is wrong, or its batch does not divide over the chips.
      ShortageError: it does not fit into the chips' memory.
    """
    chips = len(devices)
    config, each = _check_batch(name, config, chips, per_chip_batch)
    objectives.check(objective, config.objective)
    if config.distillation.teacher:
        raise errors.ConfigError(
            f"config.distillation.teacher={config.distillation.teacher!r}: a step with "
            "a teacher is not compiled ahead of its run; leave it out"
        )
    data = _data_of(name, config)
    size = (data.crop_size, data.crop_size)
    if name == "dense":
        size = image_size or (data.test_scale, data.test_scale * 4 // 3)
    shards = parallel.UNCUT
    if name != "dense":
        shards = state_lib.make_shards(config, chips, devices)
    state = jax.eval_shape(lambda: state_lib.init_state(config, optimizer))
    given = state if name == "train" else state.variables
    kinds = {"params": state.params, "batch_stats": state.batch_stats}
    if name == "train":
        kinds |= {"optimizer": state.opt_state, "ema": state.ema}
    batch = _batch_shapes(name, data, (chips, each), size)
    mapped = parallel.pmap_step(
        _make_step(name, config, objective, shards, optimizer),
        donate_state=name == "train",
        state_axes=shards.axes(given),
        devices=devices,
    )
    argument_bytes = {
        kind: _bytes_of_a_chip(shards, tree) for kind, tree in kinds.items()
    }
    argument_bytes["batch"] = _bytes_of(batch) // chips
    program = Program(
        name=name,
        config=config,
        devices=devices,
        per_chip_batch=each,
        image_size=size,
        compiled=None,
        argument_bytes=argument_bytes,
        parameter_bytes=_bytes_of(state.params),
    )
    precision = "default" if config.model.dtype == "bfloat16" else "highest"
    try:
        with jax.default_matmul_precision(precision if name == "dense" else "default"):
            compiled = mapped.lower(shards.shapes_of(given), batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ShortageError(_shortage(program, str(error))) from error
    return dataclasses.replace(program, compiled=compiled)


def _check_batch(
    name: str, config: Config, chips: int, per_chip_batch: int | None
) -> tuple[Config, int]:
    """The checked config with the batch asked for, and a chip's part of it."""
    field = "batch_size" if name == "train" else "eval_batch_size"
    data = config.data
    if config.init_from:  # whose pixels are not read here, and any make this program
        some = (0.5,) * config.model.in_channels
        data = dataclasses.replace(data, mean=data.mean or some, std=data.std or some)
    if per_chip_batch is not None:
        data = dataclasses.replace(data, **{field: per_chip_batch * chips})
    config = config_lib.check(dataclasses.replace(config, data=data))
    pieces = config.optimizer.accumulation_steps if name == "train" else 1
    total = getattr(config.data, field)
    config_lib.check_batch(
        f"data.{field}", total, chips * pieces, f"{chips} chip(s) x {pieces} step(s)"
    )
    return config, total // chips


def _make_step(
    name: str,
    config: Config,
    objective: Objective,
    shards: parallel.FCShards,
    optimizer: optax.GradientTransformation | None,
) -> Callable[..., Any]:
    if name == "train":
        schedule = schedules.make_schedule(config.optimizer, 1000.0, 100_000)
        return step.make_train_step(config, schedule, objective, shards, optimizer)
    if name == "evaluate":
        return step.make_eval_step(config, objective, shards)
    net = state_lib.make_model(config.model)
    return posteriors.make_step(net, preprocessing.Preprocessing.of(config.data))


def _data_of(name: str, config: Config) -> DataConfig:
    """Of training, where the size of views changes by epoch, the largest's."""
    if name != "train":
        return config.data
    stages = (data for _, data in config_lib.training_stages(config.data))
    return max(stages, key=lambda data: data.crop_size)


def _batch_shapes(
    name: str, data: DataConfig, lead: tuple[int, int], size: tuple[int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    if name != "dense":
        return batches.batch_shapes(data, lead, train=name == "train")
    image = (*lead, *size, len(config_lib.mean_and_std(data)[0]))
    return {
        "image": jax.ShapeDtypeStruct(image, jnp.uint8),
        "size": jax.ShapeDtypeStruct((*lead, 2), jnp.int32),
    }


def find_batch(
    compile_batch: Callable[[int], Program],
    say: Callable[[str], None],
    start: int = 32,
    multiple: int = 8,
) -> Program:
    """The program of the largest per-chip batch that fits, to `multiple` images.

    Doubles, from `start`, until one does not fit, then halves the interval.

    Raises:
      ShortageError: not even `multiple` images fit.
    """
    best: Program | None = None
    fits, too_many = 0, None  # in units of `multiple`
    units = max(1, start // multiple)
    while too_many is None or too_many - fits > 1:
        try:
            best = compile_batch(units * multiple)
            fits = units
            say(f"{units * multiple} images a chip fit")
        except ShortageError:
            too_many = units
            say(f"{units * multiple} images a chip do not fit")
            if units == 1:
                raise
        units = fits * 2 if too_many is None else (fits + too_many) // 2
    assert best is not None  # `fits` is at least 1
    return best


def _shortage(program: Program, error: str) -> str:
    # "... (27.41G) exceeds available HBM (15.75G)", "21.14G exceeds 15.75G"
    sizes = re.search(r"([\d.]+)G\)? exceeds [^\d\n]*([\d.]+)G", error)
    shortage = error.splitlines()[0][:300]
    if sizes:
        short = float(sizes[1]) - float(sizes[2])
        shortage = f"needs {sizes[1]} GiB of {sizes[2]}, {short:.2f} GiB too many"
    return (
        f"{program.config.model.variant}, program {program.name}, does not fit into a "
        f"{program.chip.name} chip with {program.per_chip_batch} images a chip: "
        f"{shortage}; use fewer images (--per-chip-batch, --find-batch), shard_fc, "
        "remat or accumulation_steps"
    )


def _bytes_of(tree: Any) -> int:
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _bytes_of_a_chip(shards: parallel.FCShards, tree: Any) -> int:
    cut = jax.tree.leaves(shards.axes(tree), is_leaf=lambda axis: axis is None)
    leaves = jax.tree.leaves(shards.shapes_of(tree))
    if not shards.shapes:
        return _bytes_of(leaves)
    return sum(
        _bytes_of(leaf) // (1 if axis is None else shards.replicas)
        for leaf, axis in zip(leaves, cut, strict=True)
    )
