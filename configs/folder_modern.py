"""Your own images, `DIR/SPLIT/CLASS/*`, from nothing, by more than the paper's recipe.

command   python train.py --config=configs/folder_modern.py --config.data.data_dir=DIR
hardware  a laptop's CPU for a few hundred images
time      not measured yet
result    not measured yet
"""

from configs import folder
from vgg_flax import config


def get_config() -> config.Config:
    recipe = folder.get_config()
    recipe.data.auto_augment = "trivial"
    recipe.regularization = config.RegularizationConfig(
        label_smoothing=0.1, mixup_alpha=0.2, cutmix_alpha=1.0
    )
    recipe.averaging = config.AveragingConfig(decay=0.99, every_steps=2)
    recipe.optimizer.decay_norms_and_biases = False
    return recipe
