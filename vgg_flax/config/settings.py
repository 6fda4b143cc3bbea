"""What a run is: typed settings, their checks, and the errors a user can mend.

A recipe in `configs/` returns a `Config`; the command line overrides its fields by
dotted name. `check` is called once, at the border, before anything is built.
"""

import dataclasses

# Krizhevsky et al. 2012, section 4.1: principal components of ImageNet's RGB pixels
# in [0, 1], values as published with fb.resnet.torch; eigenvectors are columns.
IMAGENET_EIGENVALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Section 3.1: "the first four convolutional layers and the last three
# fully-connected layers" of net A, by name, initialise the deeper nets.
PAPER_INIT_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


@dataclasses.dataclass
class ModelConfig:
    """The net. Fields are those of `vgg_flax.VGG`, which documents them."""

    variant: str = "vgg16"
    num_classes: int = 1000
    in_channels: int = 3
    width_multiplier: float = 1.0
    fc_widths: tuple[int, int] = (4096, 4096)
    fc6_window: int = 7
    head: str = "fc"
    dropout_rate: float = 0.5
    initializer: str = "he"
    dtype: str = "float32"
    conv_bias: bool = True
    pooling: str = "max"
    batch_norm_across_replicas: bool = False


@dataclasses.dataclass
class DataConfig:
    """Where images come from and what becomes of them before the net."""

    name: str = "imagenet2012"  # a TFDS name, or "folder"
    data_dir: str = ""  # TFDS' data_dir (empty: ~/tensorflow_datasets); the folder
    train_split: str = "train[:99%]"  # TFDS' split language
    validation_split: str = "train[99%:]"  # for "best" and plateau; empty: none
    test_split: str = "validation"
    batch_size: int = 256  # global: over all devices of all processes
    eval_batch_size: int = 256
    train_view: str = "resized_crop"
    train_scale: tuple[int, int] = (256, 256)  # S, drawn from [low, high] per image
    crop_size: int = 224
    crop_area: tuple[float, float] = (0.08, 1.0)  # resized_crop: share of the image
    padding: int = 4  # pad_crop: pixels of zeros on each side
    flip: bool = True
    color_shift: float = 0.0  # sigma of the PCA colour shift; the paper: 0.1
    color_eigenvalues: tuple[float, ...] = IMAGENET_EIGENVALUES
    color_eigenvectors: tuple[tuple[float, ...], ...] = IMAGENET_EIGENVECTORS
    test_scale: int = 256  # Q, the smaller side before the centre crop
    train_resize: str = "pillow"  # or "cv2": twice as fast, not antialiased
    mean: tuple[float, ...] = IMAGENET_MEAN  # of pixels in [0, 1], RGB
    std: tuple[float, ...] = IMAGENET_STD
    on_bad_image: str = "stop"  # or "skip": left out of the loss, and counted
    cache: bool = False  # keep decoded training images in memory: for small sets
    num_threads: int = 16
    prefetch: int = 32  # batches made ahead on the host


@dataclasses.dataclass
class OptimizerConfig:
    """SGD with momentum (section 3.1) and its learning rate over time."""

    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decoupled_weight_decay: bool = False  # True: outside the momentum
    decay_norms_and_biases: bool = True  # the paper decays every weight
    schedule: str = "step"
    warmup_epochs: float = 0.0
    decay_epochs: tuple[float, ...] = (30.0, 60.0)  # "step": where to multiply
    decay_factor: float = 0.1  # "step" and "plateau"
    plateau_patience: int = 3  # evaluations without a better validation top-1
    plateau_max_decays: int = 3
    accumulation_steps: int = 1  # micro-batches a device's batch is cut into


@dataclasses.dataclass
class ProfileConfig:
    """Which training steps are traced into `WORKDIR/profile`."""

    start_step: int = 10  # a run that is past it: the second step of each start
    num_steps: int = 0  # 0: none


@dataclasses.dataclass
class Config:
    """One run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    objective: str = "classification"  # its name: training.objectives
    seed: int = 0
    num_epochs: float = 90.0
    num_steps: int | None = None  # instead of num_epochs, when given
    eval_every_epochs: float = 1.0
    log_every_steps: int = 100
    checkpoint_every_steps: int = 5000  # besides the one at every evaluation
    step_timeout_seconds: float = 900.0  # of several processes, compiling included
    remat: bool = False  # stages compute their activations twice, to save memory
    shard_fc: bool = False  # FC kernels cut over the replicas: parallel.FCShards
    fc_exchange: str = "auto"  # of shard_fc's gradients: parallel.FCShards
    keep_checkpoints: int = 3  # the newest ones; the best is kept besides
    init_from: str = ""  # a run directory whose params a new run starts from
    init_layers: tuple[str, ...] = ()  # only these; empty: all of them
    resume_with_changes: bool = False  # go on although the config differs
