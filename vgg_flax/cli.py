"""The `vgg-flax` command: one function a subcommand. Training is `train.py`."""

import argparse
import sys
from collections.abc import Sequence

import vgg_flax
from vgg_flax import config


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 0 done, 1 an error, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="vgg-flax", description=__doc__)
    parser.add_argument("--version", action="version", version=vgg_flax.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "prepare",
        help="download a TFDS data set and write it where training reads it",
        description="Runs TFDS' own builder. Most of them need TensorFlow for this, "
        "and only for this: pip install 'vgg-flax[prepare]'. imagenet2012 can't be "
        "downloaded: put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (from "
        "image-net.org) into --manual-dir.",
    )
    command.add_argument("name", help="imagenet2012, cifar10, imagenette, ...")
    command.add_argument(
        "--data-dir", default="", help="default: ~/tensorflow_datasets"
    )
    command.add_argument(
        "--manual-dir", default="", help="where the files lie that you downloaded"
    )
    command.add_argument(
        "--file-format",
        choices=("array_record", "tfrecord"),
        default="array_record",
        help="array_record (the default) or tfrecord; training reads both",
    )
    command.set_defaults(run=_prepare)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except config.VGGFlaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _prepare(options: argparse.Namespace) -> None:
    from vgg_flax.datasets import prepared

    folder = prepared.prepare(
        options.name, options.data_dir, options.manual_dir, options.file_format
    )
    print(f"prepared {options.name} in {folder}")
    where = f" --config.data.data_dir={options.data_dir}" if options.data_dir else ""
    print(f"train on it with: --config.data.name={options.name}{where}")
