"""VGG11 with BatchNorm on Imagenette: ten easy classes of ImageNet, at 128 pixels.

command   python train.py --config=configs/imagenette.py
data      vgg-flax prepare imagenette/320px-v2 (330 MB, needs vgg-flax[prepare])
hardware  one GPU or TPU core of 16 GB
time      not measured here. 40 epochs x 8,500 images x 15 GFLOP = 5.1e15 FLOP: 9 min
          at 10 TFLOP/s sustained
result    none known to us for a VGG trained from scratch; not run here.
"""

from vgg_flax import config


def get_config() -> config.Config:
    return config.Config(
        model=config.ModelConfig(
            variant="vgg11_bn",
            num_classes=10,
            fc_widths=(1024, 1024),
            fc6_window=4,  # 128 pixels / 32
            conv_bias=False,
        ),
        data=config.DataConfig(
            name="imagenette/320px-v2",
            train_split="train[:90%]",
            validation_split="train[90%:]",
            test_split="validation",
            batch_size=64,
            eval_batch_size=64,
            train_view="resized_crop",
            crop_area=(0.35, 1.0),
            crop_size=128,
            test_scale=146,
        ),
        optimizer=config.OptimizerConfig(
            learning_rate=0.02,
            weight_decay=5e-4,
            schedule="cosine",
            warmup_epochs=2.0,
        ),
        num_epochs=40.0,
    )
