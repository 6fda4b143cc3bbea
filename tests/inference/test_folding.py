"""BatchNorm folded away leaves the logits where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_net

from vgg_flax import model
from vgg_flax.inference import folding

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.mark.parametrize("conv_bias", [True, False])
@pytest.mark.parametrize("variant", ["vgg8_bn", "vgg16_1x1_bn"])
def test_in_float64_nothing_moves(variant: str, conv_bias: bool) -> None:
    with jax.enable_x64(True):
        net = random_net(variant, dtype="float64", conv_bias=conv_bias)
        images = np.random.default_rng(0).normal(size=(3, 32, 45, 3))
        folded, moved = folding.fold_batch_norm(net, images)
        assert moved < 1e-12
        before, after = np.asarray(net(images)), np.asarray(folded(images))
        assert after.dtype == np.float64
        np.testing.assert_allclose(after, before, rtol=1e-10, atol=1e-10)
        assert np.ptp(before, axis=0).min() > 1e-3  # and the images matter


def test_the_folded_net_is_the_variant_without_batch_norm() -> None:
    net = random_net("vgg13_bn", conv_bias=False)
    folded, _ = folding.fold_batch_norm(net)
    plain = model.VGG("vgg13", 10, 3, 1 / 16, (16, 16), 1)
    images = jnp.zeros((1, 32, 32, 3))
    expected = jax.eval_shape(plain.init, jax.random.key(0), images)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), folded.variables
    )
    assert shapes == expected
    assert folded.variant == folded.model.variant == "vgg13"
    kept = ("preprocessing", "class_names", "source", "sha256", "train_scale")
    assert all(getattr(folded, name) == getattr(net, name) for name in kept)


@pytest.mark.slow  # in float64, that it moves nothing, is above
def test_it_says_by_how_much_float32_logits_move() -> None:
    net = random_net("vgg8_bn")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    folded, moved = folding.fold_batch_norm(net, images)
    before, after = np.asarray(net(images)), np.asarray(folded(images))
    spread = np.abs(before - before.mean(0)).max()
    assert moved == pytest.approx(np.abs(after - before).max() / spread, rel=0.2)
    assert 0 < moved < 1e-5


def test_a_difference_is_told_against_the_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With another epsilon the logits move, and the figure must say so.
    # (The net's own is `vgg_flax.model.vgg`'s, and stays.)
    net = random_net("vgg8_bn")
    monkeypatch.setattr(model, "BATCH_NORM_EPSILON", 0.5)
    assert folding.fold_batch_norm(net)[1] > 0.01


def test_a_net_without_batch_norm_is_refused() -> None:
    with pytest.raises(folding.FoldingError, match=r"vgg11_lrn.*_bn"):
        folding.fold_batch_norm(random_net("vgg11_lrn"))
