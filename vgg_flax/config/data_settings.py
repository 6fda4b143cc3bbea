"""The settings of a run's data, declared as `settings` declares the others."""

import dataclasses

from vgg_flax.config import colors
from vgg_flax.config.field import setting


@dataclasses.dataclass
class DataConfig:
    """Where images come from and what becomes of them before the net."""

    name: str = setting("imagenet2012", "a TFDS data set, or `folder`")
    data_dir: str = setting(
        "",
        "TFDS' data_dir (empty: ~/tensorflow_datasets), the folder that holds "
        "SPLIT/CLASS/*, or a .csv, .tsv or .parquet with columns path, label, split",
        free_on_resume=True,
    )
    train_split: str = setting(
        "train[:99%]",
        "what is trained on, in TFDS' split language; `auto`, of a folder or a table: "
        "`train`, without its last tenth where that is for validation",
    )
    validation_split: str = setting(
        "train[99%:]",
        "decides which checkpoint is the best, and when the plateau schedule decays; "
        "empty: none; `auto`: `validation`, `valid`, `val` or `dev`, or `train`'s last "
        "tenth where there is none",
    )
    test_split: str = setting(
        "validation",
        "evaluated once, after the last step; empty: none, validation's result is the "
        "last then; `auto`: `test`, or none",
    )
    batch_size: int = setting(
        256, "examples a training step, over all devices of all processes", low=1
    )
    eval_batch_size: int = setting(
        256,
        "examples a step of validation and test, over all devices",
        low=1,
        free_on_resume=True,
    )
    orientation: str = setting(
        "ignore",
        "whether photos are turned as the camera noted it",
        choices={
            "ignore": "as they are stored (torchvision's, ImageNet's results)",
            "exif": "as EXIF says; in testing and in all that loads the run, too",
        },
    )
    train_view: str = setting(
        "resized_crop",
        "what training sees of an image",
        choices={
            "paper": "the smaller side rescaled to S, then a random crop (section 3.1)",
            "resized_crop": "a random part of random aspect, 3/4 to 4/3, rescaled to "
            "the crop (torchvision's RandomResizedCrop)",
            "pad_crop": "rescaled to S, padded with zeros, then a random crop (He et "
            "al. 2016, section 4.2)",
        },
    )
    train_scale: tuple[int, int] = setting(
        (256, 256),
        "paper, pad_crop: S in pixels, drawn from low to high for each image",
        low=1,
    )
    crop_size: int = setting(
        224, "side in pixels of what the net is given, in training and test", low=1
    )
    crop_size_by_epoch: tuple[tuple[float, int], ...] = setting(
        (),
        "rows (epoch, side): the side of training views from that epoch on, which is "
        "crop_size before; test stays at that",
    )
    train_scale_by_epoch: tuple[tuple[float, int, int], ...] = setting(
        (),
        "paper, pad_crop: rows (epoch, low, high): S from that epoch on, which is "
        "train_scale before",
    )
    crop_area: tuple[float, float] = setting(
        (0.08, 1.0),
        "resized_crop: smallest and largest share of the image's area",
        low=1e-4,
        high=1,
    )
    padding: int = setting(4, "pad_crop: pixels of zeros on each side", low=0)
    flip: bool = setting(True, "whether half of the training views are mirrored")
    auto_augment: str = setting(
        "none",
        "operations drawn for each training view, behind crop and flip",
        choices={
            "none": "none",
            "trivial": "one, of any strength: TrivialAugmentWide (Müller and Hutter "
            "2021)",
            "rand": "some, of one strength: RandAugment (Cubuk et al. 2020)",
        },
    )
    rand_augment_ops: int = setting(2, "rand: operations a view", low=1)
    rand_augment_magnitude: int = setting(
        9, "rand: strength of the operations", low=0, high=30
    )
    color_jitter: tuple[float, float, float, float] = setting(
        (0.0, 0.0, 0.0, 0.0),
        "brightness, contrast, saturation b: factors from max(0, 1 - b) to 1 + b; hue "
        "h: turned by up to h of the circle, at most 0.5 (torchvision's ColorJitter)",
        low=0,
    )
    color_shift: float = setting(
        0.0,
        "standard deviation of the PCA colour shift, in eigenvalues (Krizhevsky et "
        "al. 2012, section 4.1); the paper: 0.1; 0: none",
        low=0,
    )
    color_eigenvalues: tuple[float, ...] = setting(
        colors.IMAGENET_EIGENVALUES,
        "of the PCA of RGB pixels in [0, 1]; default: ImageNet's",
    )
    color_eigenvectors: tuple[tuple[float, ...], ...] = setting(
        colors.IMAGENET_EIGENVECTORS,
        "of the same PCA: the columns of a 3x3 matrix, which is given by rows",
    )
    test_scale: int = setting(
        256, "Q in pixels, the smaller side in test, of which the centre is cropped"
    )
    train_resize: str = setting(
        "pillow",
        "what resizes training images",
        choices={
            "pillow": "antialiased bilinear",
            "cv2": "OpenCV's bilinear, twice as fast and not antialiased",
        },
    )
    mean: tuple[float, ...] | None = setting(
        None,
        "subtracted from pixels in [0, 1], a value a channel, RGB; None: that of the "
        "weights the run starts from or goes on with, or ImageNet's",
    )
    std: tuple[float, ...] | None = setting(
        None,
        "what pixels less the mean are divided by, a value a channel; None: as the "
        "mean's",
        low=1e-6,
    )
    on_bad_image: str = setting(
        "stop",
        "what an image that cannot be decoded leads to",
        choices={
            "stop": "the run ends with an error",
            "skip": "it is left out of the loss and of the metrics, and counted",
        },
        free_on_resume=True,
    )
    cache: bool = setting(
        False,
        "whether decoded training images stay in memory: for small data sets",
        free_on_resume=True,
    )
    num_threads: int = setting(
        16, "threads a process that make batches", low=1, free_on_resume=True
    )
    prefetch: int = setting(
        32, "batches made ahead on the host", low=1, free_on_resume=True
    )


def mean_and_std(data: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of pixels in [0, 1], a value a channel: ImageNet's where there are none."""
    return (
        colors.IMAGENET_MEAN if data.mean is None else data.mean,
        colors.IMAGENET_STD if data.std is None else data.std,
    )


def training_stages(data: DataConfig) -> tuple[tuple[float, DataConfig], ...]:
    """What training sees from when on: `(epoch, settings)`, the first from epoch 0."""
    crops, scales = data.crop_size_by_epoch, data.train_scale_by_epoch
    starts = sorted({0.0, *(row[0] for row in (*crops, *scales))})
    return tuple(
        (
            start,
            dataclasses.replace(
                data,
                crop_size=[data.crop_size, *(c for e, c in crops if e <= start)][-1],
                train_scale=[
                    data.train_scale,
                    *((low, high) for e, low, high in scales if e <= start),
                ][-1],
                crop_size_by_epoch=(),
                train_scale_by_epoch=(),
            ),
        )
        for start in starts
    )
