"""The 1,797 handwritten digits that scikit-learn ships, as a TFDS builder.

8x8 pixels, 17 grey levels: the test part of the UCI set *Optical Recognition of
Handwritten Digits* (Alpaydin and Kaynak 1998). It needs no download, so it is what
`python train.py` trains on.
"""

from collections.abc import Iterator
from typing import Any

import PIL.Image
import tensorflow_datasets as tfds

# In file order; later examples are by other writers, which makes the test honest.
NUM_TRAIN = 1437


class Digits(tfds.core.GeneratorBasedBuilder):
    """`digits`: train 1,437 and test 360 grey images of 8x8 pixels, 10 classes."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The images of scikit-learn's load_digits()."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__ or "",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {
            "train": self._generate_examples(slice(NUM_TRAIN)),
            "test": self._generate_examples(slice(NUM_TRAIN, None)),
        }

    def _generate_examples(self, part: slice) -> Iterator[tuple[int, dict[str, Any]]]:
        import sklearn.datasets

        digits: Any = sklearn.datasets.load_digits()
        for i, label in enumerate(digits["target"][part]):
            pixels = digits["images"][part][i] * (255 / 16)  # 0..16 -> 0..255
            image = PIL.Image.fromarray(pixels.round().astype("uint8"))
            yield i, {"image": image, "label": int(label)}
