"""Files that the real peers save, loaded here: the peers' own logits and top-5.

The nets are randomly initialised, BatchNorm's statistics too. Random nets give nearly
the same logits for every photo, so a difference counts against how far the photos'
logits lie apart. Needs the extra `parity`.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
import samples

import vgg_flax
from vgg_flax import net
from vgg_flax.inference import conversion

os.environ["KERAS_BACKEND"] = "jax"
# Keras 3.15's own variables predate NumPy 2's __array__(copy=...).
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ imp:DeprecationWarning"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def photos() -> list[PIL.Image.Image]:
    """Six pictures, of several sizes and shapes, out of scikit-learn's two."""
    boxes = [(0, 0, 640, 427), (10, 30, 330, 400), (300, 100, 630, 350)]
    return [picture.crop(box) for picture in samples.pictures() for box in boxes]


def views(loaded: net.Net, photos: list[PIL.Image.Image]) -> np.ndarray:
    return np.stack([loaded.preprocessing.test_view(np.asarray(p)) for p in photos])


def check(loaded: net.Net, photos: list[PIL.Image.Image], expected: np.ndarray) -> None:
    """Our logits, from the photos on, against the peer's."""
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(lambda n, x: n(x))(loaded, views(loaded, photos)))
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert spread > 0
    assert np.abs(found - expected).max() <= 1e-3 * spread
    top5 = [
        np.argsort(-scores, axis=1, kind="stable")[:, :5]
        for scores in (found, expected)
    ]
    np.testing.assert_array_equal(*top5)


def randomise(module: Any) -> Any:
    """The module in evaluation mode, BatchNorm's statistics and biases random."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2, generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(0, 0.2, generator=generator)
            elif isinstance(part, (torch.nn.Linear, torch.nn.Conv2d)):
                # He's scale in the FC layers too: std 0.01 would drown the photos.
                torch.nn.init.kaiming_normal_(part.weight, generator=generator)
                if part.bias is not None:
                    part.bias.normal_(0, 0.05, generator=generator)
    return module.eval()


def torch_logits(
    module: Any, transform: Callable[[Any], Any], photos: list[PIL.Image.Image]
) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return module(torch.stack([transform(p) for p in photos])).numpy()


TORCHVISION = [f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(
    name: str, photos: list[PIL.Image.Image], tmp_path: pathlib.Path
) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    module = randomise(getattr(models, name)(init_weights=False))
    transform = models.get_model_weights(name).IMAGENET1K_V1.transforms()
    expected = torch_logits(module, transform, photos)
    legacy = name in ("vgg11", "vgg16_bn")
    path = tmp_path / "weights.pth"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    loaded = vgg_flax.load(path)
    assert loaded.variant == name
    check(loaded, photos, expected)
    if name == "vgg11_bn":  # and out again, into the peer
        safetensors_torch = pytest.importorskip("safetensors.torch")
        conversion.save(loaded, tmp_path / "out.safetensors")
        state = safetensors_torch.load_file(tmp_path / "out.safetensors")
        for key, tensor in state.items():
            assert torch.equal(tensor, module.state_dict()[key])
        fresh = getattr(models, name)(init_weights=False)
        fresh.load_state_dict(state)
        np.testing.assert_array_equal(
            torch_logits(fresh.eval(), transform, photos), expected
        )


@pytest.mark.parametrize("name", ["vgg13", "vgg11_bn"])
def test_timm(name: str, photos: list[PIL.Image.Image], tmp_path: pathlib.Path) -> None:
    timm = pytest.importorskip("timm")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    module = randomise(timm.create_model(name))
    settings = timm.data.resolve_model_data_config(module)
    transform = timm.data.create_transform(**settings, is_training=False)
    expected = torch_logits(module, transform, photos)
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file(module.state_dict(), path)
    loaded = vgg_flax.load(path)
    assert loaded.variant == name
    check(loaded, photos, expected)
    conversion.save(loaded, tmp_path / "out.safetensors", "timm")
    fresh = timm.create_model(name)
    fresh.load_state_dict(safetensors_torch.load_file(tmp_path / "out.safetensors"))
    np.testing.assert_array_equal(
        torch_logits(fresh.eval(), transform, photos), expected
    )


def test_pytorchcv(photos: list[PIL.Image.Image], tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    vgg = pytest.importorskip("pytorchcv.models.vgg")
    channels = [[4], [8], [16, 16], [32, 32], [32, 32]]
    module = randomise(vgg.VGG(channels, bias=False, use_bn=True, num_classes=50))
    path = tmp_path / "bn_vgg11.pth"
    torch.save(module.state_dict(), path)
    loaded = vgg_flax.load(path)
    assert (loaded.variant, loaded.model.conv_bias) == ("vgg11_bn", False)
    assert loaded.preprocessing.resize == "cv2"
    mean, std = (torch.tensor(v) for v in (vgg_mean(), vgg_std()))
    own = iter(views(loaded, photos))  # its evaluation script resizes with OpenCV

    def transform(_: Any) -> Any:
        return ((torch.tensor(next(own)) / 255 - mean) / std).permute(2, 0, 1)

    check(loaded, photos, torch_logits(module, transform, photos))


def vgg_mean() -> tuple[float, ...]:
    return (0.485, 0.456, 0.406)


def vgg_std() -> tuple[float, ...]:
    return (0.229, 0.224, 0.225)


def randomise_keras(module: Any) -> None:
    rng = np.random.default_rng(0)
    for variable in module.weights:
        shape = variable.shape
        deviation = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.05
        noise = rng.standard_normal(shape, np.float32) * np.float32(deviation)
        variable.assign(noise)


def keras_logits(module: Any, pixels: Any) -> np.ndarray:
    with jax.numpy_rank_promotion("allow"):  # Keras adds biases by broadcasting
        return np.asarray(module(pixels))


@pytest.mark.parametrize("name", ["VGG16", "VGG19"])
def test_keras_applications(
    name: str, photos: list[PIL.Image.Image], tmp_path: pathlib.Path
) -> None:
    keras = pytest.importorskip("keras")
    applications = getattr(keras.applications, name.lower())
    module = getattr(applications, name)(weights=None, classifier_activation=None)
    randomise_keras(module)
    path = tmp_path / "keras.weights.h5"
    module.save_weights(path)
    loaded = vgg_flax.load(path, preprocessing="caffe")  # nothing random tells it
    assert loaded.variant == name.lower()
    pixels = applications.preprocess_input(views(loaded, photos).astype(np.float32))
    expected = keras_logits(module, pixels)
    check(loaded, photos, expected)

    legacy = tmp_path / "legacy.h5"  # Keras 3 reads this layout and writes it no more
    conversion.save(loaded, legacy)
    check(vgg_flax.load(legacy), photos, expected)
    fresh = getattr(applications, name)(weights=None, classifier_activation=None)
    fresh.load_weights(legacy)
    np.testing.assert_array_equal(keras_logits(fresh, pixels), expected)


def test_keras_hub(photos: list[PIL.Image.Image], tmp_path: pathlib.Path) -> None:
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.VGGBackbone(
        [1, 1, 2, 2, 2], [4, 8, 16, 32, 32], image_shape=(224, 224, 3)
    )
    module = keras_hub.models.VGGImageClassifier(
        backbone, num_classes=50, pooling_hidden_dim=24
    )
    randomise_keras(module)
    path = tmp_path / "hub.weights.h5"
    module.save_weights(path)
    loaded = vgg_flax.load(path)
    assert loaded.variant == "vgg11"
    pixels = loaded.preprocessing.normalize(views(loaded, photos))
    check(loaded, photos, keras_logits(module, pixels))


def assert_features(found: Any, expected: Any, name: str) -> None:
    """Within 1e-4 of how far the photos' values lie apart."""
    expected = np.asarray(expected)
    ours = np.asarray(found).reshape(expected.shape)  # FC layers are maps here
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert spread > 0, name
    assert np.abs(ours - expected).max() <= 1e-4 * spread, name


@pytest.mark.parametrize("name", ["vgg16_bn", "vgg19"])
def test_torchvision_features(
    name: str, photos: list[PIL.Image.Image], tmp_path: pathlib.Path
) -> None:
    """Every module of torchvision's that computes something, by its own name."""
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    module = randomise(getattr(models, name)(init_weights=False))
    for part in module.modules():
        if isinstance(part, torch.nn.ReLU):
            part.inplace = False  # or a convolution's output is its ReLU's
    leaves = [n for n, part in module.named_modules() if not list(part.children())]
    leaves.remove("avgpool")  # which at 224 pixels does nothing
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    loaded = vgg_flax.load(tmp_path / "weights.pth")
    images = np.asarray(loaded.preprocessing.normalize(views(loaded, photos[:3])))
    extractor = extraction.create_feature_extractor(module, leaves)
    with torch.no_grad():
        expected = extractor(torch.tensor(images).permute(0, 3, 1, 2))
    with jax.default_matmul_precision("highest"):
        found = loaded.features(images, leaves)
    assert len(leaves) > 40
    for name, values in expected.items():
        assert_features(found[name], values.movedim(1, -1).numpy(), name)


def test_keras_features(photos: list[PIL.Image.Image], tmp_path: pathlib.Path) -> None:
    """Every layer of Keras's VGG16 that computes something, by its own name."""
    keras = pytest.importorskip("keras")
    vgg16 = keras.applications.vgg16
    module = vgg16.VGG16(weights=None, classifier_activation=None)
    randomise_keras(module)
    module.save_weights(tmp_path / "keras.weights.h5")
    loaded = vgg_flax.load(tmp_path / "keras.weights.h5", preprocessing="caffe")
    idle = ("input_layer", "flatten", "predictions")
    layers = [x for x in module.layers if not x.name.startswith(idle)]
    extractor = keras.Model(module.input, [layer.output for layer in layers])
    pixels = views(loaded, photos[:3])
    with jax.numpy_rank_promotion("allow"):
        expected = extractor(vgg16.preprocess_input(pixels.astype(np.float32)))
    names = [layer.name for layer in layers]
    assert len(names) == 13 + 5 + 2
    with jax.default_matmul_precision("highest"):
        found = loaded.features(pixels, names)
    for name, values in zip(names, expected, strict=True):
        assert_features(found[name], values, name)


@pytest.mark.filterwarnings("ignore:.*pretrained.*:UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
@pytest.mark.parametrize("side", [64, 90])
def test_lpips(
    side: int, photos: list[PIL.Image.Image], tmp_path: pathlib.Path
) -> None:
    """The package itself, with our trunk: values and gradients of six pairs."""
    torch = pytest.importorskip("torch")
    lpips = pytest.importorskip("lpips")
    models = pytest.importorskip("torchvision.models")
    trunk = randomise(models.vgg16(init_weights=False))
    torch.save(trunk.state_dict(), tmp_path / "vgg16.pth")
    net = vgg_flax.load(tmp_path / "vgg16.pth", include_top=False)
    peer = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = trunk.features.state_dict()
    for i in range(1, 6):
        piece = getattr(peer.net, f"slice{i}")
        piece.load_state_dict({k: state[k] for k in piece.state_dict()})
    sized = [np.asarray(p.resize((side, side + 7)), np.float32) for p in photos]
    a = np.stack(sized) / 127.5 - 1
    b = a[::-1].copy()

    def compare(a: np.ndarray, b: np.ndarray, peer: Any, net: Any) -> float:
        """Sees that distances are equal; how far apart gradients are, as a share."""
        x, y = (torch.tensor(v).permute(0, 3, 1, 2) for v in (a, b))
        values = peer(x.requires_grad_(), y).flatten()
        values.sum().backward()
        expected = x.grad.permute(0, 2, 3, 1).numpy()
        with jax.default_matmul_precision("highest"):
            ours = vgg_flax.perceptual.lpips(net, a, b)
            gradient = jax.grad(lambda x: vgg_flax.perceptual.lpips(net, x, b).sum())(a)
        assert ours.dtype == a.dtype and values.min() > 0.01
        np.testing.assert_allclose(ours, values.detach().numpy(), rtol=0, atol=1e-5)
        return np.abs(gradient - expected).max() / np.abs(expected).max()

    # Rounded to float32 a pool's two largest values may be equal for one of us, and its
    # gradient go elsewhere; in float64 none are.
    assert compare(a, b, peer, net) < 0.1
    with jax.enable_x64(True):
        double = vgg_flax.load(
            tmp_path / "vgg16.pth", include_top=False, dtype="float64"
        )
        assert compare(np.float64(a), np.float64(b), peer.double(), double) < 1e-4
