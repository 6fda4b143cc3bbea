"""`--sweep`: the product of fields' values, their folders' names, and mistakes."""

import itertools
import re

import pytest

from configs import default
from vgg_flax import config as config_lib
from vgg_flax import errors
from vgg_flax.config import sweep


def test_a_sweep_is_the_product_of_its_values_the_last_fastest() -> None:
    flags = ["optimizer.learning_rate=[1, 0.5, 1e-05]", "seed = [0, 7]"]
    points = sweep.points(flags, default.get_config())
    pairs = list(itertools.product([1.0, 0.5, 1e-05], [0, 7]))
    names = "optimizer.learning_rate", "seed"
    assert [p.values for p in points] == [
        dict(zip(names, pair, strict=True)) for pair in pairs
    ]
    assert [p.folder for p in points] == [
        f"learning_rate={rate},seed={seed}" for rate, seed in pairs
    ]
    for point in points:
        base = config_lib.flatten(default.get_config())
        assert config_lib.flatten(point.config) == {**base, **point.values}
    assert sweep.points([], default.get_config()) == []


def test_fields_that_change_together_are_one_factor() -> None:
    together = "optimizer.name, optimizer.learning_rate"
    flags = [f"{together}=[('sgd', 0.02), ['adamw', 1e-3]]", "seed=[0, 1]"]
    points = sweep.points(flags, default.get_config())
    assert [tuple(p.values.values()) for p in points] == [
        *(("sgd", 0.02, 0), ("sgd", 0.02, 1), ("adamw", 1e-3, 0), ("adamw", 1e-3, 1))
    ]
    folder = "optimizer.name=adamw,learning_rate=0.001,seed=1"
    assert points[-1].folder == folder
    assert points[-1].config.optimizer.learning_rate == 1e-3


def test_folders_have_short_safe_names_of_their_own() -> None:
    flags = [
        "init_from=['', '/data/a b/w', '/data/a b,w', 'C:\\\\w', '../' + 'x']",
        f"init_from=['', '/data/a b/w', '/data/a,b/w', '{'x' * 300}', '{'x' * 301}']",
        "optimizer.layer_rates=[(), (('fc8', 10.0),), [['fc8', 1]]]",
        "data.color_eigenvalues=[(1.0, 2.0, 3.0), (12.0, 3.0, 1e20)]",
        "num_steps=[None, 5]",
    ]
    points = sweep.points(flags[1:], default.get_config())
    names = [point.folder for point in points]
    assert len(set(names)) == len(names) == 5 * 3 * 2 * 2
    for name in names:
        assert re.fullmatch(r"[\w.,=+%~-]{1,200}", name), name
    assert "color_eigenvalues=1.0+2.0+3.0,num_steps=5" in names[1]
    with pytest.raises(errors.ConfigError, match="no Python list"):  # an expression
        sweep.points(flags[:1], default.get_config())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["lr=[1]"], "--sweep lr: no such setting; .* --sweep optimizer.learning_rate"),
        (["seed"], "expected NAME=VALUES"),
        (["seed=[]"], "has no values"),
        (["seed=3"], r"expected a list, such as '\[3\]'"),
        (["seed=(0, 1)"], "expected a list"),
        (["model.variant=[vgg11]"], "no Python list; .* words in quotes"),
        (["seed=[0, 1]", "seed=[2]"], "seed is given twice"),
        (["seed=[1, 2, 1]"], "has a value twice"),
        (["seed,num_steps=[(1, 2), (1, 2)]"], "seed,num_steps=.* has a value twice"),
        (["seed,num_steps=[(1, 2), (1,)]"], r"\(1,\) is no value for each of 2"),
        (["seed,num_steps=[1, 2]"], "1 is no value for each of 2"),
        (["seed,num_stepz=[(1, 2)]"], "num_stepz: no such setting"),
        (["seed,seed=[(1, 2)]"], "seed is given twice"),
        (["seed,num_steps=[(1, 2)]", "num_steps=[3]"], "num_steps is given twice"),
        (["optimizer.momentum=[1, 1.0]"], "has a value twice"),
        (["seed=[0, 'a']"], "run of seed='a': config.seed='a'; expected int"),
        (["optimizer.momentum=[0.5, 2]"], "run of optimizer.momentum=2: .* 0 to 1"),
        (
            ["data.crop_size=[32, 33]", "seed=[0, 1]"],
            "run of data.crop_size=33, seed=0: .* is smaller than",
        ),
    ],
)
def test_a_mistake_in_a_sweep_is_told(flags: list[str], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        sweep.points(flags, default.get_config())


def test_an_index_is_that_of_a_run() -> None:
    sweep.check_index(None, 0)
    sweep.check_index(5, 6)
    for index in (-1, 6):
        with pytest.raises(errors.ConfigError, match="has 6 runs; expected 0 to 5"):
            sweep.check_index(index, 6)
    with pytest.raises(errors.ConfigError, match="give one"):
        sweep.check_index(0, 0)
