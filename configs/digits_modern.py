"""The digits of configs/default.py, by more than the paper's recipe.

command   python train.py --config=configs/digits_modern.py
hardware  two CPU cores
time      61 s from start to result, measured on two x86 cores
result    measured there, seeds 0, 1, 2: test top-1 97.78%, 99.17%, 99.17% of the
          average, where configs/default.py comes to 99.17%, 98.33%, 98.33%; with a core
          a run 98.33%, 98.89%, 98.61% and 98.06%, 98.06%, 97.78%

AdamW at its usual rate and decay of kernels, smoothing of 0.1, and an average, as
configs/folder_modern.py; chosen on the last fifth of the training digits among seven
settings. No jitter, mixtures, TrivialAugmentWide: 8x8 pixels of a digit have nothing to
spare.
"""

from configs import default
from vgg_flax import config


def get_config() -> config.Config:
    recipe = default.get_config()
    recipe.optimizer = config.OptimizerConfig(
        name="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        decay_norms_and_biases=False,
        schedule="cosine",
        warmup_epochs=1.0,
    )
    recipe.regularization = config.RegularizationConfig(label_smoothing=0.1)
    recipe.averaging = config.AveragingConfig(decay=0.99, every_steps=2)
    return recipe
