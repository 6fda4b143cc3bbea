"""Golden logits of real peers, for machines that have none of them.

`python tests/golden.py` (needs the extra `parity`) fills torchvision's vgg11_bn and
Keras's VGG16 with numbers from NumPy, shows them scikit-learn's two photos, prepared
by the peers' own preprocessing, and writes their logits to `files/golden.npz`. The
tests fill the same tensors and compare.
"""

import os
import pathlib
import zlib

import numpy as np
import PIL.Image
import samples

LOGITS = pathlib.Path(__file__).parent / "files" / "golden.npz"


def seeded(name: str, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """He-scaled kernels, small biases, positive variances; float32, from the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.standard_normal(shape, np.float32)
    if "running_var" in name:
        return (1 + noise**2).astype(np.float32)
    if fan_in == 0:  # a bias, or BatchNorm's: a scale is close to 1
        is_scale = len(shape) == 1 and name.endswith("weight")
        return (noise * np.float32(0.1) + np.float32(is_scale)).astype(np.float32)
    return noise * np.float32(np.sqrt(2 / fan_in))


def torchvision_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """By name, with fan-in last: `[out, in, ...]`."""
    return {
        name: seeded(name, shape, int(np.prod(shape[1:])) if len(shape) > 1 else 0)
        for name, shape in shapes.items()
    }


def keras_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """By `layer/kernel` and `layer/bias`, with fan-in first: `[..., in, out]`."""
    return {
        name: seeded(name, shape, int(np.prod(shape[:-1])) if len(shape) > 1 else 0)
        for name, shape in shapes.items()
    }


def main() -> None:
    """Writes the file."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    import torch
    import torchvision

    module = torchvision.models.vgg11_bn(init_weights=False).eval()
    state = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if "num_batches" not in name
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    tensors = torchvision_tensors(shapes)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    transform = torchvision.models.VGG11_BN_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        views = torch.stack([transform(picture) for picture in samples.pictures()])
        torch_logits = module(views).numpy()

    net = keras.applications.VGG16(weights=None, classifier_activation=None)
    variables = {"/".join(v.path.split("/")[-2:]): v for v in net.weights}
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    for name, tensor in keras_tensors(shapes).items():
        variables[name].assign(tensor)
    views = []
    for photo in samples.pictures():  # side 256, centre crop, as the ports report
        photo = photo.resize((int(640 * 256 / 427), 256), PIL.Image.Resampling.BILINEAR)
        left, top = round((photo.size[0] - 224) / 2), 16
        views.append(np.asarray(photo.crop((left, top, left + 224, top + 224))))
    pixels = keras.applications.vgg16.preprocess_input(np.stack(views).astype("f"))
    np.savez(LOGITS, vgg11_bn=torch_logits, VGG16=np.asarray(net(pixels)))


if __name__ == "__main__":
    main()
