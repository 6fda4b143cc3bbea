"""What a run is: typed settings, their checks, and the errors a user can mend.

A recipe in `configs/` returns a `Config`; the command line overrides its fields by
dotted name. `check` is called once, at the border, before anything is built.
"""

import dataclasses
import difflib
import importlib.util
import json
from typing import Any

import dacite

# Krizhevsky et al. 2012, section 4.1: principal components of ImageNet's RGB pixels
# in [0, 1], values as published with fb.resnet.torch; eigenvectors are columns.
IMAGENET_EIGENVALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Section 3.1: "the first four convolutional layers and the last three
# fully-connected layers" of net A, by name, initialise the deeper nets.
PAPER_INIT_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")

CHOICES = {
    "model.head": ("fc", "gap"),
    "model.initializer": ("paper", "glorot", "he"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.pooling": ("max", "average"),
    "data.train_view": ("paper", "resized_crop", "pad_crop"),
    "data.train_resize": ("pillow", "cv2"),
    "data.on_bad_image": ("stop", "skip"),
    "optimizer.schedule": ("constant", "step", "cosine", "plateau"),
}

# Fields that change how a run is watched or where it runs, not what it computes:
# a resumed run may change them freely.
FREE_ON_RESUME = (
    "data.data_dir",
    "data.eval_batch_size",
    "data.cache",
    "data.num_threads",
    "data.prefetch",
    "data.on_bad_image",
    "remat",
    "shard_fc",
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "step_timeout_seconds",
    "profile.start_step",
    "profile.num_steps",
    "init_from",
    "init_layers",
    "resume_with_changes",
)


class VGGFlaxError(Exception):
    """Something the person at the keyboard can mend; the message says how."""


class ConfigError(VGGFlaxError):
    """A setting that is unknown, of the wrong type, or out of range."""


@dataclasses.dataclass
class ModelConfig:
    """The net. Fields are those of `vgg_flax.VGG`, which documents them."""

    variant: str = "vgg16"
    num_classes: int = 1000
    in_channels: int = 3
    width_multiplier: float = 1.0
    fc_widths: tuple[int, int] = (4096, 4096)
    fc6_window: int = 7
    head: str = "fc"
    dropout_rate: float = 0.5
    initializer: str = "he"
    dtype: str = "float32"
    conv_bias: bool = True
    pooling: str = "max"
    batch_norm_across_replicas: bool = False


@dataclasses.dataclass
class DataConfig:
    """Where images come from and what becomes of them before the net."""

    name: str = "imagenet2012"  # a TFDS name, or "folder"
    data_dir: str = ""  # TFDS' data_dir (empty: ~/tensorflow_datasets); the folder
    train_split: str = "train[:99%]"  # TFDS' split language
    validation_split: str = "train[99%:]"  # for "best" and plateau; empty: none
    test_split: str = "validation"
    batch_size: int = 256  # global: over all devices of all processes
    eval_batch_size: int = 256
    train_view: str = "resized_crop"
    train_scale: tuple[int, int] = (256, 256)  # S, drawn from [low, high] per image
    crop_size: int = 224
    crop_area: tuple[float, float] = (0.08, 1.0)  # resized_crop: share of the image
    padding: int = 4  # pad_crop: pixels of zeros on each side
    flip: bool = True
    color_shift: float = 0.0  # sigma of the PCA colour shift; the paper: 0.1
    color_eigenvalues: tuple[float, ...] = IMAGENET_EIGENVALUES
    color_eigenvectors: tuple[tuple[float, ...], ...] = IMAGENET_EIGENVECTORS
    test_scale: int = 256  # Q, the smaller side before the centre crop
    train_resize: str = "pillow"  # or "cv2": twice as fast, not antialiased
    mean: tuple[float, ...] = IMAGENET_MEAN  # of pixels in [0, 1], RGB
    std: tuple[float, ...] = IMAGENET_STD
    on_bad_image: str = "stop"  # or "skip": left out of the loss, and counted
    cache: bool = False  # keep decoded training images in memory: for small sets
    num_threads: int = 16
    prefetch: int = 32  # batches made ahead on the host


@dataclasses.dataclass
class OptimizerConfig:
    """SGD with momentum (section 3.1) and its learning rate over time."""

    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decoupled_weight_decay: bool = False  # True: outside the momentum
    decay_norms_and_biases: bool = True  # the paper decays every weight
    schedule: str = "step"
    warmup_epochs: float = 0.0
    decay_epochs: tuple[float, ...] = (30.0, 60.0)  # "step": where to multiply
    decay_factor: float = 0.1  # "step" and "plateau"
    plateau_patience: int = 3  # evaluations without a better validation top-1
    plateau_max_decays: int = 3
    accumulation_steps: int = 1  # micro-batches a device's batch is cut into


@dataclasses.dataclass
class ProfileConfig:
    """Which training steps are traced into `WORKDIR/profile`."""

    start_step: int = 10  # a run that is past it: the second step of each start
    num_steps: int = 0  # 0: none


@dataclasses.dataclass
class Config:
    """One run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    seed: int = 0
    num_epochs: float = 90.0
    num_steps: int | None = None  # instead of num_epochs, when given
    eval_every_epochs: float = 1.0
    log_every_steps: int = 100
    checkpoint_every_steps: int = 5000  # besides the one at every evaluation
    step_timeout_seconds: float = 900.0  # of several processes, compiling included
    remat: bool = False  # stages compute their activations twice, to save memory
    shard_fc: bool = False  # FC kernels cut over the replicas: parallel.FCShards
    keep_checkpoints: int = 3  # the newest ones; the best is kept besides
    init_from: str = ""  # a run directory whose params a new run starts from
    init_layers: tuple[str, ...] = ()  # only these; empty: all of them
    resume_with_changes: bool = False  # go on although the config differs


def flatten(config: Config) -> dict[str, Any]:
    """`config` as `{"model.variant": "vgg16", ...}`."""
    flat = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def to_json(config: Config) -> str:
    """`config` as the text of `WORKDIR/config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict`, from JSON too; every type is checked.

    Raises:
      ConfigError: an unknown field or a value of the wrong type.
    """
    rules = dacite.Config(strict=True, type_hooks={float: _to_float})
    try:
        return dacite.from_dict(Config, _to_tuples(values), rules)
    except dacite.DaciteError as error:
        raise ConfigError(f"config: {error}") from error


def differences(saved: Config, current: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two runs compute something else: `{name: (saved, current)}`."""
    old, new = flatten(saved), flatten(current)
    return {
        name: (old[name], new[name])
        for name in new
        if old[name] != new[name] and name not in FREE_ON_RESUME
    }


def unknown_key(key: str) -> ConfigError:
    """The error for a `--config.KEY` that no field answers to."""
    known = list(flatten(Config()))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    tail = [name for name in known if name.rsplit(".")[-1] == key.rsplit(".")[-1]]
    return ConfigError(
        f"--config.{key}: no such setting; did you mean --config.{(tail or close)[0]}?"
    )


def check(config: Config) -> Config:
    """Returns `config` with every type, choice and range checked.

    Raises:
      ConfigError: naming the field, its value, what is expected and a remedy.
    """
    config = from_dict(dataclasses.asdict(config))
    flat = flatten(config)
    for name, allowed in CHOICES.items():
        if flat[name] not in allowed:
            raise ConfigError(
                f"config.{name}={flat[name]!r}; expected one of {allowed}"
            )
    for name, low, high in _RANGES:
        values = flat[name] if isinstance(flat[name], tuple) else (flat[name],)
        for value in values:
            if value is not None and not low <= value <= high:  # NaN fails too
                raise ConfigError(
                    f"config.{name}={flat[name]}; expected "
                    + (f"at least {low}" if high == _INF else f"{low} to {high}")
                )
    _check_data(config.data, config.model)
    if config.optimizer.schedule == "plateau" and not config.data.validation_split:
        raise ConfigError(
            "config.optimizer.schedule='plateau' watches the validation split, and "
            "config.data.validation_split is empty; give one, such as 'train[90%:]'"
        )
    return config


def _check_data(data: DataConfig, model: ModelConfig) -> None:
    for name, value in (("mean", data.mean), ("std", data.std)):
        if len(value) != model.in_channels:
            raise ConfigError(
                f"config.data.{name}={value} has {len(value)} values for "
                f"config.model.in_channels={model.in_channels}; give one a channel"
            )
    for name, pair in (
        ("train_scale", data.train_scale),
        ("crop_area", data.crop_area),
    ):
        if pair[0] > pair[1]:
            raise ConfigError(f"config.data.{name}={pair}; expected (low, high)")
    smallest = data.train_scale[0] + 2 * data.padding * (data.train_view == "pad_crop")
    if data.train_view != "resized_crop" and smallest < data.crop_size:
        raise ConfigError(
            f"config.data.train_scale={data.train_scale} is smaller than "
            f"config.data.crop_size={data.crop_size}; raise it to {data.crop_size}"
        )
    if data.test_scale < data.crop_size:
        raise ConfigError(
            f"config.data.test_scale={data.test_scale} is smaller than "
            f"config.data.crop_size={data.crop_size}; raise it to {data.crop_size}"
        )
    if data.color_shift and model.in_channels != 3:
        raise ConfigError(
            f"config.data.color_shift={data.color_shift} needs RGB, and "
            f"config.model.in_channels={model.in_channels}; set color_shift=0"
        )
    square = [len(row) for row in data.color_eigenvectors]
    if len(data.color_eigenvalues) != 3 or square != [3, 3, 3]:
        raise ConfigError("config.data: expected 3 color_eigenvalues, 3x3 eigenvectors")


def check_path(name: str, path: Any) -> None:
    """Raises ConfigError where the package is missing that reads such a path."""
    packages = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
    package = packages.get(str(path).partition("://")[0])
    # TensorFlow reads these too, where it is installed.
    if package and not any(map(importlib.util.find_spec, (package, "tensorflow"))):
        what = "'vgg-flax[gcs]'" if package == "gcsfs" else package
        raise ConfigError(f"{name} {path} needs a package: pip install {what}")


def check_batch(name: str, batch_size: int, multiple: int, of_what: str) -> None:
    """Raises ConfigError unless `batch_size` is a positive multiple of `multiple`."""
    if batch_size % multiple:
        below, above = batch_size - batch_size % multiple, batch_size // multiple + 1
        sizes = " or ".join(str(n) for n in (below, above * multiple) if n)
        raise ConfigError(
            f"config.{name}={batch_size} does not divide over {of_what}; try {sizes}"
        )


def _to_float(value: Any) -> Any:
    """JSON and the command line write 90 for 90.0."""
    return float(value) if type(value) is int else value


def _to_tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {key: _to_tuples(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_to_tuples(inner) for inner in value)
    return value


_INF = float("inf")
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("model.num_classes", 1, _INF),
    ("model.in_channels", 1, 3),
    ("model.fc_widths", 1, _INF),
    ("model.fc6_window", 1, _INF),
    ("model.dropout_rate", 0, 0.99),
    ("data.batch_size", 1, _INF),
    ("data.eval_batch_size", 1, _INF),
    ("data.train_scale", 1, _INF),
    ("data.crop_size", 1, _INF),
    ("data.crop_area", 1e-4, 1),
    ("data.padding", 0, _INF),
    ("data.color_shift", 0, _INF),
    ("step_timeout_seconds", 1, _INF),
    ("data.std", 1e-6, _INF),
    ("data.num_threads", 1, _INF),
    ("data.prefetch", 1, _INF),
    ("optimizer.learning_rate", 0, _INF),
    ("optimizer.momentum", 0, 1),
    ("optimizer.weight_decay", 0, _INF),
    ("optimizer.warmup_epochs", 0, _INF),
    ("optimizer.decay_factor", 0, 1),
    ("optimizer.plateau_patience", 1, _INF),
    ("optimizer.plateau_max_decays", 0, _INF),
    ("optimizer.accumulation_steps", 1, _INF),
    ("profile.start_step", 1, _INF),
    ("profile.num_steps", 0, _INF),
    ("seed", 0, 2**32 - 1),
    ("num_epochs", 1e-9, _INF),
    ("num_steps", 1, _INF),
    ("eval_every_epochs", 1e-9, _INF),
    ("log_every_steps", 1, _INF),
    ("checkpoint_every_steps", 1, _INF),
    ("keep_checkpoints", 1, _INF),
)
