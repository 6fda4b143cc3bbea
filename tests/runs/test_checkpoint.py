"""Checkpoints come back bit for bit, or say what is wrong."""

import logging
import pathlib
import shutil
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ORBAX_LEAVES_COROUTINES

from tests import processes
from vgg_flax import config, parallel
from vgg_flax.runs import checkpoint
from vgg_flax.runs.leaves import from_leaves, to_leaves
from vgg_flax.training import state as state_lib
from vgg_flax.training.state import TrainState

pytestmark = ORBAX_LEAVES_COROUTINES


@pytest.fixture(scope="module")
def start() -> TrainState:
    """What `state` is a copy of, on the host; to draw it takes a second."""
    recipe = config.Config()
    recipe.model = config.ModelConfig(
        variant="vgg11_bn", width_multiplier=1 / 16, fc_widths=(8, 8), num_classes=3
    )
    return jax.device_get(jax.jit(lambda: state_lib.init_state(recipe))())


@pytest.fixture
def state(start: TrainState) -> TrainState:
    """To be changed, donated and deleted."""
    return jax.tree.map(jnp.array, start)


def save(
    checkpoints: checkpoint.Checkpoints, step: int, state: Any, top1: float | None
):
    stamped = state.replace(step=jnp.asarray(step, jnp.int32))
    score = None if top1 is None else ("top1", top1)
    checkpoints.save(step, stamped, {"note": f"step {step}"}, score)
    checkpoints.wait()


# Saves in a folder, and says why it failed.
SAVES = """
import pathlib, sys
import jax.numpy as jnp
from vgg_flax.runs import checkpoint
state = {"params": {"fc8": {"kernel": jnp.ones((4, 4))}}, "batch_stats": {},
         "step": jnp.ones((), jnp.int32)}
with checkpoint.Checkpoints(pathlib.Path(sys.argv[1]), keep=3) as checkpoints:
    checkpoints.save(1, state, {}, None)
    checkpoints.wait()
"""


def flip_a_bit(folder: pathlib.Path) -> None:
    """In the middle of the largest file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)


def test_a_state_comes_back_bit_for_bit(
    state: TrainState, tmp_path: pathlib.Path
) -> None:
    replicated = parallel.replicate(state)
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        save(checkpoints, 7, replicated, None)
        found = checkpoints.read_newest()
    assert found is not None
    assert found.step == 7
    assert found.meta["note"] == "step 7"
    back = from_leaves(jax.eval_shape(lambda: state), found.leaves)
    expected = state.replace(step=jnp.asarray(7, jnp.int32))
    assert jax.tree.structure(back) == jax.tree.structure(expected)
    for ours, theirs in zip(
        jax.tree.leaves(back), jax.tree.leaves(expected), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, found.variables["params"], state.params)


def test_buffers_may_be_donated_while_a_save_is_under_way(
    state: TrainState, tmp_path: pathlib.Path
) -> None:
    state = parallel.replicate(state)
    before = np.array(state.params["fc6"]["kernel"])
    double = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        checkpoints.save(1, state, {}, None)
        for _ in range(20):
            state = double(state)
        checkpoints.wait()
        leaves = checkpoints.read(1).leaves
    np.testing.assert_array_equal(leaves["params/fc6/kernel"], before)


@pytest.mark.parametrize("left", [30, 45])
def test_where_a_folder_cannot_be_made_the_process_ends_with_the_reason(
    left: int, tmp_path: pathlib.Path
) -> None:
    """Paths of more than 4,095 bytes can't: the folder of the step, or those in it.

    Orbax's threads waited five minutes for a folder that nobody made.
    """
    path = str(tmp_path / "run")
    while len(path) < 4095 - left - 200:
        path += "/" + "d" * 180
    path += "/" + "d" * (4095 - left - len(path) - 1)
    (process,) = processes.start_python([["-c", SAVES, path]], devices=1)
    code, _, err = processes.finish(process, 120)
    assert code == 1
    assert "File name too long" in err.splitlines()[-1]
    assert "CheckpointError: cannot save step 1" in err


def test_the_newest_three_and_the_best_are_kept(
    state: TrainState, tmp_path: pathlib.Path
) -> None:
    top1 = {1: 0.2, 2: 0.8, 3: None, 4: 0.5, 5: None, 6: 0.6, 7: 0.7}
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step, value in top1.items():
            save(checkpoints, step, state, value)
        assert checkpoints.steps() == [2, 5, 6, 7]
        assert checkpoints.best_step() == 2
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as reopened:
        assert reopened.best_step() == 2


def test_a_step_is_removed_whole_or_not_at_all(
    state: TrainState, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    with checkpoint.Checkpoints(folder, keep=1) as checkpoints:
        save(checkpoints, 1, state, None)
        checkpoints.save(2, state.replace(step=jnp.asarray(2, jnp.int32)), {}, None)
        while not checkpoints.has_saved(2):
            time.sleep(0.01)
        # A kill may come now, or while what was moved is being removed.
        assert not (folder / "1").exists()
        moved = folder / ".removed" / "1"
        assert (moved / "model").is_dir()
        kept = shutil.copytree(moved, tmp_path / "kept")
        checkpoints.wait()
        assert not moved.exists()
    shutil.rmtree(kept / "model")
    shutil.copytree(kept, moved)
    with checkpoint.Checkpoints(folder, keep=1) as checkpoints:
        found = checkpoints.read_newest()
    assert found is not None and found.step == 2
    assert [path.name for path in folder.iterdir()] == ["2"]
    assert not caplog.messages and not (tmp_path / "damaged").exists()


def test_a_flipped_bit_is_found_and_the_step_before_is_read(
    state: TrainState,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step, state, None)
    flip_a_bit(tmp_path / "checkpoints" / "3")
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        with pytest.raises(checkpoint.CheckpointError, match=r"damaged|cannot be read"):
            checkpoints.read(3)
        with caplog.at_level(logging.ERROR):
            found = checkpoints.read_newest()
        assert found is not None
        assert found.step == 2
        assert "falling back" in caplog.text
        assert checkpoints.steps() == [1, 2]
        assert (tmp_path / "damaged" / "3").is_dir()
        save(checkpoints, 3, state, None)  # its place is free again
        assert checkpoints.steps() == [1, 2, 3]


@pytest.fixture(scope="module")
def saved(start: TrainState, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with step 1, not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with checkpoint.Checkpoints(folder, keep=3) as checkpoints:
        save(checkpoints, 1, start, 0.5)
    return folder


@pytest.mark.parametrize("seed", range(12))
def test_no_cut_off_or_missing_file_is_read_as_if_it_were_whole(
    seed: int, saved: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with checkpoint.Checkpoints(saved, keep=3) as checkpoints:
        good = checkpoints.read(1).leaves
    shutil.copytree(saved, tmp_path / "checkpoints")
    rng = np.random.default_rng(seed)
    files = sorted(
        p for p in (tmp_path / "checkpoints" / "1").rglob("*") if p.is_file()
    )
    victim = files[rng.integers(len(files))]
    if seed % 2:
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: rng.integers(victim.stat().st_size)])
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        try:
            leaves = checkpoints.read(1).leaves
        except checkpoint.CheckpointError:
            return
    assert leaves.keys() == good.keys()
    for path in good:  # the file was one that nothing needs
        np.testing.assert_array_equal(leaves[path], good[path])


def test_if_all_are_damaged_it_does_not_start_from_nothing(
    state: TrainState, tmp_path: pathlib.Path
) -> None:
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        save(checkpoints, 1, state, None)
    flip_a_bit(tmp_path / "checkpoints" / "1")
    with (
        checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints,
        pytest.raises(checkpoint.CheckpointError, match="all checkpoints"),
    ):
        checkpoints.read_newest()


def test_another_nets_leaves_are_listed_all_at_once(
    state: TrainState,
) -> None:
    leaves = to_leaves(state)
    leaves["params/fc8/bias"] = leaves["params/fc8/bias"].astype(np.float16)
    leaves["params/fc9/bias"] = leaves.pop("params/fc7/bias")
    leaves["params/fc6/bias"] = leaves["params/fc6/bias"][:-1]
    with pytest.raises(checkpoint.CheckpointError) as caught:
        from_leaves(state, leaves)
    message = str(caught.value)
    for part in ("fc8/bias: (3,) float16", "fc9/bias: unexpected", "fc7/bias: missing"):
        assert part in message
    assert "fc6/bias: (7,) float32, expected (8,)" in message


def test_a_reader_gets_a_step_while_newer_ones_are_removed(
    state: TrainState, tmp_path: pathlib.Path
) -> None:
    """As a run that goes on removes them, at any moment of the reading."""
    folder = checkpoint.folder_of(tmp_path / "run")
    with checkpoint.Checkpoints(folder, keep=3) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step, state, None)
    shutil.copytree(folder, tmp_path / "all")

    def remove(delay: float) -> None:
        time.sleep(delay)
        for step in (3, 2):
            shutil.rmtree(folder / str(step))

    for delay in np.linspace(0, 0.3, 7):
        shutil.copytree(tmp_path / "all", folder, dirs_exist_ok=True)
        other = threading.Thread(target=remove, args=[delay])
        other.start()
        loaded = checkpoint.load(tmp_path / "run")
        other.join()
        assert loaded.leaves["params/fc8/bias"].shape == (3,)
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of step 3"):
        checkpoint.load(tmp_path / "run", 3)
