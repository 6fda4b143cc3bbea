"""Two real processes train as one does: same examples, same result, one log."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
from conftest import changed

from vgg_flax import checkpoint, progress
from vgg_flax import config as config_lib

PROGRAM = """
import sys, jax
from vgg_flax import config, trainer
import json
jax.config.update("jax_enable_x64", True)
settings, workdir, address, count, index = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 4 // int(count))
if int(count) > 1:
    jax.distributed.initialize(address, int(count), int(index))
assert jax.device_count() == 4
trainer.train_and_evaluate(config.from_dict(json.loads(settings)), workdir)
"""


def run_processes(
    recipe: config_lib.Config, workdir: pathlib.Path, count: int
) -> list[str]:
    """Runs `count` processes of 4 CPU devices together; returns what each printed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    del environment["JAX_NUM_CPU_DEVICES"]
    settings = config_lib.to_json(recipe)
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM),
                *(settings, str(workdir), address, str(count), str(index)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(count)
    ]
    outputs = []
    for process in processes:
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
    gloo = "[Gloo]"  # its own greeting
    assert all(line.startswith(gloo) for line in outputs[1].splitlines())
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
