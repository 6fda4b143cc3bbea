"""The settings of what keeps a net from learning its training data by heart."""

import dataclasses

from vgg_flax.config.field import setting


@dataclasses.dataclass
class RegularizationConfig:
    """What training does to examples of a batch and their labels; validation: none."""

    label_smoothing: float = setting(
        0.0,
        "share of a label that all classes have alike (Szegedy et al. 2016)",
        low=0,
        high=1,
    )
    mixup_alpha: float = setting(
        0.0,
        "of Beta(alpha, alpha), from which the share of one of two images in their "
        "mixture is drawn (Zhang et al. 2018); usual: 0.2; 0: no mixup",
        low=0,
    )
    cutmix_alpha: float = setting(
        0.0,
        "likewise of the area that a rectangle of another image leaves (Yun et al. "
        "2019); usual: 1; 0: no CutMix; with mixup each batch has one of the two",
        low=0,
    )
    random_erasing: float = setting(
        0.0,
        "probability that a rectangle of a view is erased (Zhong et al. 2020); usual: "
        "0.1 to 0.25",
        low=0,
        high=1,
    )
    class_weights: tuple[float, ...] = setting(
        (),
        "factors of the classes' losses, in the order of the classes; empty: all alike",
        low=0,
    )


@dataclasses.dataclass
class DistillationConfig:
    """A trained net whose outputs are learnt, too (Hinton et al. 2015)."""

    teacher: str = setting(
        "", "the net, as `vgg_flax.load` has it: a run, a file, a name; empty: none"
    )
    teacher_ema: bool = setting(
        False,
        "whether to take the average (`averaging`) that the run in `teacher` keeps",
    )
    weight: float = setting(
        0.5,
        "share of the teacher's outputs in the loss; the labels' is the rest",
        low=0,
        high=1,
    )
    temperature: float = setting(
        2.0, "what the logits of both are divided by, to compare them", low=1e-3
    )


@dataclasses.dataclass
class AveragingConfig:
    """An exponential moving average (EMA) of params and batch statistics."""

    decay: float = setting(
        0.0,
        "share of the average that a training step keeps, 0.9999 say, and less in the "
        "first steps; 0: no average",
        low=0,
        high=0.9999999,
    )
    every_steps: int = setting(
        8, "steps from one update of the average to the next", low=1
    )
