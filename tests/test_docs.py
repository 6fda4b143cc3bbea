"""README and manual: code runs, commands are run or parsed, links lead somewhere.

A code block is Python, shell, JSON or text (output). Python is run; each command of the
shell is run, or parsed by its own program. A comment right before a block says what is
special about it: `<!-- slow -->`, or `<!-- not run: REASON -->`, one of `REASONS`. What
is not run is parsed all the same.
"""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence

import document_runs
import numpy as np
import pytest
from absl import flags
from document_runs import Ran
from documents import (
    ROOT,
    Block,
    Command,
    anchors,
    blocks,
    commands,
    first_column,
    inline_code,
    links,
    ours_within,
)

import train
from benchmarks import __main__ as benchmarks
from vgg_flax import cli, config
from vgg_flax.config import recipe

MANUAL = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *MANUAL)
REASONS = ("cluster", "bucket", "download", "accelerator", "time", "peer")
MARK = re.compile(rf"slow|not run: ({'|'.join(REASONS)})")
LANGUAGES = ("python", "sh", "json", "text")
PROGRAMS = ("python", "vgg-flax", "pip", "pytest", "ruff", "pyright", ".ci/run")
FOREIGN_OPTIONS = ("--signal",)  # of sbatch
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]

# ml_collections loads recipes in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


# What each program makes of a command


def parse(command: Command) -> None:
    """Has the program that a command is for read its arguments; nothing is run.

    Raises:
      AssertionError, SystemExit, an error of flags or of the config: it would fail.
    """
    match command:
        case ["python", "train.py", *arguments]:
            config.check(parse_training(arguments))
        case ["python", "-m", "benchmarks", ("accelerator" | "compiling") as name]:
            assert importlib.util.find_spec(f"benchmarks.{name}")
        case ["python", "-m", "benchmarks", *arguments]:
            benchmarks.parser().parse_args(arguments)
        case ["python", "-m", module, *arguments]:
            parse_module(module, arguments)
        case ["vgg-flax", *arguments]:
            options = cli.parse(arguments)
            if options.overrides or hasattr(options, "topology"):
                config.check(recipe.read(options.config, options.overrides))
        case ["pip", "install", *requirements]:
            for requirement in requirements:
                check_requirement(requirement)
        case ["pytest", *arguments]:
            ask = [sys.executable, "-m", "pytest", *arguments, "--version"]
            subprocess.run(ask, cwd=ROOT, check=True, capture_output=True)
        case [("ruff" | "pyright") as tool, *_]:
            assert any(re.match(rf"{tool}\b", needed) for needed in extras()["dev"])
        case [script]:
            assert os.access(ROOT / script, os.X_OK), script
        case _:
            raise AssertionError(f"{shlex.join(command)}: no program known here")


def parse_training(arguments: Sequence[str]) -> config.Config:
    """The config that `python train.py` makes of its arguments."""
    line = ["train.py", *(a for a in arguments if a != "--help")]  # absl's own
    values = flags.FlagValues()
    train.define_flags(line, values)
    assert values(line) == ["train.py"], "arguments that are no flags"
    return recipe.of_flags(values)[1]


def parse_module(module: str, arguments: Sequence[str]) -> None:
    """Sees that `python -m MODULE` exists and its source names the options."""
    spec = importlib.util.find_spec(module)
    if spec and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert spec and spec.origin, module
    source = pathlib.Path(spec.origin).read_text()
    for argument in arguments:
        assert not argument.startswith("-") or f'"{argument}"' in source, argument


def extras() -> dict[str, list[str]]:
    """The extras of `pyproject.toml`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"]


def check_requirement(requirement: str) -> None:
    """Sees that an extra of this project exists; others' packages are theirs."""
    named = re.fullmatch(r"(?:\.|vgg-flax)\[([\w,-]+)\]", requirement)
    assert named or requirement in ("-e", ".", "xprof"), requirement
    assert not named or set(named[1].split(",")) <= set(extras()), requirement


Run = Callable[[str, bool], Ran]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits_dir: str) -> Run:
    """`run(document, everything)`, once for each: its code and commands, in turn."""
    kit = document_runs.make_kit(tmp_path_factory.mktemp("kit"))
    done: dict[tuple[str, bool], Ran] = {}

    def run(document: str, everything: bool) -> Ran:
        if (key := (document, everything)) not in done:
            folder = tmp_path_factory.mktemp("document") / "folder"
            done[key] = document_runs.run(document, everything, kit, folder, digits_dir)
        return done[key]

    return run


# Blocks and commands


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES
    assert not block.mark or MARK.fullmatch(block.mark), block.mark
    if block.language == "json":
        for line in block.text.splitlines():
            json.loads(line)
    elif block.language == "text":  # nothing hides there from being run
        for line in block.text.splitlines():
            assert line.split(" ")[0] not in PROGRAMS, line
    elif block.language == "sh":
        syntax = subprocess.run(["bash", "-n"], input=block.text, text=True)
        assert syntax.returncode == 0


@pytest.mark.parametrize(
    ("block", "command"),
    [
        pytest.param(block, command, id=f"{block.place} {shlex.join(command)[:60]}")
        for block in BLOCKS
        if block.language == "sh"
        for command in commands(block.text)
    ],
)
def test_a_command_is_understood_by_its_program(block: Block, command: Command) -> None:
    command = [re.sub(r"=N\b", "=2", token) for token in command]
    if command[0] in PROGRAMS:
        parse(command)
    else:  # another's program: ours within it are
        assert block.mark.startswith("not run"), command
        for inner in ours_within(command):
            parse(inner)


# The README is run below, whole; docs/functional.md is tests/test_functional.py's.
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(d, marks=[pytest.mark.slow] if d == "docs/weights.md" else [])
        for d in DOCUMENTS
        if d not in ("README.md", "docs/functional.md")
    ],
)
def test_code_and_commands_run(document: str, run: Run) -> None:
    run(document, False)


def slow_ones() -> list[str]:
    """The documents in which something runs only in the whole suite."""
    return [
        document
        for document in DOCUMENTS
        if any(
            document_runs.is_run(block, command, True)
            > document_runs.is_run(block, command, False)
            for block in blocks(document)
            for command in (commands(block.text) if block.language == "sh" else [[]])
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize("document", slow_ones())
def test_code_and_commands_that_take_long_run(document: str, run: Run) -> None:
    run(document, True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_options_in_the_text_exist(document: str) -> None:
    known = options_of_all()
    for span in inline_code(document):
        if re.fullmatch(r"config\.[\w.]+", span) and span != "config.json":
            recipe.check_names([f"--{span}=0"])
        if not span.startswith(("--", "vgg-flax ", "python ", "pytest", "pip ")):
            continue
        command = shlex.split(span)
        if command[0] in PROGRAMS and command[0] != "vgg-flax":
            parse(command)
            continue
        # Not all of a command, often: its options are looked up.
        known_here = known if command[0] != "vgg-flax" else help_of(command[1:2])
        for token in command:
            option = token.partition("=")[0]
            if re.match(r"--config\.(?!NAME)", option):
                recipe.read(str(ROOT / "configs" / "default.py"), [token])
            elif option.startswith("--") and option != "--config.NAME":
                assert option in known_here, span


def help_of(command: Command) -> str:
    """What `vgg-flax COMMAND --help` prints."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        pytest.raises(SystemExit) as stop,
    ):
        cli.parse([*command, "--help"])
    assert stop.value.code == 0
    return out.getvalue()


def options_of_all() -> set[str]:
    """Every option of `vgg-flax` and `train.py`."""
    values = flags.FlagValues()
    train.define_flags(["train.py"], values)
    subcommands = re.findall(r"^    (\w+) ", help_of([]), re.M)
    helps = "".join(help_of([name]) for name in subcommands)
    return {
        *re.findall(r"--[\w-]+", helps),
        *(f"--{n}" for n in values),
        *FOREIGN_OPTIONS,
    }


# What the texts say of files, rooms and results


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for path, anchor in links(document):
        assert path.is_file(), path.relative_to(ROOT)
        assert not anchor or anchor in anchors(path), (path.name, anchor)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
    linked = {path.relative_to(ROOT).as_posix() for path, _ in links("README.md")}
    assert linked >= {*MANUAL, "CONTRIBUTING.md"}


def test_the_map_has_every_room() -> None:
    (drawn,) = [
        block.text for block in blocks("README.md") if "vgg_flax/\n" in block.text
    ]
    rows = re.findall(r"^  (\S.*?)(?:  |$)", drawn, re.M)
    named = {name.rstrip("/") for row in rows for name in row.split(", ")}
    there = {
        path.name
        for path in (ROOT / "vgg_flax").iterdir()
        if path.suffix in ("", ".py") and not path.name.startswith("_")
    }
    assert named == there


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_the_text_names_exist(document: str) -> None:
    for span in inline_code(document):
        if re.fullmatch(r"[\w/]+\.py", span):
            assert (ROOT / span).exists() or (ROOT / "vgg_flax" / span).exists(), span


def test_the_readme_repeats_measurements_word_for_word() -> None:
    readme = (ROOT / "README.md").read_text().partition("## What was measured")[2]
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    whole = (ROOT / "docs" / "measurements.md").read_text().splitlines()
    assert len(rows) > 4
    assert not [row for row in rows if row not in whole]


@pytest.mark.slow
def test_a_run_leaves_and_tells_what_the_manual_says(run: Run) -> None:
    ran = run("README.md", True)
    workdir = ran.folder / "runs" / "default"
    named = first_column("docs/training.md", "What a run leaves")
    assert {name.rstrip("/") for name in named} == {p.name for p in workdir.iterdir()}

    printed = ran.outputs["python train.py"].splitlines()[-1]
    (quoted,) = [b.text for b in blocks("README.md") if b.text.startswith("test top1")]
    assert re.sub(r"[\d.]+", "0", printed) == re.sub(r"[\d.]+", "0", quoted.strip())

    lines = (workdir / "events.jsonl").read_text().splitlines()
    events = {event["event"]: event for event in map(json.loads, lines)}
    assert set(events) <= set(inline_code("docs/pods.md"))
    (quoted,) = [b.text for b in blocks("docs/pods.md") if b.language == "json"]
    saved, stopped = map(json.loads, quoted.splitlines())
    assert list(saved) == list(events["save_started"])
    assert set(stopped) == {"signal", *events["complete"]}


@pytest.mark.slow
def test_an_evaluation_has_the_fields_that_the_manual_lists(run: Run) -> None:
    folder = run("README.md", True).folder
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == first_column("docs/evaluation.md", "The result")
    (paper,) = folder.glob("evaluation-*.json")  # a file of its own, without --output
    row = json.loads(paper.read_text())["experiments"][0]
    named = set(inline_code("docs/evaluation.md"))
    assert {*row, *row["entries"][0], *result["nets"][0], *result["data"]} <= named
    assert np.isclose(row["top1_count"] / result["count"], row["top1"])
