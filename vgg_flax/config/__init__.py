"""What a run is: typed settings with their checks, and recipes that give them."""

from vgg_flax.config.checks import check, check_batch
from vgg_flax.config.colors import (
    IMAGENET_EIGENVALUES,
    IMAGENET_EIGENVECTORS,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from vgg_flax.config.data_settings import (
    DataConfig,
    mean_and_std,
    training_stages,
)
from vgg_flax.config.field import Field
from vgg_flax.config.regularization_settings import (
    AveragingConfig,
    DistillationConfig,
    RegularizationConfig,
)
from vgg_flax.config.serialization import differences, flatten, from_dict, to_json
from vgg_flax.config.settings import (
    PAPER_INIT_LAYERS,
    Config,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
    fields,
)

__all__ = [
    "IMAGENET_EIGENVALUES",
    "IMAGENET_EIGENVECTORS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PAPER_INIT_LAYERS",
    "AveragingConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "Field",
    "ModelConfig",
    "OptimizerConfig",
    "ProfileConfig",
    "RegularizationConfig",
    "check",
    "check_batch",
    "differences",
    "fields",
    "flatten",
    "from_dict",
    "mean_and_std",
    "to_json",
    "training_stages",
]
