"""The `vgg-flax` command, whose subcommands are in `commands`. Training: `train.py`."""

import argparse
import signal
import sys
from collections.abc import Sequence

import vgg_flax
from vgg_flax import console, errors, spelling
from vgg_flax.commands import (
    compile,
    convert,
    describe,
    evaluate,
    export,
    features,
    predict,
    prepare,
    probe,
    soup,
)

_COMMANDS = (
    prepare,
    evaluate,
    predict,
    features,
    probe,
    describe,
    convert,
    soup,
    export,
    compile,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code.

    0: done; 1: an error; 2: wrong usage, or images that could not be read; 128 and
    more: stopped by a signal.
    """
    with console.outliving_readers():
        options = parse(arguments)
        try:
            return options.run(options) or 0
        except errors.VGGFlaxError as error:
            print(f"error: {spelling.line(str(error))}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped by SIGINT", file=sys.stderr)
            return 128 + signal.SIGINT


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line, the subcommand's `run` among them.

    Args:
      arguments: without the program's name; None: those of this process.

    Raises:
      SystemExit: wrong usage, which has been printed, or `--help`.
    """
    parser = argparse.ArgumentParser(
        prog="vgg-flax",
        description="VGG in JAX: everybody's weights, the paper's tests, programs for "
        "TPUs that are not here. Training is `python train.py`.",
    )
    parser.add_argument("--version", action="version", version=vgg_flax.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    options, overrides = parser.parse_known_args(arguments)
    options.overrides = [a for a in overrides if a.startswith("--config.")]
    if len(options.overrides) < len(overrides) or (
        overrides and not hasattr(options, "config")
    ):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    return options
