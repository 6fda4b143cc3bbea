"""An evaluation as a table for people, and its rows as .csv or .parquet."""

import csv
import importlib.util
from collections.abc import Sequence
from typing import Any

from etils import epath

from vgg_flax import spelling, storage
from vgg_flax.errors import ConfigError


def evaluation_table(result: dict[str, Any]) -> str:
    """What `scoring.evaluate` returned as a table, beside the paper's figures."""
    import tabulate

    header = ["experiment", "top-1 error %", "top-5 error %", "top-1", "top-5", "NLL"]
    has_paper = any("paper" in row for row in result["experiments"])
    if has_paper:
        header += ["paper top-1", "paper top-5"]
    rows = []
    for row in result["experiments"]:
        cells = [
            row["name"],
            f"{row['top1_error_percent']:.2f}",
            f"{row['top5_error_percent']:.2f}",
            f"{row['top1']:.2%} ({row['top1_count']})",
            f"{row['top5']:.2%} ({row['top5_count']})",
            f"{row['nll']:.4f}",
        ]
        if has_paper:
            cells += [
                f"{row['paper']['top1_error_percent']:.1f}",
                f"{row['paper']['top5_error_percent']:.1f}",
            ]
        rows.append(cells)
    align = ("left", *["right"] * (len(header) - 1))
    table = tabulate.tabulate(
        rows, header, "simple", colalign=align, disable_numparse=True
    )
    data = result["data"]
    name = spelling.line(f"{data['name']}/{data['split']}".rstrip("/"))
    counted = f"{result['count']:,} images of {name}"
    if result["without_label"]:
        counted += f", {result['without_label']:,} more have no label"
    return f"{table}\n\n{counted}"


def write_predictions(
    result: dict[str, Any],
    images: list[dict[str, Any]],
    path: epath.Path,
    names: Sequence[str],
) -> None:
    """One row an image (and experiment) as .csv or .parquet.

    Columns: experiment, key, labels (more than one: separated by spaces), label_names
    (by "; "), rank, nll, and class_1, name_1, probability_1 and so on, the five most
    probable. Names and keys are as `spelling.written` has them.

    Args:
      result: what `evaluate.evaluate` returned.
      images: what it returned of each image.
      path: of the table.
      names: of the net's classes.

    Raises:
      ConfigError: another suffix, .parquet without pyarrow, or it can't be written.
    """
    check_suffix("--predictions", path, ".csv")
    remedy = "all results are kept: make room, then run the same command again"
    rows = []
    for i, experiment in enumerate(result["experiments"]):
        for image in images:
            outcome = image["experiments"][i]
            row = {
                "experiment": experiment["name"],
                "key": image["key"],
                "labels": " ".join(map(str, image["labels"])),
                "label_names": "; ".join(str(names[i]) for i in image["labels"]),
                "rank": outcome["rank"],
                "nll": outcome["nll"],
            }
            best = zip(outcome["classes"], outcome["probabilities"], strict=True)
            for k, (index, probability) in enumerate(best, start=1):
                row |= {f"class_{k}": index, f"name_{k}": names[index]}
                row[f"probability_{k}"] = probability
            rows.append(spelling.written(row))
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        with storage.whole_file(
            path, ConfigError, remedy, option="--predictions"
        ) as file:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return
    with (
        storage.whole_file(path, ConfigError, remedy, option="--predictions") as file,
        file.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_predictions(path: epath.Path) -> None:
    """Raises ConfigError where `write_predictions` could not; makes the folder."""
    check_suffix("--predictions", path, ".csv")
    storage.check_output("--predictions", path)


def check_suffix(option: str, path: epath.Path, other: str) -> None:
    """Raises ConfigError for names in neither `other` nor .parquet that can be written.

    Args:
      option: that named the path: "--predictions".
      path: of a table.
      other: the suffix that needs no package: ".csv".
    """
    if path.suffix not in (other, ".parquet"):
        raise ConfigError(f"{option} {path}: expected a name in {other} or .parquet")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"{option} {path} needs the package pyarrow: pip install "
            f"'vgg-flax[parquet]', or ask for {other}"
        )
