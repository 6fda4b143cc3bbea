"""An evaluation's result: what determines it, each image's part, counts, the file."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import scipy.special
from etils import epath

from vgg_flax import spelling, storage
from vgg_flax.errors import ConfigError
from vgg_flax.evaluation.experiments import Experiment
from vgg_flax.evaluation.journal import Journal
from vgg_flax.evaluation.label_sets import LabelledImages
from vgg_flax.evaluation.posteriors import Settings
from vgg_flax.metrics import TOP_K
from vgg_flax.net import Net

_PACKAGES = ("vgg-flax", "jax", "jaxlib", "flax", "numpy", "scipy")
_PACKAGES += ("pillow", "simplejpeg", "opencv-python-headless")  # decode and resize


def describe(
    nets: Sequence[Net],
    images: LabelledImages,
    experiments: Sequence[Experiment],
    settings: Settings,
    total: int,
) -> dict[str, Any]:
    """All that determines the numbers, JSON-like; `total`: how many images."""
    return {
        "experiments": [
            {
                "name": experiment.name,
                "entries": [
                    {
                        "net": net,
                        "protocol": protocol.name,
                        "scales": list(protocol.scales),
                        "flip": all(views.flip for views in protocol.views()),
                    }
                    for net, protocol in experiment.entries
                ],
            }
            for experiment in experiments
        ],
        "nets": [
            {
                **net.card.identity(),
                "train_scale": net.train_scale and list(net.train_scale),
                "preprocessing": net.preprocessing.to_dict(),
                "dtype": str(net.model.dtype),
                "adaptive_pool": net.model.adaptive_pool,
            }
            for net in nets
        ],
        "data": {
            "name": images.data,
            "split": images.split_name,
            "images": total,
            "label_set": images.label_set,
            "classes": len(images.classes or ()) or nets[0].model.num_classes,
            "fingerprint": images.fingerprint,
        },
        "matmul_precision": settings.matmul_precision,
        "software": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "device": jax.local_devices()[0].device_kind,
    }


def outcome(
    log_posterior: np.ndarray, labels: Sequence[int], classes: np.ndarray
) -> dict[str, Any]:
    """One image under one experiment, JSON-like. Of equal classes the lower is ahead.

    Several right classes: the best one's rank, and the posterior of all together.

    Args:
      log_posterior: `[classes that take part]`, float64.
      labels: of the right classes, indices into it.
      classes: `[classes that take part]`, integers: which of the net's they are.
    """
    order = np.argsort(-log_posterior, kind="stable")
    best = order[: max(TOP_K.values())]
    return {
        "rank": int(np.flatnonzero(np.isin(order, labels))[0]),
        "nll": -np.asarray(scipy.special.logsumexp(log_posterior[list(labels)])).item(),
        "classes": classes[best].tolist(),
        "probabilities": np.exp(log_posterior[best]).tolist(),
    }


def counts(image: dict[str, Any]) -> bool:
    """Whether an image was readable and has a label."""
    return bool(image["experiments"])


def nothing_counts(done: Sequence[dict[str, Any]], split: str) -> str:
    """What is to be sentence where no image of a split `counts`."""
    failed = [f"{image['key']}: {image['error']}" for image in done if "error" in image]
    sentence = f"no image of {split} can be counted: {len(failed)} of {len(done)} are "
    sentence += f"unreadable, {len(done) - len(failed)} have no label"
    return "; ".join([sentence, *failed[:3]])


def summary(
    described: dict[str, Any],
    experiments: Sequence[Experiment],
    done: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """What the images' results, at least one of which `counts`, come to."""
    outcomes = [image for image in done if counts(image)]
    unreadable = [
        {"key": image["key"], "error": image["error"]}
        for image in done
        if "error" in image
    ]
    rows = [
        {**row, **_row([image["experiments"][i] for image in outcomes], experiment)}
        for i, (row, experiment) in enumerate(
            zip(described["experiments"], experiments, strict=True)
        )
    ]
    return {
        "experiments": rows,
        "count": len(outcomes),
        "unreadable": sorted(unreadable, key=lambda bad: bad["key"]),
        "without_label": len(done) - len(outcomes) - len(unreadable),
    }


def _row(outcomes: Sequence[dict[str, Any]], experiment: Experiment) -> dict[str, Any]:
    """Integer counts, and what follows from them."""
    count, summary = len(outcomes), {}
    for name, k in TOP_K.items():
        hits = sum(outcome["rank"] < k for outcome in outcomes)
        summary |= {
            f"{name}_count": hits,
            name: hits / count,
            f"{name}_error_percent": 100 * (count - hits) / count,
        }
    summary["nll"] = math.fsum(outcome["nll"] for outcome in outcomes) / count
    if experiment.row is not None:
        row = experiment.row
        summary["paper"] = {
            "table": row.table,
            "top1_error_percent": row.top1,
            "top5_error_percent": row.top5,
            "top5_test_error_percent": row.top5_test,
        }
    return summary


def path_of(output: epath.Path, key: str) -> epath.Path:
    """The file that a result goes to: `output`, or one of its own in that folder.

    Args:
      output: a file or a folder.
      key: the result's, a hash of all that determines its numbers: what has another
        key never overwrites it.
    """
    return output / f"evaluation-{key}.json" if output.is_dir() else output


def write(result: dict[str, Any], output: epath.Path, journal: Journal) -> None:
    """Writes the JSON file; raises ConfigError where it cannot be written."""
    remedy = (
        f"all results are kept in {journal.path}: make room, then run the same command "
        "again"
    )
    with storage.whole_file(output, ConfigError, remedy, option="--output") as file:
        file.write_text(json.dumps(spelling.written(result), indent=2) + "\n")
