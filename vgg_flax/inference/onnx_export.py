"""A net as an ONNX graph, checked with ONNX Runtime before it is anywhere."""

import importlib.metadata
import os
import pathlib
from typing import Any

import jax
import numpy as np

from vgg_flax import model, storage
from vgg_flax.inference import folding
from vgg_flax.model import VARIANTS
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError
from vgg_flax.weights.lineages import metadata

INPUTS = ("uint8", "float")
_OPSET, _IR = 17, 8  # of 2021: older readers know them, and nothing here is younger
_LIMIT = (1 << 31) - (1 << 20)  # protobuf's, less the graph itself
_TOLERANCE = 1e-5


def save(net: Net, path: str | os.PathLike[str], input: str = "uint8") -> str:
    """Writes `net` to `path`, whole or not at all; returns what it wrote, in words.

    The graph maps `images`, any number of them at the net's crop size, to `logits`,
    `[batch, num_classes]` (of a net without head the mean of pool5), in float32. The
    model card is in its metadata, so that `load` gives the same net again.

    Args:
      net: whose computation and params may have any dtype.
      input: "uint8": `[batch, crop, crop, channels]`, as `preprocessing.test_view`
        gives them, normalised inside; "float": `[batch, channels, crop, crop]`,
        normalised already.

    Raises:
      WeightsError: the packages are missing, the graph cannot be written, or what ONNX
        Runtime makes of it differs from the net by more than 1e-5 of the logits' range.
    """
    path = pathlib.Path(path)
    if input not in INPUTS:
        raise WeightsError(f"input={input!r} (--input); expected {' or '.join(INPUTS)}")
    onnx, runtime = _packages(path)
    _check(net, path)
    net = _as_float32(net)
    proto = _Builder(net, input == "uint8", onnx).proto()
    with storage.whole_file(path, WeightsError) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        del proto  # half a gigabyte
        moved = _difference(net, temporary, input == "uint8", runtime)
        if not moved <= _TOLERANCE:  # nor NaN
            raise WeightsError(
                f"{path}: ONNX Runtime's logits differ from the net's by {moved:.1e} "
                f"of their range, more than {_TOLERANCE:.0e}: not written; try another "
                "version of onnxruntime"
            )
    return f"ONNX, {input} images; onnxruntime's logits move by {moved:.1e} of theirs"


def _packages(path: pathlib.Path) -> tuple[Any, Any]:
    """onnx and onnxruntime, of an extra that type checkers may not have here."""
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise WeightsError(
            f"{path}: writing ONNX needs the package {error.name}; install it: pip "
            "install 'vgg-flax[onnx]'"
        ) from error
    return onnx, onnxruntime


def _check(net: Net, path: pathlib.Path) -> None:
    """Raises WeightsError for a net that the graph would not compute."""
    side, window = net.preprocessing.crop_size, net.model.head_window
    if net.model.until is not None:
        raise WeightsError(
            f"{path}: a net that ends with {net.model.until} is not written as ONNX; "
            "write a checkpoint: a name without a suffix"
        )
    if _is_windowed(net) and net.model.adaptive_pool and side // 32 != window:
        raise WeightsError(
            f"{path}: adaptive_pool is written where it does nothing, at a crop of "
            f"{32 * window} pixels, and this net's is {side}: give that (--crop-size)"
        )
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(net.variables))
    if size > _LIMIT:
        raise WeightsError(
            f"{path}: {size} bytes of params, and an ONNX file holds {_LIMIT}; write "
            "safetensors"
        )


def _is_windowed(net: Net) -> bool:
    return net.model.head in ("fc", "linear")


def _as_float32(net: Net) -> Net:
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), net.variables)
    return net.replace(variables=variables, model=net.model.clone(dtype="float32"))


class _Builder:
    """The graph so far, as a chain: each node takes what the last one gives."""

    def __init__(self, net: Net, is_uint8: bool, onnx: Any):
        self._net, self._is_uint8, self._onnx = net, is_uint8, onnx
        self._value = "images"
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def proto(self) -> Any:
        """The whole as onnx.ModelProto."""
        net, helper, types = self._net, self._onnx.helper, self._onnx.TensorProto
        side, channels = net.preprocessing.crop_size, net.preprocessing.channels
        shape, kind = ["batch", channels, side, side], types.FLOAT
        if self._is_uint8:
            shape, kind = ["batch", side, side, channels], types.UINT8
            self._normalize()
        side = self._stages(side)
        width = self._head(side)
        self._nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self._nodes,
            net.variant,
            [helper.make_tensor_value_info("images", kind, shape)],
            [helper.make_tensor_value_info("logits", types.FLOAT, ["batch", width])],
            self._constants,
        )
        proto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR,
            producer_name="vgg-flax",
            producer_version=importlib.metadata.version("vgg-flax"),
        )
        helper.set_model_props(proto, metadata.write(net.card, bgr=False))
        return proto

    def _normalize(self) -> None:
        """As `Preprocessing.normalize`, step by step."""
        pixels = self._net.preprocessing
        self._add("Cast", "floats", to=1)
        self._add("Div", "pixels", {"largest": np.float32(255)})
        self._add("Sub", "centered", {"mean": np.array(pixels.mean, np.float32)})
        self._add("Div", "normalized", {"std": np.array(pixels.std, np.float32)})
        self._add("Transpose", "channels_first", perm=[0, 3, 1, 2])

    def _stages(self, side: int) -> int:
        """All up to pool5; returns the side of its map."""
        net, table = self._net, VARIANTS[self._net.variant]
        pool = "MaxPool" if net.model.pooling == "max" else "AveragePool"
        for stage, windows in enumerate(table.stages, start=1):
            for number, window in enumerate(windows, start=1):
                place = f"{stage}_{number}"
                self._convolve(f"conv{place}", window // 2)
                if table.batch_norm:
                    self._normalize_batch(f"bn{place}")
                self._add("Relu", f"relu{place}")
            if table.lrn and stage == 1:  # ONNX divides alpha by the size
                self._add("LRN", "lrn1", size=5, alpha=5e-4, beta=0.75, bias=2.0)
            self._add(pool, f"pool{stage}", kernel_shape=[2, 2], strides=[2, 2])
            side //= 2
        return side

    def _head(self, side: int) -> int:
        """Returns the number of logits; `side` is that of the last map.

        Where that is the head's window, a batch is one matmul for each FC layer.
        """
        net = self._net
        layers = [name for name in net.variables["params"] if name.startswith("fc")]
        is_map = _is_windowed(net) and side != net.model.head_window
        if not _is_windowed(net):
            self._add("GlobalAveragePool", "average")
        if not is_map:
            self._add("Flatten", "vectors", axis=1)
        for name in sorted(layers):
            (self._convolve if is_map else self._multiply)(name)
            if name != "fc8":
                self._add("Relu", name.replace("fc", "relu"))
        if is_map:
            self._add("GlobalAveragePool", "average")
            self._add("Flatten", "vectors", axis=1)
        params = net.variables["params"]
        last = "fc8" if layers else [n for n in params if n.startswith("conv")][-1]
        return params[last]["kernel"].shape[-1]

    def _convolve(self, name: str, pad: int = 0) -> None:
        params = self._net.variables["params"][name]
        weights = {f"{name}.weight": params["kernel"].transpose(3, 2, 0, 1)}
        if "bias" in params:
            weights[f"{name}.bias"] = params["bias"]
        window = [params["kernel"].shape[0]] * 2
        self._add("Conv", name, weights, kernel_shape=window, pads=[pad] * 4)

    def _multiply(self, name: str) -> None:
        """A layer on a map that is flattened as C, H, W."""
        params = self._net.variables["params"][name]
        matrix = params["kernel"].transpose(3, 2, 0, 1)
        weights = {f"{name}.weight": matrix.reshape(len(matrix), -1)}
        self._add("Gemm", name, weights | {f"{name}.bias": params["bias"]}, transB=1)

    def _normalize_batch(self, name: str) -> None:
        variables = self._net.variables
        leaves = {**variables["params"][name], **variables["batch_stats"][name]}
        parts = {f"{name}.{n}": leaves[n] for n in ("scale", "bias", "mean", "var")}
        epsilon = model.BATCH_NORM_EPSILON
        self._add("BatchNormalization", name, parts, epsilon=epsilon)

    def _add(
        self, op: str, name: str, weights: Any | None = None, **attributes: Any
    ) -> None:
        """A node on the value at hand and `weights`, arrays by name."""
        given: dict[str, Any] = weights or {}
        for key, array in given.items():
            constant = self._onnx.numpy_helper.from_array(np.asarray(array), key)
            self._constants.append(constant)
        node = [op, [self._value, *given], [name], name]
        self._nodes.append(self._onnx.helper.make_node(*node, **attributes))
        self._value = name


def _difference(net: Net, path: pathlib.Path, is_uint8: bool, runtime: Any) -> float:
    """How much ONNX Runtime's logits differ, as a share of their range.

    On one image and on three, so that the batch is seen to be free.
    """
    providers = ["CPUExecutionProvider"]
    session = runtime.InferenceSession(str(path), providers=providers)
    images = folding.smooth_noise(net.preprocessing)
    given = images
    if not is_uint8:
        given = np.asarray(net.preprocessing.normalize(images)).transpose(0, 3, 1, 2)
    given = np.ascontiguousarray(given)
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(jax.jit(Net.__call__)(net, images), np.float64)
    found = np.concatenate(
        [session.run(None, {"images": part})[0] for part in (given[:1], given[1:])]
    )
    spread = np.ptp(expected)
    return float(np.abs(found - expected).max() / (spread or 1.0))
