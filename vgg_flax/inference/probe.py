"""A linear probe: logistic regression on a net's features, which learns nothing else.

What a fine-tuned net has to beat.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vgg_flax.data import DataError, splits
from vgg_flax.data.splits import Split
from vgg_flax.images import codec
from vgg_flax.inference.extraction import Extractor, Settings
from vgg_flax.net import Net
from vgg_flax.parallel.ahead import in_threads

STRENGTHS = tuple(10.0**k for k in range(-5, 3))  # C of scikit-learn
_VALIDATION = 5  # every so many of the training images choose among them


@dataclasses.dataclass(frozen=True)
class Probed:
    """What came of it.

    Attributes:
      class_names: in the order of the labels.
      strength: C, the best on the validation images.
      validation: the share of these that was right, with that C.
      right: test images.
      count: test images in all.
    """

    class_names: tuple[str, ...]
    strength: float
    validation: float
    right: int
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share that is right, 95%: Wilson's."""
        n, z = self.count, 1.96
        share = self.right / n
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        spread = math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
        half = z / (1 + z * z / n) * spread
        return middle - half, middle + half


def open_splits(data: str, data_dir: str, names: Sequence[str]) -> list[Split]:
    """The training and the test split of a folder or a TFDS data set.

    Raises:
      DataError: no such data, or fewer than two classes.
    """
    name, data_dir = ("folder", data) if splits.is_files(data) else (data, data_dir)
    train = splits.open_any_split(name, data_dir, names[0], 0)
    if len(train.class_names) < 2:
        raise DataError(
            f"{train.name} has {len(train.class_names)} class; expected two"
        )
    test = splits.open_any_split(name, data_dir, names[1], 0, train.class_names)
    return [train, test]


def probe(
    net: Net,
    train: Split,
    test: Split,
    settings: Settings,
    *,
    after_image: Callable[[int], object] = lambda _: None,
) -> Probed:
    """Fits on `train`, with C chosen on a fifth of it, and tests on `test`.

    Args:
      net: whose test views are looked at.
      train: labelled images.
      test: of the same classes.
      settings: one layer or several, side by side.
      after_image: called with 1 when an image is read.

    Raises:
      ImageError: an image that cannot be decoded, by its name.
      DataError: training images of one class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    extractor = Extractor(net, settings)
    (x, labels), (test_x, truth) = (
        _features(net, extractor, split, after_image) for split in (train, test)
    )
    if len(set(labels)) < 2:
        raise DataError(f"{train.name} has images of one class only")
    chooses = np.arange(len(x)) % _VALIDATION == 0

    def fit(strength: float, x: np.ndarray, labels: np.ndarray) -> Any:
        regression = LogisticRegression(C=strength, max_iter=2000)
        return make_pipeline(StandardScaler(), regression).fit(x, labels)

    scores = {
        strength: fit(strength, x[~chooses], labels[~chooses]).score(
            x[chooses], labels[chooses]
        )
        for strength in STRENGTHS
    }
    best = max(scores, key=lambda strength: scores[strength])
    right = fit(best, x, labels).predict(test_x) == truth
    return Probed(
        train.class_names, best, float(scores[best]), int(right.sum()), len(right)
    )


def _features(
    net: Net, extractor: Extractor, split: Split, after_image: Callable[[int], object]
) -> tuple[np.ndarray, np.ndarray]:
    """`[images, numbers]`, and the labels."""
    labels: list[int] = []

    def read(index: int) -> tuple[np.ndarray, int]:
        record = split.records[index]
        try:
            view = net.preprocessing.test_view(record["image"])
        except codec.ImageError as error:
            raise codec.ImageError(f"{record['key']}: {error}") from error
        return view, record["label"]

    def views() -> Iterator[np.ndarray]:
        for view, label in in_threads(read, range(len(split))):
            after_image(1)
            labels.append(label)
            yield view

    rows = [
        np.concatenate([x.reshape(len(x), -1) for x in batch.values()], axis=1)
        for batch in extractor.batches(views())
    ]
    return np.concatenate(rows), np.array(labels)
