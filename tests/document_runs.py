"""A folder in which the documents' code and commands find what they name, and run."""

import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import samples
from conftest import random_net, save_run
from documents import ROOT, Block, Command, blocks, commands, promised_shapes

from vgg_flax import cli
from vgg_flax.data import imagenet

SYNSETS = imagenet.synsets()
SHORT = (  # what makes a training run take seconds
    "--config.num_steps=2",
    "--config.model.width_multiplier=0.0625",
)


def make_kit(folder: pathlib.Path) -> pathlib.Path:
    """Tiny weights, runs, photos and recipes under the names that the texts use."""
    for name in ("photos", "docs"):
        (folder / name).mkdir(parents=True)
    for name in ("train.py", "configs"):
        (folder / name).symlink_to(ROOT / name)
    photos = samples.pictures()
    for name, photo in zip(
        ("photo", "photos/a", "photos/b"), (*photos, photos[0]), strict=True
    ):
        photo.save(folder / f"{name}.jpg")
    for i in range(8):
        left = 20 * i
        cut = photos[i % 2].crop((left, left // 2, left + 90, left // 2 + 80))
        places = [f"DIR/train/{i % 2}", f"DIR/test/{i % 2}"]
        for place in places + [f"IMAGENET/val/{SYNSETS[i]}"] * (i < 2):
            (folder / place).mkdir(parents=True, exist_ok=True)
            cut.save(folder / place / f"{i:02}.png")
    make_weights(folder)
    return folder


def make_weights(folder: pathlib.Path) -> None:
    """Runs and, where the hub's files are kept, `vgg16` and `vgg16_bn`; all narrow."""
    thousand = {"num_classes": len(SYNSETS)}
    for name, variant in (
        ("WEIGHTS", "vgg16"),
        ("D_JITTER", "vgg16"),
        ("E_JITTER", "vgg19"),
    ):
        net = random_net(variant, **thousand).replace(class_names=SYNSETS)
        save_run(net.replace(train_scale=(256, 512)), folder / name)
    save_run(
        random_net("vgg11_bn", head="gap", conv_bias=False), folder / "runs" / "mine"
    )
    for variant in ("vgg16", "vgg16_bn"):
        net = random_net(variant, **thousand, fc6_window=7)
        run = save_run(net.replace(class_names=SYNSETS), folder / "made" / variant)
        target = folder / "cache" / "timm" / f"{variant}.tv_in1k" / "model.safetensors"
        target.parent.mkdir(parents=True)
        assert cli.main(["convert", str(run), str(target), "--format", "timm"]) == 0


RUNNER = """
import json, sys
import numpy as np
namespace = {"__name__": "__main__"}
for place, line, source, shapes in json.load(sys.stdin):
    exec(compile("\\n" * (line - 1) + source, place, "exec"), namespace)
    for expression, dtype, shape in shapes:
        value = eval(expression, namespace)
        assert list(np.shape(value)) == shape, (place, expression, np.shape(value))
        assert dtype in ("", str(value.dtype)), (place, expression, value.dtype)
"""


def run_python(chosen: Sequence[Block], folder: pathlib.Path) -> None:
    """Runs the blocks one after the other in one process, as on a laptop."""
    work = [(b.document, b.line, b.text, promised_shapes(b.text)) for b in chosen]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER],
        input=json.dumps(work),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


class Ran(NamedTuple):
    """A document that was run: the folder, and each command's stdout."""

    folder: pathlib.Path
    outputs: dict[str, str]


def run(
    document: str,
    everything: bool,
    kit: pathlib.Path,
    folder: pathlib.Path,
    digits_dir: str,
) -> Ran:
    """Runs a document's code and commands from top to bottom, in a copy of `kit`.

    Args:
      document: relative to the project.
      everything: as `is_run` has it.
      kit: what `make_kit` made.
      folder: the copy, which is to be made.
      digits_dir: a TFDS data_dir for the digits.
    """
    shutil.copytree(kit, folder, symlinks=True)
    if everything and "--workdir=runs/mine" in (ROOT / document).read_text():
        shutil.rmtree(folder / "runs" / "mine")
    ran = Ran(folder, {})
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setenv("VGG_FLAX_CACHE", str(folder / "cache"))
        run_blocks(blocks(document), everything, ran, digits_dir)
    return ran


def run_blocks(
    chosen: Sequence[Block], everything: bool, ran: Ran, digits_dir: str
) -> None:
    """Runs what `is_run`, in turn; blocks of Python between commands in one process."""
    python: list[Block] = []
    for block in chosen:
        if block.language == "python" and is_run(block, [], everything):
            python.append(block)
        for command in commands(block.text) if block.language == "sh" else ():
            if is_run(block, command, everything):
                if python:
                    run_python(python, ran.folder)
                python = []
                ran.outputs[shlex.join(command)] = run_command(
                    block, command, digits_dir
                )
    if python:
        run_python(python, ran.folder)


def is_run(block: Block, command: Command, everything: bool) -> bool:
    """Whether a command, or a block of Python, is run and not only parsed.

    Args:
      everything: also what takes long: blocks marked so, and all training of small
        recipes, not only the README's first command.
    """
    if block.mark.startswith("not run") or (block.mark == "slow" and not everything):
        return False
    match command:
        case []:
            return True
        case ["python", "train.py", *arguments]:
            recipes = [a for a in arguments if a.startswith("--config=")]
            is_alone = not any(a.startswith("--distributed") for a in arguments)
            if not everything:
                return block.document == "README.md" and not recipes
            return is_alone and recipes in ([], ["--config=configs/folder.py"])
        case ["python", "-m", module, *_]:
            return module.startswith("vgg_flax")
        case ["vgg-flax", subcommand, *arguments]:
            return (
                subcommand not in ("prepare", "compile")
                and "imagenet2012" not in arguments
            )
    return False


def run_command(block: Block, command: Command, digits_dir: str) -> str:
    """Runs a command to its end in the present folder; returns its stdout."""
    command = [re.sub(r"=N\b", "=2", token) for token in command]
    if command[0] == "vgg-flax":
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(command[1:]) == 0, (block.place, command)
        return out.getvalue()
    if command[1] == "train.py":
        is_folder = "--config=configs/folder.py" in command
        data_dir = f"--config.data.data_dir={digits_dir}"
        command += SHORT + (
            ("--config.data.batch_size=8",) if is_folder else (data_dir,)
        )
    done = subprocess.run(
        [sys.executable, *command[1:]],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (block.place, command, done.stderr)
    return done.stdout
