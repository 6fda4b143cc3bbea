"""A tiny net's tensors under torchvision's names."""

import numpy as np

from vgg_flax.model import VARIANTS

# Index of each convolution in torchvision's `features`, read off its own modules.
TORCHVISION_INDICES = {
    "vgg11": (0, 3, 6, 8, 11, 13, 16, 18),
    "vgg11_bn": (0, 4, 8, 11, 15, 18, 22, 25),
    "vgg13": (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    "vgg13_bn": (0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg16_bn": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    "vgg19_bn": (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49),
}


WIDTHS = (4, 8, 16, 32, 32)  # a sixteenth


CLASSES, FC, WINDOW = 10, 12, 2


def random(*shape: int, seed: list[int]) -> np.ndarray:
    """He-scaled for kernels, so that signals neither die nor explode."""
    fan_in = max(1, int(np.prod(shape[1:])))
    deviation = np.sqrt(2 / fan_in) if len(shape) > 1 else 0.3
    seed[0] += 1
    noise = np.random.default_rng(seed[0]).normal(0, deviation, shape)
    return noise.astype(np.float32)


def torchvision_tensors(variant: str = "vgg16", seed: int = 0) -> dict[str, np.ndarray]:
    """A tiny net as torchvision would save it, window 2 and 12 units in fc6 and fc7."""
    counter, tensors, channels = [seed * 1000], {}, 3
    widths = [
        w for w, s in zip(WIDTHS, VARIANTS[variant].stages, strict=True) for _ in s
    ]
    for index, width in zip(TORCHVISION_INDICES[variant], widths, strict=True):
        name = f"features.{index}"
        tensors[f"{name}.weight"] = random(width, channels, 3, 3, seed=counter)
        tensors[f"{name}.bias"] = random(width, seed=counter)
        if variant.endswith("_bn"):
            name = f"features.{index + 1}"
            tensors[f"{name}.weight"] = 1 + random(width, seed=counter)
            tensors[f"{name}.bias"] = random(width, seed=counter)
            tensors[f"{name}.running_mean"] = random(width, seed=counter)
            tensors[f"{name}.running_var"] = 1 + random(width, seed=counter) ** 2
            tensors[f"{name}.num_batches_tracked"] = np.int64(7)
        channels = width
    for index, (out, inputs) in {
        0: (FC, channels * WINDOW**2),
        3: (FC, FC),
        6: (CLASSES, FC),
    }.items():
        tensors[f"classifier.{index}.weight"] = random(out, inputs, seed=counter)
        tensors[f"classifier.{index}.bias"] = random(out, seed=counter)
    return tensors
