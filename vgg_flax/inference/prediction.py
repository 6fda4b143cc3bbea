"""What a net sees in image files: the best classes, as a table, JSON and pictures."""

import collections
import dataclasses
import difflib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tabulate
from etils import epath

from vgg_flax import data, errors, spelling
from vgg_flax.data import folder, imagenet
from vgg_flax.evaluation.posteriors import Cell, Posteriors, Settings
from vgg_flax.evaluation.protocols import Views
from vgg_flax.images import codec
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.inference import heatmap
from vgg_flax.net import Net
from vgg_flax.parallel.ahead import in_threads

_TITLE = 60  # characters of a class's name over a picture


class PredictionError(errors.VGGFlaxError):
    """No images where they were said to be, no such class, an option out of range."""


@dataclasses.dataclass(frozen=True)
class Guess:
    """A class (its place in the logits and its name) and its probability."""

    index: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image file, best first.

    Attributes:
      path: of the file.
      top: at least one.
      chosen: of the class that was asked for; None: none was.
    """

    path: str
    top: tuple[Guess, ...]
    chosen: Guess | None = None


def find_images(
    paths: Sequence[epath.PathLike],
) -> tuple[list[epath.Path], folder.LeftOut]:
    """The image files of `paths`, each once, in the order given and sorted in folders.

    A file is taken whatever its name; in folders those that
    `vgg_flax.data.folder.find_images` finds.

    Returns:
      The files, and how many others there were in the folders, by their kind.

    Raises:
      PredictionError: no such path, or a folder without images.
    """
    files_there: list[epath.Path] = []
    left_out: folder.LeftOut = collections.Counter()
    for path in map(epath.Path, paths):
        if not path.exists():
            raise PredictionError(f"{path}: no such file or folder")
        files = list(folder.find_images(path, left_out)) if path.is_dir() else [path]
        if not files:
            raise PredictionError(
                f"{path} holds no image; expected {', '.join(data.SUFFIXES)} in "
                "it or in the folders within"
            )
        files_there += files
    return list(dict.fromkeys(files_there)), left_out


def predict(
    net: Net,
    paths: Sequence[epath.Path],
    *,
    top: int = 5,
    batch_size: int = 32,
    chosen: int | None = None,
    after_image: Callable[[int], object] = lambda _: None,
) -> tuple[list[Prediction], dict[str, str]]:
    """The `top` classes of each image's test view, at JAX's highest matmul precision.

    Those of the posteriors under the protocol `center`, on all of this process's
    devices.

    Args:
      net: its `preprocessing` makes the views. Classes that are ImageNet's get
        ImageNet's names.
      paths: of image files, each read once.
      top: at most the number of classes are given.
      batch_size: images at a time.
      chosen: a class, by its number, that is told of every image.
      after_image: called with 1 when an image is done.

    Returns:
      The predictions in the order of `paths`, and of the files that could not be read
      or decoded the reason, by path.

    Raises:
      PredictionError: `top` or `batch_size` is less than 1.
    """
    if why := net.card.no_classes():
        raise PredictionError(why)
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise PredictionError(f"{name}={value}; expected at least 1")
    posteriors = Posteriors([net], Settings(min(batch_size, len(paths) or 1)))
    cell = (0, Views("center", net.preprocessing.test_scale, flip=False))
    unreadable: dict[str, str] = {}

    def examples() -> Iterator[tuple[int, dict[Cell, list[np.ndarray]]]]:
        read = functools.partial(_read_view, net.preprocessing)
        for i, view in enumerate(in_threads(read, paths)):
            if isinstance(view, codec.ImageError):
                unreadable[str(paths[i])] = str(view)
                after_image(1)
            else:
                yield i, {cell: [view]}

    best: dict[int, Prediction] = {}
    names = imagenet.display_names(net.class_names, net.model.num_classes)
    for i, log_posteriors in posteriors.compute(examples()):
        best[i] = _prediction(paths[i], log_posteriors[cell], names, top, chosen)
        after_image(1)
    return [best[i] for i in sorted(best)], unreadable


def _read_view(
    preprocessing: Preprocessing, path: epath.Path
) -> np.ndarray | codec.ImageError:
    """The test view, or why there is none."""
    try:
        return preprocessing.test_view(codec.read(path))
    except codec.ImageError as error:
        return error


def _prediction(
    path: epath.Path,
    log_posterior: np.ndarray,
    names: Sequence[str],
    top: int,
    chosen: int | None,
) -> Prediction:
    """The `top` classes; of equal ones the lower is ahead, as in `jax.lax.top_k`."""
    classes = np.argsort(-log_posterior, kind="stable")[:top].tolist()
    probabilities = np.exp(log_posterior)

    def guess(index: int) -> Guess:
        return Guess(index, names[index], float(probabilities[index]))

    return Prediction(
        str(path), tuple(map(guess, classes)), None if chosen is None else guess(chosen)
    )


def find_class(net: Net, text: str) -> int:
    """The number of the class that somebody means: by its name, or else its number.

    A name is one that `predict` gives, as it is or as it is shown, or a synset.

    Raises:
      PredictionError: there is none, or there are several of that name.
    """
    count = net.model.num_classes
    names = imagenet.display_names(net.class_names, count)
    asked = {spelling.same(text), spelling.same(spelling.restored(text))}
    for known in (names, net.class_names):
        found = [i for i, name in enumerate(known) if spelling.same(name) in asked]
        if len(found) > 1:
            raise PredictionError(
                f"{len(found)} classes are called {text}; give one's number: "
                f"{', '.join(map(str, found))}"
            )
        if found:
            return found[0]
    if text.isdecimal() and int(text) < count:
        return int(text)
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    raise PredictionError(
        f"no class is called {text}; expected a name or a number from 0 to "
        f"{count - 1}" + f"; near it: {folder.some(near)}" * bool(near)
    )


def draw_heatmaps(
    net: Net,
    predictions: Sequence[Prediction],
    folder: epath.PathLike,
    scale: int | None = None,
) -> Iterator[tuple[str, str | codec.ImageError]]:
    """Draws heat maps of each prediction's class as `folder/NAME_heatmap.png`.

    Of the chosen one, or else the best. Of several images with one name, as some file
    systems see it, the later ones get a number, `NAME_2_heatmap.png`.

    Yields:
      The image's path and the picture's, when it is drawn; or why there is none.

    Raises:
      HeatmapError: the net can't take images of this scale.
      PredictionError: a picture can't be written.
    """
    folder = epath.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PredictionError(f"cannot make the folder {folder}: {error}") from error
    taken: set[str] = set()
    for prediction in predictions:
        path, guess = (
            epath.Path(prediction.path),
            prediction.chosen or prediction.top[0],
        )
        numbered = (f"{path.stem}_{number}" for number in itertools.count(2))
        names = itertools.chain([path.stem], numbered)
        name = next(n for n in names if spelling.same(n).casefold() not in taken)
        taken.add(spelling.same(name).casefold())
        target = folder / f"{name}_heatmap.png"
        try:
            maps = heatmap.make(net, codec.read(path), guess.index, scale)
        except codec.ImageError as error:
            yield str(path), error
            continue
        title = f"{_short(guess.name)} (class {guess.index})  {guess.probability:.1%}"
        try:
            heatmap.draw_heatmaps(
                target, title, maps.picture, maps.probability, maps.grad_cam
            )
        except OSError as error:
            raise PredictionError(f"cannot write {target}: {error}") from error
        yield str(path), str(target)


def _short(name: str) -> str:
    """A class's name as it is shown, for a title."""
    whole = spelling.shown(name)
    return whole if len(whole) <= _TITLE else f"{whole[: _TITLE - 3]}..."


def to_text(predictions: Sequence[Prediction]) -> str:
    """A table: image, class, its name, probability; nothing without images.

    Names are as `spelling.shown` has them.
    """
    if not predictions:
        return ""
    rows = [
        (
            spelling.shown(prediction.path) if i == 0 else "",
            guess.index,
            spelling.shown(guess.name),
            f"{guess.probability:.2%}",
        )
        for prediction in predictions
        for i, guess in enumerate(prediction.top)
    ]
    header = ("image", "class", "name", "probability")
    align = ("left", "right", "left", "right")
    return tabulate.tabulate(
        rows, header, "simple", colalign=align, disable_numparse=True
    )


def to_dict(
    net: Net,
    predictions: Sequence[Prediction],
    unreadable: dict[str, str],
    pictures: dict[str, str],
) -> dict[str, Any]:
    """For JSON: what was asked of which net, and the answers.

    Names are as `spelling.written` has them.

    Args:
      net: as given to `predict`.
      predictions: of `predict`.
      unreadable: of `predict`.
      pictures: the heatmaps' paths by the images'; empty if none were drawn.
    """
    images = []
    for prediction in predictions:
        image = dataclasses.asdict(prediction)
        if prediction.chosen is None:
            del image["chosen"]
        if prediction.path in pictures:
            image["heatmap"] = pictures[prediction.path]
        images.append(image)
    document = {
        **net.card.identity(),
        "dtype": str(jnp.dtype(net.model.dtype)),
        "matmul_precision": "highest",
        "preprocessing": net.preprocessing.to_dict(),
        "images": images,
        "unreadable": [{"path": p, "reason": r} for p, r in unreadable.items()],
    }
    return spelling.written(document)
