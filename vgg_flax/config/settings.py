"""What a run is: typed settings, each declared once, with all that is known of it.

A recipe in `configs/` returns a `Config`; the command line overrides its fields by
dotted name. What a field is stands here and nowhere else: `check`, `--help`,
`docs/config.md` and the comparison of a resumed run read it from the declaration.
"""

import dataclasses
from collections.abc import Iterator

from vgg_flax.config.data_settings import DataConfig
from vgg_flax.config.field import Field, fields_of, setting
from vgg_flax.config.regularization_settings import (
    AveragingConfig,
    DistillationConfig,
    RegularizationConfig,
)

# Section 3.1: "the first four convolutional layers and the last three
# fully-connected layers" of net A, by name, initialise the deeper nets.
PAPER_INIT_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


@dataclasses.dataclass
class ModelConfig:
    """The net: attributes of `vgg_flax.VGG`, whose docstring has more."""

    variant: str = setting(
        "vgg16",
        "column of the paper's Table 1: vgg11 (or A), vgg11_lrn (A-LRN), vgg13 (B), "
        "vgg16_1x1 (C), vgg16 (D), vgg19 (E); with BatchNorm: vgg11_bn, vgg13_bn, "
        "vgg16_1x1_bn, vgg16_bn, vgg19_bn",
    )
    num_classes: int = setting(1000, "width of fc8; 0: as the data have", low=0)
    in_channels: int = setting(3, "1 for grey images, 3 for RGB", low=1, high=3)
    width_multiplier: float = setting(
        1.0, "factor of the convolutions' widths (64, 128, 256, 512, 512)", low=0.001
    )
    fc_widths: tuple[int, int] = setting((4096, 4096), "widths of fc6 and fc7", low=1)
    fc6_window: int = setting(
        7, "side of fc6's window on the last map: 7 at 224 pixels, 1 at 32", low=1
    )
    head: str = setting(
        "fc",
        "what follows the convolutions",
        choices={
            "fc": "fc6, fc7 and fc8, as in the paper",
            "gap": "global average pooling and fc8",
            "linear": "fc8 alone, over fc6's window",
        },
    )
    dropout_rate: float = setting(
        0.5, "share of fc6's and fc7's outputs set to 0 in training", low=0, high=0.99
    )
    initializer: str = setting(
        "he",
        "what kernels are drawn from; biases start at 0",
        choices={
            "paper": "normal, standard deviation 0.01",
            "glorot": "uniform, by fan-in and fan-out (Glorot and Bengio 2010)",
            "he": "convolutions: normal, by fan-out (He et al. 2015); fc6 to fc8: "
            "normal, standard deviation 0.01",
        },
    )
    dtype: str = setting(
        "float32",
        "what the net computes in",
        choices={
            "float32": "throughout",
            "bfloat16": "params and logits stay float32",
            "float64": "throughout; needs JAX_ENABLE_X64=1 in the environment",
        },
    )
    conv_bias: bool = setting(
        True, "whether convolutions have a bias, which BatchNorm makes redundant"
    )
    pooling: str = setting(
        "max",
        "what is kept of each 2x2 window between the stages",
        choices={"max": "its maximum, as in the paper", "average": "its mean"},
    )
    batch_norm_across_replicas: bool = setting(
        False,
        "whether BatchNorm's batch statistics are taken over all devices, instead of "
        "on each device its own",
    )


@dataclasses.dataclass
class OptimizerConfig:
    """The optimiser, as in section 3.1 or another, and its learning rate over time."""

    name: str = setting(
        "sgd",
        "what makes a direction of the gradients; docs/recipes.md has usual settings",
        choices={
            "sgd": "with momentum, as in the paper",
            "rmsprop": "torch's, with momentum",
            "adamw": "Loshchilov and Hutter 2019",
            "lamb": "You et al. 2020: adamw's, by each leaf's norm",
            "lion": "Chen et al. 2023",
            "muon": "Jordan et al. 2024: kernels' momentum orthogonalised, at the size "
            "of adamw's; adamw for the rest",
            "custom": "the optax one of the recipe's get_optimizer(config)",
        },
    )
    learning_rate: float = setting(
        0.01, "the largest one, which the schedule scales", low=0
    )
    momentum: float = setting(
        0.9, "sgd, rmsprop, muon: share of the last direction kept", low=0, high=1
    )
    nesterov: bool = setting(
        False, "sgd, rmsprop, muon: whether the momentum is Nesterov's"
    )
    beta1: float = setting(
        0.9,
        "adamw, lamb, muon's rest: share of the gradients' mean kept; lion: its weight "
        "in the direction",
        low=0,
        high=1,
    )
    beta2: float | None = setting(
        None,
        "adamw, lamb, rmsprop, muon's rest: share of the squared gradients' mean kept; "
        "lion: of the gradients'; None: 0.999, of lion and rmsprop 0.99",
        low=0,
        high=1,
    )
    epsilon: float = setting(
        1e-8, "adamw, lamb, rmsprop, muon: added to what is divided by", low=1e-16
    )
    weight_decay: float = setting(
        5e-4, "factor of the params that is added to their gradients", low=0
    )
    decoupled_weight_decay: bool = setting(
        False,
        "sgd, rmsprop: whether weight decay is added after the momentum (Loshchilov "
        "and Hutter 2019), as the others always do",
    )
    decay_norms_and_biases: bool = setting(
        True, "whether all params decay, as in the paper, or kernels alone"
    )
    schedule: str = setting(
        "step",
        "the learning rate over time, after the warm-up",
        choices={
            "constant": "as it is",
            "step": "times decay_factor at each of decay_epochs",
            "exponential": "times decay_factor an epoch, a little at each step",
            "polynomial": "the share of steps left, to the power of decay_power",
            "cosine": "half a cosine",
            "one_cycle": "a rise and a fall, both half a cosine (Smith and Topin 2019)",
            "plateau": "times decay_factor where validation no longer gets better, as "
            "in the paper",
        },
    )
    warmup_epochs: float = setting(
        0.0,
        "epochs in which the rate first grows, linearly; one_cycle: of the rise",
        low=0,
    )
    warmup_factor: float = setting(
        0.0, "share of learning_rate from which it grows", low=0, high=1
    )
    final_factor: float = setting(
        0.0,
        "polynomial, cosine, one_cycle: share of learning_rate at the last step; "
        "exponential: that below which it does not fall",
        low=0,
        high=1,
    )
    decay_epochs: tuple[float, ...] = setting(
        (30.0, 60.0), "step: epochs at which the rate is multiplied"
    )
    decay_factor: float = setting(
        0.1, "step, exponential, plateau: what the rate is multiplied by", low=0, high=1
    )
    decay_power: float = setting(1.0, "polynomial: the power; 1: linear", low=0)
    plateau_patience: int = setting(
        3, "plateau: validations without a better one before a decay", low=1
    )
    plateau_max_decays: int = setting(3, "plateau: decays in a run, at most", low=0)
    clip_value: float = setting(
        0.0, "each gradient is cut off at this, and at its negative; 0: not", low=0
    )
    adaptive_clip: float = setting(
        0.0,
        "each output's gradient is scaled to at most this share of its weights' norm "
        "(Brock et al. 2021); 0: not",
        low=0,
    )
    clip_norm: float = setting(
        0.0, "gradients are scaled to a norm, of all of them, of this; 0: not", low=0
    )
    layer_rates: tuple[tuple[str, float], ...] = setting(
        (),
        "factors of the rate by stage or layer: (('stage5', 0.1), ('fc8', 10))",
    )
    accumulation_steps: int = setting(
        1, "micro-batches that each device's part of a batch is cut into", low=1
    )


@dataclasses.dataclass
class ProfileConfig:
    """Which training steps are traced into `WORKDIR/profile`."""

    start_step: int = setting(
        10,
        "the first step traced; for a start that is at or past it, its own second step",
        low=1,
        free_on_resume=True,
    )
    num_steps: int = setting(0, "steps traced; 0: none", low=0, free_on_resume=True)


@dataclasses.dataclass
class Config:
    """The run itself: how long, what it saves and tells, what it starts from."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    regularization: RegularizationConfig = dataclasses.field(
        default_factory=RegularizationConfig
    )
    distillation: DistillationConfig = dataclasses.field(
        default_factory=DistillationConfig
    )
    averaging: AveragingConfig = dataclasses.field(default_factory=AveragingConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    objective: str = setting(
        "classification",
        "name of what is trained: the paper's, or that of the recipe's get_objective()",
    )
    seed: int = setting(
        0,
        "what the first params, the order of the data, views and dropout follow from",
        low=0,
        high=2**32 - 1,
    )
    num_epochs: float = setting(90.0, "length of the run, in epochs", low=1e-9)
    num_steps: int | None = setting(
        None, "length of the run, in steps, instead of num_epochs", low=1
    )
    eval_every_epochs: float = setting(
        1.0, "epochs from one validation to the next", low=1e-9
    )
    early_stopping_patience: int = setting(
        0,
        "validations in a row without a better one after which the run ends; 0: it "
        "goes on",
        low=0,
        free_on_resume=True,
    )
    test_step: str = setting(
        "last",
        "which checkpoint the last line tells the test of",
        choices={
            "last": "the last step's",
            "best": "that of the best validation",
        },
        free_on_resume=True,
    )
    log_every_steps: int = setting(
        100, "steps from one line of the log to the next", low=1, free_on_resume=True
    )
    checkpoint_every_steps: int = setting(
        5000,
        "steps from one checkpoint to the next; each validation saves one besides",
        low=1,
        free_on_resume=True,
    )
    step_timeout_seconds: float = setting(
        900.0,
        "seconds, compiling included, after which a process whose step does not end "
        "is ended; where there are several processes",
        low=1,
        free_on_resume=True,
    )
    remat: bool = setting(
        False,
        "whether the stages' activations are computed again in the backward pass "
        "instead of kept, to save memory",
        free_on_resume=True,
    )
    shard_fc: bool = setting(
        False,
        "whether each replica keeps and updates a part of the FC kernels only",
        free_on_resume=True,
    )
    fc_exchange: str = setting(
        "auto",
        "how the gradients of cut FC kernels are reduced",
        choices={
            "auto": "as suits the devices",
            "neighbours": "by halves, under the convolutions: for a TPU's torus",
            "scatter": "by one reduce-scatter",
        },
        free_on_resume=True,
    )
    keep_checkpoints: int = setting(
        3,
        "newest checkpoints that are kept, besides the best",
        low=1,
        free_on_resume=True,
    )
    init_from: str = setting(
        "",
        "weights that a new run starts from, as `vgg_flax.load` has them; empty: none",
        free_on_resume=True,
    )
    init_ema: bool = setting(
        False,
        "whether to take the average (`averaging`) that the run in `init_from` keeps",
        free_on_resume=True,
    )
    init_layers: tuple[str, ...] = setting(
        (), "layers taken from it; empty: all, but a new head", free_on_resume=True
    )
    freeze: tuple[str, ...] = setting(
        (), "stages and layers that are not trained: stage1, conv3_1 (with bn3_1), fc6"
    )
    resume_with_changes: bool = setting(
        False,
        "whether a run goes on although its settings changed",
        free_on_resume=True,
    )


def fields() -> Iterator[Field]:
    """Every field of a `Config`, as it is declared."""
    return fields_of(Config)
