"""`vgg-flax probe`: how well a linear model on features does; what to beat."""

import argparse
import json
from typing import Any

from vgg_flax.commands import weights_options


def add(commands: Any) -> None:
    """Adds `probe` to the subcommands."""
    command = commands.add_parser(
        "probe",
        help="fit a linear model on features, and test it",
        description="Logistic regression on the features of training images, its "
        "strength chosen on a fifth of them, and its accuracy on the test images: what "
        "a fine-tuned net has to beat.",
    )
    add = command.add_argument
    add("weights", metavar="WEIGHTS", help=weights_options.WHAT)
    add("--data", required=True, help="a folder of SPLIT/CLASS/*, or a TFDS name")
    add("--data-dir", default="", help="TFDS' (default: ~/tensorflow_datasets)")
    add("--train-split", default="train", help="default: train")
    add("--test-split", default="test", help="default: test")
    add("--layers", default="pool5", help="one or several: relu5_3,fc7 (pool5)")
    add("--pool", default="mean", help="over positions: mean (default), max, none")
    add("--batch-size", type=int, default=64, help="images at a time (64)")
    add("--json", action="store_true", help="print one JSON document")
    weights_options.add(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from vgg_flax import console, spelling
    from vgg_flax.inference import extraction, probe

    names = options.train_split, options.test_split
    train, test = probe.open_splits(options.data, options.data_dir, names)
    for split in (train, test):
        for remark in split.remarks:
            console.say(f"{split.name}: {remark}")
    net = weights_options.load(options, options.weights, include_top=None)
    layers = tuple(options.layers.split(","))
    settings = extraction.Settings(layers, options.pool, options.batch_size)
    extraction.check_settings(net, settings)
    with console.bar(len(train) + len(test), "image") as bar:
        probed = probe.probe(net, train, test, settings, after_image=bar.update)
    low, high = probed.interval
    if options.json:
        fields = {"strength": probed.strength, "validation": probed.validation}
        fields |= {"right": probed.right, "count": probed.count}
        fields |= {"classes": list(probed.class_names), "interval": [low, high]}
        document = {**net.card.identity(), "layers": layers, **fields}
        print(json.dumps(spelling.written(document)))
        return
    print(
        f"probe of {options.layers} ({options.pool}), {len(train):,} training images, "
        f"{len(probed.class_names)} classes, C={probed.strength:g}: test top-1 "
        f"{probed.right / probed.count:.2%} ({probed.right}/{probed.count}; 95% from "
        f"{low:.1%} to {high:.1%})"
    )
