"""Views of images -> log posteriors, in batches of one shape, over all local devices.

Views of all images wait in queues, one for each net and padded shape, until they make
a full batch; an image is done when all of its views are.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vgg_flax import parallel
from vgg_flax.errors import VGGFlaxError
from vgg_flax.evaluation import protocols
from vgg_flax.evaluation.protocols import Views
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VGG
from vgg_flax.net import Net
from vgg_flax.parallel.ahead import ahead

Cell = tuple[int, Views]  # which net, and what it sees
Examples = Iterable[tuple[Any, dict[Cell, list[np.ndarray]]]]

# Batches sent and not yet read: enough to keep the devices busy, and no more memory.
_IN_FLIGHT = 3


class NotFiniteError(VGGFlaxError):
    """A net gives scores that are no numbers."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the nets are run.

    Attributes:
      batch_size: crops a step, over the devices of all processes; of larger images
        as many fewer as have as many pixels, so that memory stays the same.
      matmul_precision: "highest", "high" or "default", of `jax.default_matmul_...`.
      classes: indices of the classes that the softmax runs over; None: all.
    """

    batch_size: int = 64
    matmul_precision: str = "highest"
    classes: tuple[int, ...] | None = None


@dataclasses.dataclass
class _Job:
    """An image on its way: its log posteriors so far, by cell."""

    tag: Any
    missing: dict[Cell, int]
    of_views: dict[Cell, list[np.ndarray]]
    log_posteriors: dict[Cell, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What a compiled step takes."""

    net: int
    height: int
    width: int
    padded: bool  # whether images may be smaller


_Item = tuple[_Job, Cell, np.ndarray]


class Posteriors:
    """The nets on the devices of this process, and a queue for each shape.

    Attributes:
      shapes: those that were compiled; `protocols.bucket` bounds their number.
    """

    def __init__(self, nets: Sequence[Net], settings: Settings):
        self.shapes: set[_Shape] = set()
        self._nets, self._settings = nets, settings
        self._devices = jax.local_devices()
        self._steps = [self._make_step(net) for net in nets]
        self._variables = [parallel.replicate(n.variables, self._devices) for n in nets]
        self._queues: dict[_Shape, list[_Item]] = collections.defaultdict(list)
        self._sizes: dict[_Shape, int] = {}  # of batches, by what there will be

    def compute(
        self, examples: Examples, count: int | None = None
    ) -> Iterator[tuple[Any, dict[Cell, Any]]]:
        """Yields `(tag, {cell: log posterior})` of each image once, in any order.

        Args:
          examples: `(tag, {cell: its views})`; views are uint8 `[h, w, channels]`.
          count: how many there are, at most: batches of crops are then as large as
            leaves the last one full.

        Yields:
          float64 arrays `[classes]`: the log of the mean over the cell's views.

        Raises:
          NotFiniteError: a net gives NaN.
        """
        for items, log_posteriors in ahead(self._sent(examples, count), _IN_FLIGHT):
            yield from self._completed(items, jax.device_get(log_posteriors))

    def _sent(
        self, examples: Examples, count: int | None
    ) -> Iterator[tuple[list[_Item], jax.Array]]:
        """Batches as they are full, at the end as they are, each sent when drawn."""
        for tag, cells in examples:
            job = _Job(tag, {cell: len(v) for cell, v in cells.items()}, {}, {})
            if count is not None:  # all examples have as many crops as the first
                self._expect(cells, count)
                count = None
            for cell, views in cells.items():
                for view in views:
                    shape = self._shape(cell, view)
                    self._queues[shape].append((job, cell, view))
                    if len(self._queues[shape]) == self._batch_size(shape):
                        yield self._send(shape)
        for shape in list(self._queues):
            yield self._send(shape)

    def _shape(self, cell: Cell, view: np.ndarray) -> _Shape:
        net, (kind, _, _) = cell
        size = view.shape[:2]
        if kind == "dense":
            return _Shape(net, *protocols.bucket(*size), padded=True)
        return _Shape(net, *size, padded=False)

    def _expect(self, cells: dict[Cell, list[np.ndarray]], count: int) -> None:
        """Settles the sizes of batches of crops for so many examples like this."""
        of_one = collections.Counter(
            self._shape(cell, view) for cell, views in cells.items() for view in views
        )
        self._sizes = {
            shape: self._fitting(shape, number * count)
            for shape, number in of_one.items()
            if not shape.padded
        }

    def _fitting(self, shape: _Shape, views: int) -> int:
        """The size of which the fewest batches hold so many views, and few else.

        In sixteenths of a whole batch, so that another number of views is seldom
        another program.
        """
        whole, devices = self._whole(shape), len(self._devices)
        sixteenth = -(-whole // (16 * devices)) * devices
        each = -(-views // -(-views // whole))
        return min(whole, -(-each // sixteenth) * sixteenth)

    def _batch_size(self, shape: _Shape) -> int:
        return self._sizes.get(shape) or self._whole(shape)

    def _whole(self, shape: _Shape) -> int:
        """A multiple of the number of devices."""
        crop = self._nets[shape.net].preprocessing.crop_size
        pixels = self._settings.batch_size * crop**2
        each = pixels // (shape.height * shape.width * jax.device_count())
        return max(1, each) * len(self._devices)

    def _send(self, shape: _Shape) -> tuple[list[_Item], jax.Array]:
        """Sends a queue's views, padded to a batch of a size that is compiled.

        A shape of which there never was a whole batch is compiled for those views.
        """
        items, count = self._queues.pop(shape), self._batch_size(shape)
        if shape not in self.shapes:
            self.shapes.add(shape)
            count = min(count, self._fitting(shape, len(items)))
            message = "compiling shape %d: %d images of %s"
            logging.info(message, len(self.shapes), count, shape)
        channels = items[0][2].shape[-1]
        images = np.zeros((count, shape.height, shape.width, channels), np.uint8)
        sizes = np.full((count, 2), (shape.height, shape.width), np.int32)
        for i, (_, _, view) in enumerate(items):
            images[i, : view.shape[0], : view.shape[1]] = view
            sizes[i] = view.shape[:2]
        batch = {"image": images, **({"size": sizes} if shape.padded else {})}
        with jax.default_matmul_precision(self._settings.matmul_precision):
            result = self._steps[shape.net](
                self._variables[shape.net], parallel.shard(batch, self._devices)
            )
        return items, result

    def _completed(
        self, items: list[_Item], log_posteriors: np.ndarray
    ) -> Iterator[tuple[Any, dict[Cell, Any]]]:
        """Takes what a batch gave; yields the images that it completes."""
        for (job, cell, _), log_posterior in zip(items, log_posteriors, strict=False):
            if np.isnan(log_posterior).any():
                source = self._nets[cell[0]].source
                raise NotFiniteError(
                    f"{source} gives scores that are not finite for {job.tag}; its "
                    "weights are damaged, or overflow in this dtype"
                )
            views = job.of_views.setdefault(cell, [])
            views.append(log_posterior)
            if len(views) == job.missing[cell]:
                job.log_posteriors[cell] = protocols.log_mean(job.of_views.pop(cell))
                del job.missing[cell]
                if not job.missing:
                    yield job.tag, job.log_posteriors

    def _make_step(self, net: Net) -> Any:
        step = make_step(net.model, net.preprocessing, self._settings.classes)
        return parallel.pmap_step(step, donate_state=False, devices=self._devices)


def make_step(
    model: VGG, preprocessing: Preprocessing, classes: tuple[int, ...] | None = None
) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """`step(variables, batch) -> log posteriors` of all replicas, for one replica.

    `batch` holds uint8 `image` `[B, h, w, channels]` and, where images are padded,
    their `size` `[B, 2]`; `classes` as in `Settings`.
    """

    def step(variables: Any, batch: dict[str, jax.Array]) -> jax.Array:
        images = preprocessing.normalize(batch["image"], dtype=model.param_dtype)
        logits: Any = model.apply(variables, images, sizes=batch.get("size"))
        if classes is not None:
            logits = logits[:, np.asarray(classes)]
        return jax.lax.all_gather(
            jax.nn.log_softmax(logits), parallel.AXIS_NAME, tiled=True
        )

    return step
