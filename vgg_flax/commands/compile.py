"""`vgg-flax compile`: a recipe's steps for TPUs that are not here."""

import argparse
import json
import sys
from typing import Any


def add(commands: Any) -> None:
    """Adds `compile` to the subcommands."""
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
    command.set_defaults(run=_run)


def _image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}; expected such as 384x512")
    return int(height), int(width)


def _run(options: argparse.Namespace) -> None:
    from etils import epath

    from vgg_flax import errors, storage
    from vgg_flax.aot import program as program_lib
    from vgg_flax.aot import roofline, tables
    from vgg_flax.aot.program import Program
    from vgg_flax.config import recipe
    from vgg_flax.training import objectives, optimizers

    settings = recipe.read(options.config, options.overrides)
    objective = objectives.of_recipe(options.config)
    optimizer = optimizers.of_recipe(options.config, settings)
    devices = program_lib.devices_of(options.topology)
    if options.output:  # before minutes of work
        storage.check_output("--output", epath.Path(options.output))

    def compile_batch(batch: int | None) -> Program:
        what = "the recipe's batch" if batch is None else f"{batch} images a chip"
        print(f"compiling {options.program} for {what}: minutes", file=sys.stderr)
        return program_lib.compile_program(
            options.program,
            settings,
            devices,
            batch,
            options.image_size,
            objective,
            optimizer,
        )

    if options.find_batch:
        program = program_lib.find_batch(
            compile_batch,
            lambda text: print(text, file=sys.stderr),
            options.per_chip_batch or 32,
        )
    else:
        program = compile_batch(options.per_chip_batch)
    report = roofline.report(program)
    print(tables.compile_tables(report))
    if options.output:
        path = epath.Path(options.output)
        with storage.whole_file(path, errors.ConfigError, option="--output") as file:
            file.write_text(json.dumps(report, indent=2) + "\n")
        print(f"in full: {path}")
