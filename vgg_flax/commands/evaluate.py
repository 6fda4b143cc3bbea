"""`vgg-flax evaluate`: weights tested by the paper's protocols."""

import argparse
import re
import sys
from typing import Any

from vgg_flax import errors
from vgg_flax.commands import weights_options


def add(commands: Any) -> None:
    """Adds `evaluate` to the subcommands."""
    command = commands.add_parser(
        "evaluate",
        help="test weights by the paper's protocols, exactly",
        description="Section 3.2 of the paper. Several WEIGHTS are fused: the mean of "
        "their posteriors. Ctrl-C keeps what is done; the same command goes on. Exit "
        "code 2: some images could not be read.",
    )
    add = command.add_argument
    add("weights", nargs="+", metavar="WEIGHTS", help=weights_options.WHAT)
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
    add(
        "--batch-size",
        type=int,
        default=64,
        help="crops a step, over all devices, of all processes",
    )
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--matmul-precision", choices=("highest", "high", "default"), default="highest")
    add("--adaptive-pool", action="store_true", help="torchvision's at other sizes")
    add("--label-set", choices=("own", "real", "v2", "a", "r", "sketch"), default="own")
    add("--label-file", default="", help="with --label-set real: real.json")
    add("--limit", type=int, help="only the first so many images")
    add("--skip-bad", action="store_true", help="exit code 0 despite unreadable images")
    add("--predictions", help="a row an image: FILE.csv or FILE.parquet")
    add("--confusion", help="a picture of what is taken for what: FILE.png")
    add(
        "--output",
        default=".",
        help="a file for the result as JSON, or a folder for evaluation-KEY.json, "
        "whose KEY depends on all that the numbers do; default: here",
    )
    weights_options.add_distributed(command)
    weights_options.add(command)
    command.set_defaults(run=_run)


def _scales(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected such as 256,384,512")
    return tuple(int(part) for part in text.split(","))


def _train_scales(text: str) -> tuple[tuple[int, int], ...]:
    expected = f"{text!r}; expected such as 256, 256-512 or 256,384"
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise argparse.ArgumentTypeError(expected)
    pairs = [part.split("-") for part in text.split(",")]
    scales = tuple((int(pair[0]), int(pair[-1])) for pair in pairs)
    if any(low > high for low, high in scales):
        raise argparse.ArgumentTypeError(expected)
    return scales


def _check_targets(options: argparse.Namespace, output: Any, predictions: Any) -> None:
    """Raises ConfigError where a file is to be written over one that is needed.

    Args:
      options: of the command line, with what is needed.
      output: the path of the result.
      predictions: that of the table, or None.
    """
    from etils import epath

    inputs = [p for p in (*options.weights, options.label_file) if "://" not in p]
    needed = {epath.Path(path).resolve() for path in inputs if path}
    for flag, target in (("--output", output), ("--predictions", predictions)):
        if target and not target.is_dir() and target.resolve() in needed:
            raise errors.ConfigError(f"{flag} {target} is an input; name another file")
    if predictions and predictions.resolve() == output.resolve():
        raise errors.ConfigError(f"--output and --predictions are both {output}")


def _writer(options: argparse.Namespace, net: Any, images: Any) -> Any:
    """`and_write` of an evaluation: the table and the picture that are asked for."""
    from etils import epath

    from vgg_flax.data import imagenet
    from vgg_flax.evaluation import confusion, tables

    classes = images.classes or range(net.model.num_classes)
    picture = options.confusion and epath.Path(options.confusion)
    if picture:
        confusion.check(picture, len(classes))

    def write(result: Any, outcomes: Any) -> None:
        names = imagenet.display_names(net.class_names, net.model.num_classes)
        if options.predictions:
            path = epath.Path(options.predictions)
            tables.write_predictions(result, outcomes, path, names)
        if picture:
            title = f"{images.split.name}: {result['experiments'][0]['name']}"
            counts = confusion.matrix(outcomes, classes)
            confusion.draw(picture, counts, [names[i] for i in classes], title)

    return write


def _run(options: argparse.Namespace) -> int:
    import jax
    from etils import epath

    from vgg_flax import console, spelling, storage
    from vgg_flax.evaluation import evaluate, experiments, label_sets, results, tables
    from vgg_flax.evaluation.posteriors import Settings
    from vgg_flax.parallel import distributed

    distributed.initialize(options.distributed)
    distributed.check_devices()
    for flag in ("output", "predictions", "confusion"):
        storage.check_path(f"--{flag}", getattr(options, flag) or "")
    output = epath.Path(options.output)
    predictions = options.predictions and epath.Path(options.predictions)
    _check_targets(options, output, predictions)
    storage.check_output("--output", results.path_of(output, "new"))
    if predictions:
        tables.check_predictions(predictions)
    if (count := len(options.weights)) > 1:
        weights_options.check_unused(
            options,
            f"of {count} WEIGHTS convert that one, and it will say so itself",
        )
    nets = [
        experiments.adapt(
            weights_options.load(options, path), options.dtype, options.adaptive_pool
        )
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
    for remark in images.split.remarks:
        console.say(f"{images.split.name}: {remark}")

    and_write = _writer(options, nets[0], images)
    try:
        result, _ = evaluate.evaluate(
            nets,
            images,
            rows,
            output,
            settings=Settings(options.batch_size, options.matmul_precision),
            limit=options.limit,
            and_write=and_write,
        )
    except errors.Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    if jax.process_index() == 0:
        print(tables.evaluation_table(result))
        path = spelling.line(str(results.path_of(output, result["key"])))
        print(f"in full: {path}")
    for bad in result["unreadable"]:
        console.say(f"unreadable: {bad['key']}: {bad['error']}")
    if result["unreadable"]:
        console.say(f"{len(result['unreadable'])} unreadable images were left out")
    return 2 if result["unreadable"] and not options.skip_bad else 0
