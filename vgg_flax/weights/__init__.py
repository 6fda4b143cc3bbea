"""Foreign weight files: container readers and lineage layouts, two lists."""

from vgg_flax.errors import VGGFlaxError


class WeightsError(VGGFlaxError):
    """A weight file that is missing, damaged, or of something else."""
