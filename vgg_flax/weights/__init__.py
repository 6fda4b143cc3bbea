"""Other people's weights: container readers, bytes to `{name: array}`, and fetching."""

from vgg_flax.config import VGGFlaxError


class WeightsError(VGGFlaxError):
    """A weight file that is missing, damaged, unsafe, or not what it should be."""
