"""What is declared of a config's fields is enforced, and is what the manual says."""

import dataclasses
import math
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
from conftest import changed

from vgg_flax import config as config_lib
from vgg_flax import errors, model
from vgg_flax.config import aliases, recipe

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {field.name: field for field in config_lib.fields()}
WITH_CHOICES = [name for name, field in FIELDS.items() if field.choices]
WITH_RANGE = [name for name, field in FIELDS.items() if field.range]


def refusal(name: str, value: Any) -> str:
    """What `check` says of the default config with another value; "" if nothing."""
    config = changed(config_lib.Config(), **{name.replace(".", "__"): value})
    try:
        config_lib.check(config)
    except errors.ConfigError as error:
        return str(error)
    return ""


def beside(field: config_lib.Field, bound: float, direction: float) -> Any:
    """The value of the field's type that is next to `bound`."""
    if "float" in field.type:
        return math.nextafter(bound, direction)
    return int(bound + math.copysign(1, direction))


def filled(field: config_lib.Field, element: Any) -> list[Any]:
    """`element` as the field's value; in a tuple, once at each place."""
    if not field.type.startswith("tuple"):
        return [element]
    others = (1.0,) * 3 if field.default is None else field.default
    places = range(len(others))
    return [(*others[:i], element, *others[i + 1 :]) for i in places]


def test_the_fields_are_those_of_the_dataclasses() -> None:
    names = []
    for name, value in dataclasses.asdict(config_lib.Config()).items():
        names += [f"{name}.{k}" for k in value] if isinstance(value, dict) else [name]
    assert list(FIELDS) == names
    assert FIELDS["num_steps"].type == "int | None"
    assert FIELDS["model.fc_widths"].type == "tuple[int, int]"
    assert FIELDS["model.fc_widths"].default == (4096, 4096)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_says_what_it_means(name: str) -> None:
    field = FIELDS[name]
    for text in (field.meaning, *field.choices.values()):
        assert text.strip(), name
        assert "  " not in text
        assert not text.endswith(".")
        assert "|" not in text  # would end the cell of a table


def test_every_variant_is_named() -> None:
    words = re.findall(r"[\w-]+", FIELDS["model.variant"].meaning)
    assert {*model.VARIANTS, *model.PAPER_LETTERS} <= set(words)


@pytest.mark.parametrize("name", WITH_CHOICES)
def test_no_other_choice_is_taken(name: str) -> None:
    field = FIELDS[name]
    assert field.default in field.choices
    message = refusal(name, "something else")
    assert f"config.{name}='something else'; expected one of" in message
    for choice in field.choices:
        assert repr(choice) in message
        # Another check may refuse it, beside the rest of the default.
        assert "expected one of" not in refusal(name, choice)


@pytest.mark.parametrize("name", WITH_RANGE)
def test_nothing_out_of_range_is_taken(name: str) -> None:
    field = FIELDS[name]
    assert field.low is not None
    outside = [beside(field, field.low, -math.inf)]
    inside = [field.low]
    if field.high < math.inf:
        outside.append(beside(field, field.high, math.inf))
        inside.append(field.high)
    if "float" in field.type:
        outside.append(math.nan)
    for element in outside:
        for value in filled(field, element):
            expected = f"config.{name}={value}; expected {field.range}"
            assert refusal(name, value) == expected
    for element in inside:
        number = float(element) if "float" in field.type else int(element)
        for value in filled(field, number):  # another check may refuse it
            assert f"expected {field.range}" not in refusal(name, value)


@pytest.mark.parametrize("name", FIELDS)
def test_a_resumed_run_is_compared_in_what_it_computes(name: str) -> None:
    config = config_lib.Config()
    *section, last = name.split(".")
    setattr(getattr(config, section[0]) if section else config, last, "another")
    differing = config_lib.differences(config_lib.Config(), config)
    change = {name: (FIELDS[name].default, "another")}
    assert differing == ({} if FIELDS[name].free_on_resume else change)
    if name.startswith(("model.", "optimizer.")) or name == "seed":
        assert differing


def test_the_manual_has_every_field() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "vgg_flax.config"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert (ROOT / "docs" / "config.md").read_text() == printed
    rows = [line.split(" | ") for line in printed.splitlines() if line[:3] == "| `"]
    assert [row[0].strip("| `") for row in rows] == list(FIELDS)
    assert {len(row) for row in rows} == {6}


def test_help_has_every_field_and_flag() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0  # absl's own would be 1
    text = " ".join(done.stdout.split())
    for flag in ("workdir", "distributed", "config"):
        assert f" --{flag}: " in text
    entries = dict(re.findall(r" --config\.([\w.]+): (.*?)(?= --|$)", text))
    assert list(entries) == list(FIELDS)
    for name, field in FIELDS.items():
        assert entries[name].startswith(field.meaning)
        assert f"default: {field.default!r})" in entries[name]
        assert field.range in entries[name]
        for choice, meaning in field.choices.items():
            assert f" {choice}: {meaning} " in entries[name]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("wd", "optimizer.weight_decay"),
        ("data.bs", "data.batch_size"),
        ("epochs", "num_epochs"),
        ("data.num_epochs", "num_epochs"),
        ("model.classes", "model.num_classes"),
        ("arch", "model.variant"),
        ("pretrained", "init_from"),
        ("optimizer.learnin_rate", "optimizer.learning_rate"),
        ("steps", "num_steps"),
        ("dropout", "model.dropout_rate"),
        ("optimizer.weight-decay", "optimizer.weight_decay"),
        ("batch-size", "data.batch_size"),
        ("augment", "data.auto_augment"),
        ("amp", "model.dtype"),
        ("mixed-precision", "model.dtype"),
        ("workers", "data.num_threads"),
        ("size", "data.crop_size"),
        ("finetune", "init_from"),
        ("model", "model.variant"),
        ("data", "data.data_dir"),
        ("log_interval", "log_every_steps"),
        ("gradient_accumulation_steps", "optimizer.accumulation_steps"),
        ("sync-bn", "model.batch_norm_across_replicas"),
    ],
)
def test_a_field_is_found_by_what_others_call_it(typed: str, meant: str) -> None:
    with pytest.raises(errors.ConfigError, match=rf"did you mean --config\.{meant}\?"):
        recipe.check_names([f"--config.{typed}=1"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "optimizer.learning_rate"),
        ("weight-decay", "optimizer.weight_decay"),
        ("batch_size", "data.batch_size"),
        ("dropout", "model.dropout_rate"),
        ("optimizer.learning_rate", "optimizer.learning_rate"),
        ("seed", "seed"),
    ],
)
def test_a_field_without_config_before_it_is_found(typed: str, meant: str) -> None:
    for flag in ([f"--{typed}=1"], [f"--{typed}", "1"]):
        with pytest.raises(errors.ConfigError, match=rf"mean --config\.{meant}\?"):
            recipe.check_names(flag)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("resume", "the same command again"),
        ("output-dir", "--workdir=DIR"),
        ("logdir", "--workdir=DIR"),
        ("gpus", "CUDA_VISIBLE_DEVICES"),
        ("device", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_is_no_setting_is_done_otherwise(typed: str, said: str) -> None:
    for flag in (f"--{typed}=1", f"--config.{typed}=1"):
        with pytest.raises(errors.ConfigError, match=said):
            recipe.check_names([flag])


def test_flags_that_there_are_pass() -> None:
    recipe.check_names(
        ["--workdir=x", "--helpfull", "--logtostderr", "--v=1", "--config.seed=3"]
    )


def test_an_alias_stands_for_a_field_and_is_none() -> None:
    assert {*aliases.ALIASES.values()} <= {*FIELDS}
    known = {name.rpartition(".")[2] for name in FIELDS}
    assert not {*aliases.ALIASES, *aliases.ELSEWHERE} & known
    assert not {*aliases.ALIASES} & {*aliases.ELSEWHERE}
