"""VGG16 with BatchNorm on CIFAR-10, by configs/cifar10.py and what came later.

command   python train.py --config=configs/cifar10_modern.py
data      vgg-flax prepare cifar10 (170 MB, needs vgg-flax[prepare])
hardware  one GPU or TPU core
time      not measured here; twice the epochs of configs/cifar10.py
result    not run here. What a CPU trains is configs/digits_modern.py

Where each value is from: TrivialAugmentWide as in its paper's CIFAR runs (Mueller and
Hutter 2021), beside flips, crops and a cut-out, for which erasing stands here; CutMix
with alpha 1 (Yun et al. 2019, CIFAR) in half of the batches, mixup of 0.2 in the rest;
smoothing 0.1 (Szegedy et al. 2016); decay of kernels alone (He et al. 2019, section
3.1); an average whose 0.999 a step reaches back three epochs of 352 steps; 200 epochs,
as both papers.
"""

from configs import cifar10
from vgg_flax import config


def get_config() -> config.Config:
    recipe = cifar10.get_config()
    recipe.data.auto_augment = "trivial"
    recipe.regularization = config.RegularizationConfig(
        label_smoothing=0.1, mixup_alpha=0.2, cutmix_alpha=1.0, random_erasing=0.25
    )
    recipe.averaging = config.AveragingConfig(decay=0.999, every_steps=4)
    recipe.optimizer.decay_norms_and_biases = False
    recipe.num_epochs = 200.0
    return recipe
