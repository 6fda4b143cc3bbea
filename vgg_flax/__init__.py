"""VGG in JAX and Flax: the nets of Simonyan and Zisserman (2014) and their training."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgg_flax import perceptual
    from vgg_flax.inference.conversion import save
    from vgg_flax.inference.soup import soup
    from vgg_flax.loading import load
    from vgg_flax.model import VARIANTS, VGG

__version__ = importlib.metadata.version("vgg-flax")
__all__ = ["VARIANTS", "VGG", "__version__", "load", "perceptual", "save", "soup"]

# Flax and Orbax take seconds to import, and a mistake in a flag is told without them.
_MODULES = {
    "VARIANTS": "model",
    "VGG": "model",
    "load": "loading",
    "save": "inference.conversion",
    "soup": "inference.soup",
}


def __getattr__(name: str) -> Any:
    if name == "perceptual":
        return importlib.import_module("vgg_flax.perceptual")
    if name not in _MODULES:
        raise AttributeError(f"module 'vgg_flax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vgg_flax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
