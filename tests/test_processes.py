"""Two real processes train as one does, stop at one step, and never hang."""

import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import changed

from tests import processes
from vgg_flax import checkpoint, distributed, progress
from vgg_flax import config as config_lib


def start_processes(
    recipes: list[config_lib.Config], folder: pathlib.Path, name: str = "run"
) -> list[processes.Process]:
    """Starts a process for each recipe, with 4 CPU devices together."""
    arguments = [
        [processes.write_recipe(recipe, folder / f"recipe{i}.py")]
        for i, recipe in enumerate(recipes)
    ]
    return processes.start(
        folder / name, arguments, devices=4, environment={"JAX_ENABLE_X64": "1"}
    )


def run_processes(
    recipe: config_lib.Config, folder: pathlib.Path, name: str, count: int
) -> list[str]:
    """Runs `count` processes to their end; returns what each printed."""
    outputs = []
    for process in start_processes([recipe] * count, folder, name):
        code, out, err = processes.finish(process)
        assert code == 0, err[-3000:]
        outputs.append(out)
    return outputs


def test_two_processes_train_resume_and_count_as_one(
    tiny_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    recipe = changed(
        tiny_config,
        model__dtype="float64",
        model__batch_norm_across_replicas=True,
        data__eval_batch_size=16,
        data__validation_split="train[90%:93%]",
        optimizer__schedule="plateau",
        log_every_steps=1,
        eval_every_epochs=0.1,
        num_steps=4,
    )
    run_processes(recipe, tmp_path, "one", 1)
    cut = changed(recipe, shard_fc=True)
    outputs = run_processes(cut, tmp_path, "two", 2)
    assert "4 x cpu in 2 process(es)" in outputs[0]
    # The other process says nothing of the run; Gloo's greetings may be interleaved.
    for ours in ("devices:", "parameters:", "step ", "test top1"):
        assert ours in outputs[0] and ours not in outputs[1]
    one, two = (progress.read_records(tmp_path / name) for name in ("one", "two"))
    assert [(r["step"], r["split"]) for r in one] == [
        (r["step"], r["split"]) for r in two
    ]
    for ours, theirs in zip(two, one, strict=True):
        for name in ("count", "top1", "top5"):
            assert ours[name] == theirs[name], (ours, theirs)
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=0, atol=1e-9)
    assert {r["count"] for r in two if r["split"] == "validation"} == {43}

    # Two processes go on from what one process saved, and the other way round.
    longer = changed(recipe, num_steps=6, resume_with_changes=True)
    assert "resumed at step 4" in run_processes(longer, tmp_path, "one", 2)[0]
    assert "resumed at step 4" in run_processes(longer, tmp_path, "two", 1)[0]
    leaves = []
    for name in ("one", "two"):
        with checkpoint.Checkpoints(tmp_path / name / "checkpoints", 3) as checkpoints:
            leaves.append(checkpoints.read(6).leaves)
    for path, leaf in leaves[0].items():
        np.testing.assert_allclose(leaf, leaves[1][path], rtol=0, atol=1e-9)


@pytest.fixture
def long_config(tiny_config: config_lib.Config) -> config_lib.Config:
    """More steps than any test waits for, evaluated often."""
    return changed(
        tiny_config,
        data__eval_batch_size=16,
        data__validation_split="train[90%:93%]",
        log_every_steps=1,
        eval_every_epochs=0.5,
        num_steps=100_000,
    )


def wait_for_steps(started: list[processes.Process], workdir: pathlib.Path) -> None:
    """Returns once the processes have made some steps."""

    def made_some() -> bool:
        return any(r["step"] >= 3 for r in progress.read_records(workdir))

    processes.wait_for(started, made_some)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_at_one_step(
    number: signal.Signals, long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    with processes.killed_at_the_end(
        start_processes([long_config] * 2, tmp_path)
    ) as started:
        wait_for_steps(started, workdir)
        started[1].send_signal(number)
        ended = [processes.finish(process, 120) for process in started]
    assert [one.code for one in ended] == [143, 143], ended
    said = [one.err.splitlines()[-1] for one in ended]
    assert said[0] == said[1]
    assert said[0].startswith("stopped by SIGTERM at step ")
    step = int(said[0].split()[5])
    assert processes.finished_steps(workdir)[-1] == step
    if number == signal.SIGINT:
        return
    longer = changed(long_config, num_steps=step + 1, resume_with_changes=True)
    assert f"resumed at step {step}" in run_processes(longer, tmp_path, "run", 1)[0]


def test_a_process_with_other_settings_is_found_before_the_first_step(
    long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    other = changed(long_config, data__flip=True, seed=7)
    started = start_processes([long_config, other], tmp_path)
    ended = [processes.finish(process, 120) for process in started]
    assert [one.code for one in ended] == [1, 1]
    for one, here in zip(ended, ("seed=0", "seed=7"), strict=True):
        assert "[1] differ from process 0 in config.data.flip, config.seed;" in one.err
        assert here in one.err
    assert not progress.read_records(tmp_path / "run")


@pytest.mark.parametrize(
    "where", ["on", "host,2,0", "host:1,2", "host:1,2,2", "host:1,two,0", "h:1,2,0,0"]
)
def test_where_the_processes_are_is_checked(where: str) -> None:
    with pytest.raises(config_lib.ConfigError, match="expected auto, off, or ADDRESS"):
        distributed.initialize(where)


def test_off_and_auto_do_nothing_on_a_plain_machine() -> None:
    program = (
        "import jax; from vgg_flax import distributed\n"
        "for where in ('off', 'auto'):\n"
        "    distributed.initialize(where)\n"
        "    assert not jax.distributed.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("then", "code"), [("", 1), ("dog.rest()", 0)])
def test_the_watchdog_bites_unless_told_to_rest(then: str, code: int) -> None:
    program = f"""
import time
from vgg_flax import distributed
dog = distributed.Watchdog(1.0)
dog.step_ended()
{then}
time.sleep(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert ("most recent call first" in done.stderr) == (code == 1)
