"""The runs of a sweep one after another, in this process, and their table.

In one process, not in one each: on several machines they have met already, flags and
devices are had once, and a run's memory is free when it ends.
"""

import dataclasses
import gc
import signal
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from vgg_flax import storage
from vgg_flax.config import Config
from vgg_flax.config.sweep import Point
from vgg_flax.data import DataError
from vgg_flax.errors import ConfigError, Interrupted
from vgg_flax.runs import sweep_plot, sweep_table
from vgg_flax.runs.meter import NonFiniteError
from vgg_flax.training import distillation, requirements, resumption, trainer
from vgg_flax.training.job import Job
from vgg_flax.training.objectives import CLASSIFICATION, Objective

# Fields by which weights are found.
_TEACHER = {"distillation.teacher", "distillation.teacher_ema"}
_START = {"init_from", "init_ema"}

OptimizerOf = Callable[[Config], Any]  # of optax, or None


def run(
    points: Sequence[Point],
    workdir: epath.PathLike,
    objective: Objective = CLASSIFICATION,
    optimizer_of: OptimizerOf = lambda _: None,
    index: int | None = None,
) -> None:
    """Trains the runs of a sweep, each in its folder of `workdir`, or one of them.

    What is complete there is found done, what was stopped goes on. After each run
    `sweep.csv` and `sweep.png` are written anew, of all that is there, by whomever it
    was trained; at the end the table is printed. A run whose loss is no number any more
    is a result, too: the others go on.

    Args:
      points: at least one: see `config.sweep.points`.
      workdir: made if missing.
      objective: of all of them.
      optimizer_of: config -> an optimiser of one's own, or None.
      index: only this one of `points`; None: all.

    Raises:
      ConfigError: any of the runs cannot be; none has begun.
      Interrupted: a signal came; the run under way is saved.
      NonFiniteError: of the one run at `index`.
      VGGFlaxError: whatever else stops a run stops the sweep.
    """
    check(points, workdir, objective, optimizer_of)
    folder = storage.expanded(workdir)
    chosen = range(len(points)) if index is None else [index]
    for number in chosen:
        name = points[number].folder
        _say(f"run {number + 1} of {len(points)} (--sweep_index={number}): {name}")
        received = None
        try:
            received = _train(points[number], folder, objective, optimizer_of)
        except NonFiniteError as error:
            if index is not None:
                write(points, folder, objective)
                raise
            _say(f"{name} diverged: {error}")
        except ConfigError as error:
            raise ConfigError(f"the sweep's run {name}: {error}") from error
        except Interrupted as stop:
            raise Interrupted(
                f"{stop}, and the sweep behind it: that was run {number + 1} of "
                f"{len(points)}",
                stop.exit_code,
            ) from stop
        # What it had on the devices: cycles keep it, and JAX its programs.
        gc.collect()
        jax.clear_caches()
        write(points, folder, objective)
        if received and number != chosen[-1]:
            raise Interrupted(
                f"stopped by {received.name} after {name}, which is complete; run the "
                "same command again to go on with the sweep",
                128 + received,
            )
    rows = sweep_table.rows(points, folder)
    _say(f"\n{sweep_table.text(rows, objective.metrics)}\nin full: {folder}/sweep.csv")


def _train(
    point: Point,
    workdir: epath.Path,
    objective: Objective,
    optimizer_of: OptimizerOf,
) -> signal.Signals | None:
    """Trains a run to its end; returns a signal that came too late to stop it."""
    config, optimizer = point.config, optimizer_of(point.config)
    folder = workdir / point.folder
    with trainer.open_run(config, folder, objective, optimizer) as run:
        run.train()
        run.test()
        received = run.signals.poll()
    return received or run.signals.received


def check(
    points: Sequence[Point],
    workdir: epath.PathLike,
    objective: Objective,
    optimizer_of: OptimizerOf = lambda _: None,
) -> None:
    """Sees that every run can begin: its settings, data, weights, and the devices.

    The data are opened, and the weights read, once for all runs that have the same.

    Raises:
      ConfigError, DataError: as of `Job.prepare`; naming the run.
    """
    jobs: dict[str, Job] = {}
    weights: set[tuple[str, bool]] = set()
    for point in points:
        config = point.config
        data = repr((config.data, config.model.num_classes))
        try:
            if data not in jobs:
                optimizer = optimizer_of(config)
                jobs[data] = Job.prepare(config, workdir, objective, optimizer)
            fitted = _resolved(config, jobs[data].config)
            requirements.check_net(fitted, jax.device_count())
            requirements.check_targets(fitted, objective)
            if _TEACHER & set(point.values):
                distillation.load(fitted, fitted.model.num_classes)
            start = config.init_from, config.init_ema
            if _START & set(point.values) and start not in weights:
                resumption.load_weights(fitted)
                weights.add(start)
        except (ConfigError, DataError) as error:
            raise type(error)(f"the sweep's run {point.folder}: {error}") from error


def _resolved(config: Config, prepared: Config) -> Config:
    """`config` with the splits and classes that its data have."""
    net = dataclasses.replace(config.model, num_classes=prepared.model.num_classes)
    return dataclasses.replace(config, data=prepared.data, model=net)


def write(points: Sequence[Point], workdir: epath.Path, objective: Objective) -> None:
    """Writes `sweep.csv` and `sweep.png` of the runs as they are now."""
    if jax.process_index() != 0:
        return
    rows = sweep_table.rows(points, workdir)
    sweep_table.write_csv(rows, objective.metrics, workdir / "sweep.csv")
    if sweep_table.splits_of(rows):
        path = workdir / "sweep.png"
        with storage.whole_file(path, storage.RunDirectoryError) as file:
            sweep_plot.draw(rows, objective.metrics, epath.Path(file))


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
