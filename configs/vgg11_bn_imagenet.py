"""VGG11 with BatchNorm on ImageNet by torchvision's recipe.

command   python train.py --config=configs/vgg11_bn_imagenet.py --workdir=DIR
hardware  as configs/vgg16_imagenet.py
time      not measured here; by multiplications 0.49 of VGG16's
result    published (torchvision IMAGENET1K_V1): top-1 70.370%, top-5 89.810%.
          Not run here.
"""

from configs import vgg16_imagenet
from vgg_flax import config


def get_config() -> config.Config:
    recipe = vgg16_imagenet.get_config()
    recipe.model.variant = "vgg11_bn"
    return recipe
