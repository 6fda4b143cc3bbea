"""Makes `vgg_flax/perceptual/lpips_vgg.npz` from the package `lpips` 0.1.4.

    python make_lpips_weights.py lpips/weights/v0.1/vgg.pth

Its licence is beside what is made. Needs torch.
"""

import pathlib
import sys

import numpy as np
import torch

ROOM = pathlib.Path(__file__).parents[2] / "vgg_flax" / "perceptual"
LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

tensors = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
arrays = {
    layer: tensors[f"lin{i}.model.1.weight"].numpy().reshape(-1)
    for i, layer in enumerate(LAYERS)
}
np.savez_compressed(ROOM / "lpips_vgg.npz", **arrays)
