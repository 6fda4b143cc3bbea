"""ImageNet's class names against their sources and against classes everyone knows."""

import pathlib

import pytest
import tensorflow_datasets as tfds

import vgg_flax
from vgg_flax.data import imagenet

# Labels that papers and tutorials quote; synsets from WordNet 3.0.
KNOWN = {
    0: ("n01440764", "tench"),
    134: ("n02012849", "crane bird"),
    281: ("n02123045", "tabby"),
    285: ("n02124075", "Egyptian cat"),
    388: ("n02510455", "giant panda"),
    517: ("n03126707", "crane"),
    638: ("n03710637", "maillot"),
    639: ("n03710721", "maillot tank suit"),
    980: ("n09472597", "volcano"),
    999: ("n15075141", "toilet tissue"),
}


def test_known_classes_are_where_everyone_knows_them() -> None:
    synsets, names = imagenet.synsets(), imagenet.class_names()
    assert {label: (synsets[label], names[label]) for label in KNOWN} == KNOWN


def test_there_are_a_thousand_different_classes() -> None:
    for values in (imagenet.synsets(), imagenet.class_names()):
        assert len(values) == len(set(values)) == 1000
        assert all(value == value.strip() != "" for value in values)


def test_the_synsets_are_those_of_tfds() -> None:
    path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    assert imagenet.synsets() == tuple(path.read_text().split())


def test_the_names_are_those_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    assert imagenet.class_names() == tuple(weights.meta["categories"])


def test_the_names_come_with_their_notice() -> None:
    data = pathlib.Path(vgg_flax.__file__).parent / "data"
    header = (data / "imagenet_classes.txt").read_text()[:600]
    notice = "Copyright (c) Soumith Chintala 2016"
    assert notice in header and "BSD 3-Clause" in header
    licence = (data / "LICENSE.torchvision").read_text()
    assert notice in licence and "Redistributions in binary form" in licence


def test_classes_that_are_imagenets_are_shown_by_its_names() -> None:
    numbers = tuple(str(i) for i in range(1000))
    for names in ((), numbers, imagenet.synsets()):
        assert imagenet.display_names(names, 1000)[980] == "volcano"


def test_other_classes_keep_their_names() -> None:
    own = tuple(f"shoe {i}" for i in range(1000))
    assert imagenet.display_names(own, 1000) == own
    assert imagenet.display_names(("cat", "dog"), 2) == ("cat", "dog")
    assert imagenet.display_names((), 3) == ("0", "1", "2")
    reversed_synsets = imagenet.synsets()[::-1]
    assert imagenet.display_names(reversed_synsets, 1000) == reversed_synsets
