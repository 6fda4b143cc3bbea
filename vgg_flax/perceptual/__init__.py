"""A net as the eye of another model's loss: content, style, LPIPS; plain functions."""

from vgg_flax.perceptual.losses import (
    CONTENT,
    STYLE,
    content_loss,
    gram_matrix,
    style_loss,
    total_variation,
)
from vgg_flax.perceptual.lpips import lpips

__all__ = [
    "CONTENT",
    "STYLE",
    "content_loss",
    "gram_matrix",
    "lpips",
    "style_loss",
    "total_variation",
]
