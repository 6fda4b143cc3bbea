"""`train`, `infer`, `uses`: compiled, beside torchvision, Keras on JAX, plain Flax."""

from typing import Any

from benchmarks.pairs import Row
from benchmarks.workers import Contender

MODES = ("eager", "channels-last", "compile")
# float32 sums in other orders; a small change of a weight is rounded as the weight is.
_TOLERANCE = {"infer": 1e-3, "train": 5e-2}
PEERS = {"torchvision": "torch", "Keras on JAX": "keras", "plain Flax": "ours"}
_MODULES = {
    "torchvision": "torchvision_steps",
    "Keras on JAX": "keras_steps",
    "plain Flax": "flax_steps",
}


def spec(
    variant: str,
    batch: int,
    *,
    train: bool,
    side: int = 224,
    width: float = 1.0,
    checked: bool = True,
    until: str = "",
    freeze: tuple[str, ...] = (),
    also: str = "",
) -> dict[str, Any]:
    """What every contender of a row is told; at 32 pixels 10 classes and a pool.

    Of an inference, `until` is the layer that is asked for, if not the logits; of a
    training step, `freeze` says what is not trained, and `also` what is done besides:
    "mixing" of images, or an "average" of the params, at each step.
    """
    head, classes = ("fc", 1000) if side == 224 else ("gap", 10)
    weights = {"variant": variant, "width": width, "head": head, "classes": classes}
    spec = {"batch": batch, "side": side, "train": train, "checked": checked}
    parts = {"until": until, "freeze": freeze, "also": also}
    return {**weights, **spec, **parts, "weights": weights}


def contenders(
    peer: str, what: dict[str, Any], module: str = ""
) -> tuple[Contender, ...]:
    """Those of a peer: torchvision has three modes; `module`: of other work."""
    environment, module = PEERS[peer], module or _MODULES[peer]
    if peer != "torchvision":
        return (Contender(peer, environment, module, what),)
    return tuple(
        Contender(mode, environment, module, what | {"mode": mode}) for mode in MODES
    )


def ours(what: dict[str, Any]) -> Contender:
    """This package."""
    return Contender("vgg-flax", "ours", "ours_steps", what)


def rows(benchmark: str) -> list[Row]:
    """Of `train` or `infer`."""
    train = benchmark == "train"
    chosen: list[tuple[str, str, dict[str, Any]]] = []
    for size in (8,) if train else (8, 1):
        for variant in ("vgg16", "vgg16_bn", "vgg11"):
            for peer in PEERS:
                norm = variant.endswith("_bn") and peer != "torchvision"
                if norm or (peer == "Keras on JAX" and variant != "vgg16"):
                    continue  # those nets the peer does not have
                what = spec(variant, size, train=train)
                chosen.append((f"{variant}, batch {size}", peer, what))
    small = spec("vgg16_bn", 128, train=train, side=32)
    chosen.append(("vgg16_bn at 32 pixels, batch 128", "torchvision", small))
    return [row(benchmark, *fields) for fields in chosen]


def uses() -> list[Row]:
    """Features and LPIPS beside torchvision; a step with frozen stages over a whole."""
    what = spec("vgg16", 8, train=False, until="relu3_3")
    features = row("uses", "features to relu3_3, batch 8", "torchvision", what)
    what = spec("vgg16", 8, train=True)
    lpips = Row(
        "uses",
        "LPIPS and its gradient, 8 pairs",
        "torchvision",
        Contender("vgg-flax", "ours", "ours_lpips", what),
        contenders("torchvision", what, "torchvision_lpips"),
        amount=8,
        unit="pairs/s",
        tolerance=_TOLERANCE["train"],
    )
    stages = tuple(f"stage{number}" for number in range(1, 5))
    frozen, whole = (
        ours(spec("vgg16", 8, train=True, checked=False, freeze=freeze))
        for freeze in (stages, ())
    )
    others = {"step with stages 1 to 4 frozen, vgg16, batch 8": frozen}
    for also, title in (
        ("mixing", "step with mixup, CutMix and erasing"),
        ("average", "step with an average, moved each time"),
    ):
        what = spec("vgg16", 8, train=True, checked=False, also=also)
        others[f"{title}, vgg16, batch 8"] = ours(what)
    beside = [
        Row("uses", name, "the whole step", contender, (whole,), 8)
        for name, contender in others.items()
    ]
    return [features, lpips, *beside]


def row(benchmark: str, name: str, peer: str, what: dict[str, Any]) -> Row:
    """Us and a peer, in images/s."""
    return Row(
        benchmark,
        name,
        peer,
        ours(what),
        contenders(peer, what),
        amount=what["batch"],
        tolerance=_TOLERANCE["train" if what["train"] else "infer"],
    )
