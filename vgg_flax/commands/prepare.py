"""`vgg-flax prepare`: a TFDS data set written where training reads it."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Adds `prepare` to the subcommands."""
    command = commands.add_parser(
        "prepare",
        help="download a TFDS data set and write it where training reads it",
        description="Runs TFDS' own builder. Most of them need TensorFlow for this, "
        "and only for this: pip install 'vgg-flax[prepare]'. imagenet2012 can't be "
        "downloaded: put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (from "
        "image-net.org) into --manual-dir.",
    )
    add = command.add_argument
    add("name", help="imagenet2012, cifar10, imagenette, ...")
    add("--data-dir", default="", help="default: ~/tensorflow_datasets")
    add("--manual-dir", default="", help="where the files lie that you downloaded")
    add(
        "--file-format",
        choices=("array_record", "tfrecord"),
        default="array_record",
        help="array_record (the default) or tfrecord; training reads both",
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from vgg_flax.data import prepared

    folder = prepared.prepare(
        options.name, options.data_dir, options.manual_dir, options.file_format
    )
    print(f"prepared {options.name} in {folder}")
    where = f" --config.data.data_dir={options.data_dir}" if options.data_dir else ""
    print(f"train on it with: --config.data.name={options.name}{where}")
