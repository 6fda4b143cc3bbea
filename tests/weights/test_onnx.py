"""ONNX: graphs as exporters write them, and all that is not the graph of a VGG."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from onnx_files import FLOAT, UINT8, Graph
from torchvision_net import torchvision_tensors
from weight_files import little_memory, refusal

import vgg_flax
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import formats
from vgg_flax.weights.lineages import layouts, mapping

Tensors = dict[str, np.ndarray]


def hwc(matrix: np.ndarray) -> np.ndarray:
    """fc6 of torchvision's as TensorFlow has it: `[in, out]`, flattened H, W, C."""
    out, inputs = matrix.shape
    kernel = matrix.reshape(out, inputs // 4, 2, 2)
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)).reshape(inputs, out)


# Exporters


def torch_flatten(tensors: Tensors) -> Graph:
    """torch's older one: AdaptiveAvgPool2d, at its size, is an average of one pixel."""
    graph = Graph().stages(tensors)
    graph.add("AveragePool", kernel_shape=[1, 1], strides=[1, 1])
    return graph.add("Flatten", axis=1).gemms(tensors)


def torch_view(tensors: Tensors) -> Graph:
    """`x.view(x.size(0), -1)` of any batch: a shape that is made of the map's own."""
    graph = Graph().stages(tensors)
    size = graph.node("Shape", [graph.value])
    zero = graph.node("Constant", [], value=np.array(0))
    first = graph.node("Gather", [size, zero], axis=0)
    parts = [
        graph.node("Unsqueeze", [first, graph.constant([0])]),
        graph.constant(np.array([-1])),
    ]
    return graph.add("Reshape", graph.node("Concat", parts, axis=0)).gemms(tensors)


def torch_dynamo(tensors: Tensors) -> Graph:
    """torch's newer one: constants by Identity, a Reshape, dropout that drops none."""
    graph = Graph((2, 3, 64, 64)).stages(tensors)
    target = graph.node("Constant", [], value_ints=[2, -1])
    graph.add("Identity").add("Reshape", graph.node("Identity", [target]), allowzero=1)
    return graph.add("Dropout", np.array(0.5, "f4"), np.array(False)).gemms(tensors)


def tf2onnx(tensors: Tensors) -> Graph:
    """Images NHWC and turned; matrices `[in, out]` and biases of their own."""
    graph = Graph(("N", 64, 64, 3)).add("Transpose", perm=[0, 3, 1, 2])
    graph.stages(tensors, bias="add").add("Transpose", perm=[0, 2, 3, 1])
    graph.add("Reshape", np.array([-1, 128]))
    for index in (0, 3, 6):
        matrix = tensors[f"classifier.{index}.weight"]
        matrix = hwc(matrix) if index == 0 else np.ascontiguousarray(matrix.T)
        graph.add("MatMul", matrix).add("Add", tensors[f"classifier.{index}.bias"])
        graph.add("Relu" if index < 6 else "Softmax")
    return graph


def zoo(tensors: Tensors) -> Graph:
    """The model zoo's of 2018: initialisers are inputs too, Dropout has a ratio."""
    graph = Graph((1, 3, 64, 64), ir=3).stages(tensors).add("Flatten")
    for index in (0, 3, 6):
        prefix = f"classifier.{index}"
        graph.add(
            "Gemm", tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"], transB=1
        )
        if index < 6:
            graph.add("Relu").add("Dropout", ratio=0.5)
    for constant in graph.model.graph.initializer:
        graph.declare(constant.name, [*constant.dims])
    return graph


def convolutional(tensors: Tensors) -> Graph:
    """FC layers as convolutions, and what takes the two axes away."""
    graph = Graph().stages(tensors)
    for index, side in ((0, 2), (3, 1), (6, 1)):
        matrix = tensors[f"classifier.{index}.weight"]
        kernel = matrix.reshape(len(matrix), -1, side, side)
        bias = tensors[f"classifier.{index}.bias"]
        graph.add("Conv", kernel, bias, kernel_shape=[side, side], auto_pad=b"VALID")
        if index < 6:
            graph.add("Relu")
    return graph.add("Squeeze", np.array([2, 3]))


def score_map(tensors: Tensors) -> Graph:
    """The same on images of any size: logits are the mean of the score map."""
    graph = convolutional(tensors)
    del (
        graph.model.graph.node[-1],
        graph.model.graph.input[0].type.tensor_type.shape.dim[:],
    )
    graph.value = graph.model.graph.node[-1].output[0]
    return graph.add("ReduceMean", axes=[2, 3], keepdims=0)


EXPORTERS = (
    *(torch_flatten, torch_view, torch_dynamo, tf2onnx, zoo, convolutional),
    score_map,
)


def loaded(path: pathlib.Path, **options: Any) -> Net:
    return vgg_flax.load(path, **{"preprocessing": "torchvision", **options})


def assert_same(net: Net, tensors: Tensors, **options: Any) -> None:
    """That a net is the one which the same tensors are under torchvision's names."""
    expected = mapping.to_weights(tensors, **options)
    assert net.model == expected.card.model
    assert net.preprocessing == expected.card.preprocessing
    jax.tree.map(np.testing.assert_array_equal, net.variables, expected.variables)


@pytest.mark.parametrize("variant", ["vgg11", "vgg13_bn", "vgg16", "vgg19"])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_graphs_of_exporters_are_read(
    exporter: Callable[[Tensors], Graph], variant: str, tmp_path: pathlib.Path
) -> None:
    tensors = torchvision_tensors(variant)
    path = exporter(tensors).write(tmp_path / "net.onnx")
    assert_same(loaded(path), tensors)


def test_what_is_left_out_is_told(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded(tf2onnx(torchvision_tensors("vgg11")).write(tmp_path / "net.onnx"))
    assert "its Softmax is left out, outputs are logits" in capsys.readouterr().err


def test_a_file_of_capitals_is_one_too(tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11")
    path = torch_flatten(tensors).write(tmp_path / "NET.ONNX")
    assert_same(loaded(path), tensors)
    with pytest.raises(Exception, match=r"give the file: .*NET\.ONNX"):
        vgg_flax.load(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):  # not asked of the hub
        vgg_flax.load("some/other.ONNX")


# Heads and pools


@pytest.mark.parametrize("kind", ["mean", "global", "average", "convolution"])
def test_a_lone_fc_layer_after_a_global_pool(kind: str, tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11")
    matrix, bias = np.ones((5, 32), "f4") / 7, np.arange(5, dtype="f4")
    graph = Graph().stages(tensors)
    match kind:
        case "mean":
            graph.add("ReduceMean", np.array([-1, -2]), keepdims=0)
        case "global" | "convolution":
            graph.add("GlobalAveragePool")
        case "average":
            graph.add("AveragePool", kernel_shape=[2, 2])
    if kind == "convolution":
        graph.add("Conv", matrix[:, :, None, None], bias).add("Flatten")
    else:
        graph.add("Flatten").add("Gemm", matrix, bias, transB=1)
    net = loaded(graph.write(tmp_path / "net.onnx"))
    assert (net.model.head, net.model.num_classes) == ("gap", 5)
    fc8 = net.variables["params"]["fc8"]
    np.testing.assert_array_equal(fc8["kernel"][0, 0], matrix.T)
    assert net.preprocessing.crop_size == 64  # as the graph says


def test_one_layer_over_the_whole_map_is_a_linear_head(tmp_path: pathlib.Path) -> None:
    """As `Linear(25088, N)` is exported: behind a flattened map, C, H, W."""
    tensors = torchvision_tensors("vgg11")
    width = tensors["features.18.weight"].shape[0]
    matrix = np.arange(5 * 4 * width, dtype=np.float32).reshape(5, 4 * width) / 1000
    graph = Graph().stages(tensors).add("Flatten")
    graph.add("Gemm", matrix, np.arange(5, dtype=np.float32), transB=1)
    net = loaded(graph.write(tmp_path / "net.onnx"))
    assert (net.model.head, net.model.num_classes) == ("linear", 5)
    assert net.model.fc6_window == 2 and net.preprocessing.crop_size == 64
    np.testing.assert_array_equal(
        net.variables["params"]["fc8"]["kernel"],
        matrix.reshape(5, width, 2, 2).transpose(2, 3, 1, 0),
    )


def test_convolutions_alone_are_features(tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11")
    path = Graph().stages(tensors).write(tmp_path / "net.onnx")
    with pytest.raises(WeightsError, match="include_top=False"):
        loaded(path)
    assert_same(
        loaded(path, include_top=False, crop_size=64),
        {k: v for k, v in tensors.items() if k.startswith("features")},
        include_top=False,
        crop_size=64,
    )


def test_average_pools_and_lrn_are_part_of_the_net(tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11")
    graph = Graph().stages(tensors, pool="AveragePool").add("Flatten").gemms(tensors)
    assert loaded(graph.write(tmp_path / "net.onnx")).model.pooling == "average"
    graph = Graph().conv(tensors, "features.0").add("Relu")
    graph.add("LRN", size=5, alpha=5e-4, beta=0.75, bias=2.0).pool()
    rest = {k: v for k, v in tensors.items() if not k.startswith("features.0.")}
    graph.stages(rest).add("Flatten").gemms(tensors)
    assert loaded(graph.write(tmp_path / "lrn.onnx")).variant == "vgg11_lrn"


def test_another_epsilon_gives_the_same_function(tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11_bn")
    graph = Graph().stages(tensors).add("Flatten").gemms(tensors)
    (node,) = (n for n in graph.model.graph.node if "features.1.weight" in n.input)
    (epsilon,) = node.attribute
    epsilon.f = 1e-3  # Keras's
    statistics = loaded(graph.write(tmp_path / "n.onnx")).variables["batch_stats"]
    var = tensors["features.1.running_var"]
    np.testing.assert_allclose(statistics["bn1_1"]["var"] + 1e-5, var + 1e-3, rtol=1e-6)
    var = tensors["features.5.running_var"]
    np.testing.assert_array_equal(statistics["bn2_1"]["var"], var)


# Pixels


def unnamed(graph: Graph) -> Graph:
    """With names that nobody knows."""
    for node in graph.model.graph.node:
        node.input[:] = [name.replace("features", "layer") for name in node.input]
    for constant in graph.model.graph.initializer:
        constant.name = constant.name.replace("features", "layer")
    return graph


def test_pixels_are_those_of_a_lineages_names_or_asked_for(
    tmp_path: pathlib.Path,
) -> None:
    tensors = torchvision_tensors("vgg11")
    named = torch_flatten(tensors).write(tmp_path / "named.onnx")
    assert_same(vgg_flax.load(named), tensors)
    path = unnamed(torch_flatten(tensors)).write(tmp_path / "net.onnx")
    with pytest.raises(WeightsError, match=r"names of ONNX do not tell.*--preproc"):
        vgg_flax.load(path)
    assert vgg_flax.load(path, preprocessing="caffe").preprocessing.std[0] < 0.01
    net = vgg_flax.load(path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert net.preprocessing.mean == (0.1, 0.2, 0.3)


def test_names_of_convolutions_into_which_batch_norm_was_folded(
    tmp_path: pathlib.Path,
) -> None:
    tensors = torchvision_tensors("vgg11_bn")
    folded = {k: v for k, v in tensors.items() if np.ndim(v) in (2, 4) or ".0." in k}
    folded |= {k: v for k, v in tensors.items() if k.endswith("bias")}
    graph, index = Graph(), 0
    for index in (0, 4, 8, 11, 15, 18, 22, 25):
        graph.conv(folded, f"features.{index}").add("Relu")
        if index not in (8, 15, 22):
            graph.pool()
    path = graph.add("Flatten").gemms(folded).write(tmp_path / "net.onnx")
    net = vgg_flax.load(path)
    assert (net.variant, net.preprocessing.std[0]) == ("vgg11", 0.229)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def channels_first(*values: float) -> np.ndarray:
    return array(*values).reshape(1, -1, 1, 1)


MEAN, STD = layouts.TORCHVISION.mean, layouts.TORCHVISION.std
CAFFE = tuple(round(v * 255, 3) for v in layouts.CAFFE.mean)
TURN = ("Gather", np.array([2, 1, 0]))
NORMALIZATIONS = {  # what is done, to which images -> mean, std, and whether bgr
    "torch": (
        [("Sub", channels_first(*MEAN)), ("Div", channels_first(*STD))],
        *(FLOAT, MEAN, STD, False),
    ),
    "of 0 to 255": (
        [
            ("Mul", array(1 / 255)),
            ("Sub", channels_first(*MEAN)),
            ("Div", channels_first(*STD)),
        ],
        *(FLOAT, MEAN, STD, False),
    ),
    "of uint8": (
        [("Div", array(255)), ("Sub", array(0.5)), ("Div", array(0.25))],
        *(UINT8, (0.5,) * 3, (0.25,) * 3, False),
    ),
    "to [-1, 1]": (
        [("Mul", array(2)), ("Add", array(-1))],
        *(FLOAT, (0.5,) * 3, (0.5,) * 3, False),
    ),
    "Caffe's, blue first": (
        [("Sub", channels_first(*CAFFE[::-1]))],
        *(FLOAT, layouts.CAFFE.mean, layouts.CAFFE.std, True),
    ),
    "Caffe's, turned before": (
        [TURN, ("Sub", channels_first(*CAFFE[::-1]))],
        *(FLOAT, layouts.CAFFE.mean, layouts.CAFFE.std, True),
    ),
    "turned after": (
        [("Sub", channels_first(0.1, 0.2, 0.3)), TURN],
        *(FLOAT, (0.1, 0.2, 0.3), (1, 1, 1), True),
    ),
    "scaled alone": (
        [("Div", array(255))],
        *(FLOAT, (0, 0, 0), (1, 1, 1), False),
    ),
}


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_a_graph_that_normalises_says_its_pixels(
    kind: str, tmp_path: pathlib.Path
) -> None:
    steps, dtype, mean, std, bgr = NORMALIZATIONS[kind]
    tensors = torchvision_tensors("vgg11")
    graph = Graph(dtype=dtype)
    if dtype == UINT8:
        graph.add("Cast", to=FLOAT)
    for op, constant in steps:
        graph.add(op, constant, **({"axis": 1} if op == "Gather" else {}))
    graph.stages(tensors).add("Flatten").gemms(tensors)
    path = graph.write(tmp_path / "net.onnx")
    net = vgg_flax.load(path)
    np.testing.assert_allclose(net.preprocessing.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(net.preprocessing.std, std, rtol=1e-6)
    kernel = np.asarray(net.variables["params"]["conv1_1"]["kernel"])
    ours = tensors["features.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, ours[:, :, ::-1] if bgr else ours)
    with pytest.raises(WeightsError, match="normalises its images itself"):
        vgg_flax.load(path, preprocessing="caffe")


def test_a_flip_of_tensorflow_before_the_axes_are_turned(
    tmp_path: pathlib.Path,
) -> None:
    tensors = torchvision_tensors("vgg11")
    graph = Graph(("N", 64, 64, 3))
    ends = (np.array([n]) for n in (-1, -(2**63), 3, -1))
    graph.add("Slice", *ends).add("Sub", array(*CAFFE[::-1]))
    graph.add("Transpose", perm=[0, 3, 1, 2]).stages(tensors).add("Flatten")
    net = vgg_flax.load(graph.gemms(tensors).write(tmp_path / "net.onnx"))
    np.testing.assert_allclose(net.preprocessing.mean, layouts.CAFFE.mean, rtol=1e-6)


@pytest.mark.parametrize("steps", [[("Add", 1), ("Div", 2)], [("Sub", 5)]])
def test_a_normalisation_of_who_knows_which_images_is_asked_about(
    steps: list[tuple[str, float]], tmp_path: pathlib.Path
) -> None:
    tensors, graph = torchvision_tensors("vgg11"), Graph()
    for op, value in steps:
        graph.add(op, array(value))
    path = (
        graph.stages(tensors).add("Flatten").gemms(tensors).write(tmp_path / "n.onnx")
    )
    with pytest.raises(WeightsError, match=r"\(image - .*--preprocessing"):
        vgg_flax.load(path)
    assert loaded(path).preprocessing.mean == MEAN


def test_the_size_is_the_graphs_or_fc6s(tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11")
    for shape, expected in [((1, 3, 64, 64), 64), (("N", 3, "H", "W"), 64)]:
        graph = Graph(shape).stages(tensors).add("Flatten").gemms(tensors)
        net = loaded(graph.write(tmp_path / "net.onnx"))
        assert net.preprocessing.crop_size == net.preprocessing.test_scale == expected
    gap = Graph(("N", 3, "H", "W")).stages(tensors).add("GlobalAveragePool")
    gap.add("Flatten").add("Gemm", np.ones((32, 9), "f4"), np.ones(9, "f4"))
    with pytest.raises(WeightsError, match="crop_size="):
        loaded(gap.write(tmp_path / "gap.onnx"))


# What is no VGG


def broken(op: str, *others: Any, **attributes: Any) -> Callable[[Tensors], Graph]:
    """A node more, after the first ReLU."""

    def make(tensors: Tensors) -> Graph:
        graph = Graph().conv(tensors, "features.0").add("Relu")
        graph.add(op, *others, **attributes).pool()
        rest = {k: v for k, v in tensors.items() if not k.startswith("features.0.")}
        return graph.stages(rest).add("Flatten").gemms(tensors)

    return make


def first(**attributes: Any) -> Callable[[Tensors], Graph]:
    """A first convolution that is another."""

    def make(tensors: Tensors) -> Graph:
        graph = Graph().conv(tensors, "features.0", **attributes).add("Relu").pool()
        return graph.add("Flatten").gemms(tensors)

    return make


def pooled(op: str = "MaxPool", **attributes: Any) -> Callable[[Tensors], Graph]:
    return lambda t: Graph().conv(t, "features.0").add("Relu").pool(op, **attributes)


def headed(*steps: tuple[Any, ...], **shape: Any) -> Callable[[Tensors], Graph]:
    """Another head."""

    def make(tensors: Tensors) -> Graph:
        graph = Graph(**shape).stages(tensors)
        for op, *others in steps:
            attributes = others.pop() if others and isinstance(others[-1], dict) else {}
            graph.add(op, *others, **attributes)
        return graph

    return make


def residual(tensors: Tensors) -> Graph:
    graph = Graph().conv(tensors, "features.0").add("Relu")
    before = graph.value
    kernel = np.ones((4, 4, 3, 3), "f4")
    return graph.add("Conv", kernel, pads=[1] * 4).add("Relu").add("Add", before)


def other_input(tensors: Tensors) -> Graph:
    graph = torch_flatten(tensors)
    graph.declare("state", ("N", 9))
    return graph


def circle(tensors: Tensors) -> Graph:
    graph = torch_flatten(tensors)
    graph.model.graph.node[1].output[0] = "images"
    return graph


def no_output(tensors: Tensors) -> Graph:
    graph = torch_flatten(tensors)
    graph.value = graph.model.graph.node[0].output[0]
    return graph


def without_relu(tensors: Tensors) -> Graph:
    graph = Graph().stages(tensors).add("Flatten").gemms(tensors)
    nodes = graph.model.graph.node
    relu = [i for i, node in enumerate(nodes) if node.op_type == "Relu"][-1]
    nodes[relu + 1].input[0] = nodes[relu].input[0]
    del nodes[relu]
    return graph


FC = np.ones((128, 9), "f4")
REFUSED: dict[str, tuple[Callable[[Tensors], Graph], str]] = {
    "another operator": (broken("Sigmoid"), r"Sigmoid 'sigmoid_3' is no layer"),
    "another's operator": (
        broken("com.microsoft.Gelu"),
        r"com.microsoft.Gelu '.*' is no layer",
    ),
    "a quantised net": (broken("QuantizeLinear"), "QuantizeLinear .* is no layer"),
    "pixels in the middle": (broken("Mul", FC[:1, :1]), "Mul .* comes after relu"),
    "dropout that drops": (
        broken("Dropout", np.array(0.5, "f4"), np.array(True)),
        "Dropout .* is for training",
    ),
    "integers": (broken("Cast", to=7), "Cast .* gives no floats"),
    "axes in disorder": (broken("Transpose", perm=[1, 0, 2, 3]), "to CNHW"),
    "no axes": (broken("Transpose", perm=[1, 0]), "turns axes by"),
    "another normalisation": (broken("LRN", size=3), "is not that of A-LRN"),
    "a residual": (residual, r"'value2' branches, to Conv '.*' and Add"),
    "a stride": (first(strides=[2, 2]), r"Conv 'conv_1' has strides \[2, 2\]"),
    "a dilation": (first(dilations=[2, 2]), "has dilations"),
    "groups": (first(group=3), "has group 3; expected 1"),
    "too much padding": (first(pads=[2, 2, 2, 2]), "pads 3x3 by 2"),
    "padding on one side": (first(pads=[0, 0, 1, 1]), "pads 3x3 by -1"),
    "no padding": (first(pads=[0, 0, 0, 0]), "comes after image"),
    "3x3 pools": (pooled(kernel_shape=[3, 3]), r"has kernel_shape \[3, 3\]"),
    "overlapping pools": (pooled(strides=[1, 1]), "is no pool of 2x2"),
    "other pools": (pooled("LpPool"), "LpPool .* is no layer"),
    "too few stages": (pooled(), "conv2_1.W: missing"),
    "no ReLU": (without_relu, "comes after fc; expected relu"),
    "two inputs": (other_input, r"images \[None, 3, 64, 64\], state \[None, 9\]"),
    "a circle": (circle, "graph is not that of a VGG"),
    "an end that is none": (no_output, "which is no output"),
    "a matrix on a map": (headed(("Gemm", FC)), "multiplies NCHW"),
    "a matrix of another map": (
        headed(("Flatten",), ("Gemm", np.ones((127, 9), "f4"))),
        "takes 127 numbers, no map of 32 channels",
    ),
    "a matrix of another size": (
        headed(("Flatten",), ("Gemm", np.ones((32 * 9, 9), "f4"))),
        "takes 288 numbers",
    ),
    "half a matrix": (headed(("Flatten",), ("Gemm", FC, {"alpha": 0.5})), "alpha 0.5"),
    "a matrix that is given": (headed(("Flatten",), ("Gemm", "images")), "branches"),
    "another shape": (headed(("Reshape", np.array([1, 32, 4]))), "gives array"),
    "another axis": (headed(("Flatten", {"axis": 2})), "axis 2; expected 1"),
    "a mean over channels": (headed(("ReduceMean", {"axes": [1]})), "height and width"),
    "an end on ReLU": (
        headed(("Flatten",), ("Gemm", FC), ("Relu",)),
        "ends with relu after the last FC",
    ),
    "layers after Softmax": (
        headed(("Flatten",), ("Gemm", FC), ("Softmax",), ("Relu",)),
        "comes after Softmax",
    ),
    "more FC layers after a global pool": (
        headed(
            *(("GlobalAveragePool",), ("Flatten",), ("Gemm", FC[:32]), ("Relu",)),
            ("Gemm", FC[:9]),
        ),
        "second FC layer after a global pool",
    ),
    "a head of two": (
        headed(("Flatten",), ("Gemm", FC), ("Relu",), ("Gemm", FC[:9])),
        "not that of a VGG",
    ),
    "oblong images": (headed(shape=(1, 3, 64, 96)), "not square"),
    "other channels": (headed(shape=(1, 4, 64, 64)), "takes 3 channels of images"),
    "sequences": (headed(shape=(1, 3, 64)), "of four axes"),
    "padded pools of unknown sides": (
        lambda t: (
            Graph((1, 3, "H", "W"))
            .conv(t, "features.0")
            .add("Relu")
            .pool(ceil_mode=1)
        ),
        "odd, or not known",
    ),
    "another bias": (
        lambda t: Graph().conv(t, "features.0").add("Add", np.ones(4, "f4")),
        r"adds \(4,\), no B of 4",
    ),
    "pixels by place": (
        lambda t: Graph().add("Sub", np.ones((64, 64), "f4")).conv(t, "features.0"),
        "takes a constant of shape",
    ),
    "pixels by zero": (
        lambda t: Graph().add("Div", array(0)).conv(t, "features.0"),
        "scales pixels by zero",
    ),
    "some channels": (
        lambda t: Graph().add("Gather", np.array([0, 1, 2]), axis=1),
        "does more than to turn",
    ),
    "the other way round": (
        lambda t: Graph().add(*TURN, axis=3).conv(t, "features.0"),
        "images that are turned",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_vgg_is_refused_by_name(what: str, tmp_path: pathlib.Path) -> None:
    make, words = REFUSED[what]
    path = make(torchvision_tensors("vgg11")).write(tmp_path / "net.onnx")
    with pytest.raises(WeightsError, match=words) as caught:
        loaded(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "attributes",
    [
        {"perm": 5},
        {"perm": b"x"},
        {"perm": np.ones((2, 2), "f4")},
        {"perm": 1.5},
        {"perm": [0, -1, 2, 3]},
        {},
    ],
    ids=str,
)
def test_attributes_of_any_kind_end_in_one_line(
    attributes: Any, tmp_path: pathlib.Path
) -> None:
    make = broken("Transpose", **attributes)
    refusal(make(torchvision_tensors("vgg11")).write(tmp_path / "net.onnx"))
    kinds = {f"{name}": v for name in ("axes", "keepdims") for v in attributes.values()}
    make = headed(("ReduceMean", kinds))
    refusal(make(torchvision_tensors("vgg11")).write(tmp_path / "net.onnx"))


# Tensors in other files


def moved(graph: Graph, location: str, **entries: str) -> bytes:
    """Takes all numbers out of a graph; returns what the other file is to hold."""
    content = b""
    for constant in graph.model.graph.initializer:
        offset, size = str(len(content)), str(len(constant.raw_data))
        content += constant.raw_data
        constant.ClearField("raw_data")
        constant.data_location = 1
        pairs = {"location": location, "offset": offset, "length": size, **entries}
        for key, value in pairs.items():
            constant.external_data.add(key=key, value=value)
    return content


def test_tensors_beside_the_file_are_read(tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11")
    graph = torch_flatten(tensors)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "net.bin").write_bytes(moved(graph, "data/net.bin"))
    path = graph.write(tmp_path / "net.onnx")
    assert_same(loaded(path), tensors)
    (tmp_path / "data" / "net.bin").unlink()
    assert "not in its folder; put that beside it" in refusal(path)


@pytest.mark.parametrize("place", ["../secret", "{folder}/../secret", "link", "a\0b"])
def test_files_elsewhere_are_not_read(place: str, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    graph = torch_flatten(torchvision_tensors("vgg11"))
    content = moved(graph, place.format(folder=folder))
    (tmp_path / "secret").write_bytes(content)
    (folder / "link").symlink_to(tmp_path / "secret")
    assert "not in its folder" in refusal(graph.write(folder / "net.onnx"))


@pytest.mark.parametrize(
    "entries", [{"offset": "9999999"}, {"length": "-1"}, {"offset": "x"}], ids=str
)
def test_places_that_are_not_in_the_other_file(
    entries: dict[str, str], tmp_path: pathlib.Path
) -> None:
    graph = torch_flatten(torchvision_tensors("vgg11"))
    (tmp_path / "data").write_bytes(moved(graph, "data", **entries))
    with pytest.raises(WeightsError, match="lies at"):
        formats.read(graph.write(tmp_path / "net.onnx"))


# Files that lie


def test_a_small_file_has_few_nodes_and_constants(tmp_path: pathlib.Path) -> None:
    graph = Graph()
    for _ in range(5000):
        graph.add("Relu")
    with little_memory(24 << 20):
        assert "fields: refused" in refusal(graph.write(tmp_path / "net.onnx"))


def test_constants_are_not_computed_for_a_stranger(tmp_path: pathlib.Path) -> None:
    graph = torch_flatten(torchvision_tensors("vgg11"))
    size = graph.constant(np.array([1 << 20, 1 << 20]))
    graph.node("ConstantOfShape", [size])
    graph.node("Expand", [graph.constant(array(1)), size])
    matrix = graph.constant(np.ones((400, 400), "f4"))
    for _ in range(100):
        matrix = graph.node("Transpose", [matrix], perm=[1, 0])
        matrix = graph.node("Reshape", [matrix, graph.constant(np.array([400, 400]))])
    with little_memory(24 << 20):
        assert loaded(graph.write(tmp_path / "net.onnx")).variant == "vgg11"


def test_one_tensor_for_many_layers_is_a_bomb(tmp_path: pathlib.Path) -> None:
    graph, kernel = Graph(), np.zeros((512, 512, 3, 3), "f4")
    name = graph.constant(kernel)
    for _ in range(20):
        graph.add("Conv", name, pads=[1, 1, 1, 1]).add("Relu")
    graph.model.graph.node[0].input[1] = graph.constant(np.zeros((512, 3, 3, 3), "f4"))
    assert "bomb" in refusal(graph.pool().write(tmp_path / "net.onnx"))


def test_tensors_that_do_not_fit(tmp_path: pathlib.Path) -> None:
    def with_first(**fields: Any) -> pathlib.Path:
        graph = torch_flatten(torchvision_tensors("vgg11"))
        constant = graph.model.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                constant.dims[:] = value
            else:
                setattr(constant, name, value)
        return graph.write(tmp_path / "net.onnx")

    for dims in ([4], [4, 3, 3], [-4, 3, 3, -3], [1 << 40] * 4, [0, 1 << 62]):
        assert "features.0.weight" in refusal(with_first(dims=dims))
    assert "data type 8" in refusal(with_first(data_type=8))
    assert "bytes" in refusal(with_first(data_type=11))
    assert "two tensors are called" in refusal(with_first(name="features.0.bias"))
    assert "no graph" in refusal(tmp_path / "x.onnx", b"\x08\x08\x12\x01x")


def test_numbers_may_be_packed_instead_of_raw(tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11")
    graph = torch_flatten(tensors)
    for constant in graph.model.graph.initializer:
        constant.float_data.extend(np.frombuffer(constant.raw_data, "f4").tolist())
        constant.ClearField("raw_data")
    assert_same(loaded(graph.write(tmp_path / "net.onnx")), tensors)


def test_half_precision_is_read_as_float32(tmp_path: pathlib.Path) -> None:
    tensors = torchvision_tensors("vgg11")
    halves = {k: np.asarray(v).astype(np.float16) for k, v in tensors.items()}
    graph = Graph(dtype=10).stages(halves).add("Flatten").gemms(halves)
    assert_same(loaded(graph.write(tmp_path / "net.onnx")), halves)
