"""Weight files: their formats, their lineages, and the card of the net in them."""

from vgg_flax import errors


class WeightsError(errors.VGGFlaxError):
    """A weight file that is missing, damaged, or of something else; in one line."""

    def __init__(self, message: str):
        super().__init__(errors.printable(message))  # it may hold a stranger's names


class UntoldError(WeightsError):
    """A file that does not tell its pixels, or of which size, for which is asked."""
