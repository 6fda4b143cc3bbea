"""VGG19 with BatchNorm on ImageNet, as configs/vgg16_bn_modern.py, which has the why.

command   python train.py --config=configs/vgg19_bn_modern.py --workdir=DIR
hardware  as configs/vgg16_bn_modern.py
time      not measured here; by multiplications 1.27 of VGG16's
result    not run here, and published by nobody for just this
"""

from configs import vgg16_bn_modern
from vgg_flax import config


def get_config() -> config.Config:
    recipe = vgg16_bn_modern.get_config()
    recipe.model.variant = "vgg19_bn"
    return recipe
