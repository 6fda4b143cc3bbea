"""A plain NumPy forward pass of every net: the tests' oracle."""

from typing import Any

import numpy as np

from vgg_flax import model

# Written from the paper's Table 1, not from `model.VARIANTS`: a digit is a kernel
# size, L is LRN, P a pool.
LAYERS = {
    "vgg11": "3P 3P 33P 33P 33P",
    "vgg11_lrn": "3LP 3P 33P 33P 33P",
    "vgg13": "33P 33P 33P 33P 33P",
    "vgg16_1x1": "33P 33P 331P 331P 331P",
    "vgg16": "33P 33P 333P 333P 333P",
    "vgg19": "33P 33P 3333P 3333P 3333P",
}
LAYERS |= {f"{name}_bn": LAYERS[name] for name in LAYERS if name != "vgg11_lrn"}

Arrays = dict[str, np.ndarray]


def oracle(
    net: model.VGG, variables: Any, images: np.ndarray, train: bool = False
) -> tuple[np.ndarray, Arrays, Any]:
    """Logits, each layer's output and (after a step) BatchNorm's running statistics."""
    params, taps, running = variables["params"], {}, {}
    x, stage, layer = images, 1, 1
    for symbol in LAYERS[net.variant].replace(" ", ""):
        name = f"{stage}_{layer}"
        if symbol == "P":
            x = taps[f"pool{stage}"] = pool(x, net.pooling)
            stage, layer = stage + 1, 1
        elif symbol == "L":
            x = taps["lrn1"] = lrn(x)
        else:
            x = convolution(x, params[f"conv{name}"], int(symbol))
            taps[f"conv{name}"] = x
            if net.variant.endswith("_bn"):
                statistics = variables["batch_stats"][f"bn{name}"]
                mean, var = statistics["mean"], statistics["var"]
                if train:
                    batch = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
                    running[f"bn{name}"] = {
                        key: 0.9 * statistics[key] + 0.1 * batch[key] for key in batch
                    }
                    mean, var = batch["mean"], batch["var"]
                scale, bias = (params[f"bn{name}"][key] for key in ("scale", "bias"))
                x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
                taps[f"bn{name}"] = x
            x = taps[f"relu{name}"] = np.maximum(x, 0)
            layer += 1
    if net.head == "fc":
        for name, side in (("6", net.fc6_window), ("7", 1)):
            x = taps[f"fc{name}"] = sliding_fc(x, params[f"fc{name}"], side)
            x = taps[f"relu{name}"] = np.maximum(x, 0)
    side = net.fc6_window if net.head == "linear" else 1
    x = taps["fc8"] = sliding_fc(x, params["fc8"], side)
    logits = taps["logits"] = x.mean((1, 2))
    return logits, taps, running


def convolution(x: np.ndarray, params: Arrays, side: int) -> np.ndarray:
    """Cross-correlation with a `side` x `side` kernel, zeros around the map."""
    _, height, width, _ = x.shape
    kernel, edge = params["kernel"], side // 2
    assert kernel.shape[:2] == (side, side)
    x = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    y = sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(side)
        for j in range(side)
    )
    return y + params.get("bias", 0)


def pool(x: np.ndarray, kind: str) -> np.ndarray:
    """2x2, stride 2, the floor of half the size."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    corners = np.stack(
        [x[:, i:height:2, j:width:2] for i in range(2) for j in range(2)]
    )
    return corners.max(0) if kind == "max" else corners.sum(0) / 4


def lrn(x: np.ndarray) -> np.ndarray:
    """Krizhevsky et al. 2012, section 3.3, channel by channel."""
    y, channels = np.empty_like(x), x.shape[-1]
    for i in range(channels):
        total = np.zeros(x.shape[:-1], x.dtype)
        for j in range(max(0, i - 5 // 2), min(channels - 1, i + 5 // 2) + 1):
            total += x[..., j] ** 2
        y[..., i] = x[..., i] / (2 + 1e-4 * total) ** 0.75
    return y


def sliding_fc(x: np.ndarray, params: Arrays, side: int) -> np.ndarray:
    """A fully connected layer on each `side` x `side` window, flattened as H, W, C."""
    batch, height, width, _ = x.shape
    matrix = params["kernel"].reshape(-1, params["kernel"].shape[-1])
    rows = [
        [
            x[:, i : i + side, j : j + side].reshape(batch, -1) @ matrix
            for j in range(width - side + 1)
        ]
        for i in range(height - side + 1)
    ]
    return np.array(rows).transpose(2, 0, 1, 3) + params["bias"]  # [B, h, w, out]
