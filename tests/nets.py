"""Small nets for the tests of protocols; the shapes and the equations of any net."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from vgg_flax import model
from vgg_flax.images import preprocessing
from vgg_flax.net import Net
from vgg_flax.weights.card import ModelCard

PIXELS = preprocessing.Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), test_scale=40, crop_size=32
)


def shapes(net: model.VGG) -> Any:
    """Of the variables of `net`. Flax takes half a second to tell them, once each."""
    return _traced(net, jax.config.jax_enable_x64)


@functools.cache
def _traced(net: model.VGG, x64: bool) -> Any:
    side = net.smallest_image
    images = np.zeros((1, side, side, net.in_channels), net.param_dtype)
    return jax.eval_shape(net.init, jax.random.key(0), images)


def equations(net: model.VGG, variables: Any, images: Any) -> Iterator[Any]:
    """What JAX traces of a call of `net`, also within its functions."""

    def within(jaxpr: Any) -> Iterator[Any]:
        for equation in jaxpr.eqns:
            yield equation
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from within(inner)

    return within(jax.make_jaxpr(net.apply)(variables, images).jaxpr)


def tiny_net(variant: str = "vgg8", seed: int = 0, **fields: Any) -> Net:
    """A net of 32 pixels, with BatchNorm statistics and biases that are not trivial.

    The default is of the fixture `shallow`.
    """
    settings: dict[str, Any] = {
        "num_classes": 10,
        "width_multiplier": 1 / 16,
        "fc_widths": (16, 16),
        "fc6_window": 1,
    }
    net = model.VGG(variant, **{**settings, **fields})
    # Shapes from flax, numbers from NumPy: to compile the initializers takes seconds.
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda x: jnp.asarray(
            rng.normal(0, np.sqrt(2 / np.prod(x.shape[:-1])), x.shape)
            if x.ndim > 1
            else rng.uniform(0.5, 1.5, x.shape),
            net.param_dtype,
        ),
        shapes(net),
    )
    card = ModelCard(
        model=net,
        preprocessing=PIXELS,
        class_names=tuple("abcdefghij"),
        source=f"{variant}-{seed}",
        sha256=f"{seed:064}",
    )
    return Net(variables, card)


def logits(net: Net, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(Net.__call__)(net, images))
