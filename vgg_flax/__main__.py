"""`python -m vgg_flax` is `vgg-flax`."""

import sys

from vgg_flax import cli

sys.exit(cli.main())
