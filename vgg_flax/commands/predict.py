"""`vgg-flax predict`: what images show, and where."""

import argparse
import json
from typing import Any

from vgg_flax import errors
from vgg_flax.commands import weights_options


def add(commands: Any) -> None:
    """Adds `predict` to the subcommands."""
    command = commands.add_parser(
        "predict",
        help="say what images show, and where",
        description="The most probable classes of images. Images that can't be read "
        "are named; the exit code is then 2.",
    )
    command.add_argument("weights", metavar="WEIGHTS", help=weights_options.WHAT)
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
        "--heatmap-class",
        metavar="CLASS",
        help="where this class is seen instead: its name, or its number",
    )
    command.add_argument(
        "--scale",
        type=int,
        help="of heatmaps: the picture's smaller side (twice the net's test scale)",
    )
    command.add_argument(
        "--skip-bad", action="store_true", help="exit with 0 although images are bad"
    )
    weights_options.add(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from etils import epath

    from vgg_flax import console, storage
    from vgg_flax.data import folder
    from vgg_flax.images import codec
    from vgg_flax.inference import heatmap, prediction

    if options.scale is not None and options.heatmap is None:
        raise errors.ConfigError(f"--scale {options.scale} is of heat maps: --heatmap")
    asked = options.heatmap_class
    if asked is not None and options.heatmap is None:
        raise errors.ConfigError(f"--heatmap-class {asked} is of heat maps: --heatmap")
    net = weights_options.load(options, options.weights)
    chosen = None if asked is None else prediction.find_class(net, asked)
    if options.heatmap is not None:
        heatmap.check_scale(net, options.scale)
        storage.check_output("--heatmap", epath.Path(options.heatmap) / "heatmap.png")
    paths, left_out = prediction.find_images(options.images)
    if left_out:
        console.say(f"left out: {folder.describe(left_out)}")
    with console.bar(len(paths), "image") as bar:
        predictions, unreadable = prediction.predict(
            net,
            paths,
            top=options.top,
            batch_size=options.batch_size,
            chosen=chosen,
            after_image=bar.update,
        )
    if not options.json:  # first: pictures take a while
        print(prediction.to_text(predictions))
    pictures: dict[str, str] = {}
    undrawn: dict[str, str] = {}
    try:
        if options.heatmap is not None:
            with console.bar(len(predictions), "picture") as bar:
                for path, picture in prediction.draw_heatmaps(
                    net, predictions, options.heatmap, options.scale
                ):
                    if isinstance(picture, codec.ImageError):
                        undrawn[path] = str(picture)
                    else:
                        pictures[path] = picture
                    bar.update()
    finally:  # on a full disk, too, the classes are told
        if options.json:
            document = prediction.to_dict(net, predictions, unreadable, pictures)
            print(json.dumps(document))
    for path, reason in unreadable.items():
        console.say(f"unreadable: {path}: {reason}")
    for path, reason in undrawn.items():
        console.say(f"no heat map: {path}: {reason}")
    if unreadable:
        share = f"{len(unreadable)} of {len(paths)} images"
        console.say(f"{share} could not be read")
    return 2 if (unreadable or undrawn) and not options.skip_bad else 0
