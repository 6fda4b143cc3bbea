"""The options that say which net WEIGHTS are, and the net that they give."""

import argparse
import dataclasses
from typing import Any

from vgg_flax import errors

_OPTIONS = (
    "step",
    "ema",
    "entry",
    "variant",
    "in_channels",
    "preprocessing",
    "mean",
    "std",
    "crop_size",
    "test_scale",
    "orientation",
    "classes",
    "sha256",
)
WHAT = "a run directory, a weight file, a URL, vgg16, timm/vgg16.tv_in1k"


def add(command: argparse.ArgumentParser) -> None:
    """Adds the options that tell what WEIGHTS are, see `vgg_flax.load`, and how run."""
    group = command.add_argument_group("of WEIGHTS")
    add = group.add_argument
    add("--step", default="last", type=step, help="of a run: last (default), best, 500")
    add("--ema", action="store_true", help="of a run: the params' average")
    add("--entry", help="of a training checkpoint with several nets: model_ema")
    add("--variant", type=_variant, help="where names can't tell: vgg11_lrn")
    add("--in-channels", type=int, help="1: RGB weights, summed for grey images")
    add("--preprocessing", help="the pixels, where the file can't tell: caffe, ...")
    add("--mean", type=_numbers, help="of pixels in [0, 1], by hand: 0.5,0.5,0.5")
    add("--std", type=_numbers, help="with it")
    add("--crop-size", type=int, help="side of the test view, instead of the weights'")
    add("--test-scale", type=int, help="Q, of which the crop is the centre; likewise")
    add("--orientation", choices=("ignore", "exif"), help="exif: turn photos so")
    add("--classes", metavar="FILE", help="their names, a line each, in its order")
    add("--sha256", help="what the file's must be")
    command.add_argument(
        "--compilation-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep compiled programs for the next start (docs/training.md)",
    )


def check_unused(options: argparse.Namespace, why: str) -> None:
    """Raises ConfigError if any of the options is given that would do nothing."""
    for name in _OPTIONS:
        if (value := getattr(options, name)) not in (None, False, "last"):
            raise errors.ConfigError(
                f"--{name.replace('_', '-')} {value} is of one file or run: {why}; "
                "leave it out"
            )


def load(options: argparse.Namespace, weights: str, **partly: Any) -> Any:
    """The `Net` of WEIGHTS, as `options` say; `partly` as `vgg_flax.load` takes it.

    What is compiled from now on is kept, if so asked.
    """
    from vgg_flax import console, loading
    from vgg_flax.parallel import compilation_cache

    compilation_cache.set_up(options.compilation_cache)

    given = {name: getattr(options, name) for name in _OPTIONS}
    orientation, classes = given.pop("orientation"), given.pop("classes")
    net = loading.load(weights, **given, **partly)
    if classes is not None:
        net = _named(net, classes)
    pixels = net.preprocessing
    if orientation is not None:
        pixels = dataclasses.replace(pixels, orientation=orientation)
    console.say(
        f"loaded {net.variant} from {net.source}, sha256 {net.sha256}; "
        + "the params' average, " * options.ema
        + f"test scale {pixels.test_scale}, crop {pixels.crop_size}"
        + ", turned as EXIF says" * (pixels.orientation == "exif")
    )
    return net.replace(preprocessing=pixels)


def _named(net: Any, file: str) -> Any:
    """`net`, whose classes have the names in `file`."""
    from vgg_flax import storage

    try:
        text = storage.expanded(file).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"--classes {file}: {error}") from error
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    count = net.model.num_classes
    if len(found) != count or len(set(found)) != count:
        raise errors.ConfigError(
            f"--classes {file} has {len(found)} names, {len(set(found))} of them "
            f"different, and the net {count} classes; expected a name a line, in the "
            "order of its outputs"
        )
    return net.replace(class_names=found)


def add_distributed(command: argparse.ArgumentParser) -> None:
    """Adds `--distributed`, as `parallel.distributed.initialize` takes it."""
    command.add_argument(
        "--distributed",
        default="auto",
        help="how processes that share the images find each other: auto (as JAX "
        "detects it), off, or ADDRESS:PORT,COUNT,INDEX; with --output on storage they "
        "share",
    )


def add_features_only(command: argparse.ArgumentParser) -> None:
    """Adds `--features-only`."""
    command.add_argument(
        "--features-only", action="store_true", help="leave the FC layers out"
    )


def add_fold(command: argparse.ArgumentParser) -> None:
    """Adds `--fold-bn`, for `folded`."""
    command.add_argument(
        "--fold-bn", action="store_true", help="fold BatchNorm into the convolutions"
    )


def folded(options: argparse.Namespace, net: Any) -> Any:
    """`net`, without BatchNorm if so asked."""
    if not options.fold_bn:
        return net
    from vgg_flax.inference import folding

    net, moved = folding.fold_batch_norm(net)
    print(f"folded BatchNorm: logits move by {moved:.1e} of their spread")
    return net


def _variant(text: str) -> str:
    from vgg_flax import model  # Flax, which --help does without

    try:
        return model.variant_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected numbers with commas between them"
        ) from error


def step(text: str) -> int | str:
    """A step, as `vgg_flax.load` takes it; raises ArgumentTypeError."""
    if text not in ("last", "best") and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}; expected last, best or a number")
    return int(text) if text.isdigit() else text
