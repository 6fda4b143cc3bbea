"""Starts that must be refused: of another run's directory, and on other data."""

import pathlib
import random
import shutil
import signal
import time

from tests import processes
from tests.faults.case import Case, finished, is_clear, told
from tests.faults.runs import PHASES, expect


def change_the_data(case: Case) -> None:
    """The images are others when the killed run is started again, and come back."""
    case.images = case.folder / "images"  # other cases read the bench's
    shutil.copytree(case.bench.images, case.images)
    run = case.started_and_under_way()
    while not processes.finished_steps(case.workdir) and not run.has_ended():
        time.sleep(0.01)
    run.processes[0].kill()
    case.finish(run)
    case.kept = processes.finished_steps(case.workdir)[-1:]
    before, kept = finished(case.workdir), case.images.rename(case.folder / "kept")
    shutil.copytree(kept, case.images)
    change = case.rng.choice((_delete_one, _add_one, _rename_a_class, _swap_two))
    change(case.images, case.rng)
    (ended,) = case.start().finish()
    case.ended += f", refused after {change.__name__.strip('_')}"
    expect(
        is_clear(ended) and "with other settings or data: " in ended.err, told(ended)
    )
    written = _differing(before, finished(case.workdir))
    expect(not written, f"the refused start wrote into the run: {written}")
    shutil.rmtree(case.images)
    kept.rename(case.images)


def start_twice(case: Case) -> None:
    """The same command a second time, while the first is at it: one is refused."""
    phase = case.rng.choice(("starting", *PHASES))
    if phase == "starting":
        _start_two(case)
        return
    run = case.started_and_under_way(phase=phase)
    # Suspended, it is still there, and at this very moment when the other comes.
    suspended = case.rng.random() < 0.7 or phase != "training"
    if suspended:
        processes.suspend(run.processes[0])
        before = finished(case.workdir)
    (other,) = case.start().finish()
    if suspended:
        written = _differing(before, finished(case.workdir))
        expect(not written, f"the refused start wrote: {written}")
        run.processes[0].send_signal(signal.SIGCONT)
    elif run.has_ended() and other.code == 0:  # it found the run complete
        case.finish(run)
        return
    expect(is_clear(other) and _names(run.processes[0], other), told(other))
    (ended,) = case.finish(run)
    expect(ended.code == 0, told(ended))
    case.ended += ", the second refused"


def _start_two(case: Case) -> None:
    """Both at once, in one or in two processes each."""
    case.moment, case.count = "step 0 starting", case.rng.choice((1, 2))
    begun = time.monotonic()
    runs = [case.start() for _ in range(2)]
    ended = [run.finish(240) for run in runs]
    codes = [{one.code for one in of_run} for of_run in ended]
    expect(sorted(codes, key=min) == [{0}, {1}], " / ".join(told(e[0]) for e in ended))
    lost, won = (codes.index({code}) for code in (1, 0))
    held = _names(runs[won].processes[0], ended[lost][0])
    expect(held and all(map(is_clear, ended[lost])), told(ended[lost][0]))
    case.ended = "exit 0, the other refused"
    case.seconds = time.monotonic() - begun


def _differing(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """The files that came, went or changed."""
    paths = {*before, *after}
    return sorted(path for path in paths if before.get(path) != after.get(path))


def _names(holder: processes.Process, refused: processes.Ended) -> bool:
    return f"is held by process {holder.pid} on " in refused.err


def _delete_one(images: pathlib.Path, rng: random.Random) -> None:
    rng.choice(sorted((images / "train").rglob("*.png"))).unlink()


def _add_one(images: pathlib.Path, rng: random.Random) -> None:
    path = rng.choice(sorted((images / "val").rglob("*.png")))
    shutil.copy(path, path.with_name("added.png"))


def _rename_a_class(images: pathlib.Path, rng: random.Random) -> None:
    name = str(rng.randrange(10))
    for split in ("train", "val"):
        (images / split / name).rename(images / split / f"{name}_renamed")


def _swap_two(images: pathlib.Path, rng: random.Random) -> None:
    for split in ("train", "val"):
        one, other = (images / split / str(i) for i in rng.sample(range(10), 2))
        one.rename(images / "aside")
        other.rename(one)
        (images / "aside").rename(other)
