"""The nets against a plain NumPy forward pass, hand numbers and symmetries."""

import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import equations
from numpy_net import Arrays

from tests import numpy_net
from vgg_flax import model
from vgg_flax.model import layers

SMALL: dict[str, Any] = {
    "num_classes": 10,
    "width_multiplier": 1 / 16,
    "fc_widths": (16, 16),
    "initializer": "he",
}


def small_net(variant: str, **fields: Any) -> model.VGG:
    """A net 16 times as narrow, for 32 pixels unless `fc6_window` says more."""
    return model.VGG(variant, **{**SMALL, "fc6_window": 1, **fields})


def initial_shapes(net: model.VGG) -> Any:
    """Shapes and dtypes of `net.init`'s variables."""
    side = net.smallest_image
    with jax.enable_x64(net.dtype == "float64"):
        images = jnp.zeros((1, side, side, net.in_channels))
        return jax.eval_shape(net.init, jax.random.key(0), images)


def random_variables(net: model.VGG, dtype: Any = np.float64, seed: int = 0) -> Any:
    """Variables in which nothing is zero or one, so that nothing can be forgotten."""
    shapes = initial_shapes(net)
    random = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        kind, shape = path[-1].key, leaf.shape
        if kind == "kernel":
            value = random.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)
        elif kind in ("scale", "var"):
            value = random.uniform(0.5, 1.5, shape)
        else:  # bias and mean
            value = random.normal(0, 0.2, shape)
        return value.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_images(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(dtype)


def forward(
    net: model.VGG, variables: Any, images: np.ndarray, **kwargs: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits and collections of a net computed in float64."""
    # Not jitted: the variants share most layers, so each is compiled only once.
    mutable = ["intermediates", "batch_stats"]
    with jax.enable_x64(True):
        logits, collections = net.apply(variables, images, mutable=mutable, **kwargs)
        assert logits.dtype == jnp.float64
        return np.asarray(logits), jax.tree.map(np.asarray, collections)


def assert_close(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Relative to the largest value; two zeros would tell nothing."""
    assert actual.shape == expected.shape
    largest = np.abs(expected).max()
    assert largest > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * largest)


def assert_equals_oracle(net: model.VGG, images: np.ndarray) -> Arrays:
    """Logits and every tap; returns the oracle's taps."""
    variables = random_variables(net)
    logits, collections = forward(net, variables, images)
    expected, taps, _ = numpy_net.oracle(net, variables, images)
    assert_close(logits, expected)
    tapped = collections["intermediates"]
    assert set(tapped) == {n for n in taps if n.startswith(("relu", "pool"))}
    for name, activation in tapped.items():
        assert_close(activation, taps[name])
    assert net.layer_names == tuple(taps)
    with jax.enable_x64(True):
        features = net.apply(variables, images, taps, method="features")
    assert list(features) == list(taps)
    for name, tap in taps.items():
        assert_close(np.asarray(features[name]), tap)
    return taps


def test_the_table_covers_every_variant():
    assert set(numpy_net.LAYERS) == set(model.VARIANTS)


@pytest.mark.parametrize("variant", sorted(numpy_net.LAYERS))
def test_an_image_of_fc6s_window_gives_the_numpy_nets_logits_and_taps(variant):
    net = small_net(variant, fc6_window=2, dtype="float64")
    assert_equals_oracle(net, random_images(2, 64, 64, 3))


@pytest.mark.parametrize("variant", sorted(numpy_net.LAYERS))
def test_a_larger_odd_image_gives_the_mean_of_the_numpy_nets_score_map(variant):
    net = small_net(variant, fc6_window=2, dtype="float64")
    taps = assert_equals_oracle(net, random_images(2, 75, 131, 3))
    assert taps["relu7"].shape == (2, 1, 3, 16)  # 2 x 4 pixels on the last map


def test_an_image_of_twice_the_size_is_scored_at_every_window():
    net = small_net("vgg11", fc6_window=2, dtype="float64")
    taps = assert_equals_oracle(net, random_images(2, 128, 128, 3))
    assert taps["relu7"].shape == (2, 3, 3, 16)


@pytest.mark.parametrize(
    ("variant", "fields", "shape"),
    [
        ("vgg11", {"fc6_window": 7}, (1, 224, 224, 3)),
        ("vgg11", {"fc6_window": 1}, (2, 64, 64, 3)),
        ("vgg11", {"fc6_window": 2, "in_channels": 1}, (2, 64, 64, 1)),
        ("vgg13_bn", {"fc6_window": 2, "conv_bias": False}, (2, 64, 64, 3)),
        ("vgg13", {"fc6_window": 2, "pooling": "average"}, (2, 75, 131, 3)),
        ("vgg16", {"head": "gap", "fc6_window": 7}, (2, 64, 64, 3)),
        ("vgg16", {"head": "gap", "fc6_window": 7}, (2, 75, 131, 3)),
        ("vgg11", {"head": "linear", "fc6_window": 1}, (2, 64, 96, 3)),
        ("vgg11", {"head": "linear", "fc6_window": 2}, (2, 64, 64, 3)),
        ("vgg13_bn", {"head": "linear", "fc6_window": 2}, (2, 75, 131, 3)),
        ("vgg11", {"width_multiplier": 1 / 8, "num_classes": 3}, (2, 32, 32, 3)),
    ],
    ids=str,
)
def test_every_option_gives_the_numpy_nets_logits_and_taps(variant, fields, shape):
    assert_equals_oracle(
        small_net(variant, dtype="float64", **fields), random_images(*shape)
    )


def test_the_score_maps_mean_is_the_logits():
    net = small_net("vgg11", fc6_window=2, dtype="float64")
    variables, images = random_variables(net), random_images(2, 128, 128, 3)
    scores, _ = forward(net, variables, images, method="score_map")
    taps = numpy_net.oracle(net, variables, images)[1]
    assert scores.shape == (2, 3, 3, 10)
    assert_close(
        scores, numpy_net.sliding_fc(taps["relu7"], variables["params"]["fc8"], 1)
    )


def test_the_matrix_product_equals_the_convolution_over_the_same_pixels():
    layer = layers.Conv(
        features=5,
        window=3,
        padding="VALID",
        use_bias=True,
        kernel_init=nn.initializers.normal(1.0),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    images = random_images(2, 3, 4, 6, dtype=np.float32)
    variables = layer.init(jax.random.key(0), images)
    convolved = layer.apply(variables, images)  # [2, 1, 2, 5]
    multiplied = [layer.apply(variables, images[:, :, j : j + 3]) for j in range(2)]
    assert_close(np.concatenate(multiplied, axis=2), convolved, rtol=1e-6)


def test_fully_connected_layers_are_convolutions_only_on_larger_images():
    net = small_net("vgg11", fc6_window=2)
    variables = random_variables(net, np.float32)

    def convolutions(side: int) -> int:
        images = jnp.zeros((1, side, side, 3))
        found = equations(net, variables, images)
        names = ("conv_general_dilated", "convolution")
        return sum(e.primitive.name in names for e in found)

    assert convolutions(64) == 8  # vgg11's own
    assert convolutions(96) == 8 + 3  # fc6, fc7 and fc8 besides


@pytest.mark.parametrize("variant", sorted(numpy_net.LAYERS))
def test_params_are_named_by_stage_and_place(variant):
    convolutions = [
        f"{stage}_{layer}"
        for stage, row in enumerate(numpy_net.LAYERS[variant].split(), start=1)
        for layer, _ in enumerate(row.strip("LP"), start=1)
    ]
    expected = {f"conv{name}" for name in convolutions} | {"fc6", "fc7", "fc8"}
    normalised = {f"bn{name}" for name in convolutions if variant.endswith("_bn")}
    variables = random_variables(small_net(variant))
    params, statistics = variables["params"], variables.get("batch_stats", {})
    assert set(params) == expected | normalised
    assert all(set(params[name]) == {"kernel", "bias"} for name in expected)
    assert all(set(params[name]) == {"scale", "bias"} for name in normalised)
    assert set(statistics) == normalised
    assert all(set(statistics[name]) == {"mean", "var"} for name in normalised)


def test_without_convolutions_biases_the_fully_connected_layers_keep_theirs():
    params = random_variables(small_net("vgg11_bn", conv_bias=False))["params"]
    assert set(params["conv1_1"]) == {"kernel"}
    assert set(params["conv5_2"]) == {"kernel"}
    assert set(params["fc6"]) == set(params["fc8"]) == {"kernel", "bias"}


def test_the_gap_head_has_fc8_alone_and_takes_32_pixels():
    net = small_net("vgg11", head="gap", fc6_window=7)
    assert net.smallest_image == 32
    params = random_variables(net)["params"]
    assert {name for name in params if name.startswith("fc")} == {"fc8"}
    assert params["fc8"]["kernel"].shape == (1, 1, 32, 10)


def test_the_linear_head_has_fc8_alone_over_fc6s_window():
    net = small_net("vgg11", head="linear", fc6_window=3)
    assert (net.smallest_image, net.head_window) == (96, 3)
    params = random_variables(net)["params"]
    assert {name for name in params if name.startswith("fc")} == {"fc8"}
    assert params["fc8"]["kernel"].shape == (3, 3, 32, 10)
    assert net.layer_names[-3:] == ("pool5", "fc8", "logits")


def test_the_linear_head_takes_torchvisions_pool_before_it():
    net = small_net("vgg11", head="linear", fc6_window=2, adaptive_pool=True)
    assert net.smallest_image == 32
    assert net.layer_names[-3:] == ("avgpool", "fc8", "logits")
    variables = random_variables(net, np.float32)
    images = random_images(1, 32, 32, 3, dtype=np.float32)
    logits = net.apply(variables, images)  # of one pixel, four times
    pixel = net.clone(until="pool5").apply(variables, images)
    kernel, bias = (variables["params"]["fc8"][leaf] for leaf in ("kernel", "bias"))
    expected = np.asarray(pixel)[:, 0, 0] @ kernel.sum(axis=(0, 1)) + bias
    assert_close(logits, expected, rtol=1e-4)


def test_init_and_plain_apply_give_no_intermediates():
    net = small_net("vgg11")
    variables = initial_shapes(net)
    assert set(variables) == {"params"}
    logits = jax.eval_shape(net.apply, variables, jnp.zeros((5, 32, 32, 3)))
    assert logits.shape == (5, 10)


def test_batch_norm_in_training_normalises_with_the_batch_and_moves_the_averages():
    net = small_net("vgg13_bn", dtype="float64", fc6_window=2, dropout_rate=0.0)
    variables, images = random_variables(net), random_images(2, 75, 131, 3)
    logits, collections = forward(net, variables, images, train=True)
    expected, taps, running = numpy_net.oracle(net, variables, images, train=True)
    assert_close(logits, expected, rtol=1e-7)
    assert_close(collections["intermediates"]["pool5"], taps["pool5"], rtol=1e-7)
    assert set(collections["batch_stats"]) == set(running)
    for name, statistics in running.items():
        assert_close(collections["batch_stats"][name]["mean"], statistics["mean"])
        assert_close(collections["batch_stats"][name]["var"], statistics["var"])


def test_batch_norm_in_evaluation_changes_no_statistics():
    net = small_net("vgg11_bn", dtype="float64", fc6_window=2)
    variables = random_variables(net)
    _, collections = forward(net, variables, random_images(2, 64, 64, 3))
    jax.tree.map(
        np.testing.assert_array_equal,
        collections["batch_stats"],
        variables["batch_stats"],
    )


def test_lrn_divides_by_the_squares_of_five_channels():
    # The sum is over squares at most 2 channels away, times 1e-4, plus 2.
    x = np.zeros((1, 1, 1, 8), np.float32)
    x[..., 3], x[..., 5], x[..., 6] = 100, 200, 700
    y = np.asarray(layers.local_response_normalization(jnp.asarray(x)))
    expected = np.zeros(8)
    expected[3] = 100 / (2 + 1 + 4) ** 0.75
    expected[5] = 200 / (2 + 1 + 4 + 49) ** 0.75
    expected[6] = 700 / (2 + 4 + 49) ** 0.75
    np.testing.assert_allclose(y[0, 0, 0], expected, rtol=1e-6)


def test_lrn_equals_the_loop_over_channels():
    x = 100 * random_images(2, 3, 3, 11, dtype=np.float32)
    y = np.asarray(layers.local_response_normalization(jnp.asarray(x)))
    assert_close(y, numpy_net.lrn(x.astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scales_what_it_keeps(rate):
    x = 1 + np.abs(random_images(64, 3, 200, dtype=np.float32))
    y = dropout(x, rate, np.arange(64))
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6)
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation
    # Every unit and every example for itself.
    assert abs(kept.mean((0, 1)) - (1 - rate)).max() < 6 * deviation * np.sqrt(200)
    assert abs(kept.mean((1, 2)) - (1 - rate)).max() < 6 * deviation * np.sqrt(64)
    assert len(np.unique(kept.reshape(64, -1), axis=0)) == 64


def test_an_examples_dropout_follows_its_index_and_not_its_place():
    x, index = np.ones((8, 50), np.float32), np.arange(8) + 1000
    whole = dropout(x, 0.5, index)
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    np.testing.assert_array_equal(dropout(x, 0.5, index[order]), whole[order])
    halves = [dropout(x[part], 0.5, index[part]) for part in (slice(3), slice(3, 8))]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    twice = dropout(x, 0.5, np.array([7] * 8))
    assert len(np.unique(twice, axis=0)) == 1


def test_another_key_drops_other_units():
    x, index = np.ones((8, 50), np.float32), np.arange(8)
    same = dropout(x, 0.5, index, seed=0) == dropout(x, 0.5, index, seed=1)
    assert abs(same.mean() - 0.5) < 5 * np.sqrt(0.25 / x.size)


def dropout(x: np.ndarray, rate: float, index: np.ndarray, seed: int = 0) -> np.ndarray:
    key = jax.random.key(seed)
    y = layers.example_dropout(jnp.asarray(x), rate, key, jnp.asarray(index))
    assert y.dtype == x.dtype
    return np.asarray(y)


def masks(index: np.ndarray | None, seed: int = 0) -> np.ndarray:
    """Logits of a net whose relu6 is 1, fc7 and fc8 identities: dropout alone."""
    net = small_net("vgg11", dropout_rate=0.5, num_classes=16)
    variables = random_variables(net, np.float32)
    params = variables["params"]
    eye, zeros = np.eye(16, dtype=np.float32), np.zeros(16, np.float32)
    params["fc6"] = {"kernel": 0 * params["fc6"]["kernel"], "bias": zeros + 1}
    params["fc7"] = params["fc8"] = {"kernel": eye[None, None], "bias": zeros}
    return np.asarray(
        net.apply(
            variables,
            jnp.zeros((128, 32, 32, 3)),
            train=True,
            example_index=None if index is None else jnp.asarray(index),
            rngs={"dropout": jax.random.key(seed)},
        )
    )


def test_the_net_drops_units_of_fc6_and_of_fc7_independently():
    # What both keep is 2 x 2 = 4; one mask used twice would keep a half, not a fourth.
    logits = masks(np.arange(128))
    assert set(np.unique(logits)) == {0, 4}
    share = (logits == 4).mean()
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / logits.size)


def test_the_net_hands_the_examples_index_to_dropout():
    index, order = np.arange(128) + 300, np.random.default_rng(0).permutation(128)
    whole = masks(index)
    np.testing.assert_array_equal(masks(index[order]), whole[order])
    assert (masks(index, seed=1) != whole).any()


def test_without_an_index_an_examples_place_is_its_index():
    np.testing.assert_array_equal(masks(None), masks(np.arange(128)))


def test_training_needs_a_dropout_key_and_evaluation_drops_nothing():
    net = small_net("vgg11", num_classes=16)
    variables = random_variables(net, np.float32)
    images = random_images(128, 32, 32, 3, dtype=np.float32)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        net.apply(variables, images, train=True)
    kept = net.apply(variables, images)
    undropped = net.clone(dropout_rate=0.0).apply(variables, images, train=True)
    np.testing.assert_array_equal(kept, undropped)
    rngs = {"dropout": jax.random.key(0)}
    np.testing.assert_array_equal(kept, net.apply(variables, images, rngs=rngs))
    assert (kept != net.apply(variables, images, train=True, rngs=rngs)).any()


def deviation_he(shape: tuple[int, ...], name: str) -> float:
    # torchvision's: kaiming_normal_(fan_out) for convolutions, normal_(0, 0.01) for FC.
    side, _, _, out = shape
    return 0.01 if name.startswith("fc") else np.sqrt(2 / (side * side * out))


def deviation_glorot(shape: tuple[int, ...], name: str) -> float:
    side, _, fan_in, fan_out = shape
    bound = np.sqrt(6 / (side * side * fan_in + side * side * fan_out))
    return bound / np.sqrt(3)


@pytest.mark.parametrize(
    ("initializer", "deviation"),
    [
        ("paper", lambda shape, name: 0.01),
        ("he", deviation_he),
        ("glorot", deviation_glorot),
    ],
    ids=["paper", "he", "glorot"],
)
def test_kernels_start_with_their_initialisers_deviation_and_biases_at_zero(
    initializer, deviation
):
    fields = {"width_multiplier": 1 / 4, "fc_widths": (64, 64), "fc6_window": 2}
    net = small_net("vgg11", initializer=initializer, **fields)
    key = jax.random.key(3, impl="unsafe_rbg")  # compiles 6 times as fast
    params = jax.jit(net.init)(key, jnp.zeros((1, 64, 64, 3)))["params"]
    for name, layer in params.items():
        assert not np.any(layer["bias"])
        kernel = np.asarray(layer["kernel"], np.float64)
        expected = deviation(kernel.shape, name)
        tolerance = 5 / np.sqrt(2 * kernel.size)  # of a normal's std, relative
        assert abs(kernel.std() / expected - 1) < tolerance, name
        assert abs(kernel.mean()) < 5 * expected / np.sqrt(kernel.size), name
        largest = np.abs(kernel).max() / expected
        if initializer == "glorot":
            assert largest <= np.sqrt(3) * (1 + 1e-6), name  # uniform's bound
        elif kernel.size > 10_000:
            assert largest > 3, name  # not cut off at 2 deviations
    # Layers of one shape start with different numbers.
    alike = [np.ravel(params[name]["kernel"]) for name in ("conv4_2", "conv5_1")]
    assert abs(np.corrcoef(*alike)[0, 1]) < 0.05


def test_bfloat16_computes_activations_only_and_stays_close_to_float64():
    net = small_net("vgg16_bn", dtype="bfloat16")
    shapes = jax.tree.leaves(initial_shapes(net))
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype("float32")}
    variables = random_variables(net, np.float32)
    images = random_images(4, 64, 64, 3, dtype=np.float32)
    apply = jax.jit(functools.partial(net.apply, mutable="intermediates"))
    logits, taps = apply(variables, images)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(taps)}
    assert dtypes == {jnp.dtype("bfloat16")}
    assert logits.dtype == jnp.float32
    expected, _, _ = numpy_net.oracle(net, variables, images)
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.05  # bfloat16 keeps 8 bits: 2^-9 a rounding


def test_bfloat16_training_updates_float32_statistics_and_gradients():
    net = small_net("vgg11_bn", dtype="bfloat16", dropout_rate=0.0)
    variables = random_variables(net, np.float32)
    images = random_images(2, 32, 32, 3, dtype=np.float32)

    def loss(params: Any) -> Any:
        variables_now = {**variables, "params": params}
        logits, updates = net.apply(
            variables_now, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits).mean(), updates["batch_stats"]

    results = jax.eval_shape(jax.grad(loss, has_aux=True), variables["params"])
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(results)}
    assert dtypes == {jnp.dtype("float32")}


def test_float64_has_float64_params():
    shapes = initial_shapes(small_net("vgg11_bn", dtype="float64"))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float64")}


def test_batch_norm_starts_as_the_identity():
    net = small_net("vgg11_bn")
    images = jnp.zeros((1, 32, 32, 3))

    def start(key: jax.Array) -> Any:
        variables = net.init(key, images)
        return variables["params"]["bn5_2"], variables["batch_stats"]["bn5_2"]

    layer, statistics = jax.jit(start)(jax.random.key(0))
    for values, constant in (
        (layer["scale"], 1),
        (layer["bias"], 0),
        (statistics["mean"], 0),
        (statistics["var"], 1),
    ):
        np.testing.assert_array_equal(values, np.full(32, constant))


@pytest.mark.parametrize(
    "shape", [(1, 64, 64, 1), (1, 64, 64, 4), (64, 64, 3), (1, 1, 64, 64, 3)]
)
def test_images_of_another_rank_or_channel_count_are_refused(shape):
    net = small_net("vgg11")
    variables = random_variables(net, np.float32)
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, 3\]") as e:
        net.apply(variables, jnp.zeros(shape))
    assert str(shape) in str(e.value)


@pytest.mark.parametrize(
    ("fields", "shape", "needed"),
    [
        ({"fc6_window": 7}, (1, 223, 256, 3), 224),
        ({"fc6_window": 2}, (1, 64, 63, 3), 64),
        ({"head": "gap", "fc6_window": 7}, (1, 31, 40, 3), 32),
        ({"head": "linear", "fc6_window": 2}, (1, 64, 63, 3), 64),
    ],
)
def test_too_small_an_image_is_refused_with_the_size_it_needs(fields, shape, needed):
    net = small_net("vgg11", **fields)
    variables = random_variables(net, np.float32)
    assert net.smallest_image == needed
    with pytest.raises(ValueError, match=f"at least {needed} pixels") as e:
        net.apply(variables, jnp.zeros(shape))
    assert str(shape) in str(e.value)


@pytest.mark.parametrize(
    "path", ["conv1_1/kernel", "conv3_2/bias", "bn2_1/scale", "fc6/kernel", "fc8/bias"]
)
def test_params_of_another_shape_are_refused(path: str) -> None:
    net = small_net("vgg11_bn")
    variables = random_variables(net, np.float32)
    layer, leaf = path.split("/")
    params = variables["params"][layer]
    params[leaf] = np.concatenate([params[leaf], params[leaf][..., :1]], axis=-1)
    with pytest.raises(
        flax.errors.ScopeParamShapeError, match=f'"{leaf}" in "/{layer}"'
    ):
        net.apply(variables, random_images(2, 32, 32, 3, dtype=np.float32))


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="vgg12") as e:
        initial_shapes(small_net("vgg12"))
    assert all(name in str(e.value) for name in [*numpy_net.LAYERS, "A-LRN", "E"])


@pytest.mark.parametrize("letter", ["A", "A-LRN", "B", "C", "D", "E"])
def test_the_papers_letters_are_variants_too(letter):
    assert initial_shapes(small_net(letter))["params"]


def test_relu_is_jaxs_own_under_every_transformation() -> None:
    x = jnp.array([[-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf]])
    for dtype in (jnp.float32, jnp.bfloat16):
        for of in (
            lambda f, x: f(x),
            lambda f, x: jax.jvp(f, (x,), (3 * jnp.ones_like(x),))[1],
            lambda f, x: jax.grad(lambda x: (f(x) * 3).sum())(x),
            lambda f, x: jax.vmap(jax.jacrev(f))(x),
            lambda f, x: jax.jacfwd(jax.jacrev(f))(x),
            lambda f, x: jax.grad(lambda x: jax.checkpoint(f)(x).sum())(x),
        ):
            one, other = (of(f, x.astype(dtype)) for f in (layers.relu, jax.nn.relu))
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_gradient_and_jvp_by_the_image_equal_the_numpy_nets_difference():
    net = small_net("vgg11_lrn", dtype="float64")
    variables, images = random_variables(net), random_images(2, 32, 33, 3)
    direction = np.random.default_rng(2).normal(size=images.shape)
    weights = np.random.default_rng(3).normal(size=(2, 10))
    step = 1e-6
    plus, minus = (
        numpy_net.oracle(net, variables, images + sign * step * direction)[0]
        for sign in (1, -1)
    )
    expected = (plus - minus) / (2 * step)
    with jax.enable_x64(True):
        apply = functools.partial(net.apply, variables)
        _, tangent = jax.jit(functools.partial(jax.jvp, apply))((images,), (direction,))
        gradient = jax.jit(jax.grad(lambda x: (apply(x) * weights).sum()))(images)
        assert gradient.dtype == jnp.float64
        gradient, tangent = np.asarray(gradient), np.asarray(tangent)
    assert_close(tangent, expected, rtol=1e-6)
    assert (gradient * direction).sum() == pytest.approx(
        (weights * expected).sum(), rel=1e-6
    )


def test_vmap_over_images_equals_the_batch():
    net = small_net("vgg11_lrn", fc6_window=2)
    variables = random_variables(net, np.float32)
    images = random_images(3, 64, 96, 3, dtype=np.float32)
    one = jax.jit(jax.vmap(lambda image: net.apply(variables, image[None])[0]))
    assert_close(one(images), numpy_net.oracle(net, variables, images)[0], rtol=1e-5)


def test_vmap_over_variables_equals_each_net_for_itself():
    net = small_net("vgg11_bn")
    both = [random_variables(net, np.float32, seed) for seed in (0, 1)]
    images = random_images(3, 32, 32, 3, dtype=np.float32)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *both)
    logits = jax.jit(jax.vmap(net.apply, (0, None)))(stacked, images)
    for mine, variables in zip(logits, both, strict=True):
        assert_close(mine, numpy_net.oracle(net, variables, images)[0], rtol=1e-5)
