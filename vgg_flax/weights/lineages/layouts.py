"""How each lineage names, orders and feeds its VGGs: a table, walked with Table 1.

A layout says where each of our params lies in a foreign file and how its axes run
there. Container formats are another matter (`containers`): any layout in any format.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from vgg_flax import config
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VARIANTS

TORCHVISION = Preprocessing(config.IMAGENET_MEAN, config.IMAGENET_STD, 256, 224)
# pytorchcv's and mmpretrain's figures were measured with OpenCV's resize.
OPENCV = dataclasses.replace(TORCHVISION, resize="cv2")
# The authors' mean pixel, RGB, 0 to 255; nothing is divided (section 2.1).
CAFFE = Preprocessing(
    (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3, 256, 224
)
# torchvision's VGG16_Weights.IMAGENET1K_FEATURES: the authors' weights, turned to RGB.
FEATURES = Preprocessing((0.48235, 0.45882, 0.40784), (1 / 255,) * 3, 256, 224)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What a file's first convolution expects.

    Attributes:
      preprocessing: in our convention, RGB.
      bgr: whether conv1_1's input axis runs blue, green, red in the file.
    """

    preprocessing: Preprocessing
    bgr: bool = False


PIXELS = {
    "torchvision": Pixels(TORCHVISION),
    "opencv": Pixels(OPENCV),
    "caffe": Pixels(CAFFE, bgr=True),
    "features": Pixels(FEATURES),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One lineage.

    Attributes:
      name: as errors and `describe` give it.
      pixels: a key of `PIXELS`: those of the nets that it publishes.
      conv: a convolution's prefix. `{index}` counts torchvision's modules, `{norm}`
        is the module after it, `{module}` counts convolutions and pools, `{keras}`
        is Keras's suffix of the n-th layer of a class, `{stage}`, `{number}` are ours.
      norm: a BatchNorm's prefix.
      fc: the prefixes of fc6, fc7, fc8.
      leaves: our leaf's name -> its name there.
      kernel: axes of a 4-D kernel, of O, I, H, W.
      dense: axes of a 2-D kernel.
      flatten: how fc6's 2-D input axis was flattened: "CHW" or "HWC".
      convolutional: the FC layers whose kernels are 4-D.
      single: the usual prefixes of the one FC layer of the heads "gap" and "linear":
        the first is written, and is the only one that is read as a "gap".
      names_tell: whether a net of others under these names has these pixels, too;
        False: only what it holds can tell (see `pixels`).
      wrappers: a pattern of what other modules put into names, which is taken off.
      rename: (pattern, replacement), applied to the file's names then.
      ignored: names that hold nothing a forward pass needs.
    """

    name: str
    pixels: str
    conv: str
    fc: tuple[str, str, str]
    leaves: dict[str, str]
    kernel: str
    dense: str
    flatten: str
    norm: str = ""
    convolutional: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    names_tell: bool = True
    wrappers: str = ""
    rename: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


# Of DataParallel, torch.compile, FSDP and activation checkpointing, which wrap any
# module, and of Lightning, which has the net as its `model`.
_WRAPPERS = (
    r"(^|(?<=\.))((module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
    r"|^(model\.)+"
)
_TORCH: dict[str, Any] = {
    "leaves": {
        "kernel": "weight",
        "bias": "bias",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
    },
    "kernel": "OIHW",
    "dense": "OI",
    "flatten": "CHW",
    "wrappers": _WRAPPERS,
    # The step counters of BatchNorm and of an average of models.
    "ignored": (r"\.num_batches_tracked$", r"^n_averaged$"),
}
_KERAS: dict[str, Any] = {"kernel": "HWIO", "dense": "IO", "flatten": "HWC"}
_KERAS3 = {**_KERAS, "leaves": {"kernel": "0", "bias": "1"}}
_OPTIMIZER = (r"^optimizer/", r"^optimizer_weights/", r"^top_level_model_weights/")

LAYOUTS = (
    Layout(
        name="torchvision",
        pixels="torchvision",
        conv="features.{index}.",
        norm="features.{norm}.",
        fc=("classifier.0.", "classifier.3.", "classifier.6."),
        single=("classifier.", "classifier.0.", "fc.", "head.", "linear."),
        **_TORCH,
    ),
    Layout(
        name="torchvision before March 2017",
        pixels="torchvision",
        conv="features.{index}.",
        norm="features.{norm}.",
        fc=("classifier.1.", "classifier.4.", "classifier.6."),
        single=("classifier.1.",),  # behind a dropout, in nets of any year
        **_TORCH,
    ),
    Layout(
        name="timm",
        pixels="torchvision",
        conv="features.{index}.",
        norm="features.{norm}.",
        fc=("pre_logits.fc1.", "pre_logits.fc2.", "head.fc."),
        convolutional=("fc6", "fc7"),
        **_TORCH,
    ),
    Layout(
        name="pytorchcv",
        pixels="opencv",
        conv="features.stage{stage}.unit{number}.conv.",
        norm="features.stage{stage}.unit{number}.bn.",
        fc=("output.fc1.fc.", "output.fc2.fc.", "output.fc3."),
        **_TORCH,
    ),
    Layout(
        name="mmpretrain",
        pixels="opencv",
        conv="features.{module}.conv.",
        norm="features.{module}.bn.",
        fc=("classifier.0.", "classifier.3.", "classifier.6."),
        **_TORCH,
    ),
    Layout(
        name="Keras applications",
        pixels="caffe",
        conv="block{stage}_conv{number}/",
        fc=("fc1/", "fc2/", "predictions/"),
        single=("predictions/", "dense/"),
        names_tell=False,  # anyone's who trains keras.applications.VGG16(weights=None)
        leaves={"kernel": "kernel", "bias": "bias"},
        # block1_conv1/block1_conv1_W_1:0, fc1/fc1/kernel:0, model_weights/fc1/..., and
        # in a net of one's own vgg16/block1_conv1/kernel:0
        rename=(
            (r"^model_weights/", ""),
            (r"(^|/)(\w+)/(?:\2[/_])?(?:W|kernel)(?:_\d+)?(?::0)?$", r"\1\2/kernel"),
            (r"(^|/)(\w+)/(?:\2[/_])?(?:b|bias)(?:_\d+)?(?::0)?$", r"\1\2/bias"),
        ),
        ignored=_OPTIMIZER,
        **_KERAS,
    ),
    Layout(
        name="Keras 3",
        pixels="caffe",
        conv="layers/conv2d{keras}/vars/",
        fc=("layers/dense/vars/", "layers/dense_1/vars/", "layers/dense_2/vars/"),
        single=("layers/dense/vars/",),
        names_tell=False,  # Keras counts layers: every backbone and head is named so
        ignored=_OPTIMIZER,
        **_KERAS3,
    ),
    Layout(
        name="KerasHub",
        pixels="torchvision",
        conv="layers/vgg_backbone/layers/conv2d{keras}/vars/",
        fc=(
            "layers/sequential/layers/conv2d/vars/",
            "layers/sequential/layers/conv2d_1/vars/",
            "layers/sequential/layers/dense/vars/",
        ),
        convolutional=("fc6", "fc7"),
        ignored=_OPTIMIZER,
        **_KERAS3,
    ),
    Layout(
        name="Caffe",
        pixels="caffe",
        conv="conv{stage}_{number}/",
        fc=("fc6/", "fc7/", "fc8/"),
        names_tell=False,  # Caffe users gave their layers the authors' names
        leaves={"kernel": "0", "bias": "1"},
        kernel="OIHW",
        dense="OI",
        flatten="CHW",
    ),
    Layout(
        name="flaxmodels",
        pixels="torchvision",
        conv="conv{stage}_{number}/",
        fc=("fc6/", "fc7/", "fc8/"),
        leaves={"kernel": "weight", "bias": "bias"},
        kernel="HWIO",
        dense="IO",
        flatten="CHW",
    ),
    Layout(
        name="ONNX",  # by place in the graph: see `containers.onnx_layers`
        pixels="torchvision",
        conv="conv{stage}_{number}.",
        norm="conv{stage}_{number}.norm.",
        fc=("fc6.", "fc7.", "fc8."),
        single=("fc8.",),
        names_tell=False,
        leaves={
            "kernel": "W",
            "bias": "B",
            **{leaf: leaf for leaf in ("scale", "mean", "var")},
        },
        kernel="OIHW",
        dense="OI",
        flatten="CHW",
        convolutional=("fc6", "fc7", "fc8"),
    ),
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}


class Slot(NamedTuple):
    """One of our leaves and its foreign name."""

    collection: str  # "params" or "batch_stats"
    layer: str
    leaf: str
    foreign: str
    window: int = 0  # the kernel's side, where Table 1 gives it
    is_flat: bool = False  # whether it takes the last map, flattened

    @property
    def path(self) -> str:
        """`params/conv1_1/kernel`, as checkpoints write it."""
        return f"{self.collection}/{self.layer}/{self.leaf}"


def slots(
    layout: Layout,
    variant: str,
    *,
    conv_bias: bool = True,
    head: str = "fc",
    single: str = "",
) -> Iterator[Slot]:
    """Walks Table 1: every leaf of `variant` with its name under `layout`.

    Args:
      head: as of `VGG`.
      single: of the heads "gap" and "linear": one of the layout's; "": the first.
    """
    table = VARIANTS[variant]
    index = module = count = 0
    for stage, windows in enumerate(table.stages, start=1):
        for number, window in enumerate(windows, start=1):
            place = {
                "stage": stage,
                "number": number,
                "index": index,
                "norm": index + 1,
                "module": module,
                "keras": f"_{count}" if count else "",
            }
            name = f"{stage}_{number}"
            prefix = layout.conv.format(**place)
            yield _slot(layout, "params", f"conv{name}", "kernel", prefix, window)
            if conv_bias:
                yield _slot(layout, "params", f"conv{name}", "bias", prefix)
            if table.batch_norm and layout.norm:
                prefix = layout.norm.format(**place)
                yield _slot(layout, "params", f"bn{name}", "scale", prefix)
                yield _slot(layout, "params", f"bn{name}", "bias", prefix)
                yield _slot(layout, "batch_stats", f"bn{name}", "mean", prefix)
                yield _slot(layout, "batch_stats", f"bn{name}", "var", prefix)
            index += 3 if table.batch_norm else 2  # convolution, (norm,) ReLU
            module += 1
            count += 1
        index += 1  # the pool
        module += 1
    one = (("fc8", single or "".join(layout.single[:1])),)
    heads = {"fc": tuple(zip(("fc6", "fc7", "fc8"), layout.fc, strict=True))}
    heads |= {"gap": one, "linear": one, "none": ()}
    for i, (layer, prefix) in enumerate(heads[head]):
        kernel = _slot(layout, "params", layer, "kernel", prefix)
        yield kernel._replace(is_flat=i == 0)
        yield _slot(layout, "params", layer, "bias", prefix)


def _slot(
    layout: Layout, collection: str, layer: str, leaf: str, prefix: str, window: int = 0
) -> Slot:
    return Slot(collection, layer, leaf, prefix + layout.leaves[leaf], window)
