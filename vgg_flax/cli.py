"""The `vgg-flax` command: two functions a subcommand. Training is `train.py`."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

import vgg_flax
from vgg_flax import config
from vgg_flax.model import PAPER_LETTERS, VARIANTS, VGG


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code.

    0: done; 1: an error; 2: wrong usage, or images that could not be read; 128 and
    more: stopped by a signal.
    """
    parser = argparse.ArgumentParser(prog="vgg-flax", description=__doc__)
    parser.add_argument("--version", action="version", version=vgg_flax.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_prepare,
        _add_evaluate,
        _add_predict,
        _add_describe,
        _add_convert,
        _add_export,
        _add_compile,
    ):
        add(commands)
    options, overrides = parser.parse_known_args(arguments)
    options.overrides = [a for a in overrides if a.startswith("--config.")]
    if len(options.overrides) < len(overrides) or (
        overrides and not hasattr(options, "config")
    ):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    try:
        return options.run(options) or 0
    except config.VGGFlaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _add_weights_options(command: argparse.ArgumentParser) -> None:
    """What may be said of WEIGHTS: see `vgg_flax.load`."""
    group = command.add_argument_group("of WEIGHTS")
    add = group.add_argument
    add(
        "--step", default="last", type=_step, help="of a run: last (default), best, 500"
    )
    add("--variant", choices=tuple(VARIANTS), help="where names can't tell: vgg11_lrn")
    add("--preprocessing", help="the pixels, where the file can't tell: caffe, ...")
    add("--sha256", help="what the file's must be")


_DISTRIBUTED = (
    "how processes that share the images find each other: auto (as JAX detects it), "
    "off, or ADDRESS:PORT,COUNT,INDEX; with --output on storage they share"
)
_WEIGHTS = "a run directory, a weight file, a URL, vgg16, timm/vgg16.tv_in1k"


def _load(options: argparse.Namespace, weights: str, **partly: Any) -> Any:
    net = vgg_flax.load(
        weights,
        options.step,
        variant=options.variant,
        preprocessing=options.preprocessing,
        sha256=options.sha256,
        **partly,
    )
    _say(f"loaded {net.variant} from {net.source}, sha256 {net.sha256}")
    return net


def _say(text: str) -> None:
    """On stderr; of several processes the first speaks."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def _step(text: str) -> int | str:
    if text not in ("last", "best") and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}; expected last, best or a number")
    return int(text) if text.isdigit() else text


def _add_prepare(commands: Any) -> None:
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
    command.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> None:
    from vgg_flax.datasets import prepared

    folder = prepared.prepare(
        options.name, options.data_dir, options.manual_dir, options.file_format
    )
    print(f"prepared {options.name} in {folder}")
    where = f" --config.data.data_dir={options.data_dir}" if options.data_dir else ""
    print(f"train on it with: --config.data.name={options.name}{where}")


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="test weights by the paper's protocols, exactly",
        description="Section 3.2 of the paper. Several WEIGHTS are fused: the mean of "
        "their posteriors. Ctrl-C keeps what is done; the same command goes on. Exit "
        "code 2: some images could not be read.",
    )
    add = command.add_argument
    add("weights", nargs="+", metavar="WEIGHTS", help=_WEIGHTS)
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
    add(
        "--output",
        default=".",
        help="a file for the result as JSON, or a folder for evaluation-KEY.json, "
        "whose KEY depends on all that the numbers do; default: here",
    )
    add("--distributed", default="auto", help=_DISTRIBUTED)
    _add_weights_options(command)
    command.set_defaults(run=_evaluate)


def _scales(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _train_scales(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [part.split("-") for part in text.split(",")]
    if max(map(len, pairs)) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}; expected 256 or 256-512")
    return tuple((int(pair[0]), int(pair[-1])) for pair in pairs)


def _evaluate(options: argparse.Namespace) -> int:
    from vgg_flax import distributed, experiments, label_sets, report, scoring
    from vgg_flax.posteriors import Settings

    distributed.initialize(options.distributed)
    distributed.check_devices()
    output = epath.Path(options.output)
    report.check_output("--output", scoring.output_path(output, "new"))
    predictions = options.predictions and epath.Path(options.predictions)
    if predictions:
        report.check_predictions(predictions)
    if len(options.weights) > 1:
        for name in ("step", "variant", "preprocessing", "sha256"):
            if getattr(options, name) not in (None, "last"):
                raise config.ConfigError(
                    f"--{name} with {len(options.weights)} WEIGHTS: it is of one; "
                    "convert that one first, and it will say so itself"
                )
    nets = [
        experiments.adapt(_load(options, path), options.dtype, options.adaptive_pool)
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
    except distributed.Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    if jax.process_index() == 0:
        print(report.evaluation_table(result))
        print(f"in full: {scoring.output_path(output, result['key'])}")
        if predictions:
            report.write_predictions(result, outcomes, predictions)
    for bad in result["unreadable"]:
        _say(f"unreadable: {bad['key']}: {bad['error']}")
    if result["unreadable"]:
        _say(f"{len(result['unreadable'])} unreadable images were left out")
    return 2 if result["unreadable"] and not options.skip_bad else 0


def _add_predict(commands: Any) -> None:
    command = commands.add_parser(
        "predict",
        help="say what images show, and where",
        description="The most probable classes of images. Images that can't be read "
        "are named; the exit code is then 2.",
    )
    command.add_argument("weights", metavar="WEIGHTS", help=_WEIGHTS)
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
    _add_weights_options(command)
    command.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from vgg_flax import prediction, progress

    net = _load(options, options.weights)
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


def _add_describe(commands: Any) -> None:
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
    _add_weights_options(command)
    command.set_defaults(run=_describe)


def _describe(options: argparse.Namespace) -> None:
    from vgg_flax import description

    if options.net in (*VARIANTS, *PAPER_LETTERS):
        net, size = VGG(options.net), 224
    else:
        loaded = _load(options, options.net)
        net, size = loaded.model, loaded.preprocessing.crop_size
    size = size if options.size is None else options.size
    shape = (options.batch, size, size, net.in_channels)
    described = description.describe(net, shape)
    text = json.dumps(described.to_dict()) if options.json else None
    print(text or description.to_text(described))


def _add_convert(commands: Any) -> None:
    command = commands.add_parser(
        "convert",
        help="turn weights into a checkpoint, or back under a peer's names",
        description="DST ending in .safetensors: torchvision's names (or timm's, with "
        "--format timm); in .h5: Keras's; anything else: a run directory that "
        "vgg_flax.load and --config.init_from read. There and back is bit-equal.",
    )
    command.add_argument("weights", metavar="SRC", help=_WEIGHTS)
    command.add_argument("dst", metavar="DST", help="what to write; must not exist")
    command.add_argument("--format", choices=("torchvision", "timm", "keras"))
    command.add_argument(
        "--features-only", action="store_true", help="leave the FC layers out"
    )
    command.add_argument(
        "--num-classes", type=int, help="other than the file's: fc8 starts anew"
    )
    _add_fold_option(command)
    _add_weights_options(command)
    command.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from vgg_flax import conversion

    partly = {"include_top": not options.features_only}
    partly |= {"num_classes": options.num_classes}
    net = _folded(options, _load(options, options.weights, **partly))
    what = conversion.convert(net, options.dst, options.format)
    print(f"wrote {options.dst}: {what}")


def _add_fold_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--fold-bn", action="store_true", help="fold BatchNorm into the convolutions"
    )


def _folded(options: argparse.Namespace, net: Any) -> Any:
    if not options.fold_bn:
        return net
    from vgg_flax import folding

    net, moved = folding.fold_batch_norm(net)
    print(f"folded BatchNorm: logits move by {moved:.1e} of their spread")
    return net


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write a net as a jax.export artifact that needs no vgg-flax",
        description="Weights and normalisation are inside; the input is uint8 "
        "[batch, crop, crop, channels], the output logits. DST.json says the rest.",
    )
    add = command.add_argument
    add("weights", metavar="WEIGHTS", help=_WEIGHTS)
    add("dst", metavar="DST", help="the file to write, as in vgg16.jax")
    add(
        "--platforms",
        default="cpu,cuda,tpu",
        help="of cpu, cuda, rocm, tpu (%(default)s)",
    )
    _add_fold_option(command)
    _add_weights_options(command)
    command.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from vgg_flax import export

    net = _folded(options, _load(options, options.weights))
    size = export.save(net, options.dst, options.platforms.split(","))
    print(f"wrote {net.variant} to {options.dst} ({size / 1e6:,.1f} MB)")


def _add_compile(commands: Any) -> None:
    command = commands.add_parser(
        "compile",
        help="compile a recipe for TPUs that are not here; report memory and exchanges",
        description="Needs libtpu (pip install 'vgg-flax[tpu-aot]') and no TPU. "
        "Nothing is run: times are estimates from published peaks. Any field of the "
        "recipe is changed by --config.NAME=VALUE. Exit code 1: it does not fit.",
    )
    add = command.add_argument
    add("--config", required=True, help="a recipe: configs/vgg16_imagenet.py")
    add("--topology", required=True, help="a slice: v5e:16x16, v6e:16x16, v5p:8x8x4")
    add(
        "--program",
        choices=("train", "evaluate", "dense"),
        default="train",
        help="the training step (default), the one for centre crops, or whole images",
    )
    add("--per-chip-batch", type=int, help="images; default: the recipe's over chips")
    add("--find-batch", action="store_true", help="the most images a chip that fit")
    add("--image-size", type=_image_size, help="of dense: HEIGHTxWIDTH")
    add("--output", help="a file for the report as JSON")
    command.set_defaults(run=_compile)


def _image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}; expected such as 384x512")
    return int(height), int(width)


def _compile(options: argparse.Namespace) -> None:
    from vgg_flax import aot, recipe, report, roofline

    settings = recipe.read(options.config, options.overrides)
    devices = aot.devices_of(options.topology)

    def compile_batch(batch: int | None) -> aot.Program:
        what = "the recipe's batch" if batch is None else f"{batch} images a chip"
        print(f"compiling {options.program} for {what}: minutes", file=sys.stderr)
        return aot.compile_program(
            options.program, settings, devices, batch, options.image_size
        )

    if options.find_batch:
        program = aot.find_batch(
            compile_batch,
            lambda text: print(text, file=sys.stderr),
            options.per_chip_batch or 32,
        )
    else:
        program = compile_batch(options.per_chip_batch)
    told = roofline.report(program)
    print(report.compile_tables(told))
    if options.output:
        path = epath.Path(options.output)
        path.write_text(json.dumps(told, indent=2) + "\n")
        print(f"in full: {path}")
