"""`convert`: a checkpoint or a peer's file, whole or not at all, and back."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from conftest import changed, random_net, save_run

import vgg_flax
from vgg_flax import cli, errors
from vgg_flax import config as config_lib
from vgg_flax.inference import conversion, folding
from vgg_flax.net import Net
from vgg_flax.runs import checkpoint
from vgg_flax.training import resumption
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import formats
from vgg_flax.weights.lineages import layouts


def same(one: Net, other: Net) -> bool:
    """Whether two nets are the same numbers, module, classes and pixels."""
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
    names = ("model", "variant", "preprocessing", "class_names", "train_scale")
    return all(getattr(one, n) == getattr(other, n) for n in names)


LEAVES = "kernel", "bias"
FILES = ["net.safetensors", "net.pth", "net.h5", "net.weights.h5"]
TARGETS = ["run", *FILES, "timm.safetensors", "timm.pth"]


@pytest.mark.parametrize("target", TARGETS)
def test_there_and_back_is_the_same_net(target: str, tmp_path: pathlib.Path) -> None:
    net = random_net("vgg16").replace(train_scale=(256, 512))
    path = tmp_path / target
    conversion.save(net, path, "timm" if target.startswith("timm") else None)
    again = vgg_flax.load(path)
    assert same(net, again)
    assert (again.source, len(again.sha256)) == (str(path), 64)
    assert [p.name for p in tmp_path.iterdir()] == [target]  # nothing half-written


HEADS = [
    ("vgg11_bn", {"head": "gap"}),
    ("vgg13", {"head": "gap", "fc6_window": 3, "num_classes": 2}),
    ("vgg11", {"head": "linear", "fc6_window": 1}),
    ("vgg11_bn", {"head": "linear", "fc6_window": 2, "in_channels": 1}),
    ("vgg16", {"head": "linear", "fc6_window": 3, "num_classes": 4}),
    ("vgg11", {"head": "none"}),
]


@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize(("variant", "fields"), HEADS, ids=str)
def test_every_head_goes_there_and_back(
    variant: str, fields: dict[str, Any], target: str, tmp_path: pathlib.Path
) -> None:
    net = random_net(variant, **fields)
    if net.model.head == "none":
        net = net.replace(class_names=())
    if target.endswith(".h5") and "batch_stats" in net.variables:  # Keras has none
        net, _ = folding.fold_batch_norm(net)
    vgg_flax.save(net, tmp_path / target)
    assert same(net, vgg_flax.load(tmp_path / target))


@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize("head", ["gap", "linear"])
def test_convolutions_without_biases_get_zeros_as_the_peers_modules_have_them(
    head: str, target: str, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11", head=head, conv_bias=False)
    vgg_flax.save(net, tmp_path / target)
    again = vgg_flax.load(tmp_path / target)
    assert not again.variables["params"]["conv1_1"]["bias"].any()
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(again(images), net(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", FILES)
def test_many_classes_with_long_names_go_there_and_back(
    target: str, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11", head="gap", num_classes=1200)
    net = net.replace(class_names=tuple(f"{i} {'ü' * 60}" for i in range(1200)))
    conversion.save(net, tmp_path / target)
    assert same(net, vgg_flax.load(tmp_path / target))


@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize("head", ["gap", "linear"])
def test_the_one_layers_names_and_axes_are_the_peers(
    head: str, target: str, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11", head=head, fc6_window=2)
    conversion.save(net, tmp_path / target)
    tensors = formats.read(tmp_path / target).tensors
    side = 2 if head == "linear" else 1
    kernel, bias = (np.asarray(net.variables["params"]["fc8"][k]) for k in LEAVES)
    names = {
        "net.h5": [f"predictions/predictions/{leaf}:0" for leaf in LEAVES],
        "net.weights.h5": ["layers/dense/vars/0", "layers/dense/vars/1"],
    }.get(target, ["classifier.weight", "classifier.bias"])
    assert [name for name in tensors if tensors[name].ndim == 2] == names[:1]
    # What a flattened last map, as the peers have it, gives.
    last_map = np.random.default_rng(0).normal(size=(5, side, side, 32))
    expected = np.einsum("bhwc,hwco->bo", last_map, kernel) + bias
    if target.endswith("h5"):
        found = last_map.reshape(5, -1) @ tensors[names[0]]
    else:
        found = last_map.transpose(0, 3, 1, 2).reshape(5, -1) @ tensors[names[0]].T
    np.testing.assert_allclose(found + tensors[names[1]], expected, rtol=1e-5)


@pytest.mark.parametrize("head", ["fc", "gap", "linear"])
@pytest.mark.parametrize("target", FILES)
def test_a_runs_features_go_out_alone(
    head: str, target: str, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11", head=head)
    run, features = str(save_run(net, tmp_path / "run")), str(tmp_path / target)
    assert cli.main(["convert", run, features, "--features-only"]) == 0
    names = formats.read(features).tensors
    assert len(names) == 16 and not any(
        part in name for name in names for part in ("classifier", "dense", "fc", "pred")
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected = net.features(images, "pool5")["pool5"]
    found = vgg_flax.load(features)
    assert found.model.head == "none" and found.preprocessing == net.preprocessing
    np.testing.assert_array_equal(found.features(images, "pool5")["pool5"], expected)


def test_a_net_by_its_letter_goes_there_and_back(tmp_path: pathlib.Path) -> None:
    net = random_net("A")
    conversion.save(net, tmp_path / "net.safetensors")
    again = vgg_flax.load(tmp_path / "net.safetensors")
    assert same(net, again)
    assert again.variant == "vgg11"


def test_a_checkpoints_own_folder_is_loaded_too(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg11")
    conversion.save(net, tmp_path / "run")
    assert same(net, vgg_flax.load(tmp_path / "run" / "checkpoints" / "0"))


def test_batch_norm_goes_to_torchvisions_names_and_back(tmp_path: pathlib.Path) -> None:
    for conv_bias in (True, False):
        net = random_net("vgg11_bn", conv_bias=conv_bias)
        path = tmp_path / f"{conv_bias}.safetensors"
        conversion.save(net, path)
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
        np.testing.assert_array_equal(vgg_flax.load(path)(images), net(images))
        assert vgg_flax.load(path).model.conv_bias  # torchvision's modules have one
        # and through a checkpoint in between, the file is the same byte for byte
        conversion.save(vgg_flax.load(path), tmp_path / f"{conv_bias}")
        out = tmp_path / f"{conv_bias}_again.safetensors"
        conversion.save(vgg_flax.load(tmp_path / f"{conv_bias}"), out)
        one, other = (formats.read(p).tensors for p in (path, out))
        assert one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_caffes_pixels_are_written_blue_first_for_keras(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg16").replace(preprocessing=layouts.CAFFE)
    summary = conversion.save(net, tmp_path / "net.h5")
    assert summary == "keras's names and pixels"
    assert vgg_flax.load(tmp_path / "net.h5").preprocessing == layouts.CAFFE
    kernel = formats.read(tmp_path / "net.h5").tensors
    first = kernel["block1_conv1/block1_conv1/kernel:0"]
    ours = np.asarray(net.variables["params"]["conv1_1"]["kernel"])
    np.testing.assert_array_equal(first, ours[:, :, ::-1])

    other = random_net("vgg16")
    summary = conversion.save(other, tmp_path / "other.h5")
    assert "not its pixels: feed it Preprocessing(mean=(0.5, 0.5, 0.5)" in summary
    assert same(other, vgg_flax.load(tmp_path / "other.h5"))


def test_what_cannot_be_written_is_said_before_anything_is(
    tmp_path: pathlib.Path,
) -> None:
    net = random_net("vgg11_bn")
    with pytest.raises(WeightsError, match=r"no place for .*bn1_1.*fold BatchNorm"):
        conversion.save(net, tmp_path / "net.h5")
    with pytest.raises(
        WeightsError, match=r"timm's files end in \.safetensors or \.pth"
    ):
        conversion.save(net, tmp_path / "net.h5", "timm")
    with pytest.raises(WeightsError, match=r"keras's files end in \.h5 or \.weights"):
        conversion.save(net, tmp_path / "net.pth", "keras")
    with pytest.raises(WeightsError, match="known: torchvision, timm, keras"):
        conversion.save(net, tmp_path / "net.h5", "onnx")
    for name in ("net.pt", "net.keras", "net.caffemodel"):
        with pytest.raises(WeightsError, match=r"expected a name in \.safetensors"):
            conversion.save(net, tmp_path / name)
    for head in ("gap", "linear"):
        timms = tmp_path / "net.safetensors"
        with pytest.raises(WeightsError, match=f"timm has no place .*head='{head}'"):
            conversion.save(random_net("vgg11", head=head), timms, "timm")
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    with pytest.raises(WeightsError, match="exists; choose another name"):
        conversion.save(net, tmp_path / "there.safetensors")
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be written"):
        conversion.save(net, tmp_path / "file" / "net.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="cannot be written"):
        conversion.save(net, tmp_path / "file" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there.safetensors"]


@pytest.mark.parametrize("name", ["net.tflite", "net.TFLITE", "v1.ckpt", "net.pb"])
def test_a_suffix_that_nobody_knows_is_no_directory(
    name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_run(random_net("vgg11"), tmp_path / "run")
    words = r"nothing is known that ends in .*\.safetensors, .*\.onnx"
    with pytest.raises(WeightsError, match=words):
        conversion.save(vgg_flax.load(source), tmp_path / name)
    assert cli.main(["convert", str(source), str(tmp_path / name)]) == 1
    assert "nothing is known that ends in" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "name", ["NET.SAFETENSORS", "NET.PTH", "NET.Weights.h5", "v1.2", "net.2026-11"]
)
def test_capitals_are_known_and_versions_are_directories(
    name: str, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11")
    conversion.save(net, tmp_path / name)
    assert (tmp_path / name).is_file() == name.startswith("NET")
    assert same(net, vgg_flax.load(tmp_path / name))
    for other in ("NET.PT", "NET.KERAS", "net.Bin"):
        with pytest.raises(WeightsError, match="cannot be written"):
            conversion.save(net, tmp_path / other)
    with pytest.raises(WeightsError, match="--input"):
        conversion.save(net, tmp_path / "other.safetensors", input="float")


def test_the_command_converts_folds_and_refuses(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = random_net("vgg13_bn")
    source, run, folded = (
        str(tmp_path / name) for name in ("net.safetensors", "run", "folded.h5")
    )
    conversion.save(net, source)
    assert cli.main(["convert", source, run]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {run}: a checkpoint" in printed
    assert same(net, vgg_flax.load(run))
    assert cli.main(["convert", run, folded, "--fold-bn"]) == 0
    assert "logits move by" in capsys.readouterr().out
    assert vgg_flax.load(folded).variant == "vgg13"
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_allclose(
        vgg_flax.load(folded)(images), net(images), rtol=1e-3, atol=1e-3
    )
    assert cli.main(["convert", run, folded]) == 1
    assert "exists" in capsys.readouterr().err
    assert cli.main(["convert", source, run + "2", "--sha256", "0" * 64]) == 1
    assert "its sha256 is" in capsys.readouterr().err


def test_a_converted_net_starts_a_run(
    tiny_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11_bn", in_channels=1)
    conversion.save(net, tmp_path / "converted")
    config = changed(tiny_config, init_from=str(tmp_path / "converted"))
    state = resumption.new_state(config, vgg_flax.load(config.init_from))
    start = {"params": state.params, "batch_stats": state.batch_stats}
    jax.tree.map(np.testing.assert_array_equal, start, net.variables)


def test_a_url_is_loaded_through_the_cache(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VGG_FLAX_CACHE", str(tmp_path / "cache"))
    net = random_net("vgg11")
    conversion.save(net, tmp_path / "net.safetensors")
    url = (tmp_path / "net.safetensors").as_uri()
    again = vgg_flax.load(url)
    assert same(net, again) and again.source == url
    assert cli.main(["describe", url]) == 0
    assert f"loaded vgg11 from {url}, sha256 " in capsys.readouterr().err


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with one net as run/ and as net.safetensors."""
    folder = tmp_path_factory.mktemp("written")
    for name in ("run", "net.safetensors"):
        conversion.save(random_net("vgg11"), folder / name)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "vgg19"},
        {"num_classes": 3},
        {"preprocessing": "caffe"},
        {"sha256": "0" * 64},
        {"step": "newest"},
        {"dtype": "int8"},
        {"dtype": "foo"},
    ],
    ids=str,
)
def test_no_option_is_dropped_silently(options: dict, written: pathlib.Path) -> None:
    with pytest.raises(errors.VGGFlaxError):
        vgg_flax.load(written / "run", **options)
    if options.keys() & {"step", "sha256", "dtype"}:
        with pytest.raises(errors.VGGFlaxError):
            vgg_flax.load(written / "net.safetensors", **options)
    with pytest.raises(WeightsError, match="vgg99"):
        vgg_flax.load(written / "net.safetensors", variant="vgg99")


def test_a_run_is_loaded_without_its_head_too(written: pathlib.Path) -> None:
    images = np.ones((2, 64, 64, 3), np.uint8)
    run, file = (
        vgg_flax.load(written / name, include_top=False)
        for name in ("run", "net.safetensors")
    )
    assert run.model == file.model and run.class_names == ()
    assert not any(name.startswith("fc") for name in run.variables["params"])
    np.testing.assert_array_equal(run(images), file(images))


def test_features_only_is_asked_for_and_has_no_classes(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = random_net("vgg11")
    source, features = (
        str(tmp_path / "net.safetensors"),
        str(tmp_path / "f.safetensors"),
    )
    conversion.save(net, source)
    assert cli.main(["convert", source, features, "--features-only"]) == 0
    images = np.zeros((2, 64, 64, 3), np.uint8)
    assert vgg_flax.load(features)(images).shape == (2, 32)
    assert cli.main(["describe", features]) == 0
    assert cli.main(["predict", features, __file__]) == 1
    assert "features only" in capsys.readouterr().err


def test_mistyped_paths_do_not_go_to_the_hub(tmp_path: pathlib.Path) -> None:
    with pytest.raises(WeightsError, match="no such file or folder"):
        vgg_flax.load(tmp_path / "defualt")
