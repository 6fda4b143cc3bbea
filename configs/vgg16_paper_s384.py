"""Net D at S=384, started from the net of S=256 with a tenth of its learning rate.

command   python train.py --config=configs/vgg16_paper_s384.py
          after vgg16_paper_s256, in the same folder (or --config.init_from=DIR)
hardware  as configs/vgg16_paper_s256.py
time      not measured here; the paper does not say how many epochs, 74 at most
result    published (Table 3, dense with flip, Q=384): top-1 error 26.8%, top-5 8.7%;
          (Table 4, Q=352, 384, 416): 26.5% and 8.6%. Not run here.
"""

from configs import vgg16_paper_s256
from vgg_flax import config


def get_config() -> config.Config:
    recipe = vgg16_paper_s256.get_config()
    recipe.data.train_scale = (384, 384)
    recipe.data.test_scale = 384
    recipe.optimizer.learning_rate = 1e-3
    recipe.init_from = "runs/vgg16_paper_s256"
    recipe.init_layers = ()
    return recipe
