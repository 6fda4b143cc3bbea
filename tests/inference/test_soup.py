"""Soups: NumPy's mean of params, refused where it means nothing; greedy ones."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
from conftest import random_net, save_run

import vgg_flax
from vgg_flax import cli
from vgg_flax import config as config_lib
from vgg_flax.inference import soup as soup_lib
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError

pytestmark = pytest.mark.usefixtures("shallow")


def shaken(seed: int, size: float = 1.0, net: Net | None = None) -> Net:
    """A net of its own, every leaf of which is `random_net`'s and noise."""
    net = net or random_net("vgg8_bn", head="gap", num_classes=2)
    random = np.random.default_rng(seed)

    def shake(leaf: jax.Array) -> jax.Array:
        noise = 1 + size * random.uniform(-0.5, 0.5, leaf.shape)
        return jnp.asarray(np.asarray(leaf) * noise, leaf.dtype)

    variables = jax.tree.map(shake, net.variables)
    return net.replace(variables=variables, source=f"net {seed}", sha256=f"{seed}" * 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_soup_of_one_is_that_one_to_the_bit(dtype: str) -> None:
    net = shaken(0)
    net = net.replace(variables=jax.tree.map(lambda x: x.astype(dtype), net.variables))
    made = vgg_flax.soup([net])
    jax.tree.map(np.testing.assert_array_equal, made.variables, net.variables)
    assert {x.dtype for x in jax.tree.leaves(made.variables)} == {jnp.dtype(dtype)}
    assert made.card.ingredients == (f"net 0, sha256 {'0' * 64}",)
    assert jax.tree.structure(made) == jax.tree.structure(net)


def test_a_soup_of_several_is_numpys_mean_in_float64() -> None:
    nets = [shaken(seed) for seed in range(3)]
    made = vgg_flax.soup(iter(nets))

    def check(leaf: jax.Array, *leaves: jax.Array) -> None:
        expected = np.stack(leaves).astype(np.float64).mean(axis=0)
        np.testing.assert_array_equal(leaf, expected.astype(np.float32))

    jax.tree.map(check, made.variables, *(net.variables for net in nets))
    assert {"params", "batch_stats"} == set(made.variables)
    assert len(made.ingredients) == 3


def test_nets_of_one_recipe_but_for_its_training_have_a_soup() -> None:
    net = shaken(0)
    other = net.replace(
        model=net.model.clone(dropout_rate=0.1, initializer="paper"),
        train_scale=(256, 512),
    )
    made = vgg_flax.soup([other, net])
    assert made.model.dropout_rate == 0.1 and made.train_scale is None
    assert vgg_flax.soup([other, other]).train_scale == (256, 512)


def test_nets_that_do_not_fit_are_refused_with_what_differs() -> None:
    net = shaken(0)
    wider = random_net("vgg8_bn", head="gap", num_classes=2, width_multiplier=1 / 8)
    pixels = net.card.with_sizes(64, 64).preprocessing
    for other, what in (
        (random_net("vgg11_bn", head="gap", num_classes=2), "variant: 'vgg8_bn' and"),
        (wider, r"width_multiplier: 0\.0625 and 0\.125"),
        (random_net("vgg8_bn", head="gap"), "num_classes: 2 and 10"),
        (net.replace(preprocessing=pixels), "test_scale: 36 and 64; crop_size: 32 and"),
        (net.replace(class_names=("class 1", "class 0")), "0 is 'class 0' and 'class"),
        (net.replace(class_names=(), source="x"), "classes: x does not name its own"),
        (net.replace(objective="own", has_classes=False), "objective: 'classification"),
    ):
        with pytest.raises(WeightsError, match=f"net 0 and .* differ in .*{what}"):
            vgg_flax.soup([net, other])
    with pytest.raises(WeightsError, match="no nets"):
        vgg_flax.soup([])
    with pytest.raises(WeightsError, match="no nets"):
        soup_lib.greedy([], lambda net: 0)


def test_a_greedy_soup_keeps_what_does_not_make_it_worse() -> None:
    """Of nets that are numbers: scored by how near to 10 the mean is."""
    base = shaken(0)

    def at(value: float) -> Net:
        full = jax.tree.map(lambda x: jnp.full_like(x, value), base.variables)
        return base.replace(variables=full, source=str(value))

    def value_of(net: Net) -> float:
        return float(jax.tree.leaves(net.variables)[0].ravel()[0])

    nets = [at(value) for value in (2.0, 14.0, 9.0, 11.0, 30.0)]
    loads = [lambda net=net: net for net in nets]
    told: list[soup_lib.Decision] = []
    made = soup_lib.greedy(loads, lambda net: -abs(value_of(net) - 10), told.append)
    # 9, the first of two at 1; (9 + 11) / 2 = 10; with 14, 2 and 30 it gets worse.
    assert value_of(made) == 10.0
    decided = [(one.source, one.alone, one.together, one.kept) for one in told]
    assert decided[:2] == [("9.0", -1, -1, True), ("11.0", -1, 0, True)]
    assert [(one.source, one.kept) for one in told[2:]] == [
        ("14.0", False),
        ("2.0", False),
        ("30.0", False),
    ]
    assert told[2].together == pytest.approx(-(34 / 3 - 10), rel=1e-6)


def discerning(net: Net, images: pathlib.Path, sign: float) -> Net:
    """`net` that takes each image for the class whose mean features are the nearer.

    Or, where the `sign` is negative, for the other one.
    """
    pooled = []
    for name in net.class_names:
        paths = sorted((images / name).glob("*.png"))
        views = np.stack([net.preprocessing.test_view(path) for path in paths])
        maps = np.asarray(net.features(views, "pool5")["pool5"])
        pooled.append(maps.mean(axis=(0, 1, 2)))
    apart, middle = sign * (pooled[1] - pooled[0]), (pooled[0] + pooled[1]) / 2
    params = net.variables["params"]
    kernel = np.stack([-apart, apart], axis=-1).reshape(params["fc8"]["kernel"].shape)
    bias = np.array([1, -1], np.float32) * (middle @ apart)
    fc8 = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    return net.replace(variables={**net.variables, "params": {**params, "fc8": fc8}})


@pytest.fixture(scope="module")
def folder(shallow: None, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Crops of two photos in DATA/valid/CLASS, and runs of nets for these classes."""
    folder = tmp_path_factory.mktemp("soups")
    classes = ("flower", "temple")
    for name, photo in zip(classes[::-1], samples.pictures(), strict=True):
        for i in range(8):
            place = folder / "data" / "valid" / name
            place.mkdir(parents=True, exist_ok=True)
            left, top = 40 * i, 30 * i
            photo.crop((left, top, left + 90, top + 90)).save(place / f"{i:02}.png")
    data = config_lib.DataConfig(
        name="folder", data_dir=str(folder / "data"), validation_split="valid"
    )
    for seed, sign in enumerate((-2.0, 0.5, 1.0)):
        net = shaken(0).replace(class_names=classes)
        net = discerning(net, folder / "data" / "valid", sign)
        run = save_run(net, folder / f"run{seed}")
        (run / "config.json").write_text(
            config_lib.to_json(config_lib.Config(data=data))
        )
    return folder


@pytest.mark.slow
def test_a_greedy_soup_validates_no_worse_than_its_best_ingredient(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(folder / f"run{seed}") for seed in range(3)]
    dst = tmp_path / "soup.safetensors"
    assert cli.main(["soup", *runs, str(dst), "--greedy", "--batch-size", "16"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if " in the soup: " in line]
    assert len(lines) == 3
    kept = [line.partition(": ")[0] for line in lines if line.endswith("kept")]

    def right(net: Net) -> int:
        paths = sorted((folder / "data" / "valid").rglob("*.png"))
        views = np.stack([net.preprocessing.test_view(path) for path in paths])
        found = np.asarray(net(views)).argmax(axis=1)
        names = [net.class_names[i] for i in found]
        return sum(n == p.parent.name for n, p in zip(names, paths, strict=True))

    made = vgg_flax.load(dst)
    alone = {run: right(vgg_flax.load(run)) for run in runs}
    best = max(alone.values())
    assert alone[runs[0]] < 8 < best  # the worst is worth leaving out
    assert kept == runs[1:]
    assert right(made) >= best
    for line in lines:
        run = line.partition(": ")[0]
        assert f"({alone[run]}/16) alone" in line
    scores = [alone[line.partition(": ")[0]] for line in lines]
    assert scores == sorted(scores, reverse=True)
    whole = vgg_flax.soup([vgg_flax.load(run) for run in kept])
    jax.tree.map(np.testing.assert_array_equal, made.variables, whole.variables)
    assert [text.partition(",")[0] for text in made.card.ingredients] == kept


@pytest.mark.parametrize("name", ["run", "net.safetensors"])
def test_a_soup_is_written_as_load_reads_it_and_says_what_it_is_of(
    name: str, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    runs, dst = [str(folder / "run0"), str(folder / "run1")], str(tmp_path / name)
    assert cli.main(["soup", *runs, dst, "--steps", "0"]) == 0
    made, nets = vgg_flax.load(dst), [vgg_flax.load(run) for run in runs]
    expected = vgg_flax.soup(nets)
    jax.tree.map(np.testing.assert_array_equal, made.variables, expected.variables)
    assert made.preprocessing == nets[0].preprocessing
    assert made.card.ingredients == tuple(
        f"{net.source}, step 0, sha256 {net.sha256}" for net in nets
    )
    again = str(tmp_path / "again")
    assert cli.main(["convert", dst, again]) == 0
    assert vgg_flax.load(again).ingredients == made.ingredients


def test_what_a_soup_cannot_be_made_of_is_one_error(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(folder / "run0"), str(folder / "run1")]
    other = save_run(shaken(1), tmp_path / "other")
    elsewhere = save_run(shaken(1), tmp_path / "elsewhere")
    data = config_lib.DataConfig(name="digits", validation_split="train[90%:]")
    settings = config_lib.to_json(config_lib.Config(data=data))
    (elsewhere / "config.json").write_text(settings)
    dst = str(tmp_path / "new")
    for arguments, what in (
        ([*runs, runs[0]], "exists"),
        ([*runs, dst, "--steps", "0,7"], "no checkpoint of step 7"),
        ([*runs, dst, "--steps", "0", "--step", "best"], "leave one out"),
        ([*runs, dst, "--sha256", "0" * 64], "is of one file"),
        ([*runs, dst, "--data", "x"], "--data x is of --greedy"),
        ([runs[0], str(other), dst, "--greedy"], "has no config.json"),
        (["https://localhost/a.pth", dst, "--greedy"], "has no config.json"),
        ([runs[0], str(elsewhere), dst, "--greedy"], "different images"),
        ([*runs, f"{dst}.npz"], "cannot be written"),
    ):
        assert cli.main(["soup", *arguments]) == 1
        assert what in capsys.readouterr().err, arguments
    assert not pathlib.Path(dst).exists()
    with pytest.raises(SystemExit):
        cli.main(["soup", *runs, dst, "--steps", "first"])


def test_a_card_without_ingredients_is_written_as_ever() -> None:
    assert "ingredients" not in json.dumps(shaken(0).card.to_json())
