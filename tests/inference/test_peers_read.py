"""What is written, read by PyTorch and Keras themselves, with the manual's own code."""

import os
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from conftest import random_net
from documents import blocks

import vgg_flax
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.inference import folding
from vgg_flax.net import Net
from vgg_flax.weights.lineages import layouts

os.environ["KERAS_BACKEND"] = "jax"
# Keras 3.15's own variables predate NumPy 2's __array__(copy=...).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ imp:DeprecationWarning")

# As configs/folder.py has it; of a linear head fc6's window is that of 64 pixels.
OF_A_RUN = {"width_multiplier": 0.5, "fc6_window": 2, "conv_bias": False}
HEADS, LEAVES = ("gap", "linear"), ("kernel", "bias")


def run_block(part: str, changes: dict[str, str], folder: pathlib.Path) -> Any:
    """`net` of the manual's block that has `part`, with some of it replaced."""
    (block,) = [b for b in blocks("docs/weights.md") if part in b.text]
    assert len(block.text.splitlines()) <= 13
    text = block.text
    for old, new in changes.items():
        assert text.count(old) == 1 and new in text.split("#", 1)[1]
        text = text.replace(old, new)
    namespace: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(text, block.place, "exec"), namespace)
    return namespace["net"]


def photos() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)


def assert_same_logits(net: Net, found: np.ndarray) -> None:
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(net(photos()))
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert spread > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * spread)


@pytest.mark.parametrize("head", HEADS)
def test_pytorch_reads_a_runs_head_of_one_layer(
    head: str, tmp_path: pathlib.Path
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    net = random_net("vgg11_bn", head=head, num_classes=7, **OF_A_RUN)
    vgg_flax.save(net, tmp_path / "mine.pth")
    identity = {"torch.nn.AdaptiveAvgPool2d(1)": "torch.nn.Identity()"}
    peer = run_block("torch.load", identity if head == "linear" else {}, tmp_path)
    images = np.array(net.preprocessing.normalize(photos())).transpose(0, 3, 1, 2)
    with torch.no_grad():
        found = peer(torch.tensor(images)).numpy()
    assert_same_logits(net, found)


@pytest.mark.parametrize("suffix", ["weights.h5", "h5"])
@pytest.mark.parametrize("head", HEADS)
def test_keras_reads_a_runs_head_of_one_layer(
    head: str, suffix: str, tmp_path: pathlib.Path
) -> None:
    keras = pytest.importorskip("keras")
    net = random_net("vgg11_bn", head=head, **OF_A_RUN)
    folded, _ = folding.fold_batch_norm(net)
    vgg_flax.save(folded, tmp_path / "mine.weights.h5")
    flatten = {"layers.GlobalAveragePooling2D()(x)": "layers.Flatten()(x)"}
    changes = flatten if head == "linear" else {}
    with jax.numpy_rank_promotion("allow"):  # Keras adds biases by broadcasting
        peer = run_block("keras.Input", changes, tmp_path)
        if suffix == "h5":  # what Keras 2 wrote, and 3 still reads
            vgg_flax.save(folded, tmp_path / "mine.h5")
            peer = keras.models.clone_model(peer)
            peer.load_weights(tmp_path / "mine.h5")
        found = np.asarray(peer(net.preprocessing.normalize(photos())))
    assert_same_logits(folded, found)


@pytest.mark.parametrize("suffix", ["weights.h5", "h5"])
@pytest.mark.parametrize(
    ("name", "pixels"),
    [("VGG16", layouts.CAFFE), ("VGG19", layouts.TORCHVISION)],
    ids=["VGG16", "VGG19"],
)
def test_keras_applications_read_features(
    name: str, pixels: Preprocessing, suffix: str, tmp_path: pathlib.Path
) -> None:
    keras = pytest.importorskip("keras")
    net = random_net(name.lower(), head="none", width_multiplier=1)
    path = tmp_path / f"features.{suffix}"
    vgg_flax.save(net.replace(preprocessing=pixels, class_names=()), path)
    application = getattr(keras.applications, name)
    peer = application(include_top=False, weights=None, input_shape=(32, 32, 3))
    peer.load_weights(path)
    arrays = [w for layer in peer.layers for w in layer.get_weights()]
    names = [n for n in net.model.layer_names if n.startswith("conv")]
    assert len(arrays) == 2 * len(names) == {"VGG16": 26, "VGG19": 32}[name]
    for i, layer in enumerate(names):
        kernel, bias = (np.asarray(net.variables["params"][layer][k]) for k in LEAVES)
        if i == 0 and pixels == layouts.CAFFE:
            kernel = kernel[:, :, ::-1]
        np.testing.assert_array_equal(arrays[2 * i], kernel)
        np.testing.assert_array_equal(arrays[2 * i + 1], bias)


def test_keras_applications_read_the_whole_net(tmp_path: pathlib.Path) -> None:
    keras = pytest.importorskip("keras")
    wide: Any = {"width_multiplier": 1, "fc_widths": (4096, 4096), "fc6_window": 1}
    net = random_net("vgg16", **wide)
    vgg_flax.save(net, tmp_path / "net.weights.h5")
    application = keras.applications.VGG16
    peer = application(weights=None, classes=10, input_shape=(32, 32, 3))
    peer.load_weights(tmp_path / "net.weights.h5")
    for layer, ours in (("fc1", "fc6"), ("fc2", "fc7"), ("predictions", "fc8")):
        kernel, bias = peer.get_layer(layer).get_weights()
        np.testing.assert_array_equal(
            kernel, net.variables["params"][ours]["kernel"][0, 0]
        )
        np.testing.assert_array_equal(bias, net.variables["params"][ours]["bias"])
