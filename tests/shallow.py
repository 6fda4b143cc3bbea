"""Nets of one convolution a stage, which Table 1 has not; and a recipe of one.

To trace a net takes longer than the steps of most tests.
"""

from configs import default
from vgg_flax import config, model

NETS = {
    "vgg8": model.Variant(((3,),) * 5, batch_norm=False),
    "vgg8_bn": model.Variant(((3,),) * 5, batch_norm=True),
}


def get_config() -> config.Config:
    """The default recipe with `vgg8_bn`, which the process knows from here on."""
    model.VARIANTS.update(NETS)
    recipe = default.get_config()
    recipe.model.variant = "vgg8_bn"
    return recipe
