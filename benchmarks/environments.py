"""Whose interpreter runs whom: ours, and the peers' virtual environments, made here."""

import functools
import json
import os
import pathlib
import subprocess
import sys

from vgg_flax import errors

_HERE = pathlib.Path(__file__).parent
NAMES = ("torch", "keras", "tf")  # each has a file requirements-NAME.txt
_TOLD = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "keras")
_TOLD += (
    "optax",
    "grain",
    "tensorflow-cpu",
    "simplejpeg",
    "opencv-python-headless",
    "pillow",
)
_PROGRAM = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass  # not every environment has every package
print(json.dumps(found))
"""


class EnvironmentMissing(errors.VGGFlaxError):
    """An interpreter that is not there, or a package index that did not give."""


class Interpreters:
    """By environment; a peer's is made when it is first asked for."""

    def __init__(self, given: dict[str, str]):
        """`given`: paths by environment; "ours" is this interpreter, if not given."""
        self._given = {"ours": sys.executable, **{k: v for k, v in given.items() if v}}

    def path(self, name: str) -> str:
        """The interpreter of environment `name`."""
        if name not in self._given:
            self._given[name] = str(_made(name))
        if not pathlib.Path(self._given[name]).is_file():
            raise EnvironmentMissing(f"{name}: there is no {self._given[name]}")
        return self._given[name]

    def versions(self, name: str) -> dict[str, str]:
        """Of Python and the packages that matter."""
        return versions(self.path(name))


@functools.cache
def versions(python: str) -> dict[str, str]:
    """What an interpreter has installed, of Python and the packages that matter."""
    done = subprocess.run(
        [python, "-c", _PROGRAM, *_TOLD], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def folder() -> pathlib.Path:
    """Where environments are made."""
    chosen = os.environ.get("VGG_FLAX_BENCHMARK_ENVIRONMENTS")
    return pathlib.Path(chosen).expanduser() if chosen else _HERE.parent / ".benchmarks"


def _made(name: str) -> pathlib.Path:
    """The interpreter of a virtual environment, which is made if it is not whole."""
    root = folder().resolve() / name
    python, whole = root / "bin" / "python", root / "whole"
    requirements = _HERE / f"requirements-{name}.txt"
    wanted = requirements.read_text()
    if whole.is_file() and whole.read_text() == wanted:
        return python
    print(f"making {root}, of {requirements.name}", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
    for command in ([sys.executable, "-m", "venv", "--clear", str(root)], pip):
        if subprocess.run(command, check=False).returncode:
            raise EnvironmentMissing(
                f"{' '.join(command)} failed; or give an interpreter: --{name}-python"
            )
    whole.write_text(wanted)
    return python
