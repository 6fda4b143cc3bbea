"""curves.png: ticks that are read at a glance, and nothing that is not seen."""

import math
from typing import Any

import pytest

from vgg_flax.runs import curves
from vgg_flax.training.objectives import CLASSIFICATION

Losses = dict[str, list[float]]


def plotted(losses: Losses, top1: float = 0.5) -> Any:
    """The two panels, drawn."""
    records = [
        {"split": split, "epoch": 1.0 + i, "loss": loss, "top1": top1}
        for split, values in losses.items()
        for i, loss in enumerate(values)
    ]
    figure = curves.plot(records, CLASSIFICATION.metrics)
    figure.draw_without_rendering()
    return figure.axes


def ticks(axes: Any) -> list[tuple[float, str]]:
    """Those in sight that have a label."""
    low, high = axes.get_ylim()
    both = (axes.yaxis.get_major_ticks(), axes.yaxis.get_minor_ticks())
    found = [(t.get_loc(), t.label1.get_text()) for some in both for t in some]
    return [(at, label) for at, label in found if low <= at <= high and label]


@pytest.mark.parametrize(
    "losses",
    [
        {"train": [6.9 * math.exp(-i / 20) + 0.001 for i in range(200)]},
        {"train": [1.0972], "validation": [1.0972], "test": [1.0972]},
        {"train": [2.302585] * 50},
        {"train": [2.3 - 0.002 * i for i in range(50)], "test": [2.21]},
        {"train": [4 * math.exp(-i / 20) for i in range(50)]},
        {"train": [20.0, 1.9], "validation": [7.0]},
        {"train": [1e-7 * (1 + i) for i in range(20)]},
        {"train": [1.0, 0.5, 0.0]},
        {"train": [3.0, math.nan, 2.0], "validation": [math.inf]},
    ],
)
def test_losses_have_ticks_that_are_plain_numbers(losses: Losses) -> None:
    axes = plotted(losses)[0]
    seen = ticks(axes)
    assert 3 <= len(seen) <= 12
    assert len({label for _, label in seen}) == len(seen)
    for at, label in seen:
        assert float(label) == pytest.approx(at, rel=1e-4, abs=1e-12)
        assert len(label) <= 7
    low, high = axes.get_ylim()
    values = [x for some in losses.values() for x in some if math.isfinite(x)]
    assert low <= min(values) and max(values) <= high


def test_a_single_record_is_a_point_that_no_other_hides() -> None:
    for axes in plotted({"train": [1.0], "validation": [1.0], "test": [1.0]}):
        sizes = [line.get_markersize() for line in axes.lines]
        assert [line.get_marker() for line in axes.lines] == ["o"] * 3
        assert sorted(sizes, reverse=True) == sizes and len(set(sizes)) == 3


@pytest.mark.parametrize("top1", [0.0, 0.33, 1.0])
def test_errors_are_percentages_from_zero_on(top1: float) -> None:
    axes = plotted({"train": [1.0, 0.5], "test": [0.7]}, top1)[1]
    low, high = axes.get_ylim()
    assert low == 0 and high > 1 - top1
    assert all(label.endswith("%") for _, label in ticks(axes))
    assert not any(line.get_clip_on() for line in axes.lines)
