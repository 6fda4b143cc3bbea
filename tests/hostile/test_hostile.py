"""Damaged and crafted files end whole or in one line, within the budget of their size.

Counted: bytes of memory and steps. `python -m tests.hostile` tells seconds, too.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from tests.hostile import __main__ as hostile
from tests.hostile import crafted, mutants, opening


@pytest.fixture(scope="module")
def opener() -> Iterator[opening.Opener]:
    """A process that opens files, with little memory."""
    made = opening.Opener()
    yield made
    made.close()


@pytest.mark.parametrize("file_format", mutants.SOUND)
def test_some_damaged_files_are_refused_or_whole(
    file_format: str, opener: opening.Opener, tmp_path: pathlib.Path
) -> None:
    seed = 1
    for name, path in mutants.mutants(file_format, 10, seed, tmp_path):
        case = hostile.Case(name, path.stat().st_size, opener.open(path))
        assert case.is_right, case


@pytest.mark.parametrize("file_format", mutants.SOUND)
def test_what_is_damaged_was_sound(
    file_format: str, opener: opening.Opener, tmp_path: pathlib.Path
) -> None:
    # The first of each; some others have the tensors of other nets.
    mutants.SOUND[file_format][0](tmp_path)
    (path,) = tmp_path.iterdir()
    outcome = opener.open(path)
    assert outcome.ended == "loaded", outcome


CHEAP = [  # to make; each asked for far more than its share before there was one
    ("torch_zip", "a long tuple as arguments"),
    ("torch_zip", "long names of classes, kept"),
    ("torch_zip", "modules that share what they hold"),
    ("torch_zip", "one tensor rebuilt within itself"),
    ("torch_legacy", "a storage by a long key, often"),
    ("safetensors", "our metadata with very many layers"),
    ("caffemodel", "alternating fields"),
    ("caffemodel", "a long name of some blobs"),
    ("onnx", "long ends of many slices"),
    ("onnx", "a tensor in a name of 300,000"),
    ("hdf5", "long paths"),
    ("hdf5", "a long text for many attributes"),
]


def expect_little(
    file_format: str, name: str, opener: opening.Opener, folder: pathlib.Path
) -> None:
    path = folder / crafted.NAMES.get(file_format, "x.bin")
    path.write_bytes(crafted.CRAFTED[file_format][name]())
    case = hostile.Case(name, path.stat().st_size, opener.open(path))
    assert case.is_right and case.size < 1.2e6, case
    # The step that was one too many is counted, and was not made.
    assert case.outcome.share <= 1 or "refused, as no weights" in case.outcome.message


@pytest.mark.parametrize(("file_format", "name"), CHEAP)
def test_small_files_ask_for_little(
    file_format: str, name: str, opener: opening.Opener, tmp_path: pathlib.Path
) -> None:
    expect_little(file_format, name, opener, tmp_path)


@pytest.mark.slow  # `python -m tests.hostile` opens 300 of each format
@pytest.mark.parametrize("file_format", mutants.SOUND)
def test_damaged_files_are_refused_or_whole(
    file_format: str, tmp_path: pathlib.Path
) -> None:
    files = hostile.cases(file_format, "damaged", 40, 1, tmp_path)
    done = hostile.open_all(files, jobs=1)
    assert len(done) == 40
    assert [case for case in done if not case.is_right] == []


@pytest.mark.slow  # HDF5 takes its time to write them
@pytest.mark.parametrize("file_format", crafted.CRAFTED)
def test_crafted_files_ask_for_little(
    file_format: str, opener: opening.Opener, tmp_path: pathlib.Path
) -> None:
    for name in crafted.CRAFTED[file_format]:
        expect_little(file_format, name, opener, tmp_path)
        # A new file: the last one may be mapped still.
        (tmp_path / crafted.NAMES.get(file_format, "x.bin")).unlink()


def test_damage_is_of_all_kinds() -> None:
    content, rng = bytes(range(256)) * 8, np.random.default_rng(0)
    sizes = [len(mutants.damaged(content, rng)) for _ in range(200)]
    assert min(sizes) < 1000 and max(sizes) > len(content) + 1000
    assert sum(size == len(content) for size in sizes) > 30
