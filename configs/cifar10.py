"""VGG16 with BatchNorm on CIFAR-10 at its own 32 pixels.

command   python train.py --config=configs/cifar10.py
data      vgg-flax prepare cifar10 (170 MB, needs vgg-flax[prepare])
hardware  one GPU or TPU core
time      not measured here. 100 epochs x 45,000 images x 1.9 GFLOP = 8.5e15 FLOP:
          15 min at 10 TFLOP/s sustained
result    published for a net of this shape (kuangliu/pytorch-cifar, VGG16 with
          BatchNorm, 350 epochs, all 50,000 images): top-1 92.64%. Not run here.
"""

from vgg_flax import config


def get_config() -> config.Config:
    return config.Config(
        model=config.ModelConfig(
            variant="vgg16_bn",
            num_classes=10,
            head="gap",
            conv_bias=False,
        ),
        data=config.DataConfig(
            name="cifar10",
            train_split="train[:90%]",
            validation_split="train[90%:]",
            test_split="test",
            batch_size=128,
            eval_batch_size=500,
            train_view="pad_crop",
            train_scale=(32, 32),
            padding=4,
            crop_size=32,
            test_scale=32,
            cache=True,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        optimizer=config.OptimizerConfig(
            learning_rate=0.1,
            nesterov=True,
            weight_decay=5e-4,
            schedule="cosine",
            warmup_epochs=5.0,
        ),
        num_epochs=100.0,
    )
