"""The sets of tensors in what a PyTorch pickle holds, by where they lie in it."""

from typing import Any

from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import mapped_file
from vgg_flax.weights.containers.torch_pickle import Placeholder, Tensor

# A training checkpoint's sets of tensors lie at its top or one deeper; an optimizer's
# state, by the names of params, lies deeper still.
_DEPTH = 2
_NAME_LIMIT = 1000  # characters


def entries(file: mapped_file.MappedFile, root: Any) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors in `root`, by where it lies.

    That is "" for `root` itself, "model" or "ema.model" for what it holds. Tensors
    beside one (`{"state_dict": ..., "best_top1": ...}`) are none: where any mapping has
    a tensor of two axes or more, those without are left out. A pickled module is the
    mapping that its `state_dict()` would be.

    Raises:
      WeightsError: `root` is neither a dict nor a module, or is one without end.
    """
    if not isinstance(root, dict) and not _is_module(root):
        kind = root.name if isinstance(root, Placeholder) else type(root).__name__
        raise WeightsError(
            f"{file.path} holds a {kind}, not a dict of tensors; save it with "
            "torch.save(model.state_dict(), path)"
        )
    by_place: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()  # what is there twice is looked at once
    waiting = [("", root, 0)]
    for place, value, depth in waiting:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Placeholder):
            if not _is_module(value):
                continue
            by_place[place] = _module_tensors(file, value.state)
        elif isinstance(value, dict):
            by_place[place] = {
                name: inner
                for name, inner in value.items()
                if isinstance(name, str) and isinstance(inner, Tensor)
            }
            if depth < _DEPTH:
                for name, inner in value.items():
                    is_set = isinstance(inner, (dict, Placeholder))
                    if is_set and isinstance(name, str) and len(name) <= _NAME_LIMIT:
                        file.spend(len(place) + len(name), "letters in names of sets")
                        inner_place = f"{place}.{name}" if place else name
                        waiting.append((inner_place, inner, depth + 1))
    by_place = {place: tensors for place, tensors in by_place.items() if tensors}
    with_kernels = {
        place: tensors
        for place, tensors in by_place.items()
        if any(_has_axes(tensor) for tensor in tensors.values())
    }
    return with_kernels or by_place


def _has_axes(tensor: Tensor) -> bool:
    return isinstance(tensor.shape, (tuple, list)) and len(tensor.shape) >= 2


def _is_module(value: Any) -> bool:
    """Whether it is an `nn.Module` that was pickled whole."""
    state = value.state if isinstance(value, Placeholder) else None
    parts = "_parameters", "_buffers", "_modules"
    return isinstance(state, dict) and all(
        isinstance(state.get(part), dict) for part in parts
    )


def _module_tensors(
    file: mapped_file.MappedFile, state: dict[str, Any]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    waiting = [("", state)]
    for prefix, parts in waiting:
        # Modules that hold each other end here, and some that hold the same.
        file.spend(10, "modules")
        for part in ("_parameters", "_buffers", "_modules"):
            for name, inner in parts[part].items():
                if not isinstance(name, str):
                    continue
                file.spend(len(prefix) + len(name), "letters in names of modules")
                if part == "_modules" and _is_module(inner):
                    waiting.append((f"{prefix}{name}.", inner.state))
                elif part != "_modules" and isinstance(inner, Tensor):
                    tensors[prefix + name] = inner
    return tensors
