"""Experiments over a data set: every image once, counted exactly, resumable.

Several experiments share one pass over the images: each net sees each view once.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vgg_flax import console, errors
from vgg_flax.data import DataError
from vgg_flax.errors import ConfigError
from vgg_flax.evaluation import experiments as experiments_lib
from vgg_flax.evaluation import protocols, results
from vgg_flax.evaluation.experiments import Experiment
from vgg_flax.evaluation.journal import Journal, JournalError, Result
from vgg_flax.evaluation.label_sets import LabelledImages
from vgg_flax.evaluation.posteriors import Cell, Posteriors, Settings
from vgg_flax.images import codec
from vgg_flax.net import Net
from vgg_flax.parallel import distributed
from vgg_flax.parallel.ahead import in_threads
from vgg_flax.parallel.signals import SignalsApart
from vgg_flax.parallel.watchdog import Watchdog
from vgg_flax.runs.lease import Lease

# Of several processes one that has not ended an image for so long ends them all.
_STUCK_SECONDS = 900.0


@dataclasses.dataclass(frozen=True)
class _Tag:
    index: int
    key: str
    labels: tuple[int, ...]  # of the classes that take part
    content: int = 0  # crc32 of the image's bytes

    def __str__(self) -> str:
        return self.key


def evaluate(
    nets: Sequence[Net],
    images: LabelledImages,
    experiments: Sequence[Experiment],
    output: epath.Path | None = None,
    *,
    settings: Settings | None = None,
    limit: int | None = None,
    and_write: Callable[[Result, list[Result]], None] = lambda result, images: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs experiments over a split, every image once.

    Several processes, which call it alike, share the images; all return everything.

    Args:
      nets: those that the experiments' entries count.
      images: what to test on.
      experiments: at least one.
      output: where the result goes as JSON, as `results.path_of` has it; None: nowhere.
        Beside it live journals of the images done, one a process, with which an
        interrupted evaluation goes on, in as many processes as then are.
      settings: of the nets' running; its `classes` are taken from `images`.
      limit: only the first so many images.
      and_write: called in the first process with what is returned, before the
        journals are removed: where it fails, nothing has to be computed again.

    Returns:
      The result (docs/evaluation.md tells of it), and each image's: `index`, `key`,
      `labels` and, in `experiments`, for each: `rank` (how many classes are ahead of
      the right one, or the best of the right ones), `nll`, `classes`, `probabilities`.

    Raises:
      ConfigError: a scale that is too small, nets that do not fit each other, or
        processes that differ in what they would evaluate.
      Interrupted: by a signal.
    """
    settings = dataclasses.replace(settings or Settings(), classes=images.classes)
    experiments_lib.check_nets(nets, experiments)
    limit = len(images.split) if limit is None else limit
    _check_arguments(settings.batch_size, limit, output)
    total = min(len(images.split), limit)
    described = results.describe(nets, images, experiments, settings, total)
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]
    seen = _Images(nets, images, experiments)
    posteriors = Posteriors(nets, settings)
    if output is None:
        return _go_on(key, described, seen, posteriors, total, and_write)
    output = results.path_of(output, key)
    path = output.parent / f"{output.stem}.{key}.lease"
    with Lease(path, f"--output {output}") as lease:
        return _go_on(
            key, described, seen, posteriors, total, and_write, output, lease.check
        )


def _go_on(
    key: str,
    described: dict[str, Any],
    seen: "_Images",
    posteriors: Posteriors,
    total: int,
    and_write: Callable[[Result, list[Result]], None],
    output: epath.Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `evaluate` returns, of images done before or now; `check`, as of a lease."""
    path = output and output.parent / f"{output.stem}.{key}.journal"
    journal = Journal(path, jax.process_index())
    pending = _pending(journal, seen, total)
    _check_processes(described, pending, output)  # and all have read the journals
    journal.open()
    _check_shared(journal, output)
    _fill(journal, seen, posteriors, pending, total)
    check()  # the lines of one that took over are as ours, but its files are its own
    done = _all_done(journal, total)
    if not any(map(results.counts, done)):
        if jax.process_index() == 0:
            journal.remove()
        raise DataError(results.nothing_counts(done, seen.name))
    result = {
        "key": key,
        **described,
        **results.summary(described, seen.experiments, done),
        "compiled_shapes": len(posteriors.shapes),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    counted = [image for image in done if results.counts(image)]
    if jax.process_index() == 0:
        if output is not None:
            results.write(result, output, journal)
        and_write(result, counted)
        journal.remove()
    return result, counted


def _check_arguments(batch_size: int, limit: int, output: epath.Path | None) -> None:
    for name, value in (("batch size", batch_size), ("limit", limit)):
        if value < 1:
            raise ConfigError(f"{name} {value}: expected at least 1")
    if output is None and jax.process_count() > 1:
        raise ConfigError(
            "output=None with several processes, which meet in the files beside it; "
            "give a path on storage that they share"
        )


def _all_done(journal: Journal, total: int) -> list[dict[str, Any]]:
    """The results of all images, in order; raises JournalError where some are gone."""
    done = [result for _, result in sorted(journal.results.items())]
    if len(done) != total:
        raise JournalError(
            f"{journal.path}: {len(done)} of {total} images are in the journals, which "
            "were spoiled; run the same command again, to compute the others"
        )
    return done


def _pending(journal: Journal, images: "_Images", total: int) -> list[int]:
    """The images to compute: those that the journal lacks, or has of other pixels."""
    if journal.spoiled:
        console.say(
            f"{journal.path}: {journal.spoiled} lines are damaged, or of an earlier "
            "version; their images are computed again"
        )
    done = list(journal.results.values())
    with console.bar(len(done), "image compared") as bar:
        changed = []
        for result, same in zip(done, in_threads(images.is_of, done), strict=True):
            if not same:
                changed.append(result["index"])
            bar.update()
    if changed:
        console.say(
            f"{journal.path}: {len(changed)} images are not those of before; they are "
            "computed again"
        )
    journal.forget(changed)
    return [i for i in range(total) if i not in journal.results]


def _check_processes(
    described: dict[str, Any], pending: Sequence[int], output: epath.Path | None
) -> None:
    """Raises ConfigError unless all processes are about to do the same."""
    left = len(pending), hashlib.sha256(repr(pending).encode()).hexdigest()
    facts = {"output": str(output), "code": distributed.code_digest()}
    facts |= {"images left by the journals beside the output": left}
    distributed.check_same(described | facts)


def _check_shared(journal: Journal, output: epath.Path | None) -> None:
    """Raises ConfigError unless every process sees every other's journal."""
    processes = jax.process_count()
    if processes == 1:
        return
    distributed.wait_for_all("all journals opened")
    if journal.count(processes) < processes:
        raise ConfigError(
            f"--output {output}: {journal.count(processes)} of {processes} processes' "
            "journals are beside it; give a path on storage that all share"
        )


def _fill(
    journal: Journal,
    images: "_Images",
    posteriors: Posteriors,
    pending: Sequence[int],
    total: int,
) -> None:
    """Adds the results of the pending images to the journal: this process's share."""
    process, processes = jax.process_index(), jax.process_count()
    share, before = pending[process::processes], total - len(pending)
    bar = console.bar(before + len(share), "image", before, active=process == 0)
    watchdog = Watchdog(_STUCK_SECONDS if processes > 1 else None)
    with SignalsApart() as signals, watchdog, bar:

        def go_on() -> None:
            watchdog.step_ended()
            if received := signals.poll():
                raise _interrupted(journal, received, total)

        def examples() -> Iterator[tuple[_Tag, dict[Cell, list[np.ndarray]]]]:
            for tag, views in in_threads(images.read, share):
                go_on()
                if isinstance(views, dict):
                    yield tag, views
                    continue
                failed = {} if views is None else {"error": str(views)}
                result = {"key": tag.key, "labels": [], "experiments": []}
                result["content"] = tag.content
                journal.add(tag.index, {**result, **failed})
                bar.update()

        whole_share = -(-total // processes)  # resumed, it has batches of the same size
        with contextlib.closing(journal):
            for tag, log_posteriors in posteriors.compute(examples(), whole_share):
                journal.add(tag.index, images.result(tag, log_posteriors))
                bar.update()
                go_on()
        while not signals.all_done():
            go_on()
            time.sleep(0.1)
    if processes > 1:
        journal.gather(processes)
        distributed.wait_for_all("all results gathered")


def _interrupted(
    journal: Journal, received: signal.Signals, total: int
) -> errors.Interrupted:
    done = sum(map(results.counts, journal.results.values()))
    kept = f" are kept in {journal.path}; run the same command again to go on"
    return errors.Interrupted(
        f"stopped by {received.name}: {done} of {total} images"
        + (kept if journal.path else " were done"),
        128 + received,
    )


class _Images:
    """The images as the nets see them, and what comes of an image's posteriors."""

    def __init__(
        self,
        nets: Sequence[Net],
        images: LabelledImages,
        experiments: Sequence[Experiment],
    ):
        self._nets, self._images, self.experiments = nets, images, experiments
        self.name = images.split.name
        self._cells = sorted({cell for e in experiments for cell in e.cells()})

    def read(self, index: int) -> tuple[_Tag, Any]:
        """An image's views; None: it has no label; an exception: it is unreadable."""
        try:
            record = self._images.split.records[index]
        except OSError as error:
            return _Tag(index, str(error.filename or f"image {index}"), ()), error
        content = zlib.crc32(record["image"])
        tag = _Tag(index, record["key"], self._images.labels(record), content)
        if not tag.labels:
            return tag, None
        try:
            return tag, _views(self._nets, self._cells, record["image"])
        except codec.ImageError as error:
            return tag, error

    def result(
        self, tag: _Tag, log_posteriors: dict[Cell, np.ndarray]
    ) -> dict[str, Any]:
        """What the journal keeps of an image."""
        classes = np.arange(self._nets[0].model.num_classes)
        if self._images.classes is not None:
            classes = np.asarray(self._images.classes)
        outcomes = [
            results.outcome(e.log_posterior(log_posteriors), tag.labels, classes)
            for e in self.experiments
        ]
        labels = classes[list(tag.labels)].tolist()
        return {
            "key": tag.key,
            "labels": labels,
            "experiments": outcomes,
            "content": tag.content,
        }

    def is_of(self, result: dict[str, Any]) -> bool:
        """Whether a result is of the image that is there now, by name and content."""
        try:
            record = self._images.split.records[result["index"]]
        except (OSError, IndexError):
            return False
        now = record["key"], zlib.crc32(record["image"])
        return now == (result["key"], result.get("content"))


def _views(
    nets: Sequence[Net], cells: Sequence[Cell], data: bytes
) -> dict[Cell, list[np.ndarray]]:
    """Each net's views of an image, by its own preprocessing."""
    pixels = [net.preprocessing for net in nets]
    decoded = [(each.channels, each.orientation) for each in pixels]
    images = {each: codec.decode(data, *each) for each in set(decoded)}
    return {
        (net, views): protocols.take(views, images[decoded[net]], pixels[net])
        for net, views in cells
    }
