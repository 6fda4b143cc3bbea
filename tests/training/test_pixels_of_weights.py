"""A run has the pixels of the net that it starts from, and keeps them."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from conftest import changed, random_net, save_run

import vgg_flax
from tests import samples
from vgg_flax import config as config_lib
from vgg_flax import errors
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.net import Net
from vgg_flax.runs import checkpoint, log
from vgg_flax.runs import leaves as leaves_lib
from vgg_flax.runs.leaves import Checkpoint, to_leaves
from vgg_flax.training import resumption, trainer
from vgg_flax.training.job import Job

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)


@pytest.fixture
def config(bare_config: config_lib.Config) -> config_lib.Config:
    """One step of a net for RGB, which leaves out the mean and the std."""
    return changed(
        bare_config,
        model__in_channels=3,
        data__mean=None,
        data__std=None,
        data__train_split="train[:64]",
        data__validation_split="",
        data__test_split="test[:64]",
        data__train_view="paper",  # of images of the crop's size: the test view
        data__train_scale=(32, 32),
        optimizer__schedule="constant",
        optimizer__learning_rate=0.0,
        optimizer__weight_decay=0.0,
        num_steps=1,
    )


@pytest.fixture
def weights(shallow: None, tmp_path: pathlib.Path) -> Net:
    """A net for Caffe's pixels, saved; `source` is where."""
    net = random_net("vgg8", head="gap")
    # Its kernels stand for pixels of deviation 1, and these are of 0 to 255.
    params = dict(net.variables["params"])
    first = params["conv1_1"]
    params["conv1_1"] = {**first, "kernel": first["kernel"] / 60}
    net = net.replace(
        variables={"params": params}, preprocessing=Preprocessing(*CAFFE, 32, 32)
    )
    save_run(net, tmp_path / "weights")
    return net.replace(source=str(tmp_path / "weights"))


def pixels(net: Net) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return net.preprocessing.mean, net.preprocessing.std


def settled(config: config_lib.Config, workdir: pathlib.Path) -> Any:
    """The mean and std that a new run would have."""
    job, _ = resumption.first_state(Job.prepare(config, workdir), None)
    return job.config.data.mean, job.config.data.std


def losses_of(net: Net, pixels: Any) -> dict[str, float]:
    """The mean cross-entropy of each split's 64 digits, normalised with `pixels`."""
    images, labels = samples.digits()
    losses, (mean, std) = {}, (np.array(values) for values in pixels)
    for split, start in (("train", 0), ("test", 1437)):
        grey = (images[start:][:64] * (255 / 16)).round().astype(np.uint8)
        colour = np.repeat(grey[..., None], 3, axis=3)
        views = [net.preprocessing.test_view(image) for image in colour]
        x = ((np.stack(views) / 255 - mean) / std).astype(np.float32)
        logits = np.asarray(jax.jit(Net.__call__)(net, x), np.float64)
        chosen = logits[np.arange(64), labels[start:][:64]]
        losses[split] = (np.log(np.exp(logits).sum(axis=1)) - chosen).mean()
    return losses


def test_the_weights_pixels_go_through_the_whole_run(
    config: config_lib.Config,
    weights: Net,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = changed(config, init_from=weights.source)
    workdir = tmp_path / "run"
    trainer.train_and_evaluate(config, workdir)
    said = "mean 0.485 0.458 0.4076, std 0.003922 0.003922 0.003922\n"
    assert f"pixels of {weights.source}: {said}" in capsys.readouterr().err

    # With a learning rate of 0 the run's net is the weights, whose loss is known.
    losses = {r["split"]: r["loss"] for r in log.read_records(workdir)}
    assert losses == pytest.approx(losses_of(weights, CAFFE), rel=1e-3)
    assert losses != pytest.approx(losses_of(weights, IMAGENET), rel=0.05)

    again = vgg_flax.load(workdir)
    assert pixels(again) == CAFFE
    jax.tree.map(np.testing.assert_array_equal, again.variables, weights.variables)
    as_text = json.loads((workdir / "config.json").read_text())
    for written in (as_text, checkpoint.load(workdir).meta["config"]):
        assert written["data"]["mean"] == list(CAFFE[0])
        assert written["data"]["std"] == list(CAFFE[1])

    # It goes on without what it started from, and not with other pixels.
    shutil.rmtree(weights.source)
    assert trainer.train_and_evaluate(config, workdir)["loss"] == losses["test"]
    other = changed(config, data__mean=IMAGENET[0])
    with pytest.raises(errors.ConfigError) as caught:
        trainer.train_and_evaluate(other, workdir)
    assert f"config.data.mean: {CAFFE[0]} -> {IMAGENET[0]}" in str(caught.value)


def test_a_run_of_before_keeps_the_pixels_that_it_had(
    config: config_lib.Config, weights: Net, tmp_path: pathlib.Path
) -> None:
    explicit = changed(config, data__mean=IMAGENET[0], data__std=IMAGENET[1])
    job, state = resumption.first_state(Job.prepare(explicit, tmp_path), None)
    meta = {"config": dataclasses.asdict(explicit), "class_names": job.class_names}
    meta |= {"data": job.fingerprints, "evaluated": False}
    leaves = to_leaves(state)
    saved = Checkpoint(1, leaves, {**meta, "leaves": leaves_lib.describe(leaves)})
    today = Job.prepare(changed(config, init_from=weights.source), tmp_path)
    job, _ = resumption.first_state(today, saved)
    assert (job.config.data.mean, job.config.data.std) == IMAGENET
    given = changed(config, data__std=CAFFE[1])
    with pytest.raises(errors.ConfigError, match=r"config\.data\.std: \(0\.229"):
        resumption.first_state(Job.prepare(given, tmp_path), saved)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_other_pixels_than_the_weights_are_an_error_with_both(
    name: str, config: config_lib.Config, weights: Net, tmp_path: pathlib.Path
) -> None:
    given, theirs = getattr(Preprocessing(*IMAGENET, 9, 9), name), CAFFE[name == "std"]
    config = changed(config, init_from=weights.source, **{f"data__{name}": given})
    with pytest.raises(errors.ConfigError) as caught:
        trainer.train_and_evaluate(config, tmp_path / "run")
    assert f"config.data.{name}={given}" in str(caught.value)
    assert f"trained with {theirs}" in str(caught.value)
    assert f"--config.data.{name}=None" in str(caught.value)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_pixels_are_those_of_conv1_1_alone(
    config: config_lib.Config, weights: Net, tmp_path: pathlib.Path
) -> None:
    config = changed(config, init_from=weights.source)
    first = changed(config, init_layers=("conv1_1", "fc8"))
    assert settled(first, tmp_path / "run") == CAFFE
    last = changed(config, init_layers=("conv5_1",), data__mean=(0.5, 0.5, 0.5))
    assert settled(last, tmp_path / "run") == ((0.5, 0.5, 0.5), IMAGENET[1])


def test_a_grey_net_gets_the_weights_grey_or_none(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    grey = changed(config, model__in_channels=1)
    rgb = save_run(random_net("vgg8", head="gap"), tmp_path / "rgb")
    with pytest.raises(errors.ConfigError, match=r"\(of ImageNet\) has 3 values"):
        config_lib.check(grey)
    save_run(random_net("vgg8", head="gap", in_channels=1), tmp_path / "grey")
    grey = changed(grey, init_from=str(tmp_path / "grey"))
    assert settled(grey, tmp_path / "run") == ((0.5,), (0.25,))
    with pytest.raises(errors.ConfigError, match=r"--config\.model\.in_channels=1"):
        settled(changed(grey, model__in_channels=3), tmp_path / "run")
    summed = changed(grey, init_from=str(rgb))
    assert settled(summed, tmp_path / "summed") == ((0.5,), (0.25,))
    job = Job.prepare(summed, tmp_path / "summed")
    kernel = resumption.first_state(job, None)[1].params["conv1_1"]["kernel"]
    theirs = vgg_flax.load(rgb).variables["params"]["conv1_1"]["kernel"]
    np.testing.assert_allclose(kernel[:, :, 0], theirs.sum(axis=2), rtol=1e-5)
    # conv1_1 of its own: what the weights take does not matter.
    other = changed(summed, init_layers=("conv5_1",), data__mean=(0.1,))
    other = changed(other, data__std=(0.2,))
    assert settled(other, tmp_path / "other") == ((0.1,), (0.2,))
