"""Numbers of Simonyan and Zisserman (2014), typed from the paper, against the nets."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import equations

from vgg_flax import config, model

PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg11_lrn": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16_1x1": 133_638_952,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    # C's, and a scale and a bias for each of its 4,224 channels:
    # 2 x 64 + 2 x 128 + 3 x 256 + 3 x 512 + 3 x 512.
    "vgg16_1x1_bn": 133_638_952 + 2 * 4_224,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}
# Convolutions of 1x1 in stages 3 to 5 are what tells C from D.
DEPTHS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}


def shapes(variant: str, side: int = 224, **fields: Any) -> Any:
    """Variables of the full net, as shapes only."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.VGG(variant, **fields).init, jax.random.key(0), images)


def kernels(variant: str) -> dict[str, tuple[int, ...]]:
    params = shapes(variant)["params"]
    return {n: leaf["kernel"].shape for n, leaf in params.items() if "kernel" in leaf}


def taps(variant: str, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the activations by name, and of the score map as `scores`."""
    net = model.VGG(variant)
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)

    def scores(variables, images):
        return net.apply(variables, images, method="score_map", mutable="intermediates")

    result, state = jax.eval_shape(scores, shapes(variant), images)
    found = {name: leaf.shape for name, leaf in state["intermediates"].items()}
    return {**found, "scores": result.shape}


# Ours, where there is much to do, is XLA's or Winograd's, as the platform has it.
MULTIPLY = ("conv_general_dilated", "convolution", "dot_general")


def multiplications(variant: str) -> int:
    """Multiply-adds of the convolutions and matrix products in one forward pass."""
    net = model.VGG(variant)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    total = 0
    for equation in equations(net, shapes(variant), images):
        if equation.primitive.name in MULTIPLY:
            right, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            total += math.prod(out) * math.prod(right[:-1])  # HWIO, or [in, out]
    return total


@pytest.mark.parametrize("variant", sorted(PARAMETERS))
def test_parameter_counts_are_table_1s(variant):
    params = shapes(variant)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[variant]


def test_every_variant_has_its_count_here():
    assert set(PARAMETERS) == set(model.VARIANTS)


@pytest.mark.parametrize(
    ("variant", "giga"),
    [("vgg11", 7.61), ("vgg13", 11.31), ("vgg16", 15.47), ("vgg19", 19.63)],
)
def test_multiply_adds_at_224_pixels(variant, giga):
    assert round(multiplications(variant) / 1e9, 2) == giga


@pytest.mark.parametrize("letter", sorted(DEPTHS))
def test_a_letter_is_its_column_of_table_1(letter):
    variant = model.variant_name(letter)
    found = kernels(letter)
    assert found == kernels(variant)
    assert len(found) == DEPTHS[letter]  # "weight layers"
    ones = {name for name, shape in found.items() if shape[0] == 1} - {"fc7", "fc8"}
    assert ones == ({"conv3_3", "conv4_3", "conv5_3"} if letter == "C" else set())
    assert model.VARIANTS[variant].lrn == (letter == "A-LRN")
    assert not model.VARIANTS[variant].batch_norm


def test_variant_names_are_their_own_names():
    assert [model.variant_name(name) for name in PARAMETERS] == list(PARAMETERS)


def test_widths_double_after_each_pool_until_512():
    found = kernels("E")
    assert [found[f"conv{stage}_2"] for stage in range(1, 6)] == [
        (3, 3, 64, 64),
        (3, 3, 128, 128),
        (3, 3, 256, 256),
        (3, 3, 512, 512),
        (3, 3, 512, 512),
    ]
    assert found["conv1_1"] == (3, 3, 3, 64)


def test_fc6_is_a_7x7_convolution_and_fc7_and_fc8_are_1x1():
    found = kernels("vgg16")
    assert found["fc6"] == (7, 7, 512, 4096)
    assert found["fc7"] == (1, 1, 4096, 4096)
    assert found["fc8"] == (1, 1, 4096, 1000)


@pytest.mark.parametrize("variant", ["vgg11", "vgg19_bn"])
def test_five_pools_bring_224_pixels_to_7(variant):
    found = taps(variant, 224, 224)
    assert [found[f"pool{i}"][1:] for i in range(1, 6)] == [
        (112, 112, 64),
        (56, 56, 128),
        (28, 28, 256),
        (14, 14, 512),
        (7, 7, 512),
    ]
    assert found["relu1_1"] == (1, 224, 224, 64)  # padding keeps the size
    assert found["relu6"] == found["relu7"] == (1, 1, 1, 4096)
    assert found["scores"] == (1, 1, 1, 1000)


def test_a_larger_image_has_a_map_of_scores():
    # 384 x 512 pixels: 12 x 16 on the last map, 6 x 10 windows of 7 x 7.
    found = taps("vgg16", 384, 512)
    assert found["pool5"] == (1, 12, 16, 512)
    assert found["scores"] == (1, 6, 10, 1000)


def receptive_fields(variant: str, names: list[str]) -> dict[str, tuple[int, int]]:
    """Height and width of the pixels that a unit in the middle of each map sees."""
    fields = {"width_multiplier": 1 / 64, "fc_widths": (1, 1), "num_classes": 1}
    # All weights and pixels positive, and no maximum: every path counts.
    net = model.VGG(variant, pooling="average", **fields)
    variables = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 1 / leaf.shape[-2] if leaf.ndim == 4 else 0),
        shapes(variant, **fields),
    )

    def units(images):
        _, state = net.apply(variables, images, mutable="intermediates")
        maps = {name: state["intermediates"][name] for name in names}
        return {n: x[0, x.shape[1] // 2, x.shape[2] // 2, 0] for n, x in maps.items()}

    seen = jax.jit(jax.jacrev(units))(jnp.ones((1, 224, 224, 3)))
    result = {}
    for name, gradient in seen.items():
        rows, columns, _ = np.nonzero(np.asarray(gradient[0]))
        result[name] = tuple(int(np.ptp(index)) + 1 for index in (rows, columns))
    return result


def test_stacked_3x3_convolutions_see_what_section_2_3_says():
    # Two 3x3 layers see 5x5, three see 7x7. So conv3_3 sees 7 units of pool2, which
    # are 4 pixels apart and see 16 each: 16 + 6 x 4 = 40. The deeper ones go on alike:
    # 44 + 6 x 8 = 92 and 100 + 6 x 16 = 196.
    expected = {"relu1_1": 3, "relu1_2": 5, "pool1": 6, "pool2": 16, "relu3_3": 40}
    expected |= {"pool3": 44, "relu4_3": 92, "pool4": 100, "relu5_3": 196, "pool5": 212}
    found = receptive_fields("vgg16", list(expected))
    assert found == {name: (side, side) for name, side in expected.items()}


def test_1x1_convolutions_do_not_affect_the_receptive_field():
    # Section 2.3, of net C: two 3x3 layers see 5 units of pool2, 16 + 4 x 4.
    found = receptive_fields("vgg16_1x1", ["relu3_2", "relu3_3"])
    assert found["relu3_2"] == found["relu3_3"] == (32, 32)


@pytest.mark.parametrize("variant", ["vgg13", "vgg16_1x1", "vgg16", "vgg19"])
def test_net_as_first_convolutions_and_fc_layers_fit_into_the_deeper_nets(variant):
    layers = {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"}
    assert set(config.PAPER_INIT_LAYERS) == layers
    assert len(config.PAPER_INIT_LAYERS) == 4 + 3
    small, deep = shapes("vgg11")["params"], shapes(variant)["params"]
    for name in config.PAPER_INIT_LAYERS:
        assert small[name] == deep[name]
    # vgg11's fourth convolution is conv3_2 by name, its first four in order too.
    assert [name for name in small if name.startswith("conv")][:4] == list(
        config.PAPER_INIT_LAYERS[:4]
    )


def test_defaults_are_section_3_1s_hyperparameters():
    settings = config.Config()
    assert settings.data.batch_size == 256
    assert settings.optimizer.learning_rate == 1e-2
    assert settings.optimizer.momentum == 0.9
    assert settings.optimizer.weight_decay == 5e-4
    assert settings.optimizer.decay_norms_and_biases
    assert not settings.optimizer.decoupled_weight_decay
    assert settings.optimizer.decay_factor == 0.1
    assert settings.optimizer.plateau_max_decays == 3
    assert settings.model.dropout_rate == 0.5


def test_imagenets_eigenvectors_are_orthonormal():
    columns = np.array(config.IMAGENET_EIGENVECTORS)
    np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(columns @ columns.T, np.eye(3), atol=1e-3)


def test_imagenets_first_component_is_brightness():
    # Natural images vary most in brightness: one sign and nearly equal parts. A row
    # of the matrix read as a column would not be so.
    first = np.array(config.IMAGENET_EIGENVECTORS)[:, 0]
    np.testing.assert_allclose(abs(first), 1 / np.sqrt(3), atol=0.02)
    assert len(set(np.sign(first))) == 1
    assert list(config.IMAGENET_EIGENVALUES) == sorted(
        config.IMAGENET_EIGENVALUES, reverse=True
    )
