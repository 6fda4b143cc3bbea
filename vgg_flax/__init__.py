"""VGG in JAX and Flax: the nets of Simonyan and Zisserman (2014) and their training."""

import importlib.metadata
from typing import TYPE_CHECKING, Any

from vgg_flax.model import VARIANTS, VGG

if TYPE_CHECKING:
    from vgg_flax.net import load

__version__ = importlib.metadata.version("vgg-flax")
__all__ = ["VARIANTS", "VGG", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Orbax takes a second to import, and most programs want only the net.
    if name == "load":
        from vgg_flax.net import load

        return load
    raise AttributeError(f"module 'vgg_flax' has no attribute {name!r}")
