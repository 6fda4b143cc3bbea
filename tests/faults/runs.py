"""A small run of `train.py` to break: its data, its moments, its undisturbed twin."""

import dataclasses
import itertools
import pathlib
import random
import subprocess
import time
from typing import Any

import numpy as np
import PIL.Image

from tests import processes, samples
from vgg_flax import config as config_lib
from vgg_flax.runs import checkpoint, log

# Dropout, cross-replica BatchNorm, augmentation, accumulation and the plateau rule:
# all that a resume must carry on. 160 images are 5 steps of 32.
STEPS, EVALUATE_EVERY, SAVE_EVERY = 24, 4, 3
_TRAIN_PER_CLASS, _VALIDATION_PER_CLASS = 16, 12

PHASES = ("training", "saving", "evaluating")

Record = dict[str, Any]


class Wrong(Exception):
    """A run did not end, or did not end as it promises to."""


def expect(condition: bool, message: str) -> None:
    """Raises Wrong with the message unless the condition holds."""
    if not condition:
        raise Wrong(message)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run computed, to be equal bit for bit.

    Attributes:
      crcs: of all leaves of the last checkpoint, by path.
      losses: of the validation and test records: (split, step, loss).
      seconds: from the first step to the end; not compared.
    """

    crcs: dict[str, int]
    losses: list[tuple[str, int, float]]
    seconds: float = dataclasses.field(compare=False)


class Run:
    """`train.py` under way in one or more processes."""

    def __init__(self, workdir: pathlib.Path, started: list[processes.Process]):
        self.workdir, self.processes = workdir, started

    def has_ended(self) -> bool:
        """Whether no process is left."""
        return all(process.poll() is not None for process in self.processes)

    def phase(self) -> tuple[int, str]:
        """The last step on record and one of PHASES, as the files tell; (0, "") none.

        A save goes on beside other work; where it does, "saving" is said.
        """
        records = log.read_records(self.workdir)
        if not records:
            return 0, ""
        step, split = records[-1]["step"], records[-1]["split"]
        if any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
            return step, "saving"
        due = step % EVALUATE_EVERY == 0 and split == "train"
        tested = split == "validation" and step == STEPS
        return step, "evaluating" if due or tested else "training"

    def wait(self, delay: float, phase: str, extra: float) -> str | None:
        """Waits `delay` seconds after the first step, then for `phase`, then `extra`.

        Returns:
          The moment in words; None if the run had ended by then.
        """
        start = None
        while not self.has_ended():
            step, now = self.phase()
            if step and start is None:
                start = time.monotonic()
            if start and time.monotonic() > start + delay and phase in (now, ""):
                time.sleep(extra)
                step, now = self.phase()
                return None if self.has_ended() else f"step {step} {now}"
            time.sleep(0.002)
        return None

    def finish(self, seconds: float = 90) -> list[processes.Ended]:
        """Waits for all processes, so long together at most; raises Wrong past it."""
        end = time.monotonic() + seconds
        try:
            return [
                processes.finish(process, max(0.1, end - time.monotonic()))
                for process in self.processes
            ]
        except subprocess.TimeoutExpired as error:
            raise Wrong(f"it did not end within {seconds} s") from error


class Bench:
    """A folder with the data, the recipe and the cache that all runs share."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.images = folder / "images"
        self._undisturbed: dict[int, Result] = {}  # by the number of processes
        folder.mkdir(parents=True)
        _write_images(self.images)
        self._recipe = processes.write_recipe(_recipe(), folder / "recipe.py")

    def start(self, workdir: pathlib.Path, count: int, images: pathlib.Path) -> Run:
        """Starts a run, or the same again, in `count` processes, on these images."""
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        arguments = [self._recipe, f"--config.data.data_dir={images}"]
        started = processes.start(workdir, [arguments] * count, environment=cache)
        return Run(workdir, started)

    def result(self, workdir: pathlib.Path) -> Result:
        """What the finished run in `workdir` computed."""
        records = log.read_records(workdir)
        losses = [
            (r["split"], r["step"], r["loss"]) for r in records if r["split"] != "train"
        ]
        # The first evaluation may have been compiled, and its time tells nothing.
        start = next(r for r in records if r["step"] > EVALUATE_EVERY)
        seconds = records[-1]["time"] - start["time"]
        seconds *= STEPS / (STEPS - start["step"])
        try:
            return Result(processes.crcs(workdir, STEPS), losses, seconds)
        except checkpoint.CheckpointError as error:
            raise Wrong(f"it ended without its last checkpoint: {error}") from error

    def undisturbed(self, count: int) -> Result:
        """Of a run in `count` processes that nothing happens to.

        Each number of processes has its own: float32 sums differ in their last bits.
        """
        if count not in self._undisturbed:
            self._undisturbed[count] = self._run_undisturbed(count)
        return self._undisturbed[count]

    def _run_undisturbed(self, count: int) -> Result:
        workdir = self.folder / f"undisturbed{count}"
        for ended in self.start(workdir, count, self.images).finish(300):
            expect(ended.code == 0, f"an undisturbed run: {ended.err[-900:]}")
        return self.result(workdir)


def _write_images(folder: pathlib.Path) -> None:
    images, labels = samples.digits()
    for label in range(10):
        pixels = images[labels == label] * (255 / 16)  # [N, 8, 8]
        ends = np.cumsum([0, _TRAIN_PER_CLASS, _VALIDATION_PER_CLASS])
        parts = zip(("train", "val"), itertools.pairwise(ends), strict=True)
        for split, (low, high) in parts:
            (folder / split / str(label)).mkdir(parents=True)
            for i in range(low, high):
                image = PIL.Image.fromarray(pixels[i].round().astype("uint8"))
                image.save(folder / split / str(label) / f"{i}.png")


def _recipe() -> config_lib.Config:
    return config_lib.Config(
        model=config_lib.ModelConfig(
            variant="vgg8_bn",
            num_classes=10,
            in_channels=1,
            width_multiplier=1 / 16,
            fc_widths=(16, 16),
            fc6_window=1,
            initializer="glorot",
            batch_norm_across_replicas=True,
        ),
        data=config_lib.DataConfig(
            name="folder",
            train_split="train",
            validation_split="val",
            test_split="val",
            batch_size=32,
            eval_batch_size=8,
            train_view="pad_crop",
            train_scale=(28, 40),
            crop_size=32,
            test_scale=32,
            flip=False,
            mean=(0.305,),
            std=(0.376,),
            num_threads=1,
            prefetch=1,
        ),
        optimizer=config_lib.OptimizerConfig(
            learning_rate=0.02,
            schedule="plateau",
            plateau_patience=1,
            accumulation_steps=2,
        ),
        num_steps=STEPS,
        eval_every_epochs=EVALUATE_EVERY * 32 / (10 * _TRAIN_PER_CLASS),
        checkpoint_every_steps=SAVE_EVERY,
        log_every_steps=1,
    )


def random_moment(
    rng: random.Random, seconds: float, phase: str | None
) -> tuple[float, str, float]:
    """Arguments for `Run.wait`: any moment, or any of the phase, or of a random one."""
    if phase is None:
        phase = rng.choice(("", *PHASES))
    return rng.uniform(0, 0.9 * seconds), phase, rng.uniform(0, 0.03)
