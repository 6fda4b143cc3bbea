"""Net D with S drawn from [256, 512] per image, fine-tuned from the net of S=384.

command   python train.py --config=configs/vgg16_paper_jitter.py
          after vgg16_paper_s384, in the same folder (or --config.init_from=DIR)
hardware  as configs/vgg16_paper_s256.py
time      not measured here; the paper does not say how many epochs, 74 at most
result    published (Table 3, dense with flip, Q=384): top-1 error 25.6%, top-5 8.1%;
          (Table 4, Q=256, 384, 512): 24.8% and 7.5%. Not run here.
"""

from configs import vgg16_paper_s384
from vgg_flax import config


def get_config() -> config.Config:
    recipe = vgg16_paper_s384.get_config()
    recipe.data.train_scale = (256, 512)
    recipe.init_from = "runs/vgg16_paper_s384"
    return recipe
