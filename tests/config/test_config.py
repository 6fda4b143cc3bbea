"""Settings are checked at the border, and each of them changes what a run does."""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import zlib
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import changed

from vgg_flax import config as config_lib
from vgg_flax import errors, model, parallel
from vgg_flax.data import batches, splits
from vgg_flax.training import schedules
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib
from vgg_flax.training.plan import Plan

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))

# Another value for every field, and what else it takes for the field to matter.
RUN_PROBES: dict[str, tuple[Any, dict[str, Any]]] = {
    "model.variant": ("vgg13_bn", {}),
    "model.num_classes": (11, {}),
    "model.width_multiplier": (1 / 8, {}),
    "model.fc_widths": ((16, 8), {}),
    "model.fc6_window": (
        2,
        {
            "data__crop_size": 64,
            "data__train_scale": (64, 64),
            "data__test_scale": 64,
        },
    ),
    "model.head": ("gap", {}),
    "model.dropout_rate": (0.25, {}),
    "model.initializer": ("he", {}),
    "model.dtype": ("bfloat16", {}),
    "model.conv_bias": (False, {}),
    "model.pooling": ("average", {}),
    "model.batch_norm_across_replicas": (True, {}),
    "data.mean": ((0.4,), {}),
    "data.std": ((0.4,), {}),
    "optimizer.name": ("lion", {}),
    "optimizer.learning_rate": (0.1, {}),
    "optimizer.momentum": (0.8, {}),
    "optimizer.nesterov": (True, {}),
    "optimizer.beta1": (0.8, {"optimizer__name": "adamw"}),
    "optimizer.beta2": (0.9, {"optimizer__name": "adamw"}),
    "optimizer.epsilon": (1e-6, {"optimizer__name": "adamw"}),
    "optimizer.weight_decay": (1e-3, {}),
    "optimizer.decoupled_weight_decay": (True, {}),
    "optimizer.decay_norms_and_biases": (False, {}),
    "optimizer.schedule": ("cosine", {}),
    "optimizer.warmup_epochs": (0.5, {}),
    "optimizer.warmup_factor": (0.5, {"optimizer__warmup_epochs": 0.5}),
    "optimizer.final_factor": (0.5, {"optimizer__schedule": "cosine"}),
    "optimizer.decay_power": (2.0, {"optimizer__schedule": "polynomial"}),
    "optimizer.decay_epochs": ((0.2,), {"optimizer__schedule": "step"}),
    "optimizer.decay_factor": (0.5, {"optimizer__schedule": "plateau"}),
    "optimizer.plateau_patience": (1, {"optimizer__schedule": "plateau"}),
    "optimizer.plateau_max_decays": (1, {"optimizer__schedule": "plateau"}),
    "optimizer.accumulation_steps": (2, {}),
    "optimizer.clip_value": (0.1, {}),
    "optimizer.adaptive_clip": (0.01, {}),
    "optimizer.clip_norm": (1.0, {}),
    "optimizer.layer_rates": ((("stage5", 0.1),), {}),
    "regularization.label_smoothing": (0.1, {}),
    "regularization.mixup_alpha": (0.2, {}),
    "regularization.cutmix_alpha": (1.0, {}),
    "regularization.random_erasing": (0.1, {}),
    "regularization.class_weights": ((0.5,) * 10, {}),
    "averaging.decay": (0.99, {}),
    "averaging.every_steps": (3, {"averaging__decay": 0.99}),
    "freeze": (("stage1",), {}),
    "seed": (1, {}),
    "num_epochs": (2.0, {}),
    "num_steps": (7, {}),
    "eval_every_epochs": (0.5, {}),
    "checkpoint_every_steps": (7, {}),
    "remat": (True, {}),
}
COLOR = {
    "model__in_channels": 3,
    "data__mean": (0.3,) * 3,
    "data__std": (0.4,) * 3,
    "data__color_shift": 0.2,
}
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
BATCH_PROBES: dict[str, tuple[Any, dict[str, Any]]] = {
    "data.train_split": ("train[:80%]", {}),
    "data.test_split": ("test[:50%]", {}),
    "data.batch_size": (32, {}),
    "data.eval_batch_size": (32, {}),
    "data.train_view": ("resized_crop", {}),
    "data.train_scale": ((32, 48), {}),
    "data.crop_size": (36, {"data__test_scale": 40}),
    "data.crop_area": ((0.5, 0.6), {"data__train_view": "resized_crop"}),
    "data.padding": (6, {}),
    "data.flip": (True, {}),
    "data.auto_augment": ("trivial", {}),
    "data.rand_augment_ops": (1, {"data__auto_augment": "rand"}),
    "data.rand_augment_magnitude": (20, {"data__auto_augment": "rand"}),
    "data.color_jitter": ((0.4, 0.0, 0.0, 0.0), {}),
    "data.color_shift": (0.1, COLOR),
    "data.color_eigenvalues": ((0.1, 0.1, 0.1), COLOR),
    "data.color_eigenvectors": (IDENTITY, COLOR),
    "data.test_scale": (36, {}),
    "data.train_resize": ("cv2", {}),
    "seed": (1, {}),
}
IN_TEST_FOLDER = {"data.orientation"}
IN_TEST_TRAINER = {
    "data.name",
    "data.data_dir",
    "data.validation_split",
    "data.on_bad_image",
    "log_every_steps",
    "keep_checkpoints",
    "init_from",
    "init_layers",
    "resume_with_changes",
}
IN_TEST_VIEWS_BY_EPOCH = {"data.crop_size_by_epoch", "data.train_scale_by_epoch"}
IN_TEST_DATASET = {"data.cache"}
IN_TEST_PROFILING = {"profile.start_step", "profile.num_steps"}
IN_TEST_PROCESSES = {"step_timeout_seconds"}
IN_TEST_SHARDS = {"shard_fc", "fc_exchange"}
IN_TEST_OBJECTIVES = {"objective"}
IN_TEST_RECIPES = {
    "distillation.teacher",
    "distillation.weight",
    "distillation.temperature",
    "distillation.teacher_ema",
    "init_ema",
    "early_stopping_patience",
    "test_step",
}
READ_OPTIONS = {"data.num_threads", "data.prefetch"}


def differ(one: config_lib.Config, other: config_lib.Config) -> bool:
    """Whether the plan, the start or the step of a run differ, the cheaper ones first.

    Raises:
      ConfigError: by `config_lib.check`, of either.
    """
    for config in (one, other):
        config_lib.check(config)
    texts = [config_lib.to_json(config) for config in (one, other)]
    return any(
        part(texts[0]) != part(texts[1])
        for part in (plan_of, decays_of, rates_of, start_of, step_of)
    )


def read(text: str) -> tuple[config_lib.Config, Plan]:
    config = config_lib.from_dict(json.loads(text))
    return config, Plan.of(config, 1000)


# Of a config as text: most fields are changed from one and the same.


@functools.cache
def plan_of(text: str) -> Any:
    _, plan = read(text)
    due = [(plan.validates_at(s), plan.saves_at(s)) for s in range(40)]
    return plan.total_steps, due


@functools.cache
def decays_of(text: str) -> list[float]:
    optimizer = read(text)[0].optimizer
    plateau, decays = schedules.init_plateau(), []
    for top1 in (0.5, 0.4, 0.4, 0.4, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1):
        plateau = schedules.update_plateau(optimizer, plateau, top1)
        decays.append(float(schedules.plateau_factor(optimizer, plateau)))
    return decays


def schedule_of(text: str) -> optax.Schedule:
    config, plan = read(text)
    return schedules.make_schedule(config.optimizer, 20.5, plan.total_steps)


@functools.cache
def rates_of(text: str) -> list[float]:
    schedule = schedule_of(text)
    return [float(schedule(step)) for step in range(30)]


@functools.cache
def traced_start(text: str) -> Any:
    config, _ = read(text)
    return jax.make_jaxpr(lambda: state_lib.init_state(config), return_shape=True)()


def start_of(text: str) -> str:
    return str(traced_start(text)[0])


@functools.cache
def step_of(text: str) -> Any:
    config, _ = read(text)
    each = config.data.batch_size // 8
    shapes = batches.batch_shapes(config.data, (each,), train=True)
    step = step_lib.make_train_step(config, schedule_of(text))
    traced = jax.make_jaxpr(step, axis_env=[(parallel.AXIS_NAME, 8)])
    jaxpr = traced(traced_start(text)[1], shapes)
    return str(jaxpr), [np.asarray(constant).tolist() for constant in jaxpr.consts]


def batch_fingerprint(config: config_lib.Config) -> dict[str, Any]:
    """The first training batches and the last evaluation batch of `config`."""
    return read_batches(config_lib.to_json(config))


@functools.cache
def read_batches(text: str) -> dict[str, Any]:
    config = config_lib.from_dict(json.loads(text))
    data, classes = config.data, config.model.num_classes
    train = splits.open_split(data, data.train_split, classes)
    test = splits.open_split(data, data.test_split, classes)
    stream = batches.train_batches(
        data, train, seed=config.seed, start_example=0, shard=batches.Shard()
    )
    first = [next(stream) for _ in range(2)]
    *_, last = batches.eval_batches(data, test, shard=batches.Shard())
    crcs = jax.tree.map(lambda x: zlib.crc32(np.ascontiguousarray(x)), [*first, last])
    return {"crcs": crcs, "sizes": (len(train), len(test))}


def test_every_field_is_probed_somewhere() -> None:
    probed = {
        *RUN_PROBES,
        *BATCH_PROBES,
        *IN_TEST_FOLDER,
        *IN_TEST_TRAINER,
        *IN_TEST_DATASET,
        *IN_TEST_VIEWS_BY_EPOCH,
        *IN_TEST_PROFILING,
        *IN_TEST_PROCESSES,
        *IN_TEST_SHARDS,
        *IN_TEST_OBJECTIVES,
        *IN_TEST_RECIPES,
        *READ_OPTIONS,
        "model.in_channels",  # the next test
    }
    assert probed == set(config_lib.flatten(config_lib.Config()))


def test_input_channels_are_the_first_kernels(tiny_config: config_lib.Config) -> None:
    rgb = {"data__mean": (0.5,) * 3, "data__std": (0.5,) * 3, "model__in_channels": 3}
    for config, channels in ((tiny_config, 1), (changed(tiny_config, **rgb), 3)):
        assert config_lib.check(config) == config
        state = jax.eval_shape(lambda c=config: state_lib.init_state(c))
        assert state.params["conv1_1"]["kernel"].shape == (3, 3, channels, 4)


@pytest.mark.parametrize("name", RUN_PROBES)
def test_a_field_changes_the_step_the_start_or_the_plan(
    name: str, shallow: None, tiny_config: config_lib.Config
) -> None:
    value, needed = RUN_PROBES[name]
    base = changed(tiny_config, model__variant="vgg8_bn", **needed)
    other = changed(base, **{name.replace(".", "__"): value})
    assert differ(base, other)


@pytest.mark.parametrize("name", BATCH_PROBES)
def test_a_field_changes_the_batches(name: str, tiny_config: config_lib.Config) -> None:
    value, needed = BATCH_PROBES[name]
    base = changed(tiny_config, **needed)
    other = changed(base, **{name.replace(".", "__"): value})
    assert batch_fingerprint(base) != batch_fingerprint(other)


@pytest.mark.parametrize("needed", [{}, COLOR, {"data__train_view": "resized_crop"}])
def test_the_batches_of_a_config_are_always_the_same(
    needed: dict[str, Any], tiny_config: config_lib.Config
) -> None:
    text = config_lib.to_json(changed(tiny_config, **needed))
    assert read_batches.__wrapped__(text) == read_batches.__wrapped__(text)


def test_threads_and_prefetch_reach_grain() -> None:
    data = config_lib.DataConfig(num_threads=3, prefetch=7)
    options = batches.read_options(data)
    assert (options.num_threads, options.prefetch_buffer_size) == (3, 7)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_sound_and_says_how_to_run_it(name: str) -> None:
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = config_lib.check(module.get_config())
    classes = recipe.model.num_classes or 10  # 0: as many as the data have
    net = state_lib.make_model(changed(recipe, model__num_classes=classes).model)
    assert recipe.data.crop_size >= net.smallest_image
    assert 32 * net.fc6_window == recipe.data.crop_size or recipe.model.head == "gap"
    document = (module.__doc__ or "").replace("\n", " ")
    flag = "" if name == "default" else f" --config=configs/{name}.py"
    assert f"python train.py{flag}" in document
    for heading in ("command", "hardware", "time", "result"):
        assert f"{heading} " in document, heading


def test_a_recipe_survives_json() -> None:
    recipe = config_lib.Config()
    recipe.data.mean = (0.1, 0.2, 0.3)
    recipe.init_layers = config_lib.PAPER_INIT_LAYERS
    back = config_lib.from_dict(json.loads(config_lib.to_json(recipe)))
    assert back == recipe
    assert isinstance(back.data.color_eigenvectors[0], tuple)


def test_model_config_has_the_fields_of_the_net() -> None:
    ours = {field.name for field in dataclasses.fields(config_lib.ModelConfig)}
    theirs = set(model.VGG.__dataclass_fields__) - {"parent", "name"}
    # What is not of a training run: the mapped axis, pooling at other sizes, a part.
    theirs -= {"batch_norm_axis", "adaptive_pool", "until", "frozen"}
    assert ours - {"batch_norm_across_replicas"} == theirs


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model__head": "mlp"}, r"config.model.head='mlp'.*'fc', 'gap'"),
        ({"model__dropout_rate": 1.5}, r"config.model.dropout_rate=1.5.*0 to 0.99"),
        ({"data__mean": (0.5,)}, r"config.data.mean=\(0.5,\) has 1 values.*=3"),
        ({"data__train_scale": (512, 256)}, r"train_scale=\(512, 256\).*low, high"),
        (
            {"data__train_view": "paper", "data__train_scale": (128, 256)},
            r"train_scale=\(128, 256\).*crop_size=224",
        ),
        ({"data__test_scale": 200}, r"test_scale=200.*raise it to 224"),
        ({"num_steps": 0}, r"config.num_steps=0; expected at least 1"),
        ({"model__width_multiplier": 0.0}, r"width_multiplier=0.0; expected at least"),
        ({"seed": -1}, r"config.seed=-1; expected 0 to"),
        (
            {"optimizer__schedule": "plateau", "data__validation_split": ""},
            r"plateau.*validation_split is empty",
        ),
        ({"optimizer__schedule": "one_cycle"}, r"warmup_epochs, which are 0.*: 27"),
        (
            {"optimizer__name": "adam"},
            r"optimizer.name='adam'; expected one of .*adamw",
        ),
        ({"optimizer__name": "custom"}, r"schedule='step' with .*'constant', or"),
        (
            {
                "optimizer__name": "custom",
                "optimizer__schedule": "plateau",
                "shard_fc": True,
            },
            r"shard_fc=True with .*'custom'.*set shard_fc=False",
        ),
        (
            {
                "model__in_channels": 1,
                "data__mean": (0.5,),
                "data__std": (0.5,),
                "data__color_shift": 0.1,
            },
            r"color_shift=0.1 needs RGB",
        ),
        (
            {
                "model__in_channels": 1,
                "data__mean": (0.5,),
                "data__std": (0.5,),
                "data__color_jitter": (0.4, 0.4, 0.4, 0.0),
            },
            r"color_jitter=\(0.4, 0.4, 0.4, 0.0\).*in_channels=1; set both to 0",
        ),
        ({"data__color_jitter": (0.0, 0.0, 0.0, 0.6)}, r"hue of 0.6; .* at most 0.5"),
        ({"data__color_jitter": (-0.1, 0.0, 0.0, 0.0)}, r"jitter=\(-0.1.*at least 0"),
        ({"data__auto_augment": "augmix"}, r"auto_augment='augmix'.*'trivial', 'rand'"),
        ({"data__rand_augment_magnitude": 31}, r"magnitude=31; expected 0 to 30"),
        ({"optimizer__learning_rate": float("nan")}, r"learning_rate=nan"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(
    fields: dict[str, Any], expected: str
) -> None:
    with pytest.raises(errors.ConfigError, match=expected):
        config_lib.check(changed(config_lib.Config(), **fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_epochs", "ten"),
        ("data__train_scale", 256),
        ("data__train_scale", (1, 2, 3)),
        ("data__flip", 3),
        ("model__num_classes", 10.5),
        ("optimizer__learning_rate", "0.1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    recipe = config_lib.Config()
    *outer, last = field.split("__")
    setattr(getattr(recipe, outer[0]) if outer else recipe, last, value)
    with pytest.raises(errors.ConfigError, match=last):
        config_lib.check(recipe)


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [(100, 8, "96 or 104"), (7, 8, "try 8"), (9, 2, "8 or 10"), (24, 9, "18 or 27")],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(
    size: int, multiple: int, expected: str
) -> None:
    with pytest.raises(errors.ConfigError, match=f"data.batch_size={size}.*{expected}"):
        config_lib.check_batch("data.batch_size", size, multiple, "some devices")
    config_lib.check_batch("data.batch_size", multiple * 3, multiple, "some devices")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--config.optimizer.learning_rat=1"], "--config.optimizer.learning_rate?"),
        (["--config.learning_rate=1"], "--config.optimizer.learning_rate?"),
        (["--config.nun_epochs=1"], "--config.num_epochs?"),
        (["--config.num_epochs=ten"], "num_epochs"),
        (["--config.data.train_scale=5"], "data.train_scale"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--config.model.head=mlp"], "config.model.head='mlp'"),
        (["--wrokdir=x"], "workdir"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(flags: list[str], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
