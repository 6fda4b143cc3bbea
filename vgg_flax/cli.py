"""The `vgg-flax` command: one function a subcommand. Training is `train.py`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

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
    _add_evaluate(commands)

    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except config.VGGFlaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="test weights by the paper's protocols, exactly",
        description="Section 3.2 of the paper. Several WEIGHTS are fused: the mean of "
        "their posteriors. Ctrl-C keeps what is done; the same command goes on. Exit "
        "code 2: some images could not be read.",
    )
    add = command.add_argument
    add("weights", nargs="+", metavar="WEIGHTS", help="weight files, run directories")
    add("--data", required=True, help="a folder of SPLIT/CLASS/*, or a TFDS name")
    add("--data-dir", default="", help="TFDS' (default: ~/tensorflow_datasets)")
    add("--split", default="", help="none: the folder itself holds the classes")
    add(
        "--protocol",
        choices=("center", "dense", "multicrop", "both"),
        help="default: center",
    )
    add("--scales", type=_scales, help="Q, such as 256,384,512; default: the nets'")
    add("--flip", action="store_true", help="average the mirror image too")
    add(
        "--paper",
        action="store_true",
        help="all rows of Tables 3 to 6 that the weights allow, instead of --protocol",
    )
    add(
        "--train-scale",
        type=_train_scales,
        default=(),
        help="S of each of WEIGHTS, where they do not tell: 256 or 256,384,256-512",
    )
    add("--batch-size", type=int, default=64, help="crops a step, over all devices")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--matmul-precision", choices=("highest", "high", "default"), default="highest")
    add("--adaptive-pool", action="store_true", help="torchvision's at other sizes")
    add("--label-set", choices=("own", "real", "v2", "a", "r", "sketch"), default="own")
    add("--label-file", default="", help="with --label-set real: real.json")
    add("--limit", type=int, help="only the first so many images")
    add("--skip-bad", action="store_true", help="exit code 0 despite unreadable images")
    add("--predictions", help="a row an image: FILE.csv or FILE.parquet")
    add("--output", default="evaluation.json", help="default: evaluation.json")
    command.set_defaults(run=_evaluate)


def _scales(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _train_scales(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [part.split("-") for part in text.split(",")]
    return tuple((int(pair[0]), int(pair[-1])) for pair in pairs)


def _prepare(options: argparse.Namespace) -> None:
    from vgg_flax.datasets import prepared

    folder = prepared.prepare(
        options.name, options.data_dir, options.manual_dir, options.file_format
    )
    print(f"prepared {options.name} in {folder}")
    where = f" --config.data.data_dir={options.data_dir}" if options.data_dir else ""
    print(f"train on it with: --config.data.name={options.name}{where}")


def _evaluate(options: argparse.Namespace) -> int:
    from vgg_flax import experiments, label_sets, net, report, scoring, trainer
    from vgg_flax.posteriors import Settings

    output = epath.Path(options.output)
    predictions = options.predictions and epath.Path(options.predictions)
    if predictions:
        report.check_predictions(predictions)
    nets = [
        experiments.adapt(net.load(path), options.dtype, options.adaptive_pool)
        for path in options.weights
    ]
    nets = experiments.with_train_scales(nets, options.train_scale)
    rows = experiments.chosen(
        nets, options.paper, options.protocol, options.scales, options.flip
    )
    images = label_sets.open_images(
        options.data,
        options.split,
        nets[0].class_names,
        nets[0].model.num_classes,
        data_dir=options.data_dir,
        label_set=options.label_set,
        label_file=options.label_file,
    )
    settings = Settings(options.batch_size, options.matmul_precision)
    try:
        result, outcomes = scoring.evaluate(
            nets, images, rows, output, settings=settings, limit=options.limit
        )
    except trainer.Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    report.print_evaluation(result)
    print(output)
    if predictions:
        report.write_predictions(result, outcomes, predictions)
    for bad in result["unreadable"]:
        print(f"unreadable: {bad['key']}: {bad['error']}", file=sys.stderr)
    if result["unreadable"]:
        count = len(result["unreadable"])
        print(f"{count} unreadable images were left out", file=sys.stderr)
    return 2 if result["unreadable"] and not options.skip_bad else 0
