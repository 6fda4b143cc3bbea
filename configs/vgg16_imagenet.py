"""VGG16 on ImageNet by torchvision's recipe; the base of the other `*_imagenet`.

command   python train.py --config=configs/vgg16_imagenet.py --workdir=DIR
data      vgg-flax prepare imagenet2012 --manual-dir DIR (about 150 GB)
hardware  8 accelerators of 16 GB; the batch of 256 is global
time      not measured here. 90 epochs x 1.27M images x 90 GFLOP = 1.0e19 FLOP: 4.5 h
          at 630 TFLOP/s sustained (40% of eight TPU v5e's peak in bfloat16)
result    published (torchvision IMAGENET1K_V1, one 224 crop of 256): top-1 71.592%,
          top-5 90.382%. Not run here: no ImageNet and no accelerator.

Two departures: 1% of the training images is held out for "best", and the published
run's learning rate fell at epochs 30 and 60 of 90 as here, on all of the images.
"""

from vgg_flax import config


def get_config() -> config.Config:
    return config.Config(
        model=config.ModelConfig(variant="vgg16", initializer="he", dtype="bfloat16"),
        data=config.DataConfig(
            name="imagenet2012",
            train_split="train[:99%]",
            validation_split="train[99%:]",
            test_split="validation",
            batch_size=256,
            eval_batch_size=256,
            train_view="resized_crop",
            crop_size=224,
            test_scale=256,
        ),
        optimizer=config.OptimizerConfig(
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            decay_epochs=(30.0, 60.0),
        ),
        num_epochs=90.0,
        shard_fc=True,
    )
