"""A whole run from a folder, ours or torch's, in a fresh process; a seed a run.

A repetition's value is seconds an image, of the run's steps; its note the accuracy.
Standard library only.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.contenders import serve

BATCH, EPOCHS, WARMUP_EPOCHS, IMAGES = 128, 10, 1, 1437
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4


def _ours(spec: dict[str, Any], seed: int, workdir: str) -> tuple[float, float]:
    """Images/s, and the test split's accuracy."""
    settings = {
        "seed": seed,
        "num_steps": EPOCHS * IMAGES // BATCH,
        "eval_every_epochs": 1e6,
        "checkpoint_every_steps": 10**9,
        "model.variant": "vgg11_bn",
        "model.width_multiplier": 0.5,
        "model.conv_bias": "true",
        "data.data_dir": spec["digits"],
        "data.train_split": "train",
        "data.validation_split": "",
        "data.batch_size": BATCH,
        "data.eval_batch_size": BATCH,
        "data.train_view": "pad_crop",
        "data.train_scale": (32, 32),
        "data.crop_size": 32,
        "data.test_scale": 32,
        "data.flip": "false",
        "data.num_threads": spec["threads"],
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.momentum": MOMENTUM,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": WARMUP_EPOCHS,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "train.py", "--config=configs/folder.py", *flags]
    subprocess.run([*command, f"--workdir={workdir}"], check=True)
    lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    train = [r for r in records if r["split"] == "train"][-1]
    test = [r for r in records if r["split"] == "test"][-1]
    return train["images_per_second"], test["top1"]


def _torchs(spec: dict[str, Any], seed: int, workdir: str) -> tuple[float, float]:
    """The same of the script beside this one."""
    options = {
        "folder": spec["digits"],
        "seed": seed,
        "mode": spec["mode"],
        "threads": spec["threads"],
        "batch": BATCH,
        "steps": EPOCHS * IMAGES // BATCH,
        "warmup_steps": WARMUP_EPOCHS * IMAGES // BATCH,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
    }
    command = [sys.executable, "benchmarks/contenders/torch_script.py"]
    output = pathlib.Path(workdir, "result.json")
    subprocess.run([*command, json.dumps(options), str(output)], check=True)
    result = json.loads(output.read_text())
    return result["images_per_second"], result["accuracy"]


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`, "ours" or "torch"."""
    train = {"ours": _ours, "torch": _torchs}[spec["who"]]
    seeds = iter(range(2**32))

    def run(_: int) -> tuple[float, dict[str, Any]]:
        seed = next(seeds)
        with tempfile.TemporaryDirectory(dir=spec["folder"]) as workdir:
            images_per_second, accuracy = train(spec, seed, workdir)
        return 1 / images_per_second, {"seed": seed, "accuracy": accuracy}

    return run, {}


if __name__ == "__main__":
    serve.serve(prepare)
