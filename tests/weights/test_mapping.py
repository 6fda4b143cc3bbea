"""Foreign tensors -> variables: names, axes, pixels, and one list of what is wrong."""

import json
import re
from collections.abc import Callable
from typing import Any

import golden
import jax
import numpy as np
import pytest
import samples
from conftest import random_net
from flax import traverse_util
from nets import shapes
from torchvision_net import (
    FC,
    TORCHVISION_INDICES,
    WIDTHS,
    WINDOW,
    torchvision_tensors,
)

from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VARIANTS, VGG
from vgg_flax.weights import WeightsError
from vgg_flax.weights.card import ModelCard
from vgg_flax.weights.lineages import layouts, mapping
from vgg_flax.weights.lineages import metadata as metadata_lib


def numpy_forward(tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """VGG in NumPy, in torchvision's order: `[B, 3, H, W]` -> logits."""
    x = images.astype(np.float64)
    convolutions = [n for n, t in tensors.items() if t.ndim == 4]
    for i, name in enumerate(convolutions):
        kernel, height, width = tensors[name], *x.shape[2:]
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        x = tensors[name.replace("weight", "bias")].reshape(1, -1, 1, 1) + sum(
            np.einsum(
                "bihw,oi->bohw",
                padded[:, :, r : r + height, c : c + width],
                kernel[:, :, r, c],
            )
            for r in range(3)
            for c in range(3)
        )
        index = int(name.split(".")[1])
        norm = f"features.{index + 1}."
        if norm + "running_mean" in tensors:
            mean, var, scale, bias = (
                tensors[norm + leaf].reshape(1, -1, 1, 1)
                for leaf in ("running_mean", "running_var", "weight", "bias")
            )
            x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
            index += 1
        x = np.maximum(x, 0)
        after = [int(n.split(".")[1]) for n in convolutions[i + 1 : i + 2]]
        if not after or after[0] == index + 3:  # a ReLU and a pool lie between
            b, c, h, w = x.shape
            x = x.reshape(b, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    x = x.reshape(len(x), -1)
    for index in (0, 3, 6):
        x = x @ tensors[f"classifier.{index}.weight"].T
        x = x + tensors[f"classifier.{index}.bias"]
        x = np.maximum(x, 0) if index < 6 else x
    return x


def photos() -> np.ndarray:
    """uint8 `[2, 64, 64, 3]`."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)


def logits(weights: mapping.Weights, images: np.ndarray) -> np.ndarray:
    normalized = weights.card.preprocessing.normalize(images)
    with jax.default_matmul_precision("highest"):
        return np.asarray(weights.card.model.apply(weights.variables, normalized))


@pytest.mark.parametrize("variant", TORCHVISION_INDICES)
def test_torchvisions_names_and_axes(variant: str) -> None:
    tensors = torchvision_tensors(variant)
    weights = mapping.to_weights(tensors)
    assert weights.card.model.variant == variant
    mean = np.array([0.485, 0.456, 0.406])
    std = np.array([0.229, 0.224, 0.225])
    x = ((photos() / 255 - mean) / std).transpose(0, 3, 1, 2)
    expected = numpy_forward(tensors, x)
    actual = logits(weights, photos())
    assert np.ptp(expected[0] - expected[1]) > 0.1  # photos tell nets apart
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod."])
def test_the_old_classifier_indices_and_the_wrappers_prefixes(prefix: str) -> None:
    tensors = torchvision_tensors()
    renamed = {"0": "1", "3": "4", "6": "6"}
    old = {
        prefix + ".".join(["classifier", renamed[p[1]], p[2]])
        if (p := name.split("."))[0] == "classifier"
        else prefix + name: tensor
        for name, tensor in tensors.items()
    }
    weights = mapping.to_weights(old)
    assert weights.lineage == "torchvision before March 2017"
    expected = logits(mapping.to_weights(tensors), photos())
    np.testing.assert_array_equal(logits(weights, photos()), expected)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("^features", "features.module"),  # PyTorch's own ImageNet example
        ("^", "net."),
        ("^", "encoder.backbone."),
        ("^", "module.net.module."),
        ("^", "model.model.vgg."),
        ("^", "net._fsdp_wrapped_module."),
        (r"^(\w+)\.", r"\1._orig_mod."),
    ],
)
@pytest.mark.parametrize("variant", ["vgg16", "vgg11_bn"])
def test_what_stands_around_names_is_taken_off_and_told(
    variant: str, pattern: str, replacement: str
) -> None:
    tensors = torchvision_tensors(variant)
    wrapped = {re.sub(pattern, replacement, n): t for n, t in tensors.items()}
    wrapped |= {"n_averaged": np.int64(3)}  # of an average of models
    weights = mapping.to_weights(wrapped)
    assert weights.lineage == "torchvision"
    around = re.sub(pattern, replacement, "features.0.weight")
    told = f"its names are read as {around} -> features.0.weight"
    assert weights.notes == (told,)
    plain = mapping.to_weights(tensors)
    assert plain.notes == ()
    same = jax.tree.map(np.array_equal, weights.variables, plain.variables)
    assert all(jax.tree.leaves(same))


FC6_FC7 = r"classifier\.[03]"
HEADS: dict[str, dict[str, np.ndarray]] = {  # of one's own, beside the convolutions
    "Linear and more": {
        "classifier.weight": np.ones((2, 128)),
        "classifier.bias": np.ones(2),
        "loss.class_weights": np.ones(2),
    },
    "Sequential": {
        **{n: t for n, t in torchvision_tensors().items() if re.match(FC6_FC7, n)},
        "classifier.6.0.weight": np.ones((2, 12)),
        "classifier.6.3.bias": np.ones(2),
    },
    "elsewhere": {"head.fc.weight": np.ones((2, 32)), "loss.class_weights": np.ones(2)},
    "1x1 convolutions": {"classifier.1.weight": np.ones((2, 32, 1, 1))},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_convolutions_load_whatever_the_head_is(head: str, prefix: str) -> None:
    tensors = torchvision_tensors()
    body = {prefix + n: t for n, t in tensors.items() if n.startswith("features")}
    whole = body | HEADS[head]
    message = listed(whole)
    assert "include_top=False" in message
    # Some take a window of 2, and the others' size is asked for.
    options: Any = {"include_top": False, "crop_size": 64, "test_scale": 64}
    if head in ("Linear and more", "Sequential"):
        weights = mapping.to_weights(whole, include_top=False)
        assert weights.card.preprocessing.crop_size == 64
    else:
        assert "crop_size= and test_scale=" in listed(whole, include_top=False)
    weights = mapping.to_weights(whole, **options)
    if head != "1x1 convolutions":  # which could be a part of a VGG's
        as_it_is = mapping.to_weights(whole, **{**options, "include_top": None})
        assert as_it_is.card.model.head == "none"
        assert as_it_is.notes == weights.notes
        assert all(name in weights.notes[-1] for name in HEADS[head])
    expected = mapping.to_weights(tensors, **options).variables
    same = jax.tree.map(np.array_equal, weights.variables, expected)
    assert all(jax.tree.leaves(same))
    # What is no head is still an error: a convolution more, a BatchNorm.
    for name in ("features.30.weight", "features.1.running_mean"):
        more = {**whole, prefix + name: np.ones((2, 2, 3, 3), np.float32)}
        assert f"{prefix + name}: unexpected" in listed(more, **options)


LINEAR_NAMES = [
    ("torchvision", "classifier"),
    ("torchvision", "classifier.0"),
    ("torchvision", "fc"),
    ("torchvision", "head"),
    ("torchvision before March 2017", "classifier.1"),
    ("Keras applications", "predictions/predictions"),
    ("Keras applications", "dense/dense"),
    ("Keras 3", "layers/dense/vars"),
]


@pytest.mark.parametrize(("lineage", "name"), LINEAR_NAMES)
@pytest.mark.parametrize("window", [2, 3, 7])
def test_one_layer_over_a_window_loads_whole(
    lineage: str, name: str, window: int
) -> None:
    tensors, rng = torchvision_tensors(), np.random.default_rng(0)
    kernel = rng.normal(0, 0.1, (6, WIDTHS[-1], window, window))  # of O, C, H, W
    bias = rng.normal(size=6)
    options: Any = {}
    if "Keras" not in lineage:
        file = {n: t for n, t in tensors.items() if n.startswith("features")}
        file |= {f"{name}.weight": kernel.reshape(6, -1), f"{name}.bias": bias}
    else:
        file = {
            n: t for n, t in keras_tensors(tensors).items() if n.startswith("block")
        }
        leaves = ("0", "1") if lineage == "Keras 3" else ("kernel:0", "bias:0")
        if lineage == "Keras 3":
            arrays = iter(file.values())
            file = {
                f"layers/conv2d{f'_{i}' * (i > 0)}/vars/{leaf}": next(arrays)
                for i in range(13)
                for leaf in leaves
            }
        flat = kernel.transpose(2, 3, 1, 0).reshape(-1, 6)  # HWC
        file |= {f"{name}/{leaves[0]}": flat, f"{name}/{leaves[1]}": bias}
        options = {"preprocessing": "caffe"}
    weights = mapping.to_weights(file, **options)
    net, pixels = weights.card.model, weights.card.preprocessing
    assert (net.head, net.fc6_window, net.num_classes) == ("linear", window, 6)
    assert weights.lineage == lineage and weights.notes == ()
    scale = 256 if window == 7 else 32 * window
    assert (pixels.crop_size, pixels.test_scale) == (32 * window, scale)
    images = rng.integers(0, 256, (1, 32 * window, 32 * window, 3)).astype(np.uint8)
    without = mapping.to_weights(file, include_top=False, **options)
    _, taps = without.card.model.apply(
        without.variables, pixels.normalize(images), mutable="intermediates"
    )
    last_map = np.asarray(taps["intermediates"]["pool5"]).transpose(0, 3, 1, 2)
    expected = last_map.reshape(1, -1) @ kernel.reshape(6, -1).T + bias
    spread = np.ptp(expected)
    np.testing.assert_allclose(logits(weights, images), expected, atol=1e-4 * spread)


def test_one_layer_beside_others_is_a_head_of_ones_own() -> None:
    body = {n: t for n, t in torchvision_tensors().items() if n.startswith("features")}
    one = {"classifier.0.weight": np.ones((6, 128)), "classifier.0.bias": np.ones(6)}
    others: tuple[dict[str, np.ndarray], ...] = (
        {"classifier.2.weight": np.ones((2, 6)), "classifier.2.bias": np.ones(2)},
        {"classifier.1.running_mean": np.ones(6)},
        {"embedding.weight": np.ones((5, 5))},
    )
    for other in others:
        message = listed(body | one | other)
        assert "classifier.3.weight: missing" in message
        assert "include_top=False" in message
        weights = mapping.to_weights(body | one | other, include_top=None)
        assert weights.card.model.head == "none"
        assert all(name in weights.notes[-1] for name in one | other)
    assert mapping.to_weights(body | one).card.model.head == "linear"
    uneven = {**one, "classifier.0.weight": np.ones((6, 127))}
    assert "classifier.3.weight: missing" in listed(body | uneven)


def test_half_of_a_vggs_head_is_no_head_of_ones_own() -> None:
    tensors = torchvision_tensors()
    del tensors["classifier.6.bias"]
    assert "classifier.6.bias: missing" in listed(tensors, include_top=None)
    tensors = {**torchvision_tensors(), "loss.class_weights": np.ones(2)}
    assert "loss.class_weights: unexpected" in listed(tensors, include_top=None)


def test_two_nets_in_one_set_of_tensors_are_neither() -> None:
    tensors = torchvision_tensors()
    both = {
        f"{net}.{n}": t for net in ("student", "teacher") for n, t in tensors.items()
    }
    message = listed(both)
    assert "student.features.0.weight" in message


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_by_hand(channels: int) -> None:
    tensors = torchvision_tensors()
    first = tensors["features.0.weight"]
    tensors["features.0.weight"] = first[:, :channels]
    if channels == 1:
        assert "say mean= and std=" in listed(tensors)
    mean, std = (0.5,) * channels, (0.25,) * channels
    weights = mapping.to_weights(tensors, preprocessing=(mean, std))
    pixels = weights.card.preprocessing
    assert (pixels.mean, pixels.std, pixels.crop_size) == (mean, std, 64)
    assert weights.card.model.in_channels == channels
    kernel = weights.variables["params"]["conv1_1"]["kernel"]
    np.testing.assert_array_equal(kernel, first[:, :channels].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    "pixels", [((0.5,), (0.0,)), ((0.5, 0.5), (1, 1)), ((0.5,), (1, 1, 1)), ("a", "b")]
)
def test_pixels_that_cannot_be_are_told(pixels: Any) -> None:
    message = listed(torchvision_tensors(), preprocessing=pixels)
    assert message.startswith(f"mean={pixels[0]!r}, std={pixels[1]!r}")


def test_an_error_shows_the_names_that_were_found() -> None:
    tensors = torchvision_tensors()
    renamed = {n.replace("classifier.6", "last"): t for n, t in tensors.items()}
    message = listed(renamed)
    assert "classifier.6.weight: missing" in message
    assert "last.weight: unexpected" in message
    assert "it holds features.0.weight, features.0.bias" in message


def test_two_tensors_of_one_name_but_for_a_wrapper_are_listed() -> None:
    tensors = torchvision_tensors()
    name = "features.0.weight"
    message = listed({**tensors, f"model.{name}": tensors[name]})
    assert f"{name}: missing" in message
    assert f"{name}: unexpected; model.{name}: unexpected" in message


def keras_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same net as Keras would save it: HWIO, blue first, fc6 flattened HWC."""
    keras = {}
    convolutions = [n for n in tensors if n.startswith("features") and "weight" in n]
    stages = VARIANTS["vgg16"].stages
    names = [
        f"block{s + 1}_conv{c + 1}" for s in range(5) for c in range(len(stages[s]))
    ]
    for theirs, name in zip(convolutions, names, strict=True):
        kernel = tensors[theirs].transpose(2, 3, 1, 0)
        if name == "block1_conv1":
            kernel = kernel[:, :, ::-1]
        keras[f"{name}/{name}_W_1:0"] = kernel
        keras[f"{name}/{name}_b_1:0"] = tensors[theirs.replace("weight", "bias")]
    fc6 = tensors["classifier.0.weight"].reshape(FC, -1, WINDOW, WINDOW)
    keras["fc1/fc1_W_1:0"] = fc6.transpose(2, 3, 1, 0).reshape(-1, FC)
    keras["fc1/fc1_b_1:0"] = tensors["classifier.0.bias"]
    for theirs, name in ((3, "fc2"), (6, "predictions")):
        keras[f"{name}/{name}_W_1:0"] = tensors[f"classifier.{theirs}.weight"].T
        keras[f"{name}/{name}_b_1:0"] = tensors[f"classifier.{theirs}.bias"]
    return keras


@pytest.mark.parametrize(
    "around", ["vgg16/{}/{}:0", "model_weights/vgg16/{}/{}:0", "vgg16/{0}/{0}/{1}:0"]
)
def test_keras_nests_a_net_in_another(around: str) -> None:
    plain = {}
    for name, tensor in keras_tensors(torchvision_tensors()).items():
        layer, _, leaf = name.partition("/")
        if layer.startswith("block"):
            leaf = "kernel" if "_W_" in leaf else "bias"
            plain[around.format(layer, leaf)] = tensor
    head = {"dense/dense/kernel:0": np.ones((32, 2)), "dense/dense/bias:0": np.ones(2)}
    options: Any = {"include_top": False, "preprocessing": "caffe"}
    weights = mapping.to_weights({**plain, **head}, **options)
    expected = mapping.to_weights(keras_tensors(torchvision_tensors()), **options)
    assert weights.lineage == expected.lineage == "Keras applications"
    same = jax.tree.map(np.array_equal, weights.variables, expected.variables)
    assert all(jax.tree.leaves(same))
    assert "dense/dense/kernel:0" in weights.notes[1]


def test_kerass_names_axes_and_pixels() -> None:
    tensors = torchvision_tensors()
    mean = np.array([123.68, 116.779, 103.939])
    x = (photos().astype(np.float64) - mean).transpose(0, 3, 1, 2)
    expected = numpy_forward(tensors, x)
    for rename in (
        str,
        lambda n: n.replace("_W_1", "/kernel").replace("_b_1", "/bias"),
    ):
        named = {rename(n): t for n, t in keras_tensors(tensors).items()}
        weights = mapping.to_weights(named, preprocessing="caffe")
        assert weights.lineage == "Keras applications"
        assert weights.card.model.fc6_window == WINDOW
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            logits(weights, photos()) / scale, expected / scale, atol=1e-5
        )


# Where vgg16's convolutions stand among mmpretrain's ConvModules and pools.
MMPRETRAIN_INDICES = (0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16)
VGG16_LAYERS = [
    f"{stage}_{number}"
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1)
    for number in range(1, count + 1)
]


def convolution_of(name: str) -> int:
    """Which one, from 0, a vgg16_bn tensor of torchvision's belongs to."""
    index = int(name.split(".")[1])
    places = TORCHVISION_INDICES["vgg16_bn"]
    return places.index(index if index in places else index - 1)


def test_mmpretrains_names() -> None:
    tensors = torchvision_tensors("vgg16_bn")
    theirs = {}
    for name, tensor in tensors.items():
        part, index, leaf = name.split(".")
        if part == "features":
            kind = "conv" if int(index) in TORCHVISION_INDICES["vgg16_bn"] else "bn"
            index = f"{MMPRETRAIN_INDICES[convolution_of(name)]}.{kind}"
        theirs[f"backbone.{part}.{index}.{leaf}"] = tensor
    weights = mapping.to_weights(theirs)
    assert (weights.lineage, weights.card.preprocessing.resize) == ("mmpretrain", "cv2")
    expected = logits(mapping.to_weights(tensors), photos())
    np.testing.assert_array_equal(logits(weights, photos()), expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_caffes_blobs_of_the_first_version_too(legacy: bool) -> None:
    tensors = torchvision_tensors()
    names = [f"conv{layer}" for layer in VGG16_LAYERS] + ["fc6", "fc7", "fc8"]
    blobs = {}
    for i, tensor in enumerate(tensors.values()):
        if i == 0:
            tensor = tensor[:, ::-1]  # blue first
        if legacy:  # every blob in 4-D
            tensor = tensor.reshape((1,) * (4 - tensor.ndim) + tensor.shape)
        blobs[f"{names[i // 2]}/{i % 2}"] = tensor
    weights = mapping.to_weights(blobs, preprocessing="caffe")
    pixels = weights.card.preprocessing
    assert (weights.lineage, pixels.mean) == ("Caffe", layouts.CAFFE.mean)
    as_caffe = mapping.to_weights(tensors, sha256="d01eb7cb" + "0" * 56)
    unturned = logits(as_caffe, photos())  # torchvision's names, Caffe's pixels
    flipped = {**tensors, "features.0.weight": tensors["features.0.weight"][:, ::-1]}
    expected = logits(
        mapping.to_weights(flipped, sha256="d01eb7cb" + "0" * 56), photos()
    )
    np.testing.assert_array_equal(logits(weights, photos()), expected)
    assert np.abs(unturned - expected).max() > 0  # the channels' order matters


def test_flaxmodels_axes() -> None:
    tensors = torchvision_tensors()
    names = [f"conv{layer}" for layer in VGG16_LAYERS] + ["fc6", "fc7", "fc8"]
    theirs = {}
    for i, tensor in enumerate(tensors.values()):
        if tensor.ndim == 4:
            tensor = tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2:
            tensor = tensor.T  # its forward pass flattens C, H, W as torch's does
        theirs[f"{names[i // 2]}/{('weight', 'bias')[i % 2]}"] = tensor
    weights = mapping.to_weights(theirs)
    assert weights.lineage == "flaxmodels"
    expected = logits(mapping.to_weights(tensors), photos())
    np.testing.assert_array_equal(logits(weights, photos()), expected)


def card_of(net: VGG) -> ModelCard:
    pixels = Preprocessing((0.5,) * 3, (1.0,) * 3, test_scale=96, crop_size=96)
    return ModelCard(net, pixels, class_names=("a",), train_scale=(256, 512))


ROUND_TRIPS = [
    (layout.name, variant)
    for layout in layouts.LAYOUTS
    for variant in ("vgg11", "vgg16_1x1", "vgg19_bn")
    if layout.norm or not variant.endswith("_bn")
]


def drawn(net: VGG) -> Any:
    """Variables of `net` from NumPy; statistics above zero."""
    leaves, tree = jax.tree.flatten(shapes(net))
    rng = np.random.default_rng(0)
    return tree.unflatten(
        [np.abs(rng.normal(size=leaf.shape)).astype(np.float32) for leaf in leaves]
    )


@pytest.mark.parametrize(("lineage", "variant"), ROUND_TRIPS)
def test_out_and_back_is_bit_equal(lineage: str, variant: str) -> None:
    net = VGG(
        variant, num_classes=7, width_multiplier=1 / 16, fc_widths=(6, 5), fc6_window=3
    )
    variables = drawn(net)
    layout = layouts.BY_NAME[lineage]
    bgr = variant == "vgg11"
    tensors = mapping.to_tensors(variables, net, layout, bgr=bgr)
    metadata = metadata_lib.write(card_of(net), bgr=bgr)
    again = mapping.to_weights(tensors, metadata=metadata)
    assert again.card == card_of(net)
    assert again.lineage == lineage
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)


def listed(tensors: dict[str, np.ndarray], **options: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        mapping.to_weights(tensors, **options)
    return str(caught.value)


def test_one_error_lists_every_missing_and_unexpected_tensor() -> None:
    tensors = torchvision_tensors()
    del tensors["features.28.bias"], tensors["classifier.6.weight"]
    tensors["features.99.weight"] = np.zeros(3)
    message = listed(tensors)
    for part in (
        "features.28.bias: missing",
        "classifier.6.weight: missing",
        "features.99.weight: unexpected",
    ):
        assert part in message


def test_one_error_lists_every_misshapen_and_non_finite_tensor() -> None:
    tensors = torchvision_tensors()
    tensors["features.5.weight"] = tensors["features.5.weight"][:, :2]
    tensors["features.7.bias"][3] = np.nan
    tensors["classifier.3.weight"][0, 0] = -np.inf
    message = listed(tensors)
    assert "features.5.weight: (8, 2, 3, 3)" in message
    assert "features.7.bias: not finite" in message
    assert "classifier.3.weight: not finite" in message


CAUSES: dict[str, tuple[Callable[[], dict[str, np.ndarray]], dict[str, str], str]] = {
    "features only": (
        lambda: {k: t for k, t in torchvision_tensors().items() if "feat" in k},
        {},
        "include_top=False",
    ),
    "NaN top": (
        lambda: {
            k: t if "feat" in k else np.full_like(t, np.nan)
            for k, t in torchvision_tensors().items()
        },
        {},
        "include_top=False",
    ),
    "BN file for a net without": (
        lambda: torchvision_tensors("vgg16_bn"),
        {"variant": "vgg16"},
        "By its names the file is a vgg16_bn",
    ),
    "th-ordered kernels": (
        lambda: {
            k: t.transpose(3, 2, 0, 1) if t.ndim == 4 else t
            for k, t in keras_tensors(torchvision_tensors()).items()
        },
        {},
        "Theano",
    ),
    "of something else": (
        lambda: {"layer1.0.conv1.weight": np.zeros((3, 3))},
        {},
        "no lineage of VGG",
    ),
}


@pytest.mark.parametrize("case", CAUSES)
def test_errors_name_the_likely_cause(case: str) -> None:
    tensors, options, cause = CAUSES[case]
    assert cause in listed(tensors(), **options)


def test_include_top_and_num_classes() -> None:
    tensors = torchvision_tensors()
    without = mapping.to_weights(tensors, include_top=False)
    whole = mapping.to_weights(tensors)
    assert not {"fc6", "fc7", "fc8"} & set(without.variables["params"])
    features = logits(without, photos())
    assert features.shape == (2, WIDTHS[-1])
    _, taps = whole.card.model.apply(
        whole.variables,
        whole.card.preprocessing.normalize(photos()),
        mutable="intermediates",
    )
    pool5 = np.asarray(taps["intermediates"]["pool5"])
    np.testing.assert_allclose(features, pool5.mean(axis=(1, 2)), rtol=1e-5)

    fewer = mapping.to_weights(tensors, num_classes=3)
    assert logits(fewer, photos()).shape == (2, 3)
    flat = {
        name: traverse_util.flatten_dict(dict(w.variables["params"]), sep="/")
        for name, w in (("fewer", fewer), ("whole", whole))
    }
    for path in flat["whole"]:
        if not path.startswith("fc8"):
            np.testing.assert_array_equal(flat["fewer"][path], flat["whole"][path])
    assert np.std(flat["fewer"]["fc8/kernel"]) > 0
    assert not np.any(flat["fewer"]["fc8/bias"])


def test_the_lrn_net_has_the_names_of_a() -> None:
    weights = mapping.to_weights(torchvision_tensors("vgg11"), variant="A-LRN")
    assert weights.card.model.variant == "vgg11_lrn"


def test_pixels_that_names_cannot_tell() -> None:
    tensors = torchvision_tensors()
    known = mapping.to_weights(tensors, sha256="00b39a1b" + "0" * 56)
    assert known.card.preprocessing.mean == layouts.CAFFE.mean
    plain = mapping.to_weights(tensors)
    assert plain.card.preprocessing.mean == layouts.TORCHVISION.mean
    flipped = np.asarray(known.variables["params"]["conv1_1"]["kernel"])
    kernel = np.asarray(plain.variables["params"]["conv1_1"]["kernel"])
    np.testing.assert_array_equal(flipped, kernel[:, :, ::-1])

    small = {**tensors, "features.0.weight": tensors["features.0.weight"] / 255}
    assert "--preprocessing" in listed(small)
    assert (
        mapping.to_weights(small, preprocessing="caffe").card.preprocessing.std[0]
        < 0.01
    )
    assert "known: torchvision" in listed(tensors, preprocessing="imagenet")


def test_the_nan_topped_file_loads_its_features_with_its_own_pixels() -> None:
    tensors = torchvision_tensors()
    for name in tensors:
        if name.startswith("classifier"):
            tensors[name] = np.full_like(tensors[name], np.nan)
    weights = mapping.to_weights(tensors, include_top=False)
    assert weights.card.preprocessing.mean == (0.48235, 0.45882, 0.40784)
    assert weights.card.preprocessing.std == (1 / 255,) * 3


def test_dtypes() -> None:
    half = {k: np.asarray(t, np.float16) for k, t in torchvision_tensors().items()}
    leaves = jax.tree.leaves(mapping.to_weights(half).variables)
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    cast = mapping.to_weights(half, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(cast.variables)} == {"bfloat16"}
    assert logits(cast, photos()).dtype == np.float32


SIZES = {"test_scale": 9, "crop_size": 9}
DAMAGED = [
    {"model": {"variant": "resnet"}},
    {"model": 5},
    {"preprocessing": {"mean": [0.5]}},
    {"preprocessing": {"mean": [0.5] * 3, "std": [0] * 3} | SIZES},
    {"class_names": 5},
    {"train_scale": []},
    {"train_scale": 7},
    {"variant": "vgg19"},
]  # fmt: skip


@pytest.mark.parametrize("changes", DAMAGED, ids=str)
def test_damaged_metadata_of_ours_is_an_error(changes: dict[str, object]) -> None:
    net = VGG("vgg16", width_multiplier=1 / 16)
    entry = {**card_of(net).to_json(), "bgr": False}
    texts = [json.dumps(entry | changes), "{", "[]", "5"]
    texts += [json.dumps({k: v for k, v in entry.items() if k != "bgr"})]
    for text in texts:
        assert "metadata 'vgg_flax' of the file is damaged" in listed(
            torchvision_tensors(), metadata={"vgg_flax": text}
        )


def test_an_entry_that_earlier_code_wrote_is_read() -> None:
    text = """{"variant": "vgg16", "model": {"adaptive_pool": false, "conv_bias": true,
    "dropout_rate": 0.5, "dtype": "float32", "fc6_window": 2, "fc_widths": [12, 12],
    "head": "fc", "in_channels": 3, "initializer": "he", "num_classes": 10,
    "pooling": "average", "variant": "vgg16", "width_multiplier": 0.0625},
    "preprocessing": {"mean": [0.5, 0.25, 0.5], "std": [1.0, 1.0, 2.0],
    "test_scale": 96, "crop_size": 64, "resize": "cv2"}, "class_names": ["cat"],
    "train_scale": [256, 512], "source": "runs/cats", "source_sha256": "01",
    "bgr": true}"""
    tensors = torchvision_tensors()
    weights = mapping.to_weights(tensors, metadata={"vgg_flax": text})
    pixels = Preprocessing((0.5, 0.25, 0.5), (1.0, 1.0, 2.0), 96, 64, "cv2")
    assert weights.card.preprocessing == pixels
    assert (weights.card.class_names, weights.card.train_scale) == (
        ("cat",),
        (256, 512),
    )
    assert weights.card.model.pooling == "average"
    plain = mapping.to_weights(tensors).variables["params"]["conv1_1"]["kernel"]
    turned = weights.variables["params"]["conv1_1"]["kernel"]
    np.testing.assert_array_equal(turned, np.asarray(plain)[:, :, ::-1])


SMALL = {"width_multiplier": 1 / 16, "fc6_window": 1, "fc_widths": (4, 4)}


@pytest.mark.parametrize(
    "fields",
    [
        {"variant": "vgg11_lrn"},
        {"variant": "vgg11", "pooling": "average"},
        {"variant": "vgg11", "width_multiplier": 0.03},
        {"variant": "vgg11", "head": "none"},
    ],
    ids=str,
)
def test_our_metadata_says_what_names_cannot(fields: dict[str, Any]) -> None:
    net = VGG(**{**SMALL, **fields})
    variables = drawn(net)
    layout = layouts.BY_NAME["torchvision"]
    tensors = mapping.to_tensors(variables, net, layout, bgr=False)
    metadata = metadata_lib.write(card_of(net), bgr=False)
    assert mapping.to_weights(tensors, metadata=metadata).card.model == net


def test_a_float64_net_of_ours_comes_back_with_all_its_digits() -> None:
    with jax.enable_x64(True):
        ours = random_net("vgg11", dtype="float64")
        layout = layouts.BY_NAME["torchvision"]
        tensors = mapping.to_tensors(ours.variables, ours.model, layout, bgr=False)
        written = metadata_lib.write(ours.card, bgr=False)
        again = mapping.to_weights(tensors, metadata=written)
    jax.tree.map(np.testing.assert_array_equal, again.variables, ours.variables)
    assert {x.dtype for x in jax.tree.leaves(again.variables)} == {np.dtype("f8")}


def test_numbers_that_the_dtype_or_batch_norm_cannot_have() -> None:
    tensors = torchvision_tensors("vgg11_bn")
    large = {k: np.asarray(t, np.float64) for k, t in tensors.items()}
    large["features.4.bias"][0] = 1e200
    assert "features.4.bias: not finite as float32" in listed(large)
    tensors["features.4.bias"][0] = 1e6
    mapping.to_weights(tensors)
    assert "not finite as float16" in listed(tensors, dtype="float16")
    tensors["features.5.running_var"][1] = -1
    assert "features.5.running_var: a variance below zero" in listed(tensors)


@pytest.mark.parametrize("dtype", [np.int8, np.bool_])
def test_quantised_weights_are_not_taken_for_real_ones(dtype: Any) -> None:
    tensors, name = torchvision_tensors("vgg11"), "features.3.weight"
    tensors[name] = (50 * tensors[name]).astype(dtype)
    assert f"{name}: {np.dtype(dtype)}, expected floats" in listed(tensors)


def test_grey_nets_do_not_get_colour_pixels() -> None:
    tensors = torchvision_tensors("vgg11")
    tensors["features.0.weight"] = tensors["features.0.weight"][:, :1]
    assert "takes 1 channel(s)" in listed(tensors)


def full_size_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """What torchvision's `state_dict` holds, without the step counters."""
    widths = (64, 128, 256, 512, 512)
    stages = VARIANTS[variant].stages
    widths_in_order = [w for w, s in zip(widths, stages, strict=True) for _ in s]
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for index, width in zip(TORCHVISION_INDICES[variant], widths_in_order, strict=True):
        shapes[f"features.{index}.weight"] = (width, channels, 3, 3)
        shapes[f"features.{index}.bias"] = (width,)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"features.{index + 1}.{leaf}"] = (width,)
        channels = width
    for index, shape in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (1000, 4096))):
        shapes[f"classifier.{index}.weight"] = shape
        shapes[f"classifier.{index}.bias"] = shape[:1]
    return shapes


def full_size_keras_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for stage, (count, width) in enumerate(
        zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True), start=1
    ):
        for number in range(1, count + 1):
            shapes[f"block{stage}_conv{number}/kernel"] = (3, 3, channels, width)
            shapes[f"block{stage}_conv{number}/bias"] = (width,)
            channels = width
    for name, shape in (
        ("fc1", (25088, 4096)), ("fc2", (4096, 4096)), ("predictions", (4096, 1000))
    ):  # fmt: skip
        shapes[f"{name}/kernel"], shapes[f"{name}/bias"] = shape, shape[1:]
    return shapes


@pytest.mark.parametrize(
    "peer", [pytest.param("vgg11_bn", marks=pytest.mark.slow), "VGG16"]
)
def test_golden_logits_of_the_peers(peer: str) -> None:
    pixels = "caffe" if peer == "VGG16" else "torchvision"
    if peer == "VGG16":
        tensors = golden.keras_tensors(full_size_keras_shapes())
        tensors = {
            f"{name.split('/')[0]}/{name}:0": tensor for name, tensor in tensors.items()
        }
    else:
        tensors = golden.torchvision_tensors(full_size_shapes(peer))
    weights = mapping.to_weights(tensors, preprocessing=pixels)
    del tensors
    views = [
        weights.card.preprocessing.test_view(np.asarray(p)) for p in samples.pictures()
    ]
    with np.load(golden.LOGITS) as file:
        expected = file[peer]
    actual = logits(weights, np.stack(views))
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert np.abs(actual - expected).max() <= 1e-3 * spread
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.argsort(-ours)[:5], np.argsort(-theirs)[:5])
