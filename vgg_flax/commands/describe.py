"""`vgg-flax describe`: a net layer by layer."""

import argparse
import json
from typing import Any

from vgg_flax.commands import weights_options


def add(commands: Any) -> None:
    """Adds `describe` to the subcommands."""
    command = commands.add_parser(
        "describe",
        help="list a net's layers: shapes, receptive fields, costs",
        description="Layers with their outputs, receptive fields and strides (pixels), "
        "parameters, multiply-adds and the memory of their outputs.",
    )
    command.add_argument(
        "net",
        help="a column of the paper's Table 1 (vgg16, vgg11_bn, ...), its letter, or "
        "weights",
    )
    command.add_argument(
        "--size", type=int, help="the images' side (224, or the net's)"
    )
    command.add_argument("--batch", type=int, default=1, help="number of images (1)")
    command.add_argument("--json", action="store_true", help="print one JSON document")
    weights_options.add_features_only(command)
    weights_options.add(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from vgg_flax.model import PAPER_LETTERS, VARIANTS, VGG, description

    if options.net in (*VARIANTS, *PAPER_LETTERS):
        weights_options.check_unused(options, f"{options.net} is a column of Table 1")
        head = "none" if options.features_only else "fc"
        net, size = VGG(options.net, head=head), 224
    else:
        include_top = not options.features_only
        loaded = weights_options.load(options, options.net, include_top=include_top)
        net, size = loaded.model, loaded.preprocessing.crop_size
    size = size if options.size is None else options.size
    shape = (options.batch, size, size, net.in_channels)
    described = description.describe(net, shape)
    text = json.dumps(described.to_dict()) if options.json else None
    print(text or description.to_text(described))
