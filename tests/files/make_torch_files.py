"""Writes the .pth files beside it with torch: `python tests/data/make_torch_files.py`.

They were written by torch 2.14.1. What they hold is `make_arrays`, so that the tests
need no torch.
"""

import collections
import pathlib

import ml_dtypes
import numpy as np

FOLDER = pathlib.Path(__file__).parent


def make_arrays() -> dict[str, np.ndarray]:
    """Of each dtype one, and of each way in which a tensor can lie in its storage."""
    random = np.random.RandomState(0)  # its numbers are the same in every NumPy
    weight = random.randn(4, 3, 3, 3).astype(np.float32)
    shared = random.randn(30).astype(np.float32)
    return {
        "features.0.weight": weight,
        "features.0.bias": random.randn(4).astype(np.float32),
        "features.1.num_batches_tracked": np.array(7, np.int64),
        "channels_last": random.randn(2, 4, 3, 5).astype(np.float32),
        "transposed": random.randn(5, 3).astype(np.float32).T,
        "shared": shared,
        "shared_part": shared[10:16],
        "shared_columns": shared.reshape(5, 6)[:, 1:3],
        "half": random.randn(7).astype(np.float16),
        "bfloat16": random.randn(7).astype(ml_dtypes.bfloat16),
        "double": random.randn(2, 2),
        "bytes": np.arange(9, dtype=np.uint8),
        "bool": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
    }


def main() -> None:
    """Both serialisations, a bare state dict and one in a checkpoint."""
    import torch

    state = collections.OrderedDict()
    for name, array in make_arrays().items():
        if array.dtype == ml_dtypes.bfloat16:
            state[name] = torch.from_numpy(array.astype(np.float32)).bfloat16()
        else:
            state[name] = torch.from_numpy(np.ascontiguousarray(array)).reshape(
                array.shape
            )
    state["features.0.weight"] = torch.nn.Parameter(state["features.0.weight"])
    channels_last = state["channels_last"]
    state["channels_last"] = channels_last.contiguous(memory_format=torch.channels_last)
    state["transposed"] = state["transposed"].t().contiguous().t()
    state["shared_part"] = state["shared"][10:16]
    state["shared_columns"] = state["shared"].reshape(5, 6)[:, 1:3]
    state._metadata = {"": {"version": 1}}  # as Module.state_dict leaves it
    checkpoint = {
        "meta": {"classes": ("cat", "dog"), "seed": None, "time": 1.5},
        "state_dict": state,
        "optimizer": {"state": {0: {"momentum": torch.ones(3)}}, "param_groups": []},
        "epoch": 3,
        "best_top1": torch.tensor(0.7),
    }
    for stem, value in (("state_dict", state), ("checkpoint", checkpoint)):
        torch.save(value, FOLDER / f"{stem}_zip.pth")
        torch.save(
            value,
            FOLDER / f"{stem}_legacy.pth",
            _use_new_zipfile_serialization=False,
        )


if __name__ == "__main__":
    main()
