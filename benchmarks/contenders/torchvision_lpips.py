"""LPIPS on torchvision's vgg16, as its paper's equation; as a loss, in three modes."""

import pathlib
from typing import Any

import numpy as np
import safetensors.torch
import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]

from benchmarks.contenders import serve, work

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TAPS = {3: "relu1_2", 8: "relu2_2", 15: "relu3_3", 22: "relu4_3", 29: "relu5_3"}
_ROOT = pathlib.Path(__file__).parents[2]  # vgg_flax is not installed for this Python
_WEIGHTS = _ROOT / "vgg_flax" / "perceptual" / "lpips_vgg.npz"


def _unit(x: Any) -> Any:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    torch.set_num_threads(spec["threads"])
    layout = torch.contiguous_format
    if spec["mode"] != "eager":
        layout = torch.channels_last
    net = torchvision.models.get_model(spec["variant"])
    net.load_state_dict(safetensors.torch.load_file(spec["weights"]))
    net = net.features.eval().requires_grad_(False).to(memory_format=layout)
    with np.load(_WEIGHTS) as file:
        weights = {k: torch.from_numpy(file[k]).view(1, -1, 1, 1) for k in file}
    shift, scale = (torch.tensor(x).view(1, 3, 1, 1) for x in (_SHIFT, _SCALE))

    def features(x: Any) -> dict[str, Any]:
        x, kept = (x - shift) / scale, {}
        for i, layer in enumerate(net):
            x = layer(x)
            if i in _TAPS:
                kept[_TAPS[i]] = x
        return kept

    def distances(images: Any, others: Any) -> Any:
        mine, theirs = features(images), features(others)
        return sum(
            ((_unit(mine[k]) - _unit(theirs[k])).square() * w).sum(1).mean((1, 2))
            for k, w in weights.items()
        )

    if spec["mode"] == "compile":
        distances = torch.compile(distances)
    pixels = torch.from_numpy(work.batch(spec)[0] / np.float32(127.5) - 1)
    images = pixels.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    others = images.roll(1, 0)
    images.requires_grad_(True)

    def step() -> Any:
        images.grad = None
        found = distances(images, others)
        found.sum().backward()
        return found

    found = step().detach().numpy()
    slopes = (images.grad * (others - images.detach())).sum((1, 2, 3)).numpy()
    facts = work.kept(spec, "torchvision", distances=found, slopes=slopes)

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            step()

    return run, facts


if __name__ == "__main__":
    serve.serve(prepare)
