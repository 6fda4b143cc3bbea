"""`vgg_flax.load` gives a net that plain JAX functions can use."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
from conftest import changed, random_net, save_run
from torchvision_net import torchvision_tensors
from weight_files import write_named_safetensors

import vgg_flax
from vgg_flax import config, errors
from vgg_flax.runs import checkpoint, log
from vgg_flax.training import trainer


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, digits_dir: str) -> pathlib.Path:
    """A short run whose best step is not its last."""
    folder = tmp_path_factory.mktemp("runs") / "net"
    recipe = config.Config(
        model=config.ModelConfig(
            variant="A",
            num_classes=10,
            in_channels=1,
            width_multiplier=1 / 8,
            fc_widths=(32, 32),
            fc6_window=1,
            initializer="glorot",
        ),
        data=config.DataConfig(
            name="digits",
            data_dir=digits_dir,
            train_split="train[:90%]",
            validation_split="train[90%:]",
            test_split="test",
            batch_size=64,
            eval_batch_size=64,
            train_view="pad_crop",
            train_scale=(32, 32),
            crop_size=32,
            test_scale=32,
            flip=False,
            mean=(0.3,),
            std=(0.4,),
            num_threads=2,
            prefetch=4,
        ),
        optimizer=config.OptimizerConfig(schedule="constant"),
        num_steps=6,
        eval_every_epochs=0.1,
    )
    trainer.train_and_evaluate(recipe, folder)
    return folder


def png_bytes(index: int) -> bytes:
    import io

    import PIL.Image

    pixels = samples.digits()[0][1437 + index] * (255 / 16)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels.round().astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_a_loaded_net_scores_the_test_split_as_the_run_did(
    workdir: pathlib.Path,
) -> None:
    net = vgg_flax.load(workdir)
    views = np.stack([net.preprocessing.test_view(png_bytes(i)) for i in range(360)])
    assert views.shape == (360, 32, 32, 1)
    assert views.dtype == np.uint8
    logits = net(views)
    labels = samples.digits()[1][1437:]
    hits = int((np.asarray(logits).argmax(axis=1) == labels).sum())
    record = log.read_records(workdir)[-1]
    assert (record["split"], record["top1_count"]) == ("test", hits)
    np.testing.assert_array_equal(logits, net(net.preprocessing.normalize(views)))


def test_it_knows_its_variant_classes_and_steps(workdir: pathlib.Path) -> None:
    last, best = vgg_flax.load(workdir), vgg_flax.load(workdir, step="best")
    assert last.variant == "vgg11"
    assert last.model.num_classes == 10
    assert last.class_names == tuple("0123456789")
    records = [r for r in log.read_records(workdir) if r["split"] == "validation"]
    best_step = max(records, key=lambda r: (r["top1"], r["step"]))["step"]
    with checkpoint.Checkpoints(workdir / "checkpoints", keep=9) as checkpoints:
        expected = checkpoints.read(checkpoints.best_step() or 0).variables
        assert checkpoints.best_step() == best_step
        steps = checkpoints.steps()
    jax.tree.map(np.testing.assert_array_equal, best.variables, expected)
    by_number = vgg_flax.load(workdir, step=steps[-1])
    jax.tree.map(np.testing.assert_array_equal, by_number.variables, last.variables)
    with pytest.raises(checkpoint.CheckpointError, match=r"step 1234 .* it has \["):
        vgg_flax.load(workdir, step=1234)


def test_grad_vmap_and_jvp_apply_without_ceremony(workdir: pathlib.Path) -> None:
    net = vgg_flax.load(workdir)
    view = net.preprocessing.test_view(png_bytes(0))
    image = net.preprocessing.normalize(view)

    def score(image: jax.Array) -> jax.Array:
        return net(image[None])[0, 3]

    gradient = jax.jit(jax.grad(score))(image)  # eagerly each operation is compiled
    assert gradient.shape == image.shape
    direction = jax.random.normal(jax.random.key(0), image.shape)
    value, slope = jax.jit(lambda x, d: jax.jvp(score, (x,), (d,)))(image, direction)
    np.testing.assert_allclose(slope, (gradient * direction).sum(), rtol=1e-4)
    many = jnp.stack([image, image * 0.5])
    np.testing.assert_allclose(jax.jit(jax.vmap(score))(many)[0], value, rtol=1e-5)
    # The net itself is a pytree: differentiate with respect to its variables.
    grads = jax.jit(jax.grad(lambda net: net(image[None])[0, 3]))(net)
    assert grads.variables["params"]["fc8"]["bias"][3] == 1
    np.testing.assert_allclose(
        jax.jit(lambda net, x: net(x))(net, many), net(many), rtol=1e-4, atol=1e-5
    )


def test_integer_images_other_than_uint8_are_refused(workdir: pathlib.Path) -> None:
    net = vgg_flax.load(workdir)
    with pytest.raises(TypeError, match=r"int32.*expected uint8"):
        net(np.zeros((1, 32, 32, 1), np.int32))


def test_a_folder_that_is_no_run_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="no folder 'checkpoints'"):
        vgg_flax.load(tmp_path)


def test_a_folder_with_weight_files_names_them(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(checkpoint.CheckpointError, match=r"the file: .*/model\.safet"):
        vgg_flax.load(tmp_path)


def test_a_runs_folder_of_checkpoints_is_the_run(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg11")
    run = save_run(net, tmp_path / "run")
    for folder in (run, run / "checkpoints", run / "checkpoints" / "0"):
        assert vgg_flax.load(folder).sha256 == vgg_flax.load(run).sha256
    with pytest.raises(checkpoint.CheckpointError, match="one step, and step='best'"):
        vgg_flax.load(run / "checkpoints" / "0", "best")
    named_so = save_run(net, tmp_path / "checkpoints")
    assert vgg_flax.load(named_so).sha256 == vgg_flax.load(run).sha256


def test_a_net_is_its_card_and_variables() -> None:
    net = random_net("D", num_classes=4).replace(train_scale=(256, 512))
    assert (net.variant, net.model.variant) == ("vgg16", "D")
    fields = {f.name: getattr(net.card, f.name) for f in dataclasses.fields(net.card)}
    assert {name: getattr(net, name) for name in fields} == fields
    leaves = jax.tree.leaves(net.variables)
    assert all(a is b for a, b in zip(jax.tree.leaves(net), leaves, strict=True))
    doubled = jax.jit(lambda net: jax.tree.map(lambda x: 2 * x, net))(net)
    unsigned = {"source": "", "sha256": "", "ingredients": ()}  # of no file any more
    assert doubled.card == dataclasses.replace(net.card, **unsigned)

    other = net.replace(model=net.model.clone(variant="vgg19"), class_names=("a",))
    assert (other.variant, other.class_names) == ("vgg19", ("a",))
    assert (other.train_scale, other.variables) == ((256, 512), net.variables)
    assert net.replace(variables={}).card == net.card
    with pytest.raises(TypeError, match="variant"):  # it is the model's
        net.replace(variant="vgg19")


def test_a_checkpoint_of_before_there_were_cards_is_loaded(
    tmp_path: pathlib.Path,
) -> None:
    net = random_net("vgg11")
    meta = {
        "config": {},
        "variant": "vgg11",
        "model": {
            "dropout_rate": 0.5,
            "dtype": "float32",
            "fc6_window": 1,
            "fc_widths": [16, 16],
            "head": "fc",
            "in_channels": 3,
            "initializer": "he",
            "num_classes": 10,
            "variant": "vgg11",
            "width_multiplier": 1 / 16,
        },
        "preprocessing": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "test_scale": 36,
            "crop_size": 32,
        },
        "class_names": [f"class {i}" for i in range(10)],
        "train_scale": [256, 512],
        "evaluated": False,
    }
    checkpoint.save_variables(tmp_path / "run", net.variables, meta)
    loaded = vgg_flax.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, net.variables)
    expected = dataclasses.replace(
        net.card,
        train_scale=(256, 512),
        source=str(tmp_path / "run"),
        sha256=loaded.sha256,
    )
    assert loaded.card == expected
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize(
    "damage", [{"model": 5}, {"variant": "vgg13"}, {"class_names": None}], ids=str
)
def test_a_checkpoint_that_does_not_say_what_it_is_is_one_error(
    damage: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11")
    meta = net.card.to_json() | damage
    checkpoint.save_variables(tmp_path / "run", net.variables, meta)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"step 0 of .*/run does not say what its net"
    ):
        vgg_flax.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        ("x.pth", {"num_classes": 0}, "num_classes=0: expected a positive number"),
        ("x.pth", {"num_classes": "3"}, "num_classes='3': expected a positive number"),
        ("x.pth", {"num_classes": 3, "include_top": False}, "leave one out"),
        ("x.pth", {"dtype": "float64"}, "JAX_ENABLE_X64=1"),
        ("", {}, "'' is no weights"),
        ("s3://bucket/x.pth", {}, "needs a package: pip install s3fs"),
    ],
)
def test_impossible_requests_say_why(path: str, options: Any, expected: str) -> None:
    with pytest.raises(errors.VGGFlaxError, match=expected):
        vgg_flax.load(path, **options)


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 32, 32, 4), (1, 3, 32, 32)])
def test_images_of_another_shape_are_told_what_is_expected(shape: Any) -> None:
    net = random_net("vgg11")
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, 3\]"):
        net(np.zeros(shape, np.uint8))


@pytest.mark.slow  # it trains
def test_a_net_trained_across_replicas_evaluates_alone(
    bare_config: config.Config, tmp_path: pathlib.Path
) -> None:
    recipe = changed(
        bare_config,
        num_steps=1,
        model__variant="vgg8_bn",
        model__batch_norm_across_replicas=True,
    )
    trainer.train_and_evaluate(recipe, tmp_path)
    assert vgg_flax.load(tmp_path)(np.zeros((2, 32, 32, 1), np.uint8)).shape == (2, 10)


def test_pixels_by_hand_are_those_of_the_net(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "grey.safetensors"
    tensors = torchvision_tensors("vgg11")
    tensors["features.0.weight"] = tensors["features.0.weight"][:, :1]
    write_named_safetensors(path, tensors)
    net = vgg_flax.load(path, mean=(0.4,), std=(0.2,))
    assert net.preprocessing.normalize(np.full((1, 1, 1), 51, np.uint8)) == -1
    assert net(np.zeros((1, 64, 64, 1), np.uint8)).shape == (1, 10)
    for given in ({"mean": (0.4,)}, {"mean": (0.4,), "preprocessing": "caffe"}):
        with pytest.raises(errors.VGGFlaxError, match="expected mean and std"):
            vgg_flax.load(path, **given)
    run = save_run(random_net("vgg11"), tmp_path / "run")
    with pytest.raises(errors.VGGFlaxError, match="is a run"):
        vgg_flax.load(run, mean=(0.4,), std=(0.2,))
