"""Two real processes train as one does, stop at one step, and never hang."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import changed

from vgg_flax import checkpoint, distributed, progress
from vgg_flax import config as config_lib

PROGRAM = """
import json, sys, jax
from vgg_flax import config, distributed, trainer
jax.config.update("jax_enable_x64", True)
settings, workdir, where, count = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 4 // int(count))
distributed.initialize(where)
assert jax.device_count() == 4
try:
    trainer.train_and_evaluate(config.from_dict(json.loads(settings)), workdir)
except distributed.Interrupted as stop:
    print(stop)
    sys.exit(stop.exit_code)
except config.VGGFlaxError as error:
    print("error:", error)
    sys.exit(1)
"""


def start_processes(
    recipes: list[config_lib.Config], workdir: pathlib.Path
) -> list[subprocess.Popen[str]]:
    """Starts a process for each recipe, with 4 CPU devices together."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    del environment["JAX_NUM_CPU_DEVICES"]
    count = len(recipes)
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, config_lib.to_json(recipe)),
                str(workdir),
                f"{address},{count},{index}" if count > 1 else "auto",
                str(count),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index, recipe in enumerate(recipes)
    ]


def run_processes(
    recipe: config_lib.Config, workdir: pathlib.Path, count: int
) -> list[str]:
    """Runs `count` processes to their end; returns what each printed."""
    outputs = []
    for process in start_processes([recipe] * count, workdir):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
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
    run_processes(recipe, tmp_path / "one", 1)
    outputs = run_processes(recipe, tmp_path / "two", 2)
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
    assert "resumed at step 4" in run_processes(longer, tmp_path / "one", 2)[0]
    assert "resumed at step 4" in run_processes(longer, tmp_path / "two", 1)[0]
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


@contextlib.contextmanager
def running(
    recipes: list[config_lib.Config], workdir: pathlib.Path
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes once they have made some steps; none is left behind."""
    processes = start_processes(recipes, workdir)
    try:
        end = time.monotonic() + 300
        while not [r for r in progress.read_records(workdir) if r["step"] >= 3]:
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < end
            time.sleep(0.05)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_at_one_step(
    number: signal.Signals, long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    with running([long_config] * 2, tmp_path) as processes:
        processes[1].send_signal(number)
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [143, 143], outputs
    said = [out.splitlines()[-1] for out, _ in outputs]
    assert said[0] == said[1]
    assert said[0].startswith("stopped by SIGTERM at step ")
    step = int(said[0].split()[5])
    with checkpoint.Checkpoints(checkpoint.folder_of(tmp_path), 3) as checkpoints:
        assert checkpoints.steps()[-1] == step
    if number == signal.SIGINT:
        return
    longer = changed(long_config, num_steps=step + 1, resume_with_changes=True)
    assert f"resumed at step {step}" in run_processes(longer, tmp_path, 1)[0]


def test_a_process_with_other_settings_is_found_before_the_first_step(
    long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    other = changed(long_config, data__flip=True, seed=7)
    processes = start_processes([long_config, other], tmp_path)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for out, here in zip(outputs, ("seed=0", "seed=7"), strict=True):
        assert "[1] differ from process 0 in config.data.flip, config.seed;" in out
        assert here in out
    assert not progress.read_records(tmp_path)


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_that_stops_or_dies_does_not_hang_the_other(
    fault: signal.Signals, long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    recipe = changed(long_config, step_timeout_seconds=20.0)
    with running([recipe] * 2, tmp_path) as processes:
        processes[1].send_signal(fault)
        processes[0].communicate(timeout=90)
        assert processes[0].returncode != 0


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
