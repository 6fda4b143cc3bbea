"""`vgg-flax convert`: weights to a checkpoint, or out under a peer's names."""

import argparse
from typing import Any

from vgg_flax.commands import weights_options


def add(commands: Any) -> None:
    """Adds `convert` to the subcommands."""
    command = commands.add_parser(
        "convert",
        help="turn weights into a checkpoint, or back under a peer's names",
        description="DST ending in .safetensors or .pth: torchvision's names (or "
        "timm's, with --format timm); in .weights.h5 or .h5: those of Keras 3 or 2; in "
        ".onnx: ONNX, float32; without a suffix: a run directory that vgg_flax.load "
        "and --config.init_from read. There and back is bit-equal.",
    )
    command.add_argument("weights", metavar="SRC", help=weights_options.WHAT)
    command.add_argument("dst", metavar="DST", help="what to write; must not exist")
    command.add_argument("--format", choices=("torchvision", "timm", "keras"))
    command.add_argument(
        "--input",
        choices=("uint8", "float"),
        help="of .onnx: test views, normalised inside (default), or channels first and "
        "normalised already",
    )
    weights_options.add_features_only(command)
    command.add_argument(
        "--num-classes", type=int, help="other than the file's: fc8 starts anew"
    )
    weights_options.add_fold(command)
    weights_options.add(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from vgg_flax import spelling
    from vgg_flax.inference import conversion

    partly = {"include_top": not options.features_only}
    partly |= {"num_classes": options.num_classes}
    net = weights_options.folded(
        options, weights_options.load(options, options.weights, **partly)
    )
    summary = conversion.save(net, options.dst, options.format, options.input)
    print(f"wrote {spelling.line(options.dst)}: {summary}")
