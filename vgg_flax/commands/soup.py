"""`vgg-flax soup`: the mean of several checkpoints' params as one net."""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

from vgg_flax import errors
from vgg_flax.commands import weights_options


def add(commands: Any) -> None:
    """Adds `soup` to the subcommands."""
    command = commands.add_parser(
        "soup",
        help="the mean of several checkpoints' params, as one net",
        description="A model soup (Wortsman et al. 2022): the mean of the params and "
        "of the batch statistics of nets of one architecture, the same pixels and the "
        "same classes. DST is what `convert` writes: a run directory, .safetensors.",
    )
    add = command.add_argument
    add("weights", nargs="+", metavar="WEIGHTS", help=weights_options.WHAT)
    add("dst", metavar="DST", help="what to write; must not exist")
    add("--steps", type=_steps, help="several of each run: 300,600,best")
    add(
        "--greedy",
        action="store_true",
        help="from the best to the worst, only those with which validation does not "
        "get worse",
    )
    add("--data", help="what to validate on, as evaluate's; default: as the runs did")
    add("--data-dir", default="", help="TFDS' (default: ~/tensorflow_datasets)")
    add("--split", default="", help="of --data: validation")
    add("--batch-size", type=int, default=64, help="of --greedy: images a step (64)")
    weights_options.add(command)
    command.set_defaults(run=_run)


def _steps(text: str) -> list[int | str]:
    return [weights_options.step(part) for part in text.split(",")]


def _run(options: argparse.Namespace) -> int:
    from vgg_flax.inference import conversion, soup

    _check(options)
    conversion.check_target(options.dst)
    loads = _ingredients(options)
    if options.greedy:
        try:
            net = _greedy(options, loads)
        except errors.Interrupted as stop:
            print(stop, file=sys.stderr)
            return stop.exit_code
    else:
        net = soup.soup(load() for load in loads)
    summary = conversion.save(net, options.dst)
    print(f"soup of {len(net.ingredients)}:")
    for ingredient in net.ingredients:
        print(f"  {ingredient}")
    print(f"wrote {options.dst}: {summary}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for options that do not go together."""
    if options.steps and options.step != "last":
        raise errors.ConfigError("--step and --steps say the same; leave one out")
    if options.sha256 and len(options.weights) > 1:
        raise errors.ConfigError(
            f"--sha256 {options.sha256} is of one file, and there are "
            f"{len(options.weights)}; leave it out"
        )
    for name in ("data", "data_dir", "split"):
        if getattr(options, name) and not (options.greedy and options.data):
            raise errors.ConfigError(
                f"--{name.replace('_', '-')} {getattr(options, name)} is of --greedy "
                "with --data; give them, or leave it out"
            )


def _ingredients(options: argparse.Namespace) -> list[Callable[[], Any]]:
    """What loads each ingredient: of each of WEIGHTS, each of the steps."""
    steps = options.steps or [options.step]
    return [
        functools.partial(_load, options, weights, step)
        for weights in options.weights
        for step in steps
    ]


def _load(options: argparse.Namespace, weights: str, step: int | str) -> Any:
    options = argparse.Namespace(**{**vars(options), "step": step})
    net = weights_options.load(options, weights)
    told = [f"step {step}"] * (step != "last") + ["the average"] * options.ema
    return net.replace(source=", ".join([net.source, *told]))


def _greedy(options: argparse.Namespace, loads: list[Callable[[], Any]]) -> Any:
    from vgg_flax.evaluation import label_sets
    from vgg_flax.inference import soup

    data, split, data_dir = options.data, options.split, options.data_dir
    if not data:
        data, split, data_dir = soup.own_validation(options.weights)
    images: Any = None
    count = 0

    def score(net: Any) -> int:
        nonlocal images, count
        if images is None:
            classes = net.class_names, net.model.num_classes
            images = label_sets.open_images(data, split, *classes, data_dir=data_dir)
        right, count = soup.right(net, images, options.batch_size)
        return right

    def tell(decision: Any) -> None:
        alone, together = (
            f"{right / count:.2%} ({right}/{count})"
            for right in (decision.alone, decision.together)
        )
        what = "kept" if decision.kept else "left out"
        print(f"{decision.source}: {alone} alone, {together} in the soup: {what}")

    print(f"validated on {data}/{split}".rstrip("/"))
    return soup.greedy(loads, score, tell)
