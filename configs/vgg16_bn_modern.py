"""VGG16 with BatchNorm on ImageNet, by what ResNets are trained with since 2021.

command   python train.py --config=configs/vgg16_bn_modern.py --workdir=DIR
data      vgg-flax prepare imagenet2012 --manual-dir DIR (about 150 GB)
hardware  8 accelerators of 16 GB and more; the batch of 1,024 is global
time      not measured here; 300 of configs/vgg16_bn_imagenet.py's 90 epochs
result    not run here, and published by nobody for just this. Its parts were run at CPU
          size on configs/folder_modern.py: docs/recipes.md

Where each value is from: "tv", torchvision's recipe for its IMAGENET1K_V2 weights
(references/classification, 2021), of which these are kept:
  smoothing 0.1, mixup 0.2, CutMix 1.0, TrivialAugmentWide, erasing 0.1; a warm-up of 5
  epochs and a cosine; a weight decay of 2e-5 on kernels alone; an average whose share
  of 0.99998 every 32 steps of 1,024 tv scales to 0.99997 a step; test scale 232.
And these are not:
  the rate: tv's 0.5 is of ResNets; this is its 0.01 of VGG at a batch of 256, times 4
  for 1,024 (Goyal et al. 2017);
  300 epochs for tv's 600, to halve the cost;
  training crops of 224 for 176: fc6 reads 7x7, which 176 pixels do not give;
  dropout 0.5 stays, as fc6 and fc7 have nine tenths of the params (section 3.1).
"""

from configs import vgg16_imagenet
from vgg_flax import config


def get_config() -> config.Config:
    recipe = vgg16_imagenet.get_config()
    recipe.model.variant = "vgg16_bn"
    recipe.model.conv_bias = False
    recipe.data.batch_size = 1024
    recipe.data.eval_batch_size = 1024
    recipe.data.test_scale = 232
    recipe.data.auto_augment = "trivial"
    recipe.regularization = config.RegularizationConfig(
        label_smoothing=0.1, mixup_alpha=0.2, cutmix_alpha=1.0, random_erasing=0.1
    )
    recipe.averaging = config.AveragingConfig(decay=0.99997, every_steps=32)
    recipe.optimizer = config.OptimizerConfig(
        learning_rate=0.04,
        weight_decay=2e-5,
        decay_norms_and_biases=False,
        schedule="cosine",
        warmup_epochs=5.0,
    )
    recipe.num_epochs = 300.0
    return recipe
