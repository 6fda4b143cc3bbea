"""Weight files: their formats, their lineages, and the card of the net in them."""

from vgg_flax.errors import VGGFlaxError


class WeightsError(VGGFlaxError):
    """A weight file that is missing, damaged, or of something else."""
