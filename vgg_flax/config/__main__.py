"""`python -m vgg_flax.config` prints `docs/config.md`."""

from vgg_flax import console
from vgg_flax.config import reference

with console.outliving_readers():
    print(reference.page(), end="")
