"""Layers by name: which of them a run trains, and how fast each moves."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from vgg_flax import model
from vgg_flax.config import Config
from vgg_flax.errors import ConfigError


def layers_of(name: str, known: Iterable[str]) -> frozenset[str]:
    """The layers that a name means: `stage3`, `conv3_1` (with its bn3_1), `fc8`.

    Args:
      name: as in `config.freeze` and `config.optimizer.layer_rates`.
      known: the layers that have params.

    Returns:
      Those of `known`; empty: there is no such layer.
    """
    if name.startswith("stage"):
        found = [n for n in known if name == f"stage{model.part_of(n)}"]
        return frozenset(n for n in found if not n.startswith("fc"))
    also = name.replace("conv", "bn") if name.startswith("conv") else name
    return frozenset(n for n in known if n in (name, also))


def frozen(config: Config, known: Iterable[str]) -> frozenset[str]:
    """The layers of `known` that a checked config does not train."""
    known = tuple(known)
    return frozenset().union(*(layers_of(name, known) for name in config.freeze))


def split(config: Config, params: Mapping[str, Any]) -> tuple[Any, Any]:
    """`params`, or what mirrors them, by layer: what is trained, and the rest."""
    still = frozen(config, params)
    trained = {name: leaves for name, leaves in params.items() if name not in still}
    return trained, {name: params[name] for name in params if name in still}


def rates(layer_rates: Iterable[tuple[str, float]], known: Iterable[str]) -> Any:
    """The factor of the learning rate of each of `known`; the last that names it."""
    known = tuple(known)
    factors = dict.fromkeys(known, 1.0)
    for name, factor in layer_rates:
        factors |= dict.fromkeys(layers_of(name, known), factor)
    return factors


def check(config: Config, net: model.VGG) -> None:
    """Sees that the names are layers of the net, and that something is trained.

    Raises:
      ConfigError: a name that the net does not have, a rate out of range, all layers
        frozen, or FC layers that are frozen and cut.
    """
    known = [n for n in net.layer_names if n.startswith(("conv", "bn", "fc"))]
    rates_by_name = config.optimizer.layer_rates
    for field, names in (
        ("freeze", config.freeze),
        ("optimizer.layer_rates", [name for name, _ in rates_by_name]),
    ):
        for name in names:
            if not layers_of(name, known):
                stages = [f"stage{i}" for i in model.STAGES]
                near = difflib.get_close_matches(name, [*stages, *known], 3, 0.5)
                raise ConfigError(
                    f"config.{field} names {name!r}, which this {net.variant} does not "
                    "have; expected stage1 to stage5, or a layer such as conv5_1, fc8"
                    + (f"; did you mean {', '.join(near)}?" if near else "")
                )
    for name, factor in rates_by_name:
        if not 0 < factor < float("inf"):
            raise ConfigError(
                f"config.optimizer.layer_rates has {factor} for {name!r}; expected "
                "above 0; what is not to move goes into config.freeze"
            )
    still = frozen(config, known)
    if still == frozenset(known):
        raise ConfigError(
            f"config.freeze={config.freeze} leaves nothing to train; leave fc8 out"
        )
    if config.shard_fc and any(name.startswith("fc") for name in still):
        raise ConfigError(
            f"config.freeze={config.freeze} with config.shard_fc=True: FC kernels that "
            "are cut are trained; freeze none of them, or do not cut them"
        )
