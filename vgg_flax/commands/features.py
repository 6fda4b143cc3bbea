"""`vgg-flax features`: a row of numbers an image, of any layers."""

import argparse
import sys
from typing import Any

from vgg_flax import errors
from vgg_flax.commands import weights_options


def add(commands: Any) -> None:
    """Adds `features` to the subcommands."""
    command = commands.add_parser(
        "features",
        help="write what layers give of images, a row an image",
        description="Layers of each image's test view, as arrays of an .npz or columns "
        "of a .parquet beside `image` and `label`, the folder it is in. Ctrl-C keeps "
        "what is done; the same command goes on. Exit code 2: some images could not be "
        "read.",
    )
    add = command.add_argument
    add("weights", metavar="WEIGHTS", help=weights_options.WHAT)
    add("images", nargs="+", help="image files, or folders of them")
    add(
        "--layers",
        default="pool5",
        help="such as relu3_3,fc7; torchvision's, timm's and Keras's names are known; "
        "`describe` lists ours (pool5)",
    )
    add("--pool", default="mean", help="over positions: mean (default), max, none")
    add("--output", required=True, help="FILE.npz or FILE.parquet")
    add("--batch-size", type=int, default=64, help="images at a time (64)")
    add("--skip-bad", action="store_true", help="exit with 0 although images are bad")
    weights_options.add_distributed(command)
    weights_options.add(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import jax
    from etils import epath

    from vgg_flax import console, spelling, storage
    from vgg_flax.data import folder
    from vgg_flax.inference import extraction, prediction
    from vgg_flax.parallel import distributed

    distributed.initialize(options.distributed)
    storage.check_path("--output", options.output)
    output = epath.Path(options.output)
    layers = tuple(options.layers.split(","))
    net = weights_options.load(options, options.weights, include_top=None)
    settings = extraction.Settings(layers, options.pool, options.batch_size)
    extraction.check(net, settings, output)
    storage.check_output("--output", output)
    files, left_out = prediction.find_images(options.images)
    if left_out:
        console.say(f"left out: {folder.describe(left_out)}")
    try:
        with console.bar(len(files), "image", active=jax.process_index() == 0) as bar:
            unreadable = extraction.extract(
                net, files, settings, output, after_image=bar.update
            )
    except errors.Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    for path, reason in unreadable.items():
        console.say(f"unreadable: {path}: {reason}")
    if unreadable:
        console.say(f"{len(unreadable)} of {len(files)} images could not be read")
    if jax.process_index() == 0:
        shown = spelling.line(str(output))
        print(f"wrote {shown}: {len(files) - len(unreadable)} rows of {options.layers}")
    return 2 if unreadable and not options.skip_bad else 0
