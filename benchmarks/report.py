"""`python -m benchmarks report`: results/*.json -> benchmarks/README.md and a plot."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import tabulate

from benchmarks import targets

Results = dict[str, list[dict[str, Any]]]  # rows by benchmark
TITLES = {  # in the report's order
    "train": "Training steps, float32",
    "infer": "Inference, float32",
    "uses": "Features, a perceptual loss, fine-tuning, float32",
    "train_small": "A whole run from a folder of images",
    "input": "Input, a core",
    "loop": "The training loop over its bare step",
    "evaluate": "`vgg-flax evaluate` over the bare forward pass",
    "dense": "Dense evaluation over 150 crops",
    "startup": "Start-up, fresh processes",
    "memory": "Memory",
}
_REACHED = {"goal": "goal", "floor": "floor", "below": "**no**", "": ""}
_COLORS = {"goal": "tab:green", "floor": "tab:blue", "below": "tab:red", "": "gray"}
_INTRODUCTION = """\
# What was measured

Made by `python -m benchmarks report` of `results/*.json`; what it is to be read with:

- A ratio is ours over the peer's: the median over the pairs of a row, in brackets the
  smallest and the largest. Pairs are measured in turn (ours, theirs, ours, ...) in two
  processes that live as long as the row; the one whose turn it is not is stopped.
  Start-up, memory and whole runs are processes of their own, each started anew.
- Both have the same cores and, where they compute the same, outputs were compared
  before: logits; of training the loss and the change of conv1_1's kernel by a step
  without dropout.
- torchvision is the fastest of eager, channels-last and channels-last through
  `torch.compile` (frozen, of inference) in a short trial of speed before, which is
  named, and of input of Pillow's images and tensors; all are in the files.
- Floor and goal are what was aimed at (`targets.py`); the row says which is reached.
- Where seconds or MiB are compared, less is better.

![ratios](results/ratios.png)
"""
_REPEAT = """\
## How to repeat

On a machine that does nothing else, in the project's folder:

```sh
python -m benchmarks all        # 90 minutes at most; what is measured is kept
python -m benchmarks train --row vgg16_bn --again
python -m benchmarks report
```

The peers' environments are made of `requirements-*.txt` in `.benchmarks/` (or
`$VGG_FLAX_BENCHMARK_ENVIRONMENTS`), 8 GB in all, unless `--torch-python`,
`--keras-python` and `--tf-python` name interpreters. `--python` names one of ours with
another jax: its rows stand beside. On a GPU: `python -m benchmarks accelerator`; for
TPUs that are not here: `python -m benchmarks compiling`.
"""


def read(folder: pathlib.Path) -> Results:
    """The rows of all benchmarks that have a file."""
    paths = {name: folder / f"{name}.json" for name in TITLES}
    return {k: json.loads(p.read_text()) for k, p in paths.items() if p.exists()}


def outcome(benchmark: str, row: dict[str, Any]) -> str:
    """As of `targets.outcome`."""
    figure = row["ours"] if benchmark in targets.ABSOLUTE else row.get("ratio")
    if figure is None:
        return ""
    return targets.outcome(benchmark, row["name"], row["peer"], figure)


def table(benchmark: str, rows: Sequence[dict[str, Any]]) -> str:
    """A benchmark's rows in Markdown."""
    header = ["what", "over", "jax", "ratio", "ours", "theirs", "floor", "goal"]
    lines = []
    for row in rows:
        target = targets.TARGETS.get((benchmark, row["name"], row["peer"]))
        unit, ratio, theirs = row["unit"], "", ""
        if row["peer"]:
            ratio = f"{row['ratio']:.2f} ({row['min']:.2f} to {row['max']:.2f})"
            theirs = f"{_number(row['theirs'])} {unit}"
        mode = f", {row['mode']}" if "mode" in row else ""
        aims = [f"{x:g}" for x in target] if target else ["", ""]
        lines.append(
            [
                *(row["name"], row["peer"] + mode, row["jax"], ratio),
                *(f"{_number(row['ours'])} {unit}", theirs, *aims),
                _REACHED[outcome(benchmark, row)],
            ]
        )
    return tabulate.tabulate(
        lines, [*header, "reached"], "github", disable_numparse=True
    )


def _number(value: float) -> str:
    """With three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def accuracies(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Of whole runs, seed by seed."""
    lines = []
    for row in rows:
        for who, label in (("ours", "ours"), ("theirs", row["peer"])):
            notes = row.get(f"{who}_notes", [])
            shares = [f"{note['accuracy']:.2%}" for note in notes if "accuracy" in note]
            if shares:
                lines.append(f"Test accuracy, {label}: {', '.join(shares)}.")
    return lines


def measured_on(results: Results) -> list[str]:
    """The machines, commits and versions that the rows tell of, each once."""
    rows = [row for rows in results.values() for row in rows]
    lines: dict[str, None] = {}  # in order, each once
    for row in rows:
        machine = row["machine"]
        lines[
            f"- {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_gib']} GiB, {machine['system']}"
        ] = None
    for row in rows:
        for environment, versions in sorted(row["versions"].items()):
            told = ", ".join(f"{k} {v}" for k, v in versions.items())
            lines[f"- {environment}: {told}"] = None
    if rows:
        commits = ", ".join(sorted({row["commit"] for row in rows}))
        dates = sorted(row["date"][:10] for row in rows)
        loads = [load for row in rows for load in row["load"]]
        lines[f"- commit {commits}; {dates[0]} to {dates[-1]}"] = None
        pairs = sorted({row["pairs"] for row in rows})
        lines[
            f"- pairs a row: {', '.join(map(str, pairs))}; load average before and "
            f"after rows {min(loads):.1f} to {max(loads):.1f} (the measurement's own "
            "threads count)"
        ] = None
    return list(lines)


def render(results: Results, notes: str = "") -> str:
    """The report in Markdown; `notes` stand after the tables."""
    parts = [_INTRODUCTION]
    for benchmark, rows in results.items():
        parts += [f"## {TITLES[benchmark]}\n", table(benchmark, rows) + "\n"]
        if said := accuracies(rows):
            parts.append("\n".join(said) + "\n")
    parts += [notes] if notes else []
    parts += ["## On what\n", "\n".join(measured_on(results)) + "\n", _REPEAT]
    return "\n".join(parts)


def plot(results: Results, path: pathlib.Path) -> None:
    """A dot and a range a row, with its floor and goal; ratios, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ratios = {k: v for k, v in results.items() if k not in targets.ABSOLUTE}
    rows = [(b, row) for b, rows in ratios.items() for row in rows if row["peer"]]
    height = 1.2 + 0.25 * len(rows)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    labels = []
    for place, (benchmark, row) in enumerate(rows):
        color = _COLORS[outcome(benchmark, row)]
        axes.plot([row["min"], row["max"]], [place, place], color=color, linewidth=2)
        axes.plot(row["ratio"], place, "o", color=color, markersize=5)
        target = targets.TARGETS.get((benchmark, row["name"], row["peer"]))
        if target:
            axes.plot(target[0], place, "|", color="black", markersize=10)
            axes.plot(target[1], place, "*", color="black", markersize=6)
        less = " (less is better)" * row["smaller_is_better"]
        labels.append(
            f"{benchmark}: {row['name']} / {row['peer']}, jax {row['jax']}{less}"
        )
    axes.axvline(1.0, color="lightgray", zorder=0)
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    figures = [row[k] for _, row in rows for k in ("min", "max")] or [1.0]
    for benchmark, row in rows:  # floors and goals are seen wherever they are
        figures += targets.TARGETS.get((benchmark, row["name"], row["peer"]), ())
    axes.set_xlim(min(0.6, min(figures)) / 1.15, max(3.3, max(figures)) * 1.15)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("ours over theirs: median, smallest to largest;  | floor   * goal")
    axes.grid(axis="x", color="whitesmoke")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(folder: pathlib.Path, readme: pathlib.Path) -> None:
    """Renders `readme`, and `folder`/ratios.png; notes.md beside it is taken in."""
    results = read(folder)
    notes = readme.parent / "notes.md"
    text = notes.read_text() if notes.exists() else ""
    readme.write_text(render(results, text))
    plot(results, folder / "ratios.png")
