"""Where in a picture a net sees a class: the dense score map, and Grad-CAM."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vgg_flax import console, errors, model
from vgg_flax.model import description
from vgg_flax.net import Net

_OPACITY = 0.65  # of what is 1: the picture is to be seen beneath


class HeatmapError(errors.VGGFlaxError):
    """A scale that the net can't take."""


@dataclasses.dataclass(frozen=True)
class Heatmaps:
    """Where a class is seen, laid over the picture: all `[height, width]`, of pixels.

    Attributes:
      picture: uint8 `[height, width, channels]`, as the net saw it.
      probability: of the class, at each position of the dense score map (section
        3.2): what the net says of the window around it.
      grad_cam: of the last convolution's activation, at least 0, not normalised.
    """

    picture: np.ndarray
    probability: np.ndarray
    grad_cam: np.ndarray


def check_scale(net: Net, scale: int | None) -> int:
    """The scale of `make`; raises HeatmapError where the net can't take it."""
    scale = 2 * net.preprocessing.test_scale if scale is None else scale
    if scale < net.model.smallest_image:
        raise HeatmapError(
            f"scale={scale}; this net takes images of at least "
            f"{net.model.smallest_image} pixels a side"
        )
    return scale


def make(
    net: Net, image: bytes | np.ndarray, class_index: int, scale: int | None = None
) -> Heatmaps:
    """Where `net` sees a class: its dense score map, and Grad-CAM.

    Grad-CAM (Selvaraju et al. 2017, section 3) is the ReLU of the sum of the last
    convolution's channels, each weighted by its mean gradient of the class score.
    Both maps are interpolated linearly between the middles of their positions'
    windows (`description.Layer.center`), and are constant beyond the outermost ones.

    Args:
      net: whose preprocessing is used.
      image: encoded bytes, or uint8 `[height, width, channels]`.
      class_index: a place in the logits.
      scale: the smaller side of the whole image as the net sees it; by default twice
        `test_scale`, where a photo's map has some 10 x 13 positions.

    Raises:
      ImageError: the bytes are no image.
      HeatmapError: the net can't take an image of this scale.
    """
    scale = check_scale(net, scale)
    picture = net.preprocessing.rescale(image, scale)
    height, width, channels = picture.shape
    layers = description.describe(net.model, (1, height, width, channels))
    last_stage = len(model.VARIANTS[net.variant].stages[-1])
    convolution, tap = layers[f"conv5_{last_stage}"], f"relu5_{last_stage}"
    with jax.default_matmul_precision("highest"):
        probability, grad_cam = class_maps(
            net, picture[None], class_index, tap, convolution.shape
        )
    return Heatmaps(
        picture,
        upsample(probability, layers["fc8"], height, width),
        upsample(grad_cam, convolution, height, width),
    )


@functools.partial(jax.jit, static_argnames=("tap", "shape"))
def class_maps(
    net: Net,
    images: jax.Array,
    class_index: int | jax.Array,
    tap: str,
    shape: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """A class's probability `[h, w]` and Grad-CAM `[h', w']`, as large as their layers.

    Args:
      net: whose preprocessing is used.
      images: uint8 `[1, height, width, channels]`.
      class_index: a place in the logits.
      tap: the last convolution's activation, by the name under which it is sown.
      shape: of that activation.
    """
    pixels = net.preprocessing.normalize(images, dtype=net.model.param_dtype)

    def class_score(perturbation: jax.Array) -> Any:
        variables = {**net.variables, "perturbations": {tap: perturbation}}
        scores, collections = net.model.apply(
            variables, pixels, method="score_map", mutable="intermediates"
        )
        activation = collections["intermediates"][tap]
        return scores[..., class_index].mean(), (scores, activation)

    zeros = jnp.zeros(shape, net.model.dtype)
    gradient, (scores, activation) = jax.grad(class_score, has_aux=True)(zeros)
    weights = gradient.astype(net.model.param_dtype).mean(axis=(0, 1, 2))
    probability = nn.softmax(scores[0])[..., class_index]
    return probability, nn.relu(activation[0].astype(weights.dtype) @ weights)


def upsample(
    values: jax.Array, layer: description.Layer, height: int, width: int
) -> np.ndarray:
    """A layer's map at every pixel: `[h, w]` -> `[height, width]`."""
    rows, columns = (
        _interpolation(layer.center + layer.stride * np.arange(count), pixels)
        for count, pixels in zip(values.shape, (height, width), strict=True)
    )
    return rows @ np.asarray(values) @ columns.T


def _interpolation(centers: np.ndarray, pixels: int) -> np.ndarray:
    """The matrix `[pixels, len(centers)]` of linear interpolation."""
    places = np.arange(pixels)
    return np.stack([np.interp(places, centers, e) for e in np.eye(len(centers))], 1)


def draw_heatmaps(
    path: epath.Path,
    title: str,
    picture: np.ndarray,
    probability: np.ndarray,
    grad_cam: np.ndarray,
) -> None:
    """A picture, and beside it a class's two maps laid over it, as a PNG.

    Both are on one scale from 0, where the picture is as it was, to 1.

    Args:
      path: of the PNG.
      title: over all.
      picture: uint8 `[height, width, 1 or 3]`.
      probability: `[height, width]`, from 0 to 1.
      grad_cam: `[height, width]`; shown as a share of its largest value.
    """
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    side = 4.0 / max(height, width)  # inches a pixel
    figure = Figure(
        figsize=(3 * width * side + 1.2, height * side + 0.8),
        dpi=120,
        layout="constrained",
    )
    # A class may be called "$\\alpha$" and is no formula.
    figure.suptitle(title, fontsize="x-large", parse_math=False, wrap=True)
    panels = figure.subplots(1, 3)
    grey = picture.mean(axis=2)
    colors = matplotlib.colormaps["plasma"](np.linspace(0, 1, 256))
    colors[:, 3] = _OPACITY * np.linspace(0, 1, 256) ** 0.75
    over: Any = {"cmap": ListedColormap(colors), "vmin": 0, "vmax": 1}
    for axes in panels:
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    if picture.shape[2] == 3:
        panels[0].imshow(picture)
    shown = panels[1].imshow(probability, **over)
    panels[2].imshow(grad_cam / (grad_cam.max() or 1), **over)
    names = (
        f"{width} x {height} pixels",
        f"probability, at most {probability.max():.2g}",
        "Grad-CAM, as a share of its largest",
    )
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name, fontsize="medium")
        axes.set_axis_off()
    bar = figure.colorbar(shown, ax=panels, fraction=0.03, pad=0.01)
    bar.ax.set_facecolor("0.5")  # as over a picture neither dark nor bright
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1])
    with console.without_glyphs(), path.open("wb") as stream:
        figure.savefig(stream, format="png")
