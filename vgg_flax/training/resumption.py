"""What a run starts from: its newest checkpoint, another run's params, or nothing."""

import itertools

import jax

from vgg_flax import config as config_lib
from vgg_flax import console
from vgg_flax.config import Config
from vgg_flax.errors import ConfigError
from vgg_flax.runs import checkpoint
from vgg_flax.runs.leaves import Checkpoint, CheckpointError, from_leaves, to_leaves
from vgg_flax.training import state as state_lib
from vgg_flax.training.job import Job
from vgg_flax.training.state import TrainState


def check_unchanged(saved: Checkpoint, job: Job) -> None:
    """Sees that a run goes on with the settings and the data that it was saved with.

    Raises:
      CheckpointError: it was not saved by a run.
      ConfigError: naming what differs, unless `config.resume_with_changes`; for
        another objective in any case.
    """
    config = job.config
    missing = {"config", "class_names", "evaluated"} - set(saved.meta)
    if missing:
        raise CheckpointError(
            f"step {saved.step} in {job.workdir} does not tell its {sorted(missing)}, "
            "as that of a run would: use another --workdir, and --config.init_from to "
            "start from its params"
        )
    earlier = config_lib.from_dict(saved.meta["config"])
    if earlier.objective != config.objective:
        raise ConfigError(
            f"the run is at step {saved.step} with config.objective="
            f"{earlier.objective!r}, and now has {config.objective!r}: its outputs and "
            "its best mean something else; use another --workdir, and "
            "--config.init_from to start from its params"
        )
    changes = [
        f"config.{name}: {old!r} -> {new!r}"
        for name, (old, new) in config_lib.differences(earlier, config).items()
    ]
    changes += _data_changes(saved, job)
    if changes and not config.resume_with_changes:
        raise ConfigError(
            f"the run is at step {saved.step} with other settings or data: "
            f"{'; '.join(changes)}. Use another --workdir, or go on with "
            "--config.resume_with_changes=true"
        )


def _data_changes(saved: Checkpoint, job: Job) -> list[str]:
    """How the classes and the splits differ from those that a step was saved with."""
    changes = []
    theirs, ours = saved.meta["class_names"], job.class_names
    differing = [
        f"{i} {old!r} -> {new!r}"
        for i, (old, new) in enumerate(itertools.zip_longest(theirs, ours))
        if old != new
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        changes.append(f"classes: {', '.join(differing[:3])}{more}")
    if "data" not in saved.meta:
        console.say(
            f"step {saved.step} is of a version that did not record which images its "
            "splits had; that they are the same was not checked"
        )
    for name, (count, digest) in saved.meta.get("data", {}).items():
        now = job.fingerprints.get(name)
        if now and (count, digest) != now:
            changes.append(
                f"{name} split: {count:,} examples -> {now[0]:,}"
                + ", of other names or content" * (count == now[0])
            )
    return changes


def examples_seen(saved: Checkpoint, job: Job) -> int:
    """How many examples a run had seen at a step, in epochs of the split as it is now.

    Which example is next, and all that goes by epochs, follows from it.
    """
    seen = saved.meta.get("examples_seen")
    if seen is None:
        size = config_lib.from_dict(saved.meta["config"]).data.batch_size
        seen = saved.step * size
        console.say(
            f"step {saved.step} is of a version that did not record how many examples "
            f"it had seen; taken is {saved.step} x {size}, its batch size"
        )
    before, _ = saved.meta.get("data", job.fingerprints)["train"]
    now, _ = job.fingerprints["train"]
    if before != now:
        console.say(
            f"the training split had {before:,} examples and has {now:,}: the run goes "
            f"on at epoch {seen / before:.1f}, in which some come twice or not at all"
        )
        seen = round(seen / before * now)
    return seen


def new_state(config: Config) -> TrainState:
    """The state before the first step: drawn, and taken from `config.init_from`.

    Raises:
      CheckpointError: there is no checkpoint to take from, or it does not fit.
      ConfigError: it lacks one of `config.init_layers`.
    """
    state = jax.jit(lambda: state_lib.init_state(config))()
    return _init_from(config, state) if config.init_from else state


def _init_from(config: Config, state: TrainState) -> TrainState:
    """`state` with params (and statistics) of another run's checkpoint."""
    other = checkpoint.load(config.init_from)
    expected = to_leaves(state)
    chosen = {
        path: leaf
        for path, leaf in other.leaves.items()
        if not config.init_layers or path.split("/")[1] in config.init_layers
    }
    layers = {path.split("/")[1] for path in chosen}
    missing = [layer for layer in config.init_layers if layer not in layers]
    if missing:
        raise ConfigError(
            f"config.init_layers names {missing}, which {config.init_from} lacks; it "
            f"has {sorted({path.split('/')[1] for path in other.leaves})}"
        )
    kept = {
        path: leaf
        for path, leaf in expected.items()
        if path not in chosen and (config.init_layers or not _is_model(path))
    }
    return from_leaves(state, {**kept, **chosen})


def _is_model(path: str) -> bool:
    return path.startswith(("params/", "batch_stats/"))
