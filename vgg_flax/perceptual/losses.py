"""Losses of features, as `net.features` gives them: content, style; and of pixels."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Features = Mapping[str, jax.Array]
Weights = Mapping[str, float]

# Gatys et al. 2016, section 3: the layers of their pictures, and what each counts.
CONTENT: Weights = {"relu4_2": 1.0}
STYLE: Weights = {f"relu{stage}_1": 0.2 for stage in range(1, 6)}


def content_loss(
    features: Features, targets: Features, weights: Weights = CONTENT
) -> jax.Array:
    """How far features are from a target's, position by position: `[batch]`.

    Johnson et al. 2016, equation 2: the mean over height, width and channels of the
    squared difference, summed over layers. (Gatys et al. 2016, equation 1, is half the
    sum.)

    Args:
      features: by layer, `[batch, h, w, channels]`.
      targets: by layer, of the same shapes; of a batch of one they serve all.
      weights: the layers that count, and how much each does.

    Raises:
      ValueError: a layer that is not there, or shapes that do not fit.
    """

    def distance(name: str, x: jax.Array, target: jax.Array) -> jax.Array:
        if x.shape[1:] != target.shape[1:] or len(target) not in (1, len(x)):
            raise ValueError(
                f"{name}: features {x.shape} and targets {target.shape}; expected the "
                "same shape: images of one size"
            )
        return jnp.square(x - target).mean(axis=(1, 2, 3))

    return _weighted(distance, features, targets, weights)


def gram_matrix(features: jax.Array) -> jax.Array:
    """Which channels appear together, wherever that is: `[batch, channels, channels]`.

    Gatys et al. 2016, equation 3, divided by the number of positions, so that pictures
    of several sizes compare.

    Args:
      features: `[batch, h, w, channels]`.
    """
    _, height, width, _ = features.shape
    return jnp.einsum("bhwi,bhwj->bij", features, features) / (height * width)


def style_loss(
    features: Features, targets: Features, weights: Weights = STYLE
) -> jax.Array:
    """How far the statistics of features are from a target's: `[batch]`.

    Gatys et al. 2016, equations 4 and 5: the squared difference of Gram matrices over
    4 N^2 (N channels; their M^2 is in `gram_matrix`), summed over layers.

    Args:
      features: by layer, `[batch, h, w, channels]`.
      targets: by layer, of images of any size; or their Gram matrices, which need to
        be computed once only: `[batch, channels, channels]`. Of one they serve all.
      weights: the layers that count, and how much each does.

    Raises:
      ValueError: a layer that is not there, or shapes that do not fit.
    """

    def distance(name: str, x: jax.Array, target: jax.Array) -> jax.Array:
        target = gram_matrix(target) if target.ndim == 4 else target
        channels = x.shape[-1]
        if target.shape[1:] != (channels,) * 2 or len(target) not in (1, len(x)):
            raise ValueError(
                f"{name}: features {x.shape} and targets {target.shape}; expected "
                f"features or a Gram matrix of {channels} channels"
            )
        squares = jnp.square(gram_matrix(x) - target).sum(axis=(1, 2))
        return squares / (4 * channels**2)

    return _weighted(distance, features, targets, weights)


def total_variation(images: jax.Array, beta: float = 2.0) -> jax.Array:
    """How rough images are: `[batch]`.

    Mahendran and Vedaldi 2015, section 3: the sum over pixels and channels of
    `(right^2 + below^2)^(beta / 2)`, of the differences to the next pixels. 2 is
    smooth everywhere; 1 keeps edges.

    Args:
      images: `[batch, height, width, channels]`, floats.
      beta: above 0.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images of {images.dtype}, shape {images.shape}; expected floats, "
            "[batch, height, width, channels]"
        )
    corner = images[:, :-1, :-1]
    squares = jnp.square(images[:, :-1, 1:] - corner)
    squares += jnp.square(images[:, 1:, :-1] - corner)
    if beta != 2:  # where nothing changes a root has no derivative, and 0 is meant
        changes = squares > 0
        squares = jnp.where(changes, squares, 1) ** (beta / 2) * changes
    return squares.sum(axis=(1, 2, 3))


def _weighted(
    distance: Callable[[str, jax.Array, jax.Array], jax.Array],
    features: Features,
    targets: Features,
    weights: Weights,
) -> jax.Array:
    """The sum of the layers' distances; ValueError for a layer that is not there."""
    if not weights:
        raise ValueError("weights={}; expected a layer or more")
    for what, there in (("features", features), ("targets", targets)):
        if missing := [name for name in weights if name not in there]:
            raise ValueError(
                f"{what} have {', '.join(there)}, and not {missing[0]!r}: ask "
                "net.features for it, or give other weights"
            )
    found = [w * distance(n, features[n], targets[n]) for n, w in weights.items()]
    return functools.reduce(jnp.add, found)
