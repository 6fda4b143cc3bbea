"""What a run is: typed settings with their checks, and recipes that give them."""

from vgg_flax.config.checks import CHOICES, check, check_batch
from vgg_flax.config.serialization import (
    FREE_ON_RESUME,
    differences,
    flatten,
    from_dict,
    to_json,
    unknown_key,
)
from vgg_flax.config.settings import (
    IMAGENET_EIGENVALUES,
    IMAGENET_EIGENVECTORS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PAPER_INIT_LAYERS,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
)

__all__ = [
    "CHOICES",
    "FREE_ON_RESUME",
    "IMAGENET_EIGENVALUES",
    "IMAGENET_EIGENVECTORS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PAPER_INIT_LAYERS",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProfileConfig",
    "check",
    "check_batch",
    "differences",
    "flatten",
    "from_dict",
    "to_json",
    "unknown_key",
]
