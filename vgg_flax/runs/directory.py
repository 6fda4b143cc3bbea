"""A run's directory: made, and tried; and what software runs in it."""

import importlib.metadata
import shutil

from etils import epath

from vgg_flax import spelling, storage
from vgg_flax.errors import ConfigError


def prepare(workdir: epath.Path, checkpoint_bytes: int) -> None:
    """Makes the directory and sees that it can be written to and holds a checkpoint.

    Raises:
      ConfigError: it cannot.
    """
    check_name(workdir)
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink(missing_ok=True)  # another start may have tried, too
        free = shutil.disk_usage(workdir).free if storage.is_local(workdir) else None
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written to: {error}; choose another"
        ) from error
    if free is not None and free < checkpoint_bytes:
        raise ConfigError(
            f"--workdir={workdir} has {free / 2**20:,.0f} MiB free, and a checkpoint "
            f"takes {checkpoint_bytes / 2**20:,.0f} MiB; make room or choose another"
        )


def check_name(folder: epath.Path) -> None:
    """Raises ConfigError for one that holds no checkpoints: TensorStore wants UTF-8."""
    name = str(folder.resolve())
    if spelling.digestible(name) != name.encode("utf-8", "replace"):
        raise ConfigError(
            f"{spelling.shown(name)} is no UTF-8, and no checkpoint can be written or "
            "read there; rename that folder, or choose another"
        )


def versions() -> dict[str, str]:
    """Of this package and those that a result depends on."""
    names = ("vgg-flax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
