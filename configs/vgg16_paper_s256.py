"""Net D at S=256, started from net A's first four convolutions and three FC layers.

command   python train.py --config=configs/vgg16_paper_s256.py
          after vgg11_paper, in the same folder (or --config.init_from=DIR)
hardware  8 accelerators of 16 GB (the paper: 4 GPUs, two to three weeks a net)
time      not measured here. 74 epochs x 1.27M images x 90 GFLOP = 8.4e18 FLOP: 3.7 h
          at 630 TFLOP/s sustained (40% of eight TPU v5e's peak in bfloat16)
result    published (Table 3, dense with flip, Q=256): top-1 error 27.0%, top-5 8.8%;
          (Table 4, Q=224, 256, 288): 26.6% and 8.6%. Not run here.
"""

from configs import vgg11_paper
from vgg_flax import config


def get_config() -> config.Config:
    recipe = vgg11_paper.get_config()
    recipe.model.variant = "vgg16"
    recipe.init_from = "runs/vgg11_paper"
    recipe.init_layers = config.PAPER_INIT_LAYERS
    return recipe
