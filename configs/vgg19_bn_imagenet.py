"""VGG19 with BatchNorm on ImageNet by torchvision's recipe.

command   python train.py --config=configs/vgg19_bn_imagenet.py --workdir=DIR
hardware  as configs/vgg16_imagenet.py
time      not measured here; by multiplications 1.27 of VGG16's
result    published (torchvision IMAGENET1K_V1): top-1 74.218%, top-5 91.842%.
          Not run here.
"""

from configs import vgg16_imagenet
from vgg_flax import config


def get_config() -> config.Config:
    recipe = vgg16_imagenet.get_config()
    recipe.model.variant = "vgg19_bn"
    return recipe
