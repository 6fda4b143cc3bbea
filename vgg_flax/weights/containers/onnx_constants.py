"""What in an ONNX graph depends on constants alone; the rest is its chain."""

from typing import Any

import numpy as np

from vgg_flax import errors
from vgg_flax.weights.containers.onnx_file import Graph, Node

_FLOATS = (1, 10, 11, 16)  # data types that a Cast of images or maps may give

Constants = dict[str, np.ndarray | None]


def split(graph: Graph) -> tuple[Constants, list[Node]]:
    """The constants by name, and the nodes that are given something else.

    A constant is None where it is made in a way that is not followed here: what is made
    of sizes (`Shape`) counts as constant, too.
    """
    constants: Constants = dict(graph.constants)
    rest = []
    for node in graph.nodes:
        inputs = [name for name in node.inputs if name]
        if node.op in ("Shape", "Size") or all(name in constants for name in inputs):
            value = _evaluate(node, [constants.get(name) for name in inputs])
            constants |= dict.fromkeys(node.outputs)
            constants[node.outputs[0] if node.outputs else ""] = value
        else:
            rest.append(node)
    return constants, rest


def given(node: Node, place: int, constants: Constants) -> np.ndarray:
    """What a node takes at a place; raises ValueError if that is no constant."""
    name = node.inputs[place] if place < len(node.inputs) else ""
    array = constants.get(name)
    if array is None:
        raise ValueError(f"takes {errors.shown(name)}, which is no constant")
    return array


def reversed_axis(node: Node, constants: Constants) -> int | None:
    """The axis whose order Gather or Slice turns, of three; None: it does more."""
    if node.op == "Gather":
        turns = _few(given(node, 1, constants)) in ([2, 1, 0], [-1, -2, -3])
        axis = node.attributes.get("axis", 0)
    else:
        places = [given(node, place, constants) for place in range(1, 5)]
        if any(array.size != 1 for array in places):
            return None
        start, end, axis, step = (array.item() for array in places)
        turns = step == -1 and start in (-1, 2) and end < -3
    return axis if turns else None


def axes(node: Node, constants: Constants, rank: int) -> list[int] | None:
    """The axes that a node names, as an attribute or, later, as its second input."""
    found = node.attributes.get("axes")
    if found is None and len(node.inputs) > 1:
        found = _few(constants.get(node.inputs[1]))
    if not isinstance(found, list) or not all(isinstance(a, int) for a in found):
        return None
    return sorted(axis % rank for axis in found) if rank else None


def check_spatial(node: Node, constants: Constants, order: str) -> None:
    """Raises ValueError unless a node's axes are height and width."""
    found = axes(node, constants, len(order))
    if found is None or {order[axis] for axis in found} != {"H", "W"}:
        raise ValueError("is not over height and width alone")


def check_neutral(node: Node, constants: Constants) -> None:
    """Raises ValueError for a Cast, Dropout or Identity that changes numbers."""
    if node.op == "Cast" and node.attributes.get("to") not in _FLOATS:
        raise ValueError("gives no floats")
    has_mode = node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2]
    if has_mode and given(node, 2, constants).any():
        raise ValueError("is for training")


def _few(array: np.ndarray | None) -> list[Any] | None:
    """The numbers of one that says axes or sizes, which are few; or None."""
    if array is None or array.ndim > 1 or array.size > 64:
        return None
    return array.ravel().tolist()


def _evaluate(node: Node, inputs: list[np.ndarray | None]) -> np.ndarray | None:
    """Views of what there is: no numbers are computed, whatever a file asks for."""
    if node.op == "Constant":
        return _constant(node.attributes)
    array = inputs[0] if inputs else None
    if array is None:
        return None
    if node.op == "Identity":
        return array
    if node.op == "Cast" and array.dtype.kind == "f" and node.attributes.get("to") == 1:
        return array if array.dtype == np.float32 else None
    if node.op == "Transpose":
        order = node.attributes.get("perm", [*range(array.ndim)][::-1])
        is_order = isinstance(order, list) and sorted(order) == [*range(array.ndim)]
        return array.transpose(order) if is_order else None
    if node.op in ("Reshape", "Squeeze", "Unsqueeze") and array.flags.c_contiguous:
        return _reshaped(node, inputs)
    return None


def _constant(attributes: dict[str, Any]) -> np.ndarray | None:
    value = next(iter(attributes.values()), None)
    if isinstance(value, (int, float, list)):
        kind = np.float32 if isinstance(value, float) else None
        of_floats = isinstance(value, list) and any(isinstance(v, float) for v in value)
        return np.asarray(value, np.float32 if of_floats else kind)
    return value if isinstance(value, np.ndarray) else None


def _reshaped(node: Node, inputs: list[np.ndarray | None]) -> np.ndarray | None:
    array = inputs[0]
    assert array is not None
    if node.op == "Reshape":
        shape = inputs[1] if len(inputs) > 1 else None
        sizes = _few(shape)
    elif node.op == "Squeeze":
        named = dict(zip(node.inputs, inputs, strict=False))
        chosen = axes(node, named, array.ndim)
        kept = [n for i, n in enumerate(array.shape) if i not in (chosen or ())]
        sizes = kept if chosen else [n for n in array.shape if n != 1]
    else:
        named = dict(zip(node.inputs, inputs, strict=False))
        given = axes(node, named, 64)
        rank = array.ndim + len(given or ())
        chosen = axes(node, named, rank)
        rest = iter(array.shape)
        sizes = [1 if i in (chosen or ()) else next(rest, 1) for i in range(rank)]
    try:
        return None if sizes is None or len(sizes) > 8 else array.reshape(sizes)
    except (ValueError, TypeError, OverflowError):
        return None
