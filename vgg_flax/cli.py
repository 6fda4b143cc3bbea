"""The `vgg-flax` command: one function a subcommand. Training is `train.py`."""

import argparse
import json
import sys
from collections.abc import Sequence

import vgg_flax
from vgg_flax import config
from vgg_flax.model import PAPER_LETTERS, VARIANTS, VGG


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
      The exit code: 0 done, 1 an error, 2 wrong usage or unreadable images.
    """
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

    command = commands.add_parser(
        "predict",
        help="say what images show, and where",
        description="The most probable classes of images. Images that can't be read "
        "are named; the exit code is then 2.",
    )
    command.add_argument("weights", help="a run directory or a weight file")
    command.add_argument("images", nargs="+", help="image files, or folders of them")
    command.add_argument("--top", type=int, default=5, help="classes shown (5)")
    command.add_argument("--batch-size", type=int, default=32, help="at a time (32)")
    command.add_argument("--json", action="store_true", help="print one JSON document")
    command.add_argument(
        "--heatmap",
        nargs="?",
        const="heatmaps",
        metavar="DIR",
        help="also draw where the best class is seen (dense score map and Grad-CAM), "
        "as DIR/NAME_heatmap.png; DIR is 'heatmaps' where none is given, and then the "
        "option comes after the images",
    )
    command.add_argument(
        "--scale",
        type=int,
        help="of heatmaps: the picture's smaller side (twice the net's test scale)",
    )
    command.add_argument(
        "--skip-bad", action="store_true", help="exit with 0 although images are bad"
    )
    command.set_defaults(run=_predict)

    command = commands.add_parser(
        "describe",
        help="list a net's layers: shapes, receptive fields, costs",
        description="Layers with their outputs, receptive fields and strides (pixels), "
        "parameters, multiply-adds and the memory of their outputs.",
    )
    command.add_argument(
        "net", help=f"{', '.join(VARIANTS)}, a letter of the paper, or weights"
    )
    command.add_argument(
        "--size", type=int, help="the images' side (224, or the net's)"
    )
    command.add_argument("--batch", type=int, default=1, help="number of images (1)")
    command.add_argument("--json", action="store_true", help="print one JSON document")
    command.set_defaults(run=_describe)

    command = commands.add_parser(
        "export",
        help="write a net as a jax.export artifact that needs JAX alone",
        description="Weights and normalisation are inside; the input is uint8 "
        "[batch, crop, crop, channels], the output logits. DST.json says the rest.",
    )
    command.add_argument("weights", help="a run directory or a weight file")
    command.add_argument(
        "dst", metavar="DST", help="the file to write, as in vgg16.jax"
    )
    command.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        help="of cpu, cuda, rocm, tpu (%(default)s)",
    )
    command.add_argument(
        "--fold-bn", action="store_true", help="fold BatchNorm into the convolutions"
    )
    command.set_defaults(run=_export)

    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except config.VGGFlaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _prepare(options: argparse.Namespace) -> None:
    from vgg_flax.datasets import prepared

    folder = prepared.prepare(
        options.name, options.data_dir, options.manual_dir, options.file_format
    )
    print(f"prepared {options.name} in {folder}")
    where = f" --config.data.data_dir={options.data_dir}" if options.data_dir else ""
    print(f"train on it with: --config.data.name={options.name}{where}")


def _predict(options: argparse.Namespace) -> int:
    from vgg_flax import prediction, progress

    net = vgg_flax.load(options.weights)
    paths = prediction.find_images(options.images)
    with progress.bar(len(paths), "image") as bar:
        predictions, unreadable = prediction.predict(
            net,
            paths,
            top=options.top,
            batch_size=options.batch_size,
            after_batch=bar.update,
        )
    pictures: dict[str, str] = {}
    if options.heatmap is not None:
        with progress.bar(len(predictions), "picture") as bar:
            for path, picture in prediction.draw_heatmaps(
                net, predictions, options.heatmap, options.scale
            ):
                pictures[path] = picture
                bar.update()
    if options.json:
        print(json.dumps(prediction.to_dict(net, predictions, unreadable, pictures)))
    else:
        print(prediction.to_text(predictions))
    for path, reason in unreadable.items():
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    if unreadable:
        share = f"{len(unreadable)} of {len(paths)} images"
        print(f"{share} could not be read", file=sys.stderr)
    return 2 if unreadable and not options.skip_bad else 0


def _describe(options: argparse.Namespace) -> None:
    from vgg_flax import description

    if options.net in (*VARIANTS, *PAPER_LETTERS):
        net, size = VGG(options.net), 224
    else:
        loaded = vgg_flax.load(options.net)
        net, size = loaded.model, loaded.preprocessing.crop_size
    size = size if options.size is None else options.size
    shape = (options.batch, size, size, net.in_channels)
    described = description.describe(net, shape)
    text = json.dumps(described.to_dict()) if options.json else None
    print(text or description.to_text(described))


def _export(options: argparse.Namespace) -> None:
    from vgg_flax import export, folding

    net = vgg_flax.load(options.weights)
    if options.fold_bn:
        net, moved = folding.fold_batch_norm(net)
        print(f"folded BatchNorm: logits move by {moved:.1e} of their spread")
    size = export.save(net, options.dst, options.platforms.split(","))
    print(f"wrote {net.variant} to {options.dst} ({size / 1e6:,.1f} MB)")
