"""The work that contenders share: images, labels, the update, and batches drawn.

NumPy only: it runs in the peers' environments as well.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.contenders.serve import Run

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's
STD = np.array([0.229, 0.224, 0.225], np.float32)
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
DROPOUT_RATE = 0.5


def batch(spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[batch, side, side, 3]` and int32 `[batch]`, the same for all."""
    rng = np.random.default_rng(0)
    side, size = spec["side"], spec["batch"]
    images = rng.integers(0, 256, (size, side, side, 3), np.uint8)
    return images, rng.integers(0, spec["classes"], size).astype(np.int32)


def kept(spec: dict[str, Any], name: str, **outputs: Any) -> dict[str, Any]:
    """Facts with outputs that the parent compares, in a file of the session's folder.

    Of training: `loss` before, and `change` of conv1_1's kernel, HWIO, by one step
    without dropout; of inference: `logits`, or the features asked for;
    of LPIPS, `distances` and `slopes`, the derivatives towards the other images: single
    pixels' depend on how two nearly equal values of a pool are rounded.
    """
    path = pathlib.Path(spec["folder"]) / f"outputs-{name}.npz"
    arrays: Any = {k: np.asarray(v, np.float32) for k, v in outputs.items()}
    np.savez(path, **arrays)
    return {"outputs": str(path)}


def drawing(
    spec: dict[str, Any], name: str, made: Iterator[np.ndarray]
) -> tuple[Run, dict[str, Any]]:
    """A contender of `input`: it draws from `made`, NHWC; with facts of what is first.

    Of training, whose views are random, the shape of a batch. Of test views, whose
    order is each library's own, also means over all images of the split and 8 x 8
    pixels, in which resizing by others' rules hardly shows; of decoding, an image's.
    """
    images = next(made)
    assert images.dtype == np.uint8, images.dtype
    outputs: dict[str, Any] = {"shape": images.shape}
    if spec["view"] == "test":
        others = (_blocks(next(made)) for _ in range(spec["batches"] - 1))
        outputs["blocks"] = sum(others, _blocks(images)) / spec["batches"]
    elif spec["view"] == "decode":
        outputs["blocks"] = _blocks(images[None])

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            next(made)

    return run, kept(spec, name, **outputs)


def _blocks(images: np.ndarray) -> np.ndarray:
    """Means over 8 x 8 pixels and all images `[batch, height, width, 3]`."""
    height, width = (n // 8 for n in images.shape[1:3])
    whole = images[:, : 8 * height, : 8 * width].astype(np.float32)
    return whole.reshape(-1, height, 8, width, 8, 3).mean((0, 2, 4))
