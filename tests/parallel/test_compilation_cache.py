"""Compiled programs are found by the next start, where commands keep them."""

import os
import pathlib
import time

import jax
import pytest
from conftest import random_net, save_run

from tests import processes
from vgg_flax import cli

# JAX_COMPILATION_CACHE_DIR is the tests' own, and empty as if it were not there.
OURS = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_ENABLE_COMPILATION_CACHE": "true"}
PROGRAM = """
import jax, vgg_flax
from jax import monitoring
from vgg_flax.parallel import compilation_cache
assert not jax.config.values["jax_compilation_cache_dir"], "importing has turned it on"
compilation_cache.set_up(True)
hits = []
def listen(event, **_): hits.append("cache_hits" in event)
monitoring.register_event_listener(listen)
print(jax.jit(lambda x: x * 3 + 1)(13.0), sum(hits))
"""


def start(cache: pathlib.Path, *arguments: str, **environment: str) -> processes.Ended:
    """A Python process whose cache folder is `cache`."""
    environment = {**OURS, "VGG_FLAX_CACHE": str(cache), **environment}
    process = processes.start_python([arguments], devices=1, environment=environment)
    return processes.finish(process[0])


def test_a_second_start_finds_what_the_first_compiled(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "compiled"
    assert start(tmp_path, "-c", PROGRAM) == (0, "40.0 0\n", "")
    kept = {path.name: path.read_bytes() for path in folder.glob("*-cache")}
    assert len(kept) == 1
    assert folder.stat().st_mode & 0o777 == 0o700  # nobody else's code is run
    # One that a killed process was writing: JAX would keep nothing beside it.
    # Without a limit it notes no times of use, and all programs look like that.
    torn = folder / "jit_f-torn-cache"
    torn.write_bytes(b"torn")
    os.utime(torn, (time.time() - 3600,) * 2)
    without = {"JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    assert start(tmp_path, "-c", PROGRAM, **without) == (0, "40.0 1\n", "")
    assert torn.exists()
    assert start(tmp_path, "-c", PROGRAM) == (0, "40.0 1\n", "")
    assert {p.name: p.read_bytes() for p in folder.glob("*-cache")} == kept


@pytest.mark.slow  # the second start is above
def test_train_tells_where_nothing_can_be_kept(tmp_path: pathlib.Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("no folder")
    command = ["train.py", f"--workdir={tmp_path / 'run'}", "--config.data.name=folder"]
    command.append(f"--config.data.data_dir={tmp_path}")  # without images: an end
    ended = start(taken, *command)
    first, *others = ended.err.splitlines()
    assert first.startswith("compiled programs are not kept for the next start: ")
    assert str(taken) in first and [line[:7] for line in others] == ["error: "]
    ended = start(taken, *command, "--nocompilation_cache")
    assert [line[:7] for line in ended.err.splitlines()] == ["error: "]


def test_commands_keep_nothing_if_so_asked(tmp_path: pathlib.Path) -> None:
    run = save_run(random_net("vgg11"), tmp_path / "run")
    before = jax.config.values["jax_enable_compilation_cache"]
    try:
        assert cli.main(["describe", str(run), "--no-compilation-cache"]) == 0
        assert not jax.config.values["jax_enable_compilation_cache"]
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
