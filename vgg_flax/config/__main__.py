"""`python -m vgg_flax.config` prints `docs/config.md`."""

from vgg_flax.config import reference

print(reference.page(), end="")
