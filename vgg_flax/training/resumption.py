"""What a run starts with: settings that fit, a new state, another run's params."""

import jax

from vgg_flax import config as config_lib
from vgg_flax.config import Config
from vgg_flax.errors import ConfigError
from vgg_flax.runs import checkpoint
from vgg_flax.training import state as state_lib
from vgg_flax.training.state import TrainState


def check(config: Config, devices: int) -> None:
    """Sees that a checked config fits these devices, JAX's settings and its own net.

    Raises:
      ConfigError: a batch that does not divide over the devices, float64 where JAX
        has none, or images that are too small for the net.
    """
    pieces = config.optimizer.accumulation_steps
    of_what = f"{devices} device(s)"
    config_lib.check_batch(
        "data.eval_batch_size", config.data.eval_batch_size, devices, of_what
    )
    if pieces > 1:
        of_what += f" x {pieces} accumulation steps"
    config_lib.check_batch(
        "data.batch_size", config.data.batch_size, devices * pieces, of_what
    )
    net = state_lib.make_model(config.model)
    if net.param_dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "config.model.dtype='float64' needs JAX's 64-bit mode, which is off; "
            "set the environment variable JAX_ENABLE_X64=1"
        )
    if config.data.crop_size < net.smallest_image:
        raise ConfigError(
            f"config.data.crop_size={config.data.crop_size} is smaller than the net "
            f"can take, {net.smallest_image} pixels with config.model.fc6_window="
            f"{config.model.fc6_window}; raise it, or use "
            f"--config.model.fc6_window={max(1, config.data.crop_size // 32)}"
        )


def check_same(saved: checkpoint.Checkpoint, config: Config) -> None:
    """Sees that a run goes on with the settings that it was saved with.

    Raises:
      ConfigError: naming those that differ, unless `config.resume_with_changes`.
    """
    differing = config_lib.differences(
        config_lib.from_dict(saved.meta["config"]), config
    )
    if differing and not config.resume_with_changes:
        changes = "; ".join(
            f"config.{name}: {old!r} -> {new!r}"
            for name, (old, new) in differing.items()
        )
        raise ConfigError(
            f"the run is at step {saved.step} with other settings: {changes}. Use "
            "another --workdir, or go on with --config.resume_with_changes=true"
        )


def new_state(config: Config) -> TrainState:
    """The state before the first step: drawn, and taken from `config.init_from`.

    Raises:
      CheckpointError: there is no checkpoint to take from, or it does not fit.
      ConfigError: it lacks one of `config.init_layers`.
    """
    state = jax.jit(lambda: state_lib.init_state(config))()
    return _init_from(config, state) if config.init_from else state


def _init_from(config: Config, state: TrainState) -> TrainState:
    """`state` with params (and statistics) of another run's checkpoint."""
    other = checkpoint.load(config.init_from)
    expected = checkpoint.to_leaves(state)
    chosen = {
        path: leaf
        for path, leaf in other.leaves.items()
        if not config.init_layers or path.split("/")[1] in config.init_layers
    }
    found = {path.split("/")[1] for path in chosen}
    missing = [layer for layer in config.init_layers if layer not in found]
    if missing:
        raise ConfigError(
            f"config.init_layers names {missing}, which {config.init_from} lacks; it "
            f"has {sorted({path.split('/')[1] for path in other.leaves})}"
        )
    kept = {
        path: leaf
        for path, leaf in expected.items()
        if path not in chosen and (config.init_layers or not _is_model(path))
    }
    return checkpoint.from_leaves(state, {**kept, **chosen})


def _is_model(path: str) -> bool:
    return path.startswith(("params/", "batch_stats/"))
