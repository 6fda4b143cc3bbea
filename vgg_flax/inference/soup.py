"""Soups: the mean of several nets (Wortsman et al. 2022), of all or of chosen ones."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_flax import config as config_lib
from vgg_flax import storage
from vgg_flax.data import splits
from vgg_flax.evaluation import evaluate, experiments
from vgg_flax.evaluation.label_sets import LabelledImages
from vgg_flax.evaluation.posteriors import Settings
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError, urls

# Of the model: what no call of a net depends on, so that ingredients may differ in it.
_OF_TRAINING = ("dropout_rate", "initializer")


def soup(nets: Iterable[Net]) -> Net:
    """The net whose params, and batch statistics, are the means of those of `nets`.

    The means are taken in float64 and then rounded to the leaves' dtype; of one net
    they are that net, to the bit. Nets that were tuned from the same weights have a
    mean that is often better than each of them; of others it is worth nothing.

    Args:
      nets: at least one, of one architecture, one objective, the same pixels and the
        same classes; an iterator's are had one at a time.

    Returns:
      A net whose card names the ingredients, and is the first one's besides; without a
      `train_scale` where they differ in it.

    Raises:
      WeightsError: none, or nets that do not fit each other, naming what differs.

    References:
      Wortsman et al. 2022, Model soups (https://arxiv.org/abs/2203.05482).
    """
    pot: _Pot | None = None
    for net in nets:
        pot = _Pot.of(net) if pot is None else pot.and_also(net)
    if pot is None:
        raise WeightsError("a soup of no nets; give at least one")
    return pot.net()


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a greedy soup made of an ingredient.

    Attributes:
      source: of the ingredient.
      alone: its own score.
      together: that of the soup with it; of the first one its own.
      kept: whether it stays.
    """

    source: str
    alone: float
    together: float
    kept: bool


def greedy(
    ingredients: Sequence[Callable[[], Net]],
    score: Callable[[Net], float],
    tell: Callable[[Decision], None] = lambda _: None,
) -> Net:
    """The soup of those ingredients with which validation does not get worse.

    Recipe 1 of Wortsman et al.: from the best ingredient to the worst, each is added
    to the soup, and stays where that scores no less than before. So no ingredient
    scores more than what is returned.

    Args:
      ingredients: each loads one; it is called twice, so that few are had at a time.
      score: the larger, the better; of equal ones the first is tried first.
      tell: called with each decision, in that order.

    Returns, raises:
      As `soup`.
    """
    alone: list[float] = []
    first: Net | None = None
    for load in ingredients:
        net = load()
        first = first or net
        _check_alike(first, net)  # before the others are scored in vain
        alone.append(score(net))
    order = sorted(range(len(alone)), key=lambda i: -alone[i])
    pot, best = None, -np.inf
    for i in order:
        net = ingredients[i]()
        tried = _Pot.of(net) if pot is None else pot.and_also(net)
        together = alone[i] if pot is None else score(tried.net())
        kept = bool(together >= best)
        if kept:
            pot, best = tried, together
        tell(Decision(net.source, alone[i], together, kept))
    if pot is None:
        raise WeightsError("a soup of no nets; give at least one")
    return pot.net()


def right(net: Net, images: LabelledImages, batch_size: int) -> tuple[int, int]:
    """How many of a split's images a net has right, its centre crop, and of how many.

    Raises:
      ConfigError, DataError, Interrupted: as of `evaluate.evaluate`.
    """
    rows = experiments.chosen([net], False, "center", None, False)
    result, _ = evaluate.evaluate([net], images, rows, settings=Settings(batch_size))
    return result["experiments"][0]["top1_count"], result["count"]


def own_validation(runs: Sequence[str]) -> tuple[str, str, str]:
    """What runs were validated on: data, split and data_dir, of `open_images`.

    Raises:
      WeightsError: one is no run of `train.py`, has no validation split, or another.
    """
    found: dict[tuple[str, str, str], str] = {}
    for run in runs:
        scheme, separator, _ = run.partition("://")
        is_url = bool(separator) and scheme not in storage.PACKAGES
        path = None if is_url else storage.expanded(run) / "config.json"
        if path is None or not path.exists():
            raise WeightsError(
                f"{urls.shown(run)} has no config.json that says what it was validated "
                "on; say what to validate on: --data DATA --split SPLIT"
            )
        try:
            data = config_lib.from_dict(json.loads(path.read_text())).data
        except ValueError as error:
            raise WeightsError(f"{path} is damaged: {error}; copy it anew") from error
        if not data.validation_split:
            raise WeightsError(
                f"{run} was trained without a validation split; say what to validate "
                "on: --data DATA --split SPLIT"
            )
        is_files = data.name == "folder" and splits.is_files(data.data_dir)
        name, folder = (data.data_dir, "") if is_files else (data.name, data.data_dir)
        found.setdefault((name, data.validation_split, folder), run)
    if len(found) > 1:
        told = "; ".join(f"{run}: {' '.join(what)}" for what, run in found.items())
        raise WeightsError(
            f"the runs were validated on different images: {told}; say what to "
            "validate on: --data DATA --split SPLIT"
        )
    (only,) = found
    return only


@dataclasses.dataclass(frozen=True)
class _Pot:
    """Nets added up.

    Attributes:
      first: of them.
      total: the sum of their variables, float64.
      ingredients: what they are.
      train_scale: that all of them have, or None.
    """

    first: Net
    total: Any
    ingredients: tuple[str, ...]
    train_scale: tuple[int, int] | None

    @classmethod
    def of(cls, net: Net) -> "_Pot":
        total = jax.tree.map(_double, net.variables)
        return cls(net, total, (_named(net),), net.train_scale)

    def and_also(self, net: Net) -> "_Pot":
        _check_alike(self.first, net)
        return _Pot(
            self.first,
            jax.tree.map(lambda t, x: t + _double(x), self.total, net.variables),
            (*self.ingredients, _named(net)),
            self.train_scale if net.train_scale == self.train_scale else None,
        )

    def net(self) -> Net:
        count = len(self.ingredients)
        return self.first.replace(
            variables=jax.tree.map(
                lambda t, x: jnp.asarray((t / count).astype(x.dtype)),
                self.total,
                self.first.variables,
            ),
            train_scale=self.train_scale,
            source="",
            sha256="",
            ingredients=self.ingredients,
        )


def _double(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)


def _named(net: Net) -> str:
    if net.ingredients and not net.source:
        return f"a soup of {len(net.ingredients)}"
    return f"{net.source}, sha256 {net.sha256}" if net.source else "made here"


def _check_alike(first: Net, other: Net) -> None:
    """Raises WeightsError, naming what differs, where a mean would mean nothing."""
    ours, theirs = _facts(first), _facts(other)
    differing = [
        f"{name}: {ours.get(name)!r} and {theirs.get(name)!r}"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]
    if first.class_names != other.class_names:
        differing.append(_class_difference(first, other))
    if differing:
        raise WeightsError(
            f"{first.source or 'one net'} and {other.source or 'another'} have no "
            f"soup; they differ in {'; '.join(differing)}"
        )


def _facts(net: Net) -> dict[str, Any]:
    """What must be the same, by name, but for the classes' names."""
    model = {k: v for k, v in net.model.settings.items() if k not in _OF_TRAINING}
    pixels = dataclasses.asdict(net.preprocessing)
    trained = {"objective": net.objective, "has_classes": net.has_classes}
    return {**model, "variant": net.variant, **pixels, **trained}


def _class_difference(first: Net, other: Net) -> str:
    ours, theirs = first.class_names, other.class_names
    if not ours or not theirs:
        return f"classes: {(other if ours else first).source} does not name its own"
    pairs = enumerate(zip(ours, theirs, strict=False))
    different = [f"{i} is {a!r} and {b!r}" for i, (a, b) in pairs if a != b]
    return f"classes: {different[0] if different else (len(ours), len(theirs))}"
