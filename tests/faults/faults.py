"""What happens to a run, and what must come of it: each fault is one function.

Each breaks a run at a random moment, sees that it ends as it promises to, mends what a
person would mend, and leaves the rest to `strike`: the same command again must end
at the bits of the undisturbed run.
"""

import dataclasses
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from tests import processes
from tests.faults import starts
from tests.faults.case import Case, is_clear, last_line, told
from tests.faults.runs import STEPS, Bench, Run, Wrong, expect
from vgg_flax.runs import checkpoint


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
      fault: its name in FAULTS.
      moment: where the run stood when it struck.
      ended: how the run ended.
      result: what the same command came to after that; "WRONG: ..." where it must not.
      seconds: from the fault to the end of the last process.
    """

    fault: str
    moment: str
    ended: str
    result: str
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether the run kept its promises."""
        return not self.result.startswith("WRONG")


def kill(case: Case) -> None:
    """kill -9: what was finished before it is there after it."""
    run = case.started_and_under_way()
    case.kept = processes.finished_steps(case.workdir)[-1:]
    run.processes[0].kill()
    (ended,) = case.finish(run)
    expect(ended.code == -signal.SIGKILL or case.was_at_its_end(ended), told(ended))


def kill_twice(case: Case) -> None:
    """kill -9, and again at any moment of the second start, its beginning included."""
    kill(case)
    _kill_the_next_start(case, case.rng.uniform(2, 12))


def kill_while_saving_again(case: Case) -> None:
    """SIGTERM in an evaluation, and kill -9 when it is made and saved at last."""
    run = case.started_and_under_way(phase="evaluating")
    run.processes[0].send_signal(signal.SIGTERM)
    (ended,) = case.finish(run)
    expect(ended.code == 143 or case.was_at_its_end(ended), told(ended))
    case.kept = processes.finished_steps(case.workdir)[-1:]
    _kill_the_next_start(case, case.rng.uniform(0, 0.1), "saving")


def _kill_the_next_start(case: Case, delay: float, phase: str = "") -> None:
    again = case.start()
    while phase and again.phase()[1] != phase and not again.has_ended():
        time.sleep(0.002)
    time.sleep(delay)
    again.processes[0].kill()
    again.finish()


def terminate(case: Case, count: int = 1) -> None:
    """SIGTERM to one process: all save the same step, and the next start goes on."""
    run = case.started_and_under_way(count)
    case.rng.choice(run.processes).send_signal(signal.SIGTERM)
    ended = case.finish(run)
    if case.was_at_its_end(ended[0]):
        return
    for one in ended:
        expect(one.code == 143, told(one))
    said = {last_line(one.err) for one in ended}
    expect(len(said) == 1 and "stopped by SIGTERM at step" in min(said), f"{said}")
    step = int(min(said).split("at step ")[1].split()[0])
    saved = processes.finished_steps(case.workdir)[-1]
    expect(saved == step, f"step {step} was promised and {saved} is the last one saved")


def terminate_one_of_two(case: Case) -> None:
    """SIGTERM to one of two processes."""
    terminate(case, 2)


def flip_a_bit(case: Case) -> None:
    """One bit of the largest file of the newest checkpoint of a run that was killed."""
    kill(case)
    case.kept = []
    step = _newest(case)
    if step is None:
        return
    files = [path for path in step.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    place = case.rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    largest.write_bytes(data)


def delete_the_newest_step(case: Case) -> None:
    """The newest checkpoint's folder is gone when the killed run is started again."""
    kill(case)
    case.kept = []
    step = _newest(case)
    if step is not None:
        shutil.rmtree(step)


def delete_the_newest_step_of_a_running_one(case: Case) -> None:
    """The newest checkpoint's folder goes under a run: it goes on, or says why not."""
    run = case.started_and_under_way()
    step = _newest(case)
    if step is not None:
        shutil.rmtree(step)
    (ended,) = case.finish(run)
    expect(ended.code == 0 or is_clear(ended), told(ended))


def read_all_the_time(case: Case) -> None:
    """Others load the run's newest step while it goes on: it does not notice."""
    run = case.started_and_under_way()
    while not run.has_ended():
        try:
            checkpoint.load(case.workdir)
        except checkpoint.CheckpointError:  # none yet, or removed while it was read
            time.sleep(0.01)
    (ended,) = case.finish(run)
    expect(ended.code == 0, told(ended))


def fill_the_disk(case: Case) -> None:
    """No byte more can be written; where mounting is forbidden, no large file."""
    disk = case.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    case.workdir = disk / "run"
    run = case.started_and_under_way()
    if mounted:
        _write_until_full(disk / "filler")
    else:
        pid = run.processes[0].pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (32 * 1024, 32 * 1024))
    (ended,) = case.finish(run)
    expect(is_clear(ended) or case.was_at_its_end(ended), told(ended))
    case.ended += " on a full tmpfs" if mounted else " at a limit on file sizes"
    (disk / "filler").unlink(missing_ok=True)


def take_the_workdir_away(case: Case) -> None:
    """The workdir vanishes; it comes back, or is gone for good."""
    run = case.started_and_under_way()
    elsewhere = case.folder / "elsewhere"
    case.workdir.rename(elsewhere)
    (ended,) = case.finish(run)
    expect(is_clear(ended) or case.was_at_its_end(ended), told(ended))
    if case.workdir.exists():  # made anew by a save that was under way
        shutil.rmtree(case.workdir)
    if case.rng.random() < 0.5:
        elsewhere.rename(case.workdir)


def spoil_an_image(case: Case) -> None:
    """One of two processes raises: the one whose share an unreadable image is in."""
    case.images = case.folder / "images"  # other cases read the bench's
    shutil.copytree(case.bench.images, case.images)
    image = case.rng.choice(sorted((case.images / "val").rglob("*.png")))
    data = image.read_bytes()
    run = case.started_and_under_way(2)
    image.write_bytes(b"not an image")
    ended = case.finish(run)
    image.write_bytes(data)
    if case.was_at_its_end(ended[0]):
        return
    expect(all(one.code != 0 for one in ended), " / ".join(map(told, ended)))
    expect(any(f"error: {image}" in one.err for one in ended), told(ended[0]))


def kill_one_of_two(case: Case) -> None:
    """One of two processes dies of SIGKILL: the other ends."""
    _lose_one_of_two(case, signal.SIGKILL)


def suspend_one_of_two(case: Case) -> None:
    """One of two processes is stopped by SIGSTOP: the other ends."""
    _lose_one_of_two(case, signal.SIGSTOP)


def _lose_one_of_two(case: Case, number: signal.Signals) -> None:
    run = case.started_and_under_way(2)
    lost = case.rng.choice(run.processes)
    lost.send_signal(number)
    (ended,) = case.finish(Run(run.workdir, [p for p in run.processes if p != lost]))
    expect(ended.code != 0 or case.was_at_its_end(ended), told(ended))
    lost.kill()  # as whoever finds it would
    run.finish()


FAULTS: dict[str, Callable[[Case], None]] = {
    "kill -9": kill,
    "kill -9 twice": kill_twice,
    "kill -9 in a second save": kill_while_saving_again,
    "SIGTERM": terminate,
    "SIGTERM to one of two": terminate_one_of_two,
    "a flipped bit": flip_a_bit,
    "newest step deleted": delete_the_newest_step,
    "newest step deleted live": delete_the_newest_step_of_a_running_one,
    "read while it trains": read_all_the_time,
    "disk full": fill_the_disk,
    "workdir gone": take_the_workdir_away,
    "one of two raises": spoil_an_image,
    "one of two killed": kill_one_of_two,
    "one of two stopped": suspend_one_of_two,
    "data changed between": starts.change_the_data,
    "two starts at once": starts.start_twice,
}


def strike(fault: str, bench: Bench, folder: pathlib.Path, seed: int) -> Outcome:
    """Lets a fault happen to a new run in `folder`, and tells what came of it."""
    case = Case(bench, folder, random.Random(seed))
    try:
        FAULTS[fault](case)
        result = _again(case)
    except Wrong as wrong:
        result = f"WRONG: {wrong}"
    finally:
        case.kill_all()
        subprocess.run(["umount", folder / "disk"], capture_output=True, check=False)
    return Outcome(fault, case.moment, case.ended, result, case.seconds)


def _again(case: Case) -> str:
    """Runs the same command to its end; it must come to the undisturbed run's bits."""
    ended = case.start().finish(240)
    if is_clear(ended[0]) and "are damaged" in ended[0].err:
        return "a clear error: all steps are damaged"
    for one in ended:
        expect(one.code == 0, "started again: " + told(one))
    said = re.search(r"resumed at step (\d+)", ended[0].out)
    resumed = int(said[1]) if said else STEPS if "complete: " in ended[0].out else 0
    expect(resumed >= max(case.kept, default=0), f"{case.kept} lost: from {resumed} on")
    ours, theirs = case.bench.result(case.workdir), case.bench.undisturbed(case.count)
    differing = [path for path, crc in theirs.crcs.items() if ours.crcs[path] != crc]
    expect(not differing, f"other bits in {len(differing)} leaves: {differing[:2]}")
    expect(ours == theirs, f"other records: {ours.losses} for {theirs.losses}")
    if not (case.workdir / "damaged").exists():
        return "same bits"
    expect("falling back" in ended[0].err, "it fell back without a word")
    return "same bits, loudly from an earlier step"


def _newest(case: Case) -> pathlib.Path | None:
    steps = processes.finished_steps(case.workdir)
    return case.workdir / "checkpoints" / str(steps[-1]) if steps else None


def _write_until_full(path: pathlib.Path) -> None:
    with path.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:  # no space left: what was wanted
            return
