"""Training and inference steps on this accelerator beside torchvision's: images/s.

python -m benchmarks accelerator [--variants vgg16] [--batch-sizes 64,256] [--pairs 5]:
both in bfloat16 at 224 pixels, on batches that are on the device already. Ours is the
compiled training step of `configs/vgg16_imagenet.py` on one device; torchvision's is
channels-last under autocast, through `torch.compile`. Pairs are taken in turn. The
share is of PEAK, at 3 x 2 operations a multiply-add of the forward pass, less the
gradient for the image, in training. Needs the extra `parity`.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]

from configs import vgg16_imagenet
from vgg_flax import parallel
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib

PEAK = 989e12  # dense bfloat16 FLOP/s of a Hopper SXM card, by its datasheet
SIDE = 224


def multiply_adds(net: torch.nn.Module) -> tuple[int, int]:
    """Of one image's forward pass: all, and conv1_1's."""
    counts: list[int] = []

    def note(layer: Any, _: Any, y: torch.Tensor) -> None:
        counts.append(layer.weight.numel() * y.shape[2:].numel())

    kinds = torch.nn.Conv2d, torch.nn.Linear
    hooks = [
        m.register_forward_hook(note) for m in net.modules() if isinstance(m, kinds)
    ]
    with torch.no_grad():
        net(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return sum(counts), counts[0]


def ours(variant: str, size: int, *, train: bool) -> Callable[[int], None]:
    """Runs so many steps, and waits for them."""
    recipe = vgg16_imagenet.get_config()
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, variant=variant)
    )
    devices = jax.local_devices()[:1]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (size, SIDE, SIDE, 3), np.uint8)
    batch = {"image": images, "label": random.integers(0, 1000, size).astype(np.int32)}
    batch |= {"mask": np.ones(size, bool), "index": np.arange(size, dtype=np.int32)}
    batch = parallel.shard(batch, devices)
    state = parallel.replicate(state_lib.init_state(recipe), devices)
    if train:
        mapped = parallel.pmap_step(
            step_lib.make_train_step(recipe, lambda step: 1e-4),
            donate_state=True,
            devices=devices,
        )
        step = parallel.compile_step(mapped, state, batch)
    else:
        mapped = parallel.pmap_step(
            step_lib.make_eval_step(recipe), donate_state=False, devices=devices
        )
        step = parallel.compile_step(mapped, state.variables, batch)
    kept = [state]

    def run(steps: int) -> None:
        out: Any = None
        for _ in range(steps):
            if train:
                kept[0], out = step(kept[0], batch)
            else:
                out = step(kept[0].variables, batch)
        jax.block_until_ready((kept, out))

    return run


def torchvisions(variant: str, size: int, *, train: bool) -> Callable[[int], None]:
    """The same work; its uint8 images are normalised on the device, too."""
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    net = torchvision.models.get_model(variant).to(device).train(train)
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4, fused=True
    )
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (size, 3, SIDE, SIDE), np.uint8)
    images = torch.from_numpy(pixels).to(device)
    labels = torch.from_numpy(random.integers(0, 1000, size)).to(device)
    mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    def forward(images: torch.Tensor) -> torch.Tensor:
        x = ((images / 255 - mean) / std).to(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            return net(x)

    compiled = torch.compile(forward)

    def run(steps: int) -> None:
        for _ in range(steps):
            if train:
                optimizer.zero_grad(set_to_none=True)
                scores = compiled(images).float()
                torch.nn.functional.cross_entropy(scores, labels).backward()
                optimizer.step()
            else:
                with torch.inference_mode():
                    compiled(images)
        torch.cuda.synchronize()

    return run


def seconds(run: Callable[[int], None], steps: int) -> float:
    begin = time.perf_counter()
    run(steps)
    return (time.perf_counter() - begin) / steps


def compare(variant: str, size: int, pairs: int, *, train: bool) -> dict[str, Any]:
    """Medians of `pairs` alternating measurements of about a second."""
    mine, theirs = (make(variant, size, train=train) for make in (ours, torchvisions))
    for run in (mine, theirs):
        run(3)  # compiles
    steps = max(5, int(0.7 / max(seconds(mine, 3), 1e-4)))
    times = [(seconds(mine, steps), seconds(theirs, steps)) for _ in range(pairs)]
    ratios = [b / a for a, b in times]
    all_, first = multiply_adds(torchvision.models.get_model(variant).eval())
    operations = 2 * (3 * all_ - first if train else all_)
    speed = size / statistics.median(a for a, _ in times)
    return {
        "what": f"{'train' if train else 'infer'} {variant}, batch {size}",
        "images/s": round(speed, 1),
        "torchvision images/s": round(size / statistics.median(b for _, b in times), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "share of peak": round(speed * operations / PEAK, 3),
    }


def main() -> None:
    """Prints a JSON line a comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", default="vgg16")
    parser.add_argument("--batch-sizes", default="64,256")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    card = jax.devices()[0].device_kind
    print(f"{card}; jax {jax.__version__}, torch {torch.__version__}", flush=True)
    for variant in options.variants.split(","):
        for size in map(int, options.batch_sizes.split(",")):
            for train in (True, False):
                row = compare(variant, size, options.pairs, train=train)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
