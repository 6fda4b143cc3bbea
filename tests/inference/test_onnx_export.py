"""ONNX as it is written: run by ONNX Runtime, and read back."""

import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest
from conftest import random_net, save_run

import vgg_flax
from vgg_flax import cli, model
from vgg_flax.inference import conversion, onnx_export
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError
from vgg_flax.weights.lineages import layouts


def run(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """The logits of ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], {"images": images})
    return logits


def views(net: Net, count: int) -> np.ndarray:
    side, channels = net.preprocessing.crop_size, net.preprocessing.channels
    shape = (count, side, side, channels)
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def resized(net: Net, side: int) -> Net:
    return net.replace(preprocessing=net.card.with_sizes(side, side).preprocessing)


NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vgg11", {}),
    "1x1": ("vgg16_1x1", {}),
    "BatchNorm": ("vgg11_bn", {}),
    "BatchNorm without biases": ("vgg13_bn", {"conv_bias": False}),
    "LRN": ("vgg11_lrn", {}),
    "average pools": ("vgg11", {"pooling": "average"}),
    "a global pool": ("vgg11", {"head": "gap"}),
    "a head of one layer": ("vgg11", {"head": "linear"}),
    "a head of one layer over a window": ("vgg11", {"head": "linear", "fc6_window": 2}),
    "features": ("vgg11", {"head": "none"}),
    "grey": ("vgg11", {"in_channels": 1}),
    "a window": ("vgg11", {"fc6_window": 2}),
    "an adaptive pool": ("vgg11", {"adaptive_pool": True}),
    "bfloat16": ("vgg11", {"dtype": "bfloat16"}),
}


@pytest.mark.parametrize("input", onnx_export.INPUTS)
@pytest.mark.parametrize("kind", NETS)
def test_onnx_runtime_gives_the_nets_logits_and_load_the_net(
    kind: str, input: str, tmp_path: pathlib.Path
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    variant, fields = NETS[kind]
    net, path = random_net(variant, **fields), tmp_path / "net.onnx"
    net = net.replace(train_scale=(256, 512))
    if fields.get("head") == "none":
        net = net.replace(class_names=())
    assert "onnxruntime's logits move by" in conversion.save(net, path, input=input)
    assert [*tmp_path.iterdir()] == [path]
    onnx.checker.check_model(str(path), full_check=True)
    expected = net.replace(model=net.model.clone(dtype="float32"))
    for count in (1, 3):
        images = views(net, count)
        with jax.default_matmul_precision("highest"):
            logits = np.asarray(expected(images))
        given = images
        if input == "float":
            normalized = np.asarray(net.preprocessing.normalize(images))
            given = normalized.transpose(0, 3, 1, 2)
        np.testing.assert_allclose(
            run(path, given), logits, rtol=0, atol=2e-5 * np.ptp(logits)
        )
    again = vgg_flax.load(path)
    jax.tree.map(np.testing.assert_array_equal, net.variables, again.variables)
    for name in ("model", "preprocessing", "class_names", "train_scale"):
        assert getattr(again, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    ("variant", "head"), [("vgg11", "fc"), ("vgg11_bn", "fc"), ("vgg11", "linear")]
)
def test_a_crop_beyond_the_window_is_a_score_map(
    variant: str, head: str, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("onnxruntime")
    net, path = resized(random_net(variant, head=head), 100), tmp_path / "net.onnx"
    conversion.save(net, path)
    images = views(net, 2)
    logits = np.asarray(net(images))
    np.testing.assert_allclose(run(path, images), logits, atol=1e-5 * np.ptp(logits))
    again = vgg_flax.load(path)
    assert again.preprocessing == net.preprocessing
    jax.tree.map(np.testing.assert_array_equal, net.variables, again.variables)


def test_to_onnx_and_on_is_the_same_file(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnxruntime")
    net = random_net("vgg11").replace(preprocessing=layouts.CAFFE)
    net = resized(net, 32)
    for name, before in (
        ("a.onnx", None),
        ("b.safetensors", "a.onnx"),
        ("c", "a.onnx"),
    ):
        source = net if before is None else vgg_flax.load(tmp_path / before)
        conversion.save(source, tmp_path / name)
        again = vgg_flax.load(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, net.variables, again.variables)
        assert again.preprocessing == net.preprocessing


def test_the_command_writes_either(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    net = random_net("vgg11_bn")
    source = str(save_run(net, tmp_path / "run"))
    for name, options in (("A.ONNX", []), ("b.onnx", ["--input=float", "--fold-bn"])):
        assert cli.main(["convert", source, str(tmp_path / name), *options]) == 0
    out = capsys.readouterr().out
    assert "A.ONNX: ONNX, uint8 images" in out and "b.onnx: ONNX, float images" in out
    assert vgg_flax.load(tmp_path / "b.onnx").variant == "vgg11"
    assert cli.main(["convert", source, str(tmp_path / "A.ONNX")]) == 1
    assert "exists; choose another name" in capsys.readouterr().err


def test_what_onnx_runtime_computes_otherwise_is_not_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    net = random_net("vgg11_bn")
    monkeypatch.setattr(model, "BATCH_NORM_EPSILON", 0.1)  # of the graph alone
    with pytest.raises(WeightsError, match=r"logits differ .* of their range"):
        conversion.save(net, tmp_path / "net.onnx")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_the_extra_is_named(
    package: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "onnxruntime":
        pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WeightsError, match=rf"{package}; .*'vgg-flax\[onnx\]'"):
        conversion.save(random_net("vgg11"), tmp_path / "net.onnx")
    assert not [*tmp_path.iterdir()]


def test_what_the_graph_would_not_compute_is_said(tmp_path: pathlib.Path) -> None:
    path, net = tmp_path / "net.onnx", random_net("vgg11")
    with pytest.raises(WeightsError, match="expected uint8 or float"):
        onnx_export.save(net, path, "int8")
    with pytest.raises(WeightsError, match=r"timm's files end in \.safetensors"):
        conversion.save(net, path, "timm")
    pytest.importorskip("onnxruntime")
    with pytest.raises(WeightsError, match="ends with relu3_1"):
        conversion.save(net.until("relu3_1"), path)
    adaptive = resized(random_net("vgg11", adaptive_pool=True, fc6_window=2), 96)
    with pytest.raises(WeightsError, match="at a crop of 64 pixels"):
        conversion.save(adaptive, path)
    assert not [*tmp_path.iterdir()]


# torch's own exporter


@pytest.mark.filterwarnings("ignore")  # torch deprecates its own and warns of opsets
@pytest.mark.parametrize("is_dynamo", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_what_torch_exports_gives_its_logits(
    batch_norm: bool, is_dynamo: bool, tmp_path: pathlib.Path
) -> None:
    torch = pytest.importorskip("torch")
    vgg = pytest.importorskip("torchvision").models.vgg
    pytest.importorskip("onnxscript" if is_dynamo else "onnx")
    torch.manual_seed(0)
    plan = [4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
    net = vgg.VGG(vgg.make_layers(plan, batch_norm=batch_norm), num_classes=10)
    net.avgpool = torch.nn.AdaptiveAvgPool2d((2, 2))
    net.classifier[0] = torch.nn.Linear(128, 12)
    net.classifier[3] = torch.nn.Linear(12, 12)
    net.classifier[6] = torch.nn.Linear(12, 10)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    images = torch.randn(2, 3, 64, 64)
    expected = net.eval()(images).detach().numpy()
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (images,), str(path), dynamo=is_dynamo)
    found = vgg_flax.load(path, preprocessing="torchvision")
    assert found.variant == "vgg11"  # BatchNorm was folded
    given = images.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found(given), expected, rtol=1e-4, atol=1e-5)
