"""What is taken for what: an evaluation's confusion matrix, as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vgg_flax import console, spelling, storage
from vgg_flax.errors import ConfigError

_NUMBERED = 30  # classes, up to which a cell has its number


def matrix(images: Sequence[dict[str, Any]], classes: Sequence[int]) -> np.ndarray:
    """How many images of each class (row) were taken for each (column).

    Args:
      images: of the first experiment of `evaluate.evaluate`. One that has several right
        classes counts for the one it was taken for, if that is among them, or for the
        first.
      classes: those that take part, in order.

    Returns:
      `[classes, classes]`, integers.
    """
    place = {c: i for i, c in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), int)
    for image in images:
        guess, right = image["experiments"][0]["classes"][0], image["labels"]
        truth = guess if guess in right else right[0]
        counts[place[truth], place[guess]] += 1
    return counts


def check(path: epath.Path, num_classes: int) -> None:
    """Raises ConfigError where no picture can be drawn; makes the folder."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--confusion {path}: expected a name in .png, .svg or .pdf")
    if num_classes > 200:
        raise ConfigError(
            f"--confusion {path}: {num_classes} classes have no room in a picture; at "
            "most 200; --predictions writes a row an image"
        )
    storage.check_output("--confusion", path)


def draw(
    path: epath.Path, counts: np.ndarray, names: Sequence[str], title: str
) -> None:
    """Rows are what images show, with the share that is right; columns the guesses.

    Args:
      path: in .png, .svg or .pdf.
      counts: of `matrix`.
      names: of the classes.
      title: over all.

    Raises:
      ConfigError: it cannot be written.
    """
    from matplotlib.figure import Figure

    names = [spelling.shown(name) for name in names]
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = max(4.0, 0.32 * len(names))
    figure = Figure(figsize=(side + 2.5, side + 1.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(spelling.line(title), parse_math=False)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    rows = [
        f"{name}  {shares[i, i]:.0%} of {totals[i, 0]}"
        if totals[i, 0]
        else f"{name}  -"
        for i, name in enumerate(names)
    ]
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    axes.set_yticks(places, rows, parse_math=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    figure.colorbar(shown, ax=axes, shrink=0.6, label="share of the row")
    if len(names) <= _NUMBERED:
        for i, j in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=color)
    whole = storage.whole_file(path, ConfigError, option="--confusion")
    with console.without_glyphs(), whole as file:
        figure.savefig(file, format=path.suffix[1:].lower())
