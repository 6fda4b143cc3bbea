"""Writes vgg_flax/data/imagenet_classes.txt: ImageNet's synsets and class names.

The names are torchvision's, the synsets TFDS'; both list ILSVRC-2012's 1,000 classes in
the order of the labels. To run it: `pip install torchvision` and

    python scripts/make_imagenet_classes.py
"""

import importlib.metadata
import pathlib

import tensorflow_datasets as tfds
from torchvision.models import _meta

DATA = pathlib.Path(__file__).parent.parent / "vgg_flax" / "data"


def main() -> None:
    """Writes the list, and torchvision's licence beside it."""
    version = importlib.metadata.version("torchvision")
    header = (
        "The 1,000 classes of ILSVRC-2012 in label order: WordNet synset, name.",
        f"Written by scripts/make_imagenet_classes.py from torchvision {version}'s",
        "models/_meta.py (the names; Copyright (c) Soumith Chintala 2016, BSD 3-Clause",
        "License, see LICENSE.torchvision) and TFDS' labels.txt (the synsets).",
    )
    names = _meta._IMAGENET_CATEGORIES
    labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    pairs = zip(labels.read_text().split(), names, strict=True)
    lines = [f"# {line}" for line in header]
    lines += [f"{synset} {name}" for synset, name in pairs]
    (DATA / "imagenet_classes.txt").write_text("\n".join(lines) + "\n")
    distribution = importlib.metadata.distribution("torchvision")
    licences = [p for p in distribution.files or () if p.name == "LICENSE"]
    (DATA / "LICENSE.torchvision").write_text(licences[0].read_text())


if __name__ == "__main__":
    main()
