"""What programs do where nobody reads on: `| head`, and what --help ends with."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = [
    ["train.py", "--help"],
    ["train.py", "-h"],
    ["train.py", "--helpfull"],
    ["-m", "vgg_flax.config"],
    ["-m", "vgg_flax", "--help"],
    ["-m", "vgg_flax", "predict", "--help"],
    ["-m", "vgg_flax", "describe", "vgg11"],
    ["-m", "vgg_flax", "describe", "vgg11", "--json"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_that_nobody_reads_ends_quietly(command: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_flag_is_still_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "--nonsense"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "nonsense" in done.stderr
