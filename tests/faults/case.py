"""One run to break: started, watched until a moment, waited for."""

import pathlib
import random
import shutil
import time

from tests import processes
from tests.faults.runs import STEPS, Bench, Run, expect, random_moment


class Case:
    """One run to break: where it lives, its random numbers, and what is seen of it."""

    def __init__(self, bench: Bench, folder: pathlib.Path, rng: random.Random):
        self.bench, self.folder, self.rng = bench, folder, rng
        self.workdir = folder / "run"
        self.count, self.images = 1, bench.images
        self.moment = self.ended = ""
        self.kept: list[int] = []  # the newest step, if any, that must not be lost
        self.seconds = 0.0
        self._started: list[processes.Process] = []
        self._struck_at = 0.0
        folder.mkdir()

    def start(self) -> Run:
        """Starts the run, or the same again, in `self.count` processes."""
        run = self.bench.start(self.workdir, self.count, self.images)
        self._started += run.processes
        return run

    def started_and_under_way(self, count: int = 1, phase: str | None = None) -> Run:
        """A run at a random moment; one that ends before it is done over."""
        self.count = count
        seconds = self.bench.undisturbed(count).seconds
        while True:
            run = self.start()
            moment = run.wait(*random_moment(self.rng, seconds, phase))
            self._struck_at = time.monotonic()
            if moment is not None:
                self.moment = moment
                return run
            codes = [ended.code for ended in run.finish()]
            expect(codes == [0] * count, f"it ended by itself: {codes}")
            shutil.rmtree(self.workdir)

    def finish(self, run: Run, seconds: float = 90) -> list[processes.Ended]:
        """Waits for the end of a run that was struck, and takes the time."""
        ended = run.finish(seconds)
        self.seconds = time.monotonic() - self._struck_at
        for i, one in enumerate(ended):  # for whoever asks what went wrong
            (self.folder / f"stderr{i}.txt").write_text(one.err)
        self.ended = "exit " + ", ".join(
            str(code) for code in sorted({one.code for one in ended})
        )
        return ended

    def was_at_its_end(self, ended: processes.Ended) -> bool:
        """Whether it told its result, and was too near it to heed the fault.

        Records lag a step behind, and processes agree a step or so ahead.
        """
        return "test top1" in ended.out and int(self.moment.split()[1]) >= STEPS - 2

    def kill_all(self) -> None:
        """Leaves no process behind."""
        with processes.killed_at_the_end(self._started):
            pass


def is_clear(ended: processes.Ended) -> bool:
    """Whether a process ended with an error that it explains."""
    # Not always the last line: threads of Orbax's may have something to add.
    return ended.code == 1 and "\nerror: " in "\n" + ended.err


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return (text.strip().splitlines() or [""])[-1]


def told(ended: processes.Ended) -> str:
    """How a process ended, for people."""
    return f"exit {ended.code}: {ended.err.strip()[-1500:]}"


def finished(workdir: pathlib.Path) -> dict[str, bytes]:
    """What a run has done, file by file: what a refused start must leave alone."""
    paths = [workdir / "config.json", workdir / "metrics.jsonl"]
    for step in processes.finished_steps(workdir):
        paths += sorted((workdir / "checkpoints" / str(step)).rglob("*"))
    return {str(path): path.read_bytes() for path in paths if path.is_file()}
