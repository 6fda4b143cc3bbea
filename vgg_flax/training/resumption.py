"""What a run starts from: its newest checkpoint, another run's params, or nothing."""

import dataclasses
import itertools

from vgg_flax import config as config_lib
from vgg_flax import console
from vgg_flax.config import Config
from vgg_flax.errors import ConfigError
from vgg_flax.parallel import distributed
from vgg_flax.runs import checkpoint
from vgg_flax.runs.leaves import Checkpoint, CheckpointError, from_leaves, to_leaves
from vgg_flax.training import state as state_lib
from vgg_flax.training.job import Job
from vgg_flax.training.state import TrainState
from vgg_flax.weights.card import ModelCard


def check_unchanged(saved: Checkpoint, job: Job) -> None:
    """Sees that a run goes on with the settings and the data that it was saved with.

    Raises:
      ConfigError: naming what differs, unless `config.resume_with_changes`; for
        another objective in any case.
    """
    config = job.config
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


def first_state(job: Job, saved: Checkpoint | None) -> tuple[Job, TrainState]:
    """What a run starts with: its job with the pixels settled, and its state, whole.

    Where the config leaves the mean or the std out, a run that goes on keeps its own;
    a new one has those of the net whose conv1_1 it starts from, or ImageNet's.

    Args:
      job: with the config as it was given.
      saved: what the run goes on from; None: it is new.

    Raises:
      ConfigError: the settings or the data changed, or `config.data` has other pixels
        than the net in `config.init_from`.
      CheckpointError: what is to be started from is missing, or does not fit.
    """
    if saved is not None:
        _check_is_of_a_run(saved, job)
        own = config_lib.from_dict(saved.meta["config"]).data
        job = _with_pixels(job, config_lib.mean_and_std(own))
        check_unchanged(saved, job)
        _check_same_start(job, saved)
        return job, from_leaves(job.abstract_state, saved.leaves)
    config, pixels = job.config, config_lib.mean_and_std(job.config.data)
    weights = checkpoint.load(config.init_from) if config.init_from else None
    state = new_state(config, weights)
    if weights is not None and _takes(config, "conv1_1"):
        own = ModelCard.of_step(weights, config.init_from).preprocessing
        _check_pixels(config, {"mean": own.mean, "std": own.std})
        pixels = own.mean, own.std
        told = f"mean {_rounded(own.mean)}, std {_rounded(own.std)}"
        console.say(f"pixels of {config.init_from}: {told}")
    job = _with_pixels(job, pixels)
    _check_same_start(job, weights)
    return job, state


def _check_same_start(job: Job, source: Checkpoint | None) -> None:
    """Raises ConfigError where the processes would start from different things."""
    distributed.check_same(
        {
            "what it starts from": source and (source.step, source.sha256),
            "config.data.mean": job.config.data.mean,
            "config.data.std": job.config.data.std,
        }
    )


def _check_is_of_a_run(saved: Checkpoint, job: Job) -> None:
    """Raises CheckpointError for a net that was saved by itself."""
    missing = {"config", "class_names", "evaluated"} - set(saved.meta)
    if missing:
        raise CheckpointError(
            f"step {saved.step} in {job.workdir} does not tell its {sorted(missing)}, "
            "as that of a run would: use another --workdir, and --config.init_from to "
            "start from its params"
        )


def _with_pixels(job: Job, pixels: tuple[tuple[float, ...], ...]) -> Job:
    """`job` with this mean and std, where its config leaves them out."""
    data = job.config.data
    mean, std = (
        own if given is None else given
        for given, own in zip((data.mean, data.std), pixels, strict=True)
    )
    data = dataclasses.replace(data, mean=mean, std=std)
    config = config_lib.check(dataclasses.replace(job.config, data=data))
    return dataclasses.replace(job, config=config)


def _rounded(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _check_pixels(config: Config, theirs: dict[str, tuple[float, ...]]) -> None:
    """Raises ConfigError where a config has other pixels than its weights."""
    for name, value in theirs.items():
        given = getattr(config.data, name)
        if given not in (None, value):
            raise ConfigError(
                f"config.data.{name}={given}, and {config.init_from}, whose conv1_1 "
                f"the run starts from, was trained with {value}; leave it out of the "
                f"recipe, or say --config.data.{name}=None, to train with the weights'"
            )


def new_state(config: Config, weights: Checkpoint | None) -> TrainState:
    """The state before the first step: drawn, and taken from weights.

    Args:
      config: the run's.
      weights: the net in `config.init_from`; None: there is none.

    Raises:
      CheckpointError: they do not fit.
      ConfigError: they lack one of `config.init_layers`.
    """
    state = state_lib.draw_state(config)
    return state if weights is None else _init_from(config, weights, state)


def _takes(config: Config, layer: str) -> bool:
    """Whether a layer is taken from the weights."""
    return not config.init_layers or layer in config.init_layers


def _init_from(config: Config, other: Checkpoint, state: TrainState) -> TrainState:
    """`state` with params (and statistics) of another run's checkpoint."""
    expected = to_leaves(state)
    chosen = {
        path: leaf
        for path, leaf in other.leaves.items()
        if _takes(config, path.split("/")[1])
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
