"""The pixels of foreign nets: what a file holds decides them, not what holds it."""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torchvision_net import WIDTHS, torchvision_tensors
from weight_files import WRITE_NAMED, Arrays

import vgg_flax
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VARIANTS
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import formats
from vgg_flax.weights.lineages import layouts, mapping, recognition
from vgg_flax.weights.lineages import pixels as pixels_lib

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AUTHORS_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
AUTHORS = (AUTHORS_MEAN, (1 / 255,) * 3)
# Printed by people who had the authors' caffemodels or matconvnet's copies: conv1_1's
# first biases, and its first kernel's top left weights for blue and for red.
PRINTED = {
    "vgg16": ("0.734 0.093 0.068 0.886 0.26 0.664 -0.016 0.325", (0.429, 0.48)),
    "vgg19": ("0.73 0.065 0.034 0.826 0.258 0.549 -0.012 0.348", (0.341, 0.394)),
}


def convolutions(
    authors: bool = True, variant: str = "vgg16", blue_first: bool = True, seed: int = 0
) -> list[np.ndarray]:
    """Kernels (OIHW) and biases by turns, 8 to 64 channels; the authors' conv1_1."""
    rng, channels, arrays = np.random.default_rng(seed), 3, []
    for width, stage in zip(WIDTHS, VARIANTS[variant].stages, strict=True):
        for _ in stage:
            kernel = rng.normal(0, (9 * channels) ** -0.5, (2 * width, channels, 3, 3))
            arrays += [kernel, rng.normal(0, 0.3, 2 * width)]
            channels = 2 * width
    if authors:
        biases, (blue, red) = PRINTED[variant]
        arrays[1][:] = np.array(biases.split(), float)
        arrays[0][0, :, 0, 0] = (blue, 0, red) if blue_first else (red, 0, blue)
    return [array.astype(np.float32) for array in arrays]


def dense(*sizes: int) -> list[np.ndarray]:
    """Kernels [in, out] and biases by turns."""
    rng = np.random.default_rng(1)
    arrays = []
    for inputs, outputs in itertools.pairwise(sizes):
        arrays += [rng.normal(0, inputs**-0.5, (inputs, outputs)), np.zeros(outputs)]
    return [array.astype(np.float32) for array in arrays]


def layers(variant: str) -> list[str]:
    return [
        f"{stage}_{number}"
        for stage, windows in enumerate(VARIANTS[variant].stages, start=1)
        for number in range(1, len(windows) + 1)
    ]


# The same arrays under the names, and in the axes, of each lineage; written out here.


def keras3(convolutions: list[np.ndarray], head: list[np.ndarray]) -> Arrays:
    arrays = {}
    for i, array in enumerate(convolutions):
        name = f"layers/conv2d_{i // 2}" if i > 1 else "layers/conv2d"
        turned = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        arrays[f"{name}/vars/{i % 2}"] = turned
    for i, array in enumerate(head):
        name = f"layers/dense_{i // 2}" if i > 1 else "layers/dense"
        arrays[f"{name}/vars/{i % 2}"] = array
    return arrays


def keras2(convolutions: list[np.ndarray], head: list[np.ndarray]) -> Arrays:
    variant = "vgg16" if len(convolutions) == 26 else "vgg19"
    names = [f"block{layer.replace('_', '_conv')}" for layer in layers(variant)]
    names += ["fc1", "fc2", "predictions"] if len(head) > 2 else ["predictions"]
    return {
        f"{names[i // 2]}/{names[i // 2]}/{('kernel', 'bias')[i % 2]}:0": array
        for i, array in enumerate(keras3(convolutions, head).values())
    }


def torch_like(names: list[str]) -> Callable[..., Arrays]:
    def named(convolutions: list[np.ndarray], head: list[np.ndarray]) -> Arrays:
        arrays = [*convolutions, *(array.T for array in head)]
        return {
            f"{names[i // 2]}.{('weight', 'bias')[i % 2]}": array
            for i, array in enumerate(arrays)
        }

    return named


def torchvision(convolutions: list[np.ndarray], head: list[np.ndarray]) -> Arrays:
    names, index = [], 0
    variant = "vgg16" if len(convolutions) == 26 else "vgg19"
    for windows in VARIANTS[variant].stages:
        names += [f"features.{index + 2 * i}" for i in range(len(windows))]
        index += 2 * len(windows) + 1
    tops = ["classifier"] if len(head) == 2 else [f"classifier.{i}" for i in (0, 3, 6)]
    return torch_like(names + tops)(convolutions, head)


def caffe(convolutions: list[np.ndarray], head: list[np.ndarray]) -> Arrays:
    variant = "vgg16" if len(convolutions) == 26 else "vgg19"
    names = [f"conv{layer}" for layer in layers(variant)] + ["fc6", "fc7", "fc8"]
    arrays = [*convolutions, *(array.T for array in head)]
    return {f"{names[i // 2]}/{i % 2}": array for i, array in enumerate(arrays)}


def flaxmodels(convolutions: list[np.ndarray], head: list[np.ndarray]) -> Arrays:
    leaves = ("weight", "bias")
    turned = keras3(convolutions, head).values()
    return {
        f"{name.split('/')[0]}/{leaves[i % 2]}": array
        for i, (name, array) in enumerate(
            zip(caffe(convolutions, head), turned, strict=True)
        )
    }


def keras_hub(convolutions: list[np.ndarray], head: list[np.ndarray]) -> Arrays:
    return {
        name.replace("layers/", "layers/vgg_backbone/layers/"): array
        for name, array in keras3(convolutions, []).items()
    }


NAMES = {
    "torchvision": torchvision,
    "Keras applications": keras2,
    "Keras 3": keras3,
    "Caffe": caffe,
    "flaxmodels": flaxmodels,
    "KerasHub": keras_hub,
    "pytorchcv": torch_like(
        [f"features.stage{n.replace('_', '.unit')}.conv" for n in layers("vgg16")]
    ),
    "mmpretrain": torch_like(
        [
            f"backbone.features.{i}.conv"
            for i in (0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16)
        ]
    ),
}


def pixels_or_question(path: Any, **options: Any) -> Preprocessing | str:
    try:
        return vgg_flax.load(path, **options).preprocessing
    except WeightsError as error:
        return str(error)


def in_containers(
    folder: pathlib.Path, named: Arrays, lineage: str, **options: Any
) -> list[Preprocessing | str]:
    """The answer for the same arrays out of each container that can hold them."""
    files = {
        "safetensors": "model.safetensors",
        "hdf5": "vgg16_notop.weights.h5",
        "torch_zip": "vgg16.pth",
        "torch_legacy": "vgg16.pth",
        "caffemodel": "VGG_ILSVRC_16_layers.caffemodel",
    }
    answers = []
    for container, name in files.items():
        if container == "caffemodel" and lineage != "Caffe":
            continue  # it names layers, and counts what is in them
        (folder / container).mkdir()
        WRITE_NAMED[container](folder / container / name, named)
        assert formats.read(folder / container / name).format == container
        answers.append(pixels_or_question(folder / container / name, **options))
    return answers


QUESTION = "say preprocessing= (--preprocessing) one of torchvision, opencv, caffe, "


@pytest.mark.parametrize("lineage", ["Keras applications", "Keras 3", "Caffe"])
@pytest.mark.parametrize("authors", [True, False])
def test_the_same_arrays_get_one_answer_out_of_every_container(
    lineage: str, authors: bool, tmp_path: pathlib.Path
) -> None:
    named = NAMES[lineage](convolutions(authors), dense(4 * 64, 12, 11, 10))
    answers = in_containers(tmp_path, named, lineage)
    assert len(set(answers)) == 1
    if authors:
        assert answers[0] == Preprocessing(*AUTHORS, 64, 64)
    else:
        assert QUESTION in str(answers[0])


def test_torchvisions_names_tell_out_of_every_container(tmp_path: pathlib.Path) -> None:
    named = torchvision(convolutions(authors=False), dense(9 * 64, 12, 11, 10))
    answers = in_containers(tmp_path, named, "torchvision")
    assert set(answers) == {Preprocessing(*IMAGENET, 96, 96)}


@pytest.mark.parametrize(
    ("lineage", "blue_first"), [*((name, True) for name in NAMES), ("Caffe", False)]
)
def test_the_authors_convolutions_are_known_under_every_name(
    lineage: str, blue_first: bool
) -> None:
    arrays = convolutions(blue_first=blue_first)
    weights = mapping.to_weights(NAMES[lineage](arrays, []), include_top=False)
    assert weights.lineage == lineage
    assert weights.card.preprocessing == Preprocessing(*AUTHORS, 256, 224)
    red_first = arrays[0][:, ::-1] if blue_first else arrays[0]
    np.testing.assert_array_equal(
        weights.variables["params"]["conv1_1"]["kernel"],
        red_first.transpose(2, 3, 1, 0),
    )


@pytest.mark.parametrize("variant", PRINTED)
def test_the_authors_nets_are_known_rounded_and_fine_tuned(variant: str) -> None:
    def mean(change: Callable[[np.ndarray], np.ndarray]) -> tuple[float, ...]:
        arrays = convolutions(variant=variant)
        arrays[1] = change(arrays[1])
        weights = mapping.to_weights(torchvision(arrays, []), include_top=False)
        return weights.card.preprocessing.mean

    assert mean(lambda bias: (bias + 0.01).astype(np.float16)) == AUTHORS_MEAN
    assert mean(lambda bias: bias[::-1].copy()) == IMAGENET[0]


@pytest.mark.parametrize(
    ("named", "head"),
    [
        (keras2, ()),
        (keras3, ()),
        (caffe, ()),
        (keras3, (9 * 64, 12, 11, 10)),
        (keras2, (4 * 64, 12, 11, 1000)),
        (keras3, (49 * 64, 12, 11, 10)),
    ],
)
def test_nets_of_nobody_known_are_asked_about(
    named: Callable[..., Arrays], head: tuple[int, ...]
) -> None:
    arrays = named(convolutions(authors=False), dense(*head))
    with pytest.raises(WeightsError) as caught:
        mapping.to_weights(arrays, include_top=bool(head))
    assert QUESTION in str(caught.value)
    assert "crop_size" not in str(caught.value)
    told = mapping.to_weights(
        arrays, include_top=bool(head), preprocessing="torchvision"
    )
    pixels = told.card.preprocessing
    assert (pixels.mean, pixels.std) == IMAGENET


@pytest.mark.parametrize("named", [keras2, keras3, caffe, flaxmodels, torchvision])
def test_a_head_that_is_not_finite_hides_no_authors(
    named: Callable[..., Arrays],
) -> None:
    head = [np.full_like(array, np.nan) for array in dense(4 * 64, 12, 11, 10)]
    arrays = convolutions(blue_first=True)
    weights = mapping.to_weights(named(arrays, head), include_top=False)
    assert weights.card.preprocessing == Preprocessing(*AUTHORS, 64, 64)
    np.testing.assert_array_equal(
        weights.variables["params"]["conv1_1"]["kernel"],
        arrays[0][:, ::-1].transpose(2, 3, 1, 0),
    )


@pytest.mark.parametrize("named", [keras2, keras3, caffe])
def test_a_head_of_the_published_sizes_or_none_at_all_tells_nothing(
    named: Callable[..., Arrays],
) -> None:
    sizes = ((25088, 4096), (4096, 4096), (4096, 1000))
    for value in (0.01, np.nan):
        head = [
            np.broadcast_to(np.float32(value), shape)
            for size in sizes
            for shape in (size, size[1:])
        ]
        arrays = named(convolutions(authors=False), head)
        with pytest.raises(WeightsError) as caught:
            pixels_lib.find(recognition.recognise(arrays), arrays)
        assert QUESTION in str(caught.value)


@pytest.mark.parametrize("asked", ["caffe", "features"])
@pytest.mark.parametrize("blue_first", [True, False])
def test_the_kernels_tell_the_order_also_where_pixels_are_asked_for(
    asked: str, blue_first: bool
) -> None:
    arrays = convolutions(blue_first=blue_first)
    named = torchvision(arrays, [])
    weights = mapping.to_weights(named, include_top=False, preprocessing=asked)
    red_first = arrays[0][:, ::-1] if blue_first else arrays[0]
    np.testing.assert_array_equal(
        weights.variables["params"]["conv1_1"]["kernel"],
        red_first.transpose(2, 3, 1, 0),
    )


# The size


@pytest.mark.parametrize(
    ("named", "authors"), [(keras2, True), (keras3, False), (torchvision, True)]
)
def test_a_head_that_may_be_pooled_is_asked_for_its_size(
    named: Callable[..., Arrays], authors: bool
) -> None:
    """Three FC layers on 64 numbers: flattened at 32 pixels, or the mean of any map."""
    arrays = named(convolutions(authors=authors), dense(64, 12, 11, 10))
    with pytest.raises(WeightsError, match=r"say .*crop_size= and test_scale="):
        mapping.to_weights(arrays)
    told = mapping.to_weights(arrays, preprocessing="caffe", crop_size=32)
    assert told.card.preprocessing == Preprocessing(*AUTHORS, 32, 32)


@pytest.mark.parametrize(
    ("window", "scale", "crop", "include_top"),
    [
        (1, 32, 32, True),
        (2, 64, 64, True),
        (3, 96, 96, False),
        (7, 256, 224, True),
        (8, 256, 256, False),
    ],
)
def test_fc6s_window_is_the_size(
    window: int, scale: int, crop: int, include_top: bool
) -> None:
    head = dense(window**2 * 64, 12, 11, 10)
    named = torchvision(convolutions(authors=False), head)
    weights = mapping.to_weights(named, include_top=include_top)
    assert weights.card.preprocessing == Preprocessing(*IMAGENET, scale, crop)


@pytest.mark.parametrize("lineage", ["timm", "KerasHub"])
def test_a_convolutional_fc6_is_the_size_too(lineage: str) -> None:
    tensors = torchvision_tensors()  # its window is 2
    weights = mapping.to_weights(tensors)
    layout = layouts.BY_NAME[lineage]
    again = mapping.to_tensors(weights.variables, weights.card.model, layout, bgr=False)
    pixels = mapping.to_weights(again).card.preprocessing
    assert (pixels.test_scale, pixels.crop_size) == (64, 64)


@pytest.mark.parametrize(
    ("named", "include_top"),
    [(torchvision, True), (torchvision, False), (keras2, True), (keras3, True)],
)
def test_a_pooled_head_is_asked_for_its_size(
    named: Callable[..., Arrays], include_top: bool
) -> None:
    arrays = named(convolutions(), dense(64, 10))
    with pytest.raises(WeightsError) as caught:
        mapping.to_weights(arrays, include_top=include_top)
    assert "say crop_size= and test_scale= (--crop-size, --test-scale)" in str(
        caught.value
    )
    told = mapping.to_weights(
        arrays, include_top=include_top, crop_size=48, test_scale=56
    )
    assert told.card.preprocessing == Preprocessing(*AUTHORS, 56, 48)
    alone = mapping.to_weights(arrays, include_top=include_top, crop_size=224)
    assert alone.card.preprocessing == Preprocessing(*AUTHORS, 224, 224)


def test_a_pooled_head_scores_the_mean_of_the_last_map() -> None:
    head = dense(64, 10)
    named = torchvision(convolutions(authors=False), head)
    weights = mapping.to_weights(named, crop_size=64)
    assert (weights.card.model.head, weights.card.model.num_classes) == ("gap", 10)
    views = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    features = mapping.to_weights(named, crop_size=64, include_top=False)
    pooled = np.asarray(features.card.model.apply(features.variables, views))
    logits = np.asarray(weights.card.model.apply(weights.variables, views))
    np.testing.assert_allclose(logits, pooled @ head[0] + head[1], rtol=1e-4, atol=1e-5)


def test_all_that_is_not_told_is_asked_for_at_once() -> None:
    arrays = keras3(convolutions(authors=False), dense(64, 10))
    with pytest.raises(WeightsError) as caught:
        mapping.to_weights(arrays)
    assert QUESTION in str(caught.value)
    assert "and crop_size= and test_scale= (--crop-size," in str(caught.value)
    told = mapping.to_weights(arrays, preprocessing="caffe", crop_size=32)
    assert told.card.preprocessing == Preprocessing(*AUTHORS, 32, 32)


def test_a_window_that_is_no_square_is_asked_for_its_size() -> None:
    arrays = torchvision(convolutions(authors=False), dense(6 * 64, 12, 11, 10))
    with pytest.raises(WeightsError, match=r"say crop_size= and test_scale="):
        mapping.to_weights(arrays, include_top=False)
    told = mapping.to_weights(arrays, include_top=False, crop_size=96)
    assert told.card.preprocessing.crop_size == 96
