"""What is aimed at: floor and goal of rows, by benchmark, name and peer."""

Target = tuple[float, float]  # floor, goal
_OVER_TORCHVISION = (1.0, 1.2)
TARGETS: dict[tuple[str, str, str], Target] = {
    ("train", "vgg16, batch 8", "torchvision"): _OVER_TORCHVISION,
    ("train", "vgg16_bn, batch 8", "torchvision"): _OVER_TORCHVISION,
    ("train", "vgg11, batch 8", "torchvision"): _OVER_TORCHVISION,
    ("train", "vgg16, batch 8", "Keras on JAX"): (2.0, 3.0),
    ("train", "vgg16, batch 8", "plain Flax"): (1.7, 2.5),
    ("train", "vgg11, batch 8", "plain Flax"): (1.7, 2.5),
    ("train", "vgg16_bn at 32 pixels, batch 128", "torchvision"): (0.8, 1.0),
    ("infer", "vgg16_bn at 32 pixels, batch 128", "torchvision"): (0.8, 1.0),
    ("infer", "vgg16, batch 8", "Keras on JAX"): (1.2, 1.5),
    ("infer", "vgg16, batch 1", "Keras on JAX"): (1.2, 1.5),
    **{
        ("infer", f"{variant}, batch {size}", peer): target
        for variant in ("vgg16", "vgg16_bn", "vgg11")
        for size, peer, target in (
            (8, "torchvision", (1.0, 1.15)),
            (1, "torchvision", (1.0, 1.1)),
        )
    },
    **{
        ("infer", f"{variant}, batch {size}", "plain Flax"): (1.0, 1.2)
        for variant in ("vgg16", "vgg11")
        for size in (8, 1)
    },
    ("uses", "features to relu3_3, batch 8", "torchvision"): _OVER_TORCHVISION,
    ("uses", "LPIPS and its gradient, 8 pairs", "torchvision"): _OVER_TORCHVISION,
    (
        "uses",
        "step with stages 1 to 4 frozen, vgg16, batch 8",
        "the whole step",
    ): (2.0, 2.5),
    (
        "uses",
        "step with mixup, CutMix and erasing, vgg16, batch 8",
        "the whole step",
    ): (0.98, 0.99),
    ("train_small", "vgg11_bn, half width, 32 pixels", "torchvision"): (0.8, 1.0),
    ("memory", "train vgg16, batch 8", "torchvision"): (1.1, 1.0),
    **{
        ("input", f"train view, cv2, {size}", peer): target
        for size in ("500x375", "1500x1000")
        for peer, target in (("tf.data", (1.8, 2.0)), ("decoding alone", (0.8, 0.85)))
    },
    (
        "input",
        "train view, trivial augment, cv2, 500x375",
        "plain train view",
    ): (0.8, 0.85),
    ("loop", "default recipe", "bare step"): (0.97, 0.99),
    ("loop", "vgg11 at 64 pixels", "bare step"): (0.97, 0.99),
    ("evaluate", "vgg16, native photos", "bare forward pass"): (0.9, 0.97),
    ("dense", "vgg16, three scales, flips", "150 crops"): (3.0, 6.0),
    # Seconds: of ours alone.
    ("startup", "import vgg_flax", ""): (1.2, 0.8),
    ("startup", "vgg-flax --help", ""): (0.5, 0.3),
    ("startup", "default recipe's first step, warm cache", ""): (8.0, 5.0),
}
ABSOLUTE = ("startup",)  # where targets are of our figure, not of the ratio


def outcome(benchmark: str, name: str, peer: str, figure: float) -> str:
    """ "goal", "floor" or "below" for a row's ratio or figure; "" without a target."""
    target = TARGETS.get((benchmark, name, peer))
    if target is None:
        return ""
    floor, goal = target
    sign = -1 if goal < floor else 1  # of costs, less is better
    if sign * figure >= sign * goal:
        return "goal"
    return "floor" if sign * figure >= sign * floor else "below"
