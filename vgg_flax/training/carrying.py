"""What a run that goes on keeps of its optimiser's state and average; what is anew."""

from collections.abc import Iterable
from typing import Any

from vgg_flax import config as config_lib
from vgg_flax import console
from vgg_flax.errors import ConfigError
from vgg_flax.runs.leaves import AVERAGE, Checkpoint, Leaves, shapes_by_path, to_leaves
from vgg_flax.training import optimizers, selection
from vgg_flax.training.job import Job

_PREFIX = "opt_state/"


def carried(job: Job, saved: Checkpoint) -> Leaves:
    """The leaves of a step as this run needs them, of other layers or optimisers too.

    What was frozen begins as in a new run, and what is frozen now is left out. All
    begins anew where the optimiser is another, or counts its updates, by which it
    would take what is new for old. Each is told.

    Raises:
      ConfigError: the state is another optimiser's, and the config does not say so.
    """
    config = job.config
    before = config_lib.from_dict(saved.meta["config"])
    expected = _of_optimizer(shapes_by_path(job.abstract_state))
    theirs = _of_optimizer(saved.leaves)
    fresh, gone = set(expected) - set(theirs), set(theirs) - set(expected)
    name, old_name = config.optimizer.name, before.optimizer.name
    if not fresh and not gone and name == old_name:
        return saved.leaves

    params = saved.variables["params"]
    thawed, frozen = (selection.frozen(one, params) for one in (before, config))
    moved = thawed ^ frozen
    why = ""
    if name != old_name:
        why = f"optimizer {old_name} -> {name}"
    elif not {_layer(path) for path in fresh | gone} <= moved:
        why = f"optimizer {name} is made otherwise than at step {saved.step}"
        if not config.resume_with_changes:
            raise ConfigError(
                f"{why}: its state has other parts ({', '.join(sorted(fresh | gone))});"
                " use another --workdir, or go on with "
                "--config.resume_with_changes=true, and its state begins anew"
            )
    elif fresh and any(path.endswith("/count") for path in expected):
        why = f"optimizer {name} counts its updates, and layers are new to it"
    if why:
        console.say(f"{why}: its state begins anew")
        theirs = {}
    else:
        _tell(fresh, "trained from here on, with a momentum of 0")
        _tell(gone, "frozen from here on")

    trained, _ = selection.split(config, params)
    optimizer = optimizers.make_optimizer(config.optimizer, custom=job.optimizer)
    begun = to_leaves({"opt_state": optimizer.init(trained)})
    model = {k: v for k, v in saved.leaves.items() if not k.startswith(_PREFIX)}
    return model | {k: theirs.get(k, v) for k, v in begun.items()}


def with_average(job: Job, leaves: Leaves) -> Leaves:
    """The leaves of a step with the average that this run keeps of its params.

    What has none begins with what it is; that of what is frozen now is left out.
    """
    expected = [p for p in shapes_by_path(job.abstract_state) if p.startswith(AVERAGE)]
    fresh = {
        path: leaves[path.removeprefix(AVERAGE)]
        for path in expected
        if path not in leaves and path.removeprefix(AVERAGE) in leaves
    }
    _tell(fresh, "their average begins here")
    kept = {
        path: leaf
        for path, leaf in leaves.items()
        if not path.startswith(AVERAGE) or path in expected
    }
    return kept | fresh


def _of_optimizer(leaves: dict[str, Any]) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves.items() if path.startswith(_PREFIX)}


def _layer(path: str) -> str:
    """Of "opt_state/1/trace/conv1_1/kernel", "conv1_1"."""
    return path.split("/")[-2]


def _tell(paths: Iterable[str], what: str) -> None:
    layers = sorted({_layer(path) for path in paths})
    if layers:
        console.say(f"{', '.join(layers)}: {what}")
