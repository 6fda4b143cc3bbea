"""What is to be tested: nets, their protocols, and the rows of the paper's tables."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from vgg_flax.errors import ConfigError
from vgg_flax.evaluation import paper, protocols
from vgg_flax.evaluation.posteriors import Cell
from vgg_flax.evaluation.protocols import Protocol
from vgg_flax.net import Net


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Nets under their protocols; of several nets the posteriors are averaged.

    Attributes:
      name: for people.
      entries: (which net, its protocol).
      row: of the paper's tables, where this repeats one.
    """

    name: str
    entries: tuple[tuple[int, Protocol], ...]
    row: paper.Row | None = None

    def cells(self) -> list[Cell]:
        """All that the nets see."""
        return [(net, v) for net, protocol in self.entries for v in protocol.views()]

    def log_posterior(self, log_posteriors: dict[Cell, np.ndarray]) -> np.ndarray:
        """The mean over nets of the mean over each one's views, as a logarithm."""
        return protocols.log_mean(
            [
                protocols.log_mean([log_posteriors[net, v] for v in protocol.views()])
                for net, protocol in self.entries
            ]
        )


def adapt(net: Net, dtype: str, adaptive_pool: bool) -> Net:
    """`net` computing in `dtype`, with adaptive pooling if so asked."""
    model = net.model.clone(
        dtype=dtype, adaptive_pool=adaptive_pool, batch_norm_axis=None
    )
    return net.replace(model=model)


def with_train_scales(
    nets: Sequence[Net], train_scales: Sequence[paper.Scale]
) -> list[Net]:
    """`nets` with train scales given for them: none, one for all, or one each.

    Raises:
      ConfigError: another number of them.
    """
    if not train_scales:
        return list(nets)
    if len(train_scales) not in (1, len(nets)):
        raise ConfigError(
            f"{len(train_scales)} train scales for {len(nets)} nets; expected one for "
            "all, or one each"
        )
    scales = itertools.cycle(train_scales)
    return [
        net.replace(train_scale=scale) for net, scale in zip(nets, scales, strict=False)
    ]


def chosen(
    nets: Sequence[Net],
    whole_paper: bool,
    protocol: str | None,
    scales: Sequence[int] | None,
    flip: bool,
) -> list[Experiment]:
    """The experiments that a command line asks for.

    Args:
      nets: fused, if more than one.
      whole_paper: instead of one experiment, those of `of_the_paper`.
      protocol: a key of `protocols.PROTOCOLS`; None: "center".
      scales: Q; None: each net's own test scale.
      flip: whether center and dense average the mirror image.

    Raises:
      ConfigError: a protocol along with `whole_paper`, or as `of_the_paper` and
        `check_nets`.
    """
    if whole_paper:
        if protocol or scales or flip:
            raise ConfigError("--paper has its own protocols, scales and flips")
        return of_the_paper(nets)
    name = protocol or "center"
    entries = tuple(
        (i, Protocol(name, tuple(scales or (net.preprocessing.test_scale,)), flip))
        for i, net in enumerate(nets)
    )
    variants = " + ".join(net.variant for net in nets)
    used = sorted({scale for _, one in entries for scale in one.scales})
    title = f"{variants}, Q {' '.join(map(str, used))}, {name}"
    experiments = [Experiment(title + (" + flip" if flip else ""), entries)]
    check_nets(nets, experiments)
    return experiments


def of_the_paper(nets: Sequence[Net]) -> list[Experiment]:
    """Every row of Tables 3 to 6 that `nets` allow, by variant and train scale.

    Raises:
      ConfigError: none, or two nets of one variant and train scale.
    """
    known = [(net.variant, net.train_scale) for net in nets]
    if len(set(known)) < len(known):
        raise ConfigError(f"{known}: expected one net of each variant and train scale")
    experiments = [
        Experiment(
            row.name,
            tuple(
                (net, Protocol(row.protocol, entry.scales, flip=True))
                for net, entry in zip(indices, row.entries, strict=True)
            ),
            row,
        )
        for row, indices in paper.rows_for(known)
    ]
    used = {index for experiment in experiments for index, _ in experiment.entries}
    unused = [known[i] for i in range(len(nets)) if i not in used]
    if experiments and unused:
        raise ConfigError(f"no row of Tables 3 to 6 has {unused}; leave them out")
    if not experiments:
        raise ConfigError(
            f"no row of Tables 3 to 6 has {known}; they are of vgg11, vgg11_lrn, "
            "vgg13, vgg16_1x1, vgg16 and vgg19 trained at 256, 384 or 256-512: name "
            "the train scale with --train-scale where the weights do not"
        )
    return experiments


def check_nets(nets: Sequence[Net], experiments: Sequence[Experiment]) -> None:
    """Raises ConfigError for scales that are too small, or nets of other classes."""
    for experiment in experiments:
        for index, protocol in experiment.entries:
            protocols.check_scales(
                protocol, nets[index].model, nets[index].preprocessing
            )
    for net in nets:
        if why := net.card.no_classes():
            raise ConfigError(f"{why} to test")
    counts = {net.source: net.model.num_classes for net in nets}
    if len({(net.model.num_classes, net.class_names) for net in nets}) > 1:
        silent = [net.source for net in nets if not net.class_names]
        raise ConfigError(
            f"the nets differ in their classes, {counts}"
            + (f", and {silent} do not name theirs" if silent else "")
            + "; fusion needs the same ones, in one order"
        )
