"""`net.features`: any layer by any peer's name, at no more than its own cost."""

import pathlib
import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
from conftest import random_net, save_run

import vgg_flax
from vgg_flax import model
from vgg_flax.inference import conversion
from vgg_flax.model import description, names
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError


def photos(side: int) -> np.ndarray:
    """`[2, side, side, 3]`, uint8."""
    return np.stack([photo[:side, :side] for photo in samples.photos()])


def flops(net: Net, layers: tuple[str, ...], images: np.ndarray) -> float:
    """Of the compiled function, as XLA counts them."""

    def run(net: Net, images: Any) -> Any:
        return net.features(images, layers)

    costs = jax.jit(run).lower(net, images).compile().cost_analysis()
    assert costs is not None
    return costs["flops"]


@pytest.mark.parametrize("layer", ["conv1_2", "relu3_3", "pool4", "fc6"])
def test_it_costs_what_its_layers_cost(layer: str) -> None:
    """Within a percent of the convolutions' multiply-adds, their biases and ReLUs."""
    net = random_net("vgg16", width_multiplier=1 / 4)
    images = np.asarray(net.preprocessing.normalize(photos(64)), np.float32)
    layers = description.describe(net.model, images.shape).layers  # has no relu
    last = [each.name for each in layers].index(layer.replace("relu", "conv"))
    expected = 0.0
    for each in layers[: last + 1]:
        if each.name.startswith("conv"):  # at the edges a window is partly beyond
            sides = [(3 * side - 2) / (3 * side) for side in each.shape[1:3]]
            expected += 2 * each.macs * np.prod(sides) + 2 * np.prod(each.shape)
        elif each.name.startswith("fc"):
            expected += 2 * each.macs
    assert flops(net, (layer,), images) == pytest.approx(expected, rel=0.01)


def test_params_beyond_the_deepest_layer_are_not_needed() -> None:
    net = random_net("vgg13_bn")
    params = {k: v for k, v in net.variables["params"].items() if k < "conv4"}
    params = {k: v for k, v in params.items() if k < "bn4" or k.startswith("conv")}
    assert "fc6" not in params and "conv3_2" in params
    part = net.replace(variables={**net.variables, "params": params})
    images = photos(16)  # which fc6 could not take
    layers = ("pool3", "conv3_1")
    found, whole = part.features(images, layers), net.features(images, layers)
    assert list(found) == list(layers)
    for name in layers:
        assert found[name].shape == (2, *{"pool3": (2, 2), "conv3_1": (4, 4)}[name], 16)
        np.testing.assert_array_equal(found[name], whole[name])


# torchvision's own lists of modules, printed by its 0.29.1 (`features`, `classifier`),
# timm's and Keras's; `test_parity` compares what they give.
@pytest.mark.parametrize(
    ("variant", "foreign", "own"),
    [
        ("vgg16", "features.0", "conv1_1"),
        ("vgg16", "features.4", "pool1"),
        ("vgg16", "features.22", "relu4_3"),
        ("vgg16", "features.30", "pool5"),
        ("vgg19", "features.35", "relu5_4"),
        ("vgg19", "features.36", "pool5"),
        ("vgg11", "features.20", "pool5"),
        ("vgg16_bn", "features.1", "bn1_1"),
        ("vgg16_bn", "features.43", "pool5"),
        ("vgg19_bn", "features.51", "relu5_4"),
        ("vgg16", "classifier.0", "fc6"),
        ("vgg16", "classifier.4", "relu7"),
        ("vgg16", "classifier.5", "relu7"),
        ("vgg16", "classifier.6", "fc8"),
        ("vgg16", "classifier", "fc8"),
        ("vgg16", "pre_logits.fc2", "fc7"),
        ("vgg16", "head.fc", "fc8"),
        ("vgg16", "block3_conv3", "relu3_3"),
        ("vgg19", "block5_pool", "pool5"),
        ("vgg16", "fc1", "relu6"),
        ("vgg16", "relu3_3", "relu3_3"),
    ],
)
def test_peers_names_are_understood(variant: str, foreign: str, own: str) -> None:
    net = model.VGG(variant)
    assert names.resolve(foreign, net.layer_names) == own
    assert net.deepest(foreign) == own


def test_the_answer_has_the_names_that_were_asked_for() -> None:
    net, images = random_net("vgg11"), photos(32)
    found = net.features(images, ("block5_pool", "pool5", "features.20", "logits"))
    assert list(found) == ["block5_pool", "pool5", "features.20", "logits"]
    np.testing.assert_array_equal(found["block5_pool"], found["pool5"])
    np.testing.assert_allclose(found["logits"], net(images), rtol=1e-5, atol=1e-6)
    assert list(net.features(images, "fc7")) == ["fc7"]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("relu3_4", r"'relu3_4'.* did you mean .*relu3_"),
        (("pool1", "conv6_1"), r"'conv6_1'.* did you mean .*conv"),
        ("features.31", r"'features.31'.* did you mean .*features\."),
        ("xyz", r"'xyz'.* known: conv1_1, relu1_1"),
        ((), r"layers=\(\); expected names"),
    ],
)
def test_a_layer_that_is_none_is_told_with_its_neighbours(
    layers: Any, said: str
) -> None:
    net = random_net("vgg16")
    with pytest.raises(ValueError, match=said):
        net.features(photos(32), layers)


def test_layers_that_the_weights_do_not_hold_are_told() -> None:
    net = random_net("vgg16", head="none")
    with pytest.raises(
        ValueError, match="'fc7' is none of this net, which ends in pool5"
    ):
        net.features(photos(32), "fc7")
    assert "fc6" not in net.layers and list(net.layers)[-1] == "pool5"


@pytest.mark.parametrize(
    ("layer", "side"), [("conv1_2", 1), ("pool1", 2), ("relu3_1", 4), ("pool5", 32)]
)
def test_an_image_needs_to_be_as_large_as_the_layer(layer: str, side: int) -> None:
    net = random_net("vgg11", fc6_window=2) if layer != "conv1_2" else random_net("B")
    assert net.features(photos(side), layer)[layer].size
    if side > 1:
        with pytest.raises(ValueError, match=f"{layer} needs at least {side} pixels"):
            net.features(photos(side - 1), layer)


def test_wrong_images_are_refused() -> None:
    net = random_net("vgg11")
    with pytest.raises(TypeError, match="expected uint8"):
        net.features(photos(32).astype(np.int32), "pool1")
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, 3\]"):
        net.features(photos(32)[..., :1], "pool1")


def test_transformations_apply() -> None:
    """jit, grad, vmap, jvp, remat; against each other."""
    net = random_net("vgg11")
    x = net.preprocessing.normalize(photos(16))

    def energy(x: jax.Array) -> jax.Array:
        return jnp.square(net.features(x, "relu3_1")["relu3_1"]).mean()

    gradient = jax.jit(jax.grad(energy))(x)
    assert gradient.shape == x.shape and np.abs(gradient).max() > 0
    _, tangent = jax.jvp(energy, (x,), (gradient,))
    assert float(tangent) == pytest.approx(float(jnp.square(gradient).sum()), rel=1e-4)
    scale = float(jnp.abs(gradient).max())
    again = jax.grad(jax.checkpoint(energy))(x)
    np.testing.assert_allclose(again, gradient, rtol=0, atol=1e-5 * scale)
    each = jax.vmap(lambda x: net.features(x[None], "relu3_1")["relu3_1"][0])(x)
    together = net.features(x, "relu3_1")["relu3_1"]
    np.testing.assert_allclose(each, together, rtol=0, atol=1e-5)


def test_layers_lists_the_shape_of_each() -> None:
    net = random_net("vgg16_bn", fc6_window=2)
    layers, features = net.layers, net.features(photos(64), net.model.layer_names)
    assert list(layers) == list(features)
    assert layers["relu3_3"] == (16, 16, 16) and layers["logits"] == (10,)
    assert {name: x.shape[1:] for name, x in features.items()} == layers


@pytest.mark.parametrize("layer", ["relu3_1", "features.8", "block3_conv1", "pool5"])
@pytest.mark.parametrize("kind", ["run", "file"])
def test_load_until_keeps_nothing_beyond(
    layer: str, kind: str, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg13")
    path = tmp_path / ("run" if kind == "run" else "net.safetensors")
    conversion.save(net, path)
    part, expected = vgg_flax.load(path, until=layer), net.features(photos(32), layer)
    own = net.model.deepest(layer)
    last = {"relu3_1": "conv3_1", "pool5": "conv5_2", "relu2_2": "conv2_2"}[own]
    assert max(part.variables["params"]) == last
    np.testing.assert_array_equal(part(photos(32)), expected[layer])
    assert part.model.layer_names[-1] == own and part.class_names == ()
    assert part.card.no_classes() == f"{path} ends with {own}, and has no classes"


def test_load_until_a_layer_of_the_head_keeps_the_head(tmp_path: pathlib.Path) -> None:
    path = save_run(random_net("vgg11_bn"), tmp_path / "run")
    part = vgg_flax.load(path, until="fc7")
    assert "fc7" in part.variables["params"] and "fc8" not in part.variables["params"]
    assert part(photos(32)).shape == (2, 1, 1, 16)
    with pytest.raises(WeightsError, match=r"until='fc9'.* did you mean .*fc"):
        vgg_flax.load(path, until="fc9")
    with pytest.raises(ValueError, match="until='fc9'; expected conv1_1"):
        model.VGG(until="fc9")


def test_weights_without_a_head_load_until_a_stages_layer(
    tmp_path: pathlib.Path,
) -> None:
    """The head of torchvision's `IMAGENET1K_FEATURES` is not finite."""
    net = random_net("vgg11")
    params = net.variables["params"]
    broken = {**params, "fc7": jax.tree.map(lambda x: x * np.nan, params["fc7"])}
    net = net.replace(variables={**net.variables, "params": broken})
    path = tmp_path / "net.safetensors"
    conversion.save(net, path)
    assert vgg_flax.load(path, until="pool4")(photos(32)).shape == (2, 2, 2, 32)
    with pytest.raises(WeightsError, match=r"fc7|classifier"):
        vgg_flax.load(path, until="relu7")


def test_nets_that_differ_in_their_arrays_are_one_structure(
    tmp_path: pathlib.Path,
) -> None:
    """An average of two steps is of neither; a compiled function serves both."""
    a = random_net("vgg11")
    b = jax.tree.map(lambda x: 2 * x, a).replace(source="b", sha256="1" * 64)
    average = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
    assert (average.source, average.sha256) == ("", "")
    assert average.class_names == a.class_names
    np.testing.assert_allclose(
        average.variables["params"]["fc8"]["kernel"],
        1.5 * a.variables["params"]["fc8"]["kernel"],
        rtol=1e-6,
    )
    traces = []

    @jax.jit
    def run(net: Net, images: jax.Array) -> jax.Array:
        traces.append(net.source)
        return net(images)

    run(a, photos(32))
    run(b, photos(32))
    assert traces == [""]
    (path, _), *_ = jax.tree_util.tree_leaves_with_path(a)
    assert jax.tree_util.keystr(path).startswith(".variables['params']['conv1_1']")


def test_a_net_is_itself_alone_and_says_what_it_is_in_five_lines() -> None:
    a, b = random_net("vgg11"), random_net("vgg11")
    assert a == a and a != b and len({a, b}) == 2
    np.testing.assert_allclose(jax.jit(a)(photos(32)), a(photos(32)), rtol=1e-4)
    assert len(repr(a).splitlines()) == 5
    assert re.search(r"Net\(vgg11, [\d,]+ params, float32\n", repr(a))
    assert "conv1_1 to logits" in repr(a) and "random.safetensors" in repr(a)
    assert {"load", "VGG", "VARIANTS"} <= set(dir(vgg_flax))


def test_a_net_can_be_pickled() -> None:
    net = random_net("vgg11")
    again = pickle.loads(pickle.dumps(net))
    assert again.source == net.source
    np.testing.assert_array_equal(again(photos(32)), net(photos(32)))


def test_a_net_made_in_python_is_saved_and_loaded(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg11_bn")
    vgg_flax.save(net, tmp_path / "net.safetensors")
    vgg_flax.save(net.until("relu4_1"), tmp_path / "part")
    whole = vgg_flax.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(whole(photos(32)), net(photos(32)))
    part = vgg_flax.load(tmp_path / "part")
    expected = net.features(photos(32), "relu4_1")["relu4_1"]
    np.testing.assert_array_equal(part(photos(32)), expected)
    assert part.model.until == "relu4_1"
    with pytest.raises(WeightsError, match=r"ends with relu4_1.*write a checkpoint"):
        vgg_flax.save(part, tmp_path / "part.safetensors")
    assert not (tmp_path / "part.safetensors").exists()


@pytest.mark.parametrize("head", ["fc", "gap", "linear"])
@pytest.mark.parametrize("kind", ["features", "file", "run"])
def test_a_new_head_on_anybodys_features(
    kind: str, head: str, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11_bn", num_classes=7)
    if kind == "run":
        path = save_run(net, tmp_path / "run")
    else:
        path = tmp_path / "whole.safetensors"
        conversion.save(net, path)
    if kind == "features":
        features = vgg_flax.load(path, include_top=False)
        path = tmp_path / "features.safetensors"
        vgg_flax.save(features, path)
    headed = vgg_flax.load(path, num_classes=3, head=head)
    assert (headed.model.head, headed.class_names) == (head, ())
    images = photos(32)
    assert headed(images).shape == (2, 3)
    np.testing.assert_array_equal(
        headed.until("pool5")(images), net.until("pool5")(images)
    )
    assert ("fc6" in headed.variables["params"]) == (head == "fc")
    vgg_flax.save(headed, tmp_path / "new")
    again = vgg_flax.load(tmp_path / "new")
    np.testing.assert_array_equal(again(images), headed(images))


@pytest.mark.parametrize(
    "more",
    [
        {"head": "gap"},
        {"head": "linear"},
        {"head": "none", "num_classes": 3},
        {"head": "gap", "num_classes": 3, "include_top": False},
    ],
)
def test_a_new_head_must_be_one(more: Any, tmp_path: pathlib.Path) -> None:
    path = save_run(random_net("vgg11"), tmp_path)
    with pytest.raises(WeightsError, match="num_classes="):
        vgg_flax.load(path, **more)


@pytest.mark.parametrize(("crop_size", "window"), [(64, 2), (96, 3), (100, 3)])
@pytest.mark.parametrize("head", ["fc", "linear"])
def test_a_new_heads_window_is_one_that_the_test_view_has(
    head: str, crop_size: int, window: int, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "features.safetensors"
    vgg_flax.save(random_net("vgg11", fc6_window=7, head="none"), path)
    new: Any = {"head": head, "num_classes": 3}
    net = vgg_flax.load(path, crop_size=crop_size, **new)
    assert (net.model.head_window, net.preprocessing.crop_size) == (window, crop_size)
    assert vgg_flax.load(path, crop_size=512, **new).model.head_window == 7


def test_fc8_over_a_window_starts_anew_with_other_classes(
    tmp_path: pathlib.Path,
) -> None:
    net = random_net("vgg11", head="linear", fc6_window=2)
    vgg_flax.save(net, tmp_path / "net.pth")
    fewer = vgg_flax.load(tmp_path / "net.pth", num_classes=3)
    assert fewer.variables["params"]["fc8"]["kernel"].shape == (2, 2, 32, 3)
    assert fewer(photos(64)).shape == (2, 3) and fewer.class_names == ()
