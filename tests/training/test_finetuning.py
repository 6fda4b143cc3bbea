"""Starting from anybody's weights; frozen layers stay to the bit, and cost nothing."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from conftest import changed, random_net, save_run, tiny

import vgg_flax
from tests import boxes
from vgg_flax import config as config_lib
from vgg_flax import errors, parallel
from vgg_flax.runs import checkpoint
from vgg_flax.runs.leaves import Checkpoint, to_leaves
from vgg_flax.training import resumption, trainer
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib
from vgg_flax.training.job import Job
from vgg_flax.training.requirements import check_net

RATE = 0.05


@pytest.fixture
def config(shallow: None, digits_dir: str) -> config_lib.Config:
    """`vgg8` without BatchNorm, 1/16 as wide, no dropout; 64 digits a step."""
    return changed(tiny(digits_dir), model__variant="vgg8", model__dropout_rate=0.0)


def batch(seed: int, size: int = 48) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (size, 32, 32, 1), np.uint8),
        "label": random.integers(0, 10, size, np.int32),
        "mask": np.ones(size, bool),
        "index": np.arange(size, dtype=np.int32),
    }


def updated(config: config_lib.Config, count: int = 1, devices: int = 8) -> Any:
    """The leaves before and after some updates."""
    chosen = jax.devices()[:devices]
    step = parallel.pmap_step(
        step_lib.make_train_step(config, lambda _: RATE),
        donate_state=False,
        devices=chosen,
    )
    state = start = jax.jit(lambda: state_lib.init_state(config))()
    for i in range(count):
        state = step(
            parallel.replicate(state, chosen), parallel.shard(batch(i), chosen)
        )[0]
    return to_leaves(start), to_leaves(state)


def moved(before: Any, after: Any) -> set[str]:
    """The layers of which a param or a statistic is another."""
    paths = [p for p in before if p.startswith(("params/", "batch_stats/"))]
    return {p.split("/")[1] for p in paths if (before[p] != after[p]).any()}


ALL = {f"{kind}{stage}_1" for kind in ("conv", "bn") for stage in range(1, 6)}
ALL |= {"fc6", "fc7", "fc8"}


@pytest.mark.parametrize(
    ("pieces", "across", "devices"), [(1, False, 1), (2, True, 8), (1, False, 3)]
)
def test_frozen_layers_stay_to_the_bit(
    pieces: int, across: bool, devices: int, config: config_lib.Config
) -> None:
    """A stage, a convolution with its norm, an FC layer; statistics too.

    On three devices the mean of three equal numbers need not be that number.
    """
    config = changed(
        config,
        model__variant="vgg8_bn",
        model__batch_norm_across_replicas=across,
        freeze=("stage1", "conv3_1", "fc7"),
        optimizer__accumulation_steps=pieces,
    )
    before, after = updated(config, 3, devices)
    still = {"conv1_1", "bn1_1", "conv3_1", "bn3_1", "fc7"}
    assert moved(before, after) == ALL - still
    kept = {p.split("/")[-2] for p in before if p.startswith("opt_state/")}
    assert kept == ALL - still


def test_what_is_trained_moves_as_if_nothing_were_frozen(
    config: config_lib.Config,
) -> None:
    """Of a net without BatchNorm, in the first update."""
    _, whole = updated(config)
    before, part = updated(changed(config, freeze=("stage2", "conv5_1")))
    for path, leaf in part.items():
        if path.startswith("params/"):
            same = before if path.split("/")[1] in ("conv2_1", "conv5_1") else whole
            np.testing.assert_allclose(leaf, same[path], rtol=0, atol=1e-7)


def compiled(config: config_lib.Config) -> Any:
    state = jax.eval_shape(lambda: state_lib.init_state(config))
    step = step_lib.make_train_step(config, lambda _: RATE)
    mapped = parallel.pmap_step(step, donate_state=True, devices=jax.devices()[:1])
    shapes = {
        k: jax.ShapeDtypeStruct((1, *v.shape), v.dtype) for k, v in batch(0).items()
    }
    return mapped.lower(state, shapes).compile()


def test_frozen_stages_cost_no_gradient_and_no_memory(
    config: config_lib.Config,
) -> None:
    """Four of five: less than half of the work, and of what is kept between."""
    config = changed(config, model__width_multiplier=1 / 4)
    costs = {}
    for freeze in ((), ("stage1", "stage2", "stage3", "stage4")):
        program = compiled(changed(config, freeze=freeze))
        flops = program.cost_analysis()["flops"]
        costs[freeze != ()] = flops, program.memory_analysis().temp_size_in_bytes
    assert costs[True][0] < 0.5 * costs[False][0]
    assert costs[True][1] < 0.7 * costs[False][1]


def test_layer_rates_scale_each_layers_update(config: config_lib.Config) -> None:
    """The last of two that name a layer counts."""
    rates = (("stage5", 0.1), ("fc6", 3), ("fc8", 10), ("stage4", 7), ("conv4_1", 0.5))
    before, plain = updated(config)
    _, scaled = updated(changed(config, optimizer__layer_rates=rates))
    factors = {"conv5_1": 0.1, "fc6": 3, "fc8": 10, "conv4_1": 0.5}
    for path in plain:
        if path.startswith("params/"):
            factor = factors.get(path.split("/")[1], 1)
            np.testing.assert_allclose(
                scaled[path] - before[path],
                factor * (plain[path] - before[path]),
                rtol=0,
                atol=1e-6 * max(1, factor),
            )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"freeze": ("stage6",)}, "'stage6', which this vgg8 .*stage1 to stage5"),
        ({"freeze": ("conv1_2",)}, "'conv1_2'.*did you mean conv1_1"),
        ({"freeze": ("bn1_1",)}, "'bn1_1', which this vgg8 does not have"),
        ({"freeze": tuple(sorted(ALL - {f"bn{i}_1" for i in range(1, 6)}))}, "nothing"),
        ({"freeze": ("fc6",), "shard_fc": True}, "FC kernels that are cut"),
        ({"optimizer__layer_rates": (("fc9", 2.0),)}, "layer_rates names 'fc9'"),
        ({"optimizer__layer_rates": (("fc8", 0.0),)}, "above 0; .*config.freeze"),
        ({"optimizer__layer_rates": (("fc8", float("inf")),)}, "has inf for 'fc8'"),
    ],
)
def test_names_and_rates_that_cannot_be_are_told(
    fields: Any, said: str, config: config_lib.Config
) -> None:
    with pytest.raises(errors.ConfigError, match=said):
        check_net(config_lib.check(changed(config, **fields)), 8)


def read(workdir: pathlib.Path, step: int) -> Checkpoint:
    """All of a step, its optimizer's state too."""
    folder = workdir / "checkpoints"
    with checkpoint.Checkpoints(folder, keep=3, read_only=True) as checkpoints:
        return checkpoints.read(step)


def test_a_run_goes_on_with_other_layers_frozen(
    config: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is unfrozen starts with a momentum of 0; both are told."""
    first = changed(config, freeze=("stage1", "fc6"), num_steps=2)
    trainer.train_and_evaluate(first, tmp_path)
    then = changed(config, freeze=("stage5",), num_steps=2, resume_with_changes=True)
    with pytest.raises(errors.ConfigError, match=r"config\.freeze: .*stage1"):
        trainer.train_and_evaluate(changed(then, resume_with_changes=False), tmp_path)
    saved = read(tmp_path, 2)
    _, state = resumption.first_state(Job.prepare(then, tmp_path), saved)
    momentum = {p: v for p, v in to_leaves(state).items() if p.startswith("opt_state")}
    for path, leaf in momentum.items():
        is_new = path.split("/")[-2] in ("conv1_1", "fc6")
        assert leaf.any() != is_new, path
        if not is_new:
            np.testing.assert_array_equal(leaf, saved.leaves[path])
    assert not any("conv5_1" in path for path in momentum)
    printed = capsys.readouterr().err
    assert "conv1_1, fc6: trained from here on, with a momentum of 0" in printed
    assert "conv5_1: frozen from here on" in printed
    trainer.train_and_evaluate(changed(then, num_steps=3), tmp_path)
    again = read(tmp_path, 3)
    assert moved(saved.leaves, again.leaves) == {
        name for name in ALL if not name.startswith("bn")
    } - {"conv5_1"}


@pytest.mark.parametrize("kind", ["run", "file", "features", "nan"])
def test_a_run_starts_from_anybodys_weights_and_draws_the_head_anew(
    kind: str,
    config: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of seven classes; as a run, a safetensors, convolutions alone, a head of NaN."""
    net = random_net("vgg11", num_classes=7, in_channels=3)
    if kind == "features":
        params = {k: v for k, v in net.variables["params"].items() if k < "fc"}
        net = net.replace(
            variables={"params": params},
            model=net.model.clone(head="none"),
            class_names=(),
        )
    elif kind == "nan":
        params = {
            k: jax.tree.map(lambda x: x * np.nan, v) if k.startswith("fc") else v
            for k, v in net.variables["params"].items()
        }
        net = net.replace(variables={"params": params})
    path = tmp_path / ("run" if kind == "run" else "net.safetensors")
    vgg_flax.save(net, path)
    config = changed(
        config,
        model__variant="vgg11",
        model__in_channels=3,
        data__mean=None,
        data__std=None,
        init_from=str(path),
    )
    net_of_file = resumption.load_weights(config)
    assert net_of_file is not None
    state = resumption.new_state(config, net_of_file)
    drawn = state_lib.draw_state(config)
    anew = {"fc8"} if kind in ("run", "file") else {"fc6", "fc7", "fc8"}
    for name, leaves in state.params.items():
        source = drawn.params if name in anew else net.variables["params"]
        jax.tree.map(np.testing.assert_array_equal, leaves, dict(source[name]))
    said = f"{', '.join(sorted(anew))}: drawn anew, as {path} has "
    assert said in capsys.readouterr().err


def test_weights_that_are_none_are_told(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    for source in ("no/such/run", "nosuchnet", "http://127.0.0.1:9/x.pth"):
        with pytest.raises(errors.ConfigError, match=r"config\.init_from: "):
            resumption.load_weights(changed(config, init_from=source))
    save_run(random_net("vgg13", in_channels=1), tmp_path / "deeper")
    other = changed(config, init_from=str(tmp_path / "deeper"))
    with pytest.raises(errors.ConfigError, match=r"--config\.model\.variant=vgg13"):
        resumption.new_state(other, resumption.load_weights(other))


def test_the_number_of_classes_may_be_the_datas(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    asked = changed(config, model__num_classes=0, num_steps=1)
    trainer.train_and_evaluate(asked, tmp_path)
    assert vgg_flax.load(tmp_path).model.num_classes == 10
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model"]["num_classes"] == 10
    # Said or not, it is the same run.
    trainer.train_and_evaluate(changed(asked, model__num_classes=10), tmp_path)
    trainer.train_and_evaluate(asked, tmp_path)


def test_where_there_are_no_classes_the_number_of_outputs_is_asked_for(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    asked = changed(config, model__num_classes=0, objective="boxes")
    with pytest.raises(errors.ConfigError, match=r"config\.model\.num_classes=0"):
        Job.prepare(asked, tmp_path, boxes.BOXES)
    with pytest.raises(errors.ConfigError, match="give a number"):
        state_lib.make_model(asked.model)
