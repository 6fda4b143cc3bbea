"""`train_small`, `startup` and `memory`: whole processes, each started anew."""

from typing import Any

from benchmarks.pairs import Row
from benchmarks.suites import steps
from benchmarks.workers import Contender

_WEIGHTS = {"weights": {"variant": "vgg16"}}


def train_small() -> list[Row]:
    """A pair is a run of each, with a seed; torch in its best mode."""
    name = "vgg11_bn, half width, 32 pixels"
    what = steps.spec("vgg11_bn", 128, train=True, side=32, width=0.5)
    step = steps.row("train", name, "torchvision", what)
    spec: dict[str, Any] = {"digits": {}}
    runs = tuple(
        Contender(mode, "torch", "small_run", spec | {"who": "torch", "mode": mode})
        for mode in steps.MODES
    )
    return [
        Row(
            "train_small",
            name,
            "torchvision",
            Contender("vgg-flax", "ours", "small_run", spec | {"who": "ours"}),
            runs,
            amount=1,
            sized=False,
            trial=step,
            pairs=3,  # whole runs, minutes each
        )
    ]


def _fresh(environment: str, what: str, **spec: Any) -> Contender:
    return Contender(environment, environment, "fresh", {"what": what, **spec})


def startup() -> list[Row]:
    """Seconds, of processes after one that warmed the caches."""

    def python(environment: str, *arguments: str) -> Contender:
        return _fresh(environment, "process", arguments=arguments, warmed=True)

    imports = python("ours", "-c", "from vgg_flax import VGG, load")
    first_step = _fresh("ours", "first step", warmed=True)
    own: dict[str, Any] = {"unit": "s", "sized": False}
    return [
        Row(
            "startup",
            "from vgg_flax import VGG, load",
            f"import {package}",
            imports,
            (python(environment, "-c", f"import {package}"),),
            **own,
        )
        for package, environment in (
            ("torchvision", "torch"),
            ("flax", "ours"),
        )
    ] + [
        Row(
            "startup",
            "import vgg_flax",
            "",
            python("ours", "-c", "import vgg_flax"),
            **own,
        ),
        Row(
            "startup",
            "vgg-flax --help",
            "",
            python("ours", "-m", "vgg_flax", "--help"),
            **own,
        ),
        Row(
            "startup",
            "default recipe's first step, warm cache",
            "",
            first_step,
            **own,
        ),
    ]


def memory() -> list[Row]:
    """Peaks: the smaller the better."""

    def peak(contender: Contender) -> Contender:
        fresh = {"answer": "peak_mib", "repetitions": 2, "module": contender.module}
        spec = {**contender.spec, **fresh, "checked": False}
        spec |= {"what": "contender", "warmed": False}
        return Contender(contender.label, contender.environment, "fresh", spec)

    what = steps.spec("vgg16", 8, train=True)
    loading = {"module": "loading", "answer": "value", "repetitions": 1}
    resident = {"what": "resident", "recipe": "default recipe"}
    step = steps.row("train", "vgg16, batch 8", "torchvision", what)
    return [
        Row(
            "memory",
            "train vgg16, batch 8",
            "torchvision",
            peak(steps.ours(what)),
            tuple(peak(contender) for contender in step.theirs),
            unit="MiB",
            sized=False,
            trial=step,  # of speed
            pairs=3,  # they hardly differ
        ),
        Row(
            "memory",
            "load vgg16, anonymous memory over the file",
            "",
            _fresh("ours", "contender", warmed=False, **loading, **_WEIGHTS),
            unit="times",
            sized=False,
            pairs=3,
        ),
        Row(
            "memory",
            "default recipe, resident at step 1,000 over step 100",
            "",
            Contender("ours", "ours", "loop", resident),
            unit="times",
            sized=False,
            pairs=1,
        ),
    ]
