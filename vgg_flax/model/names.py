"""What others call a layer: torchvision, timm and Keras, for names of our own."""

import difflib
from collections.abc import Iterator, Sequence

_TORCH_MODULES = ("conv", "bn", "relu", "pool")  # which `features` counts
# The FC layers of torchvision, of timm, and of Keras, which gives what is after the
# ReLU. Dropout is the layer before it, where nothing is dropped.
_HEAD = {
    "classifier.0": "fc6",
    "classifier.1": "relu6",
    "classifier.2": "relu6",
    "classifier.3": "fc7",
    "classifier.4": "relu7",
    "classifier.5": "relu7",
    "classifier.6": "fc8",
    "classifier": "fc8",  # as a whole, of any head
    "pre_logits.fc1": "fc6",
    "pre_logits.act1": "relu6",
    "pre_logits.drop": "relu6",
    "pre_logits.fc2": "fc7",
    "pre_logits.act2": "relu7",
    "head.fc": "fc8",
    "fc1": "relu6",
    "fc2": "relu7",
}


def foreign(known: Sequence[str]) -> dict[str, str]:
    """Others' names of a net's layers, and for each our own.

    Args:
      known: the net's `layer_names`.
    """
    others = {name: layer for name, layer in _HEAD.items() if layer in known}
    has_norm = "bn1_1" in known
    if "lrn1" not in known:  # which they do not have
        others |= {f"features.{i}": own for i, own in enumerate(_modules(known))}
    for layer in known:
        kind, place = layer[:4], layer[4:]
        if (
            kind == "relu" and "_" in place and not has_norm
        ):  # as Keras has no BatchNorm
            stage, _, number = place.partition("_")
            others[f"block{stage}_conv{number}"] = layer
        elif kind == "pool":
            others[f"block{place}_pool"] = layer
    return others


def _modules(known: Sequence[str]) -> Iterator[str]:
    for layer in known:
        if layer.rstrip("12345_") in _TORCH_MODULES:
            yield layer


def resolve(name: str, known: Sequence[str]) -> str:
    """Our own name of a layer that is called `name`.

    Args:
      name: one of `known`, or another's.
      known: the net's `layer_names`.

    Raises:
      ValueError: there is no such layer; with the nearest names.
    """
    if name in known:
        return name
    others = foreign(known)
    if name in others:
        return others[name]
    near = difflib.get_close_matches(str(name), [*known, *others], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise ValueError(
        f"layer {name!r} is none of this net, which ends in {known[-1]}; {hint}"
    )
