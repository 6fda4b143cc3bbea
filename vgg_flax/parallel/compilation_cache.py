"""Compiled programs kept on this disk: a second start finds what the first compiled."""

import contextlib
import os
import pathlib
import tempfile
import time

import jax

from vgg_flax import console, storage

# What is compiled sooner is not worth a file. All files together stay below the size;
# those that were not used for longest go first.
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    "jax_compilation_cache_max_size": 2 * 2**30,
}
_UNLIMITED = -1  # to JAX, which then notes no times of use
_TORN_SECONDS = 60.0


def set_up(wanted: bool) -> None:
    """Lets JAX keep this process's compiled programs, and look for them first.

    They are in `compiled`, in `storage.cache_folder`. What JAX's own variables set goes
    before: JAX_COMPILATION_CACHE_DIR, JAX_COMPILATION_CACHE_MAX_SIZE,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, JAX_ENABLE_COMPILATION_CACHE. Of several
    processes the first writes. A folder that cannot be written to is told, and then
    nothing is kept.

    Args:
      wanted: False: nothing is kept nor looked for, whatever the variables say.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
    set_to = jax.config.values
    if (
        not set_to["jax_enable_compilation_cache"]
        or set_to["jax_compilation_cache_dir"]
    ):
        return
    try:
        folder = storage.cache_folder() / "compiled"
        # JAX runs what it finds there: nobody else may write to it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (storage.StorageError, OSError) as error:
        console.say(f"compiled programs are not kept for the next start: {error}")
        return
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if jax.config.values["jax_compilation_cache_max_size"] != _UNLIMITED:
        _remove_torn(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _remove_torn(folder: pathlib.Path) -> None:
    """Removes the program that a killed process was writing.

    JAX writes its time of use last, and without one keeps nothing more in a folder.
    """
    for program in folder.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("-cache") + "-atime")
        with contextlib.suppress(OSError):
            if (
                not used.exists()
                and program.stat().st_mtime < time.time() - _TORN_SECONDS
            ):
                program.unlink()
