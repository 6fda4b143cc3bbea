"""What a run starts from: its newest checkpoint, another run's params, or nothing."""

import dataclasses
import itertools
from typing import Any

import optax

from vgg_flax import config as config_lib
from vgg_flax import console, model, spelling
from vgg_flax.config import Config
from vgg_flax.errors import ConfigError, VGGFlaxError
from vgg_flax.net import Net
from vgg_flax.parallel import distributed
from vgg_flax.runs.leaves import (
    Checkpoint,
    CheckpointError,
    Leaves,
    from_leaves,
    to_leaves,
)
from vgg_flax.training import borrowing, carrying
from vgg_flax.training import state as state_lib
from vgg_flax.training.job import Job
from vgg_flax.training.state import TrainState

_HEAD = ("fc6", "fc7", "fc8")


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
        if spelling.same(old or "") != spelling.same(new or "")
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
        _check_same_start(job, (saved.step, saved.sha256))
        leaves = carrying.with_average(job, carrying.carried(job, saved))
        return job, from_leaves(job.abstract_state, leaves)
    config, pixels = job.config, config_lib.mean_and_std(job.config.data)
    weights = load_weights(config)
    state = new_state(config, weights, job.optimizer)
    if weights is not None and _takes(config, "conv1_1"):
        own = weights.preprocessing
        _check_pixels(config, weights)
        pixels = own.mean, own.std
        told = f"mean {_rounded(own.mean)}, std {_rounded(own.std)}"
        console.say(f"pixels of {weights.source}: {told}")
    job = _with_pixels(job, pixels)
    _check_same_start(job, weights and weights.sha256)
    return job, state


def load_weights(config: Config) -> Net | None:
    """The net in `config.init_from`, without a head that would not be taken."""
    if not config.init_from:
        return None
    head = [name for name in _HEAD if _takes(config, name)]
    dtype = "float64" if config.model.dtype == "float64" else None
    is_grey = config.model.in_channels == 1
    try:
        return borrowing.load(
            config.init_from,
            config.data,
            ema=config.init_ema,
            include_top=None if head else False,
            in_channels=1 if is_grey and _takes(config, "conv1_1") else None,
            dtype=dtype,
        )
    except VGGFlaxError as error:
        name = "config.init_from" + ", with config.init_ema=True" * config.init_ema
        raise ConfigError(f"{name}: {error}") from error


def _check_same_start(job: Job, source: Any) -> None:
    """Raises ConfigError where the processes would start from different things."""
    distributed.check_same(
        {
            "what it starts from": source,
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


def _check_pixels(config: Config, weights: Net) -> None:
    """Raises ConfigError where a config has other pixels than its weights."""
    for name in ("mean", "std"):
        given = getattr(config.data, name)
        value = getattr(weights.preprocessing, name)
        if given not in (None, value):
            raise ConfigError(
                f"config.data.{name}={given}, and {weights.source}, whose conv1_1 the "
                f"run starts from, was trained with {value}; leave it out of the "
                f"recipe, or say --config.data.{name}=None, to train with the weights'"
            )


def new_state(
    config: Config,
    weights: Net | None,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """The state before the first step: drawn, and taken from weights.

    Args:
      config: the run's.
      weights: the net in `config.init_from`; None: there is none.
      optimizer: of one's own; None: the one that the config names.

    Raises:
      CheckpointError: they do not fit.
      ConfigError: they lack one of `config.init_layers`.
    """
    state = state_lib.draw_state(config, optimizer)
    if weights is None:
        return state
    return state_lib.with_average(config, _init_from(config, weights, state))


def _takes(config: Config, layer: str) -> bool:
    """Whether a layer is taken from the weights."""
    return not config.init_layers or layer in config.init_layers


def _init_from(config: Config, other: Net, state: TrainState) -> TrainState:
    """`state` with params (and statistics) of another net.

    Where all are taken and the heads differ, ours starts anew from the first FC layer
    on that is another: what follows would read features that are gone.
    """
    expected, theirs = to_leaves(state), to_leaves(other.variables)
    chosen = {p: leaf for p, leaf in theirs.items() if _takes(config, _layer(p))}
    layers = {_layer(path) for path in theirs}
    missing = [layer for layer in config.init_layers if layer not in layers]
    if missing:
        raise ConfigError(
            f"config.init_layers names {missing}, which {other.source} lacks; it has "
            f"{sorted(layers)}"
        )
    anew: list[str] = []
    if not config.init_layers:
        anew = _new_head(expected, theirs)
        chosen = {p: leaf for p, leaf in chosen.items() if _layer(p) not in anew}
        if there := [name for name in anew if f"params/{name}/kernel" in expected]:
            console.say(
                f"{', '.join(there)}: drawn anew, as {other.source} "
                + ("has no head" if not layers & {*_HEAD} else "has another head")
            )
    kept = {
        path: leaf
        for path, leaf in expected.items()
        if path not in chosen
        and (config.init_layers or not _is_model(path) or _layer(path) in anew)
    }
    try:
        return from_leaves(state, {**kept, **chosen})
    except CheckpointError as error:
        if others := _other_settings(config, other):
            raise ConfigError(
                f"config.init_from={config.init_from!r} is of another net: its "
                f"convolutions go with {' '.join(others)}; say so, or choose with "
                "config.init_layers what is taken"
            ) from error
        raise


def _other_settings(config: Config, other: Net) -> list[str]:
    """The flags with which a run would have the convolutions of another net."""
    own, flags = state_lib.make_model(config.model), list[str]()
    if model.variant_name(own.variant) != other.variant:
        flags.append(f"variant={other.variant}")
    for name in ("width_multiplier", "in_channels", "conv_bias"):
        value = getattr(other.model, name)
        if value != getattr(own, name):
            flags.append(f"{name}={str(value).lower()}")
    return [f"--config.model.{flag}" for flag in flags]


def _new_head(expected: Leaves, theirs: Leaves) -> list[str]:
    """The FC layers from the first one on that differs."""
    for i, name in enumerate(_HEAD):
        paths = [f"params/{name}/{leaf}" for leaf in ("kernel", "bias")]
        shapes = [
            [leaves[path].shape if path in leaves else None for path in paths]
            for leaves in (expected, theirs)
        ]
        if shapes[0] != shapes[1]:
            return list(_HEAD[i:])
    return []


def _layer(path: str) -> str:
    """Of "params/conv1_1/kernel", "conv1_1"."""
    return path.split("/")[1] if "/" in path else path


def _is_model(path: str) -> bool:
    return path.startswith(("params/", "batch_stats/"))
