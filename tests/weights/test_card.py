"""The model card: there and back through JSON, earlier files', and damaged ones."""

import json
from typing import Any

import pytest

from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VGG
from vgg_flax.weights.card import ModelCard
from vgg_flax.weights.lineages import layouts

SMALL: dict[str, Any] = {"width_multiplier": 1 / 16, "fc6_window": 1, "num_classes": 2}
SMALL |= {"fc_widths": (4, 3)}
GREY = Preprocessing((0.305,), (0.376,), 36, 32)
# The `meta` that a run wrote before there were cards, and one that `convert` wrote.
OF_A_RUN: dict[str, Any] = {
    "config": {"model": {"variant": "A"}, "seed": 0},
    "variant": "vgg11_bn",
    "model": {
        "adaptive_pool": False,
        "conv_bias": True,
        "dropout_rate": 0.25,
        "dtype": "bfloat16",
        "fc6_window": 1,
        "fc_widths": [16, 8],
        "head": "fc",
        "in_channels": 1,
        "initializer": "glorot",
        "num_classes": 3,
        "pooling": "average",
        "variant": "vgg11_bn",
        "width_multiplier": 0.0625,
    },
    "preprocessing": {
        "mean": [0.305],
        "std": [0.376],
        "test_scale": 36,
        "crop_size": 32,
        "resize": "cv2",
    },
    "class_names": ["0", "1", "2"],
    "train_scale": [28, 40],
    "evaluated": True,
    "versions": {"jax": "0.10.2"},
    "leaves": {"params/fc8/bias": {"shape": [3], "dtype": "float32", "crc32": 1}},
}
CONVERTED = {
    **{k: OF_A_RUN[k] for k in ("variant", "model", "preprocessing", "class_names")},
    "train_scale": None,
    "source": "timm/vgg11_bn.tv_in1k",
    "source_sha256": "6" * 64,
}
EARLIER = ModelCard(
    VGG(
        "vgg11_bn",
        num_classes=3,
        in_channels=1,
        width_multiplier=0.0625,
        fc_widths=(16, 8),
        fc6_window=1,
        dropout_rate=0.25,
        initializer="glorot",
        dtype="bfloat16",
        pooling="average",
    ),
    Preprocessing((0.305,), (0.376,), 36, 32, "cv2"),
    class_names=("0", "1", "2"),
    train_scale=(28, 40),
)

CARDS = {
    "vgg16": ModelCard(VGG(), layouts.CAFFE, train_scale=(256, 512)),
    "grey, without biases": ModelCard(
        VGG("vgg13_bn", in_channels=1, conv_bias=False, **SMALL),
        GREY,
        ("null", "un"),
        source="runs/digits",
        sha256="a" * 64,
    ),
    "features": ModelCard(VGG("vgg11", head="none", **SMALL), layouts.FEATURES),
    "pooled": ModelCard(VGG("vgg19", head="gap", **SMALL), layouts.OPENCV, ("", "b")),
    "of LRN": ModelCard(VGG("vgg11_lrn", pooling="average", **SMALL), GREY),
    "float64": ModelCard(VGG(dtype="float64", **SMALL), layouts.TORCHVISION),
    "adaptive": ModelCard(VGG("vgg16_1x1", adaptive_pool=True, **SMALL), GREY),
    "boxes": ModelCard(
        VGG("vgg11", **SMALL), GREY, objective="boxes", has_classes=False
    ),
    "smoothed": ModelCard(VGG("vgg11", **SMALL), GREY, objective="smoothed"),
    "a letter": ModelCard(VGG("C", dropout_rate=0.0, **SMALL), GREY),
}


def through_json(card: ModelCard) -> dict[str, Any]:
    return json.loads(json.dumps(card.to_json()))


@pytest.mark.parametrize("name", CARDS)
def test_there_and_back_is_the_same_card(name: str) -> None:
    card = CARDS[name]
    again = ModelCard.from_json(through_json(card))
    assert again == card
    assert (again.model, hash(again)) == (card.model, hash(card))


def test_cards_that_differ_have_other_json() -> None:
    written = {json.dumps(card.to_json()) for card in CARDS.values()}
    assert len(written) == len(CARDS)


def test_a_checkpoint_of_an_earlier_run_is_read() -> None:
    assert ModelCard.from_json(OF_A_RUN) == EARLIER
    keys = ("variant", "model", "preprocessing", "class_names", "train_scale")
    assert through_json(EARLIER) == {
        **{key: OF_A_RUN[key] for key in keys},
        "source": "",
        "source_sha256": "",
    }


def test_an_earlier_conversion_is_read_and_written_as_it_was() -> None:
    card = ModelCard.from_json(CONVERTED)
    assert (card.source, card.sha256) == ("timm/vgg11_bn.tv_in1k", "6" * 64)
    assert (card.variant, card.train_scale) == ("vgg11_bn", None)
    assert list(card.to_json()) == list(CONVERTED)  # the order, for equal bytes
    assert through_json(card) == CONVERTED


def test_what_the_first_checkpoints_lack_is_as_it_was_then() -> None:
    model = dict(OF_A_RUN["model"])
    for younger in ("conv_bias", "pooling", "adaptive_pool"):
        del model[younger]
    preprocessing = dict(OF_A_RUN["preprocessing"])
    del preprocessing["resize"]
    card = ModelCard.from_json(
        OF_A_RUN | {"model": model, "preprocessing": preprocessing}
    )
    assert card.preprocessing.resize == "pillow"
    assert (card.model.conv_bias, card.model.pooling) == (True, "max")
    assert not card.model.adaptive_pool


def test_the_axis_of_batch_norm_is_the_runs_and_not_the_nets() -> None:
    card = ModelCard(VGG("vgg11_bn", batch_norm_axis="replicas", **SMALL), GREY)
    assert ModelCard.from_json(card.to_json()).model.batch_norm_axis is None


def test_the_variant_is_the_models() -> None:
    assert CARDS["a letter"].variant == "vgg16_1x1"
    assert CARDS["a letter"].to_json()["variant"] == "vgg16_1x1"
    assert CARDS["a letter"].to_json()["model"]["variant"] == "C"


def test_results_say_which_net_they_are_of() -> None:
    assert ModelCard.from_json(CONVERTED).identity() == {
        "source": "timm/vgg11_bn.tv_in1k",
        "sha256": "6" * 64,
        "variant": "vgg11_bn",
    }


def changed(path: str, value: Any, base: dict[str, Any] = OF_A_RUN) -> dict[str, Any]:
    """`base` with another value at `path`, as in "model/variant"."""
    *outer, last = path.split("/")
    copy = json.loads(json.dumps(base))
    (copy[outer[0]] if outer else copy)[last] = value
    return copy


DAMAGED = [
    ("variant", "vgg13", "'vgg13', and a 'vgg11_bn' in it"),
    ("variant", "vgg12", "variant 'vgg12' is not a column of Table 1"),
    ("variant", 5, "5"),
    ("model", 5, "int"),
    ("model", {}, "fc_widths"),
    ("model/variant", "resnet", "'resnet'"),
    ("model/depth", 16, "depth"),
    ("model/fc_widths", 4, "int"),
    ("model/width_multiplier", "wide", ""),
    ("model/width_multiplier", float("inf"), "infinity"),
    ("model/initializer", "zeros", "zeros"),
    ("model/pooling", None, "None"),
    ("model/dtype", "int32", "int32"),
    ("model/dtype", "float31", "float31"),
    ("preprocessing", {}, "mean"),
    ("preprocessing/std", [0], "cannot be"),
    ("preprocessing/crop_size", 99, "cannot be"),
    ("class_names", "012", "'012'"),
    ("class_names", 5, "5"),
    ("train_scale", [], ""),
    ("train_scale", [1, 2, 3], ""),
    ("train_scale", "28", "'28'"),
    ("train_scale", ["low", "high"], "low"),
]


@pytest.mark.parametrize(("path", "value", "expected"), DAMAGED, ids=str)
def test_a_damaged_card_is_one_error(path: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"this is no model card: .*(?:{expected})"):
        ModelCard.from_json(changed(path, value))


@pytest.mark.parametrize(
    "key", ["model", "preprocessing", "class_names", "train_scale"]
)
def test_a_missing_value_is_named(key: str) -> None:
    values = {k: v for k, v in OF_A_RUN.items() if k != key}
    with pytest.raises(ValueError, match=rf"no model card: KeyError\('{key}'\)"):
        ModelCard.from_json(values)


@pytest.mark.parametrize("values", [[], 5, None, "card"], ids=str)
def test_other_json_is_no_card(values: Any) -> None:
    with pytest.raises(ValueError, match="this is no model card"):
        ModelCard.from_json(values)


@pytest.mark.parametrize("part", ["model", "preprocessing"])
def test_no_value_ends_in_another_error(part: str) -> None:
    odd = (None, -1, 2.5, 1e400, "x", [None, 2], {})
    # Of a smaller net: its shapes are asked for each time.
    plain = {**OF_A_RUN, "variant": "vgg11"}
    plain["model"] = {**OF_A_RUN["model"], "variant": "vgg11", "head": "gap"}
    refused = 0
    for name in OF_A_RUN[part]:
        for value in odd:
            try:
                ModelCard.from_json(changed(f"{part}/{name}", value, plain))
            except ValueError:
                refused += 1
    assert refused > len(OF_A_RUN[part])
