"""Imports point strictly down the floors, and heavy packages stay where they belong."""

import ast
import functools
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "vgg_flax"
# Rooms, from the ground up. A room's own files may import each other.
FLOORS = (
    {"spelling", "metrics"},
    {"errors", "console"},
    {"storage"},
    {"config", "model", "parallel"},
    {"images", "runs"},
    {"data", "weights"},
    {"net"},
    {"loading", "perceptual"},
    {"training", "evaluation"},
    {"inference", "aot"},
    {"commands"},
    {"cli"},
)
OWNERS = {  # top-level package -> the only files that import it
    "orbax": {"runs/step_folders"},
    "grain": {"data/batches"},
    "tensorflow_datasets": {
        "data/digits",
        "data/folder",
        "data/prepared",
        "data/splits",
    },
    "matplotlib": {
        "runs/curves",
        "runs/sweep_plot",
        "inference/heatmap",
        "evaluation/confusion",
    },
    "tensorboardX": {"runs/tensorboard"},
    "tqdm": {"console", "runs/log", "weights/download"},
    "h5py": {
        "weights/containers/hdf5_listing",
        "weights/containers/writers",
    },
    "safetensors": {
        "weights/containers/safetensors_file",
        "weights/containers/writers",
    },
    "huggingface_hub": {"weights/hub"},
    "onnx": {"inference/onnx_export"},
    "onnxruntime": {"inference/onnx_export"},
    "pyarrow": {"data/table", "evaluation/tables", "inference/extraction"},
    "requests": {"weights/download"},
    "tensorflow": set(),
    "torch": set(),
    "torchvision": set(),
    "urllib3": {"weights/download"},
}
# Files that need a local disk, and why. All else goes through etils' epath.
LOCAL = {
    "storage": "whole_file writes aside on a local disk, and renames or uploads",
    "console": "lets a stream that nobody reads end in /dev/null",
    "perceptual/lpips": "reads this package's own data",
    "parallel/distributed": "hashes this package's own source",
    "parallel/compilation_cache": "keeps programs on a disk, as JAX does",
    "data/imagenet": "reads this package's own data",
    "data/folder": "does not follow links into a circle",
    "runs/directory": "asks for free space, where is_local",
    "runs/lease": "a lock and a time stamp, where is_local",
    "runs/holder": "asks the kernel for processes",
    "runs/profiling": "the profiler writes to local disks; copied from there by epath",
    "data/prepared": "a scratch folder beside TFDS' data_dir, renamed into place",
    "inference/extraction": "writes what whole_file takes",
    "inference/export": "writes a file for the person at the keyboard",
    "inference/onnx_export": "writes a file for the person at the keyboard",
    "inference/conversion": "reads and writes weight files, as the next ones",
    "weights/containers/mapped_file": "maps files into memory",
    "weights/containers/hdf5_file": "HDF5's library opens files itself",
    "weights/containers/torch_file": "reads what mapped_file maps",
    "weights/containers/torch_writer": "writes what whole_file takes",
    "weights/checksum": "hashes what mapped_file maps",
    "weights/cache": "keeps downloads on a disk",
    "weights/download": "copies what file:// names",
    "weights/fetch": "keeps downloads in a cache, as the next one",
    "weights/hub": "Hugging Face's cache is on a disk",
    "weights/containers/writers": "writes what whole_file takes",
}


# Shows the help of `vgg-flax` and of each of its subcommands, to nobody.
HELP = """
import contextlib, io
from vgg_flax import cli
commands = "prepare evaluate predict features probe describe convert soup export"
commands += " compile"
for command in "", *commands.split():
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.parse([*command.split(), "--help"])
"""


def name_of(path: pathlib.Path) -> str:
    """A file of the package as `room/file`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


@functools.cache
def imports() -> tuple[tuple[str, str], ...]:
    """(file, imported dotted name), of all imports, those in functions too."""
    return tuple(_imports())


def _imports() -> Iterator[tuple[str, str]]:
    for path in PACKAGE.rglob("*.py"):
        file = name_of(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                yield from ((file, f"{node.module}.{a.name}") for a in node.names)


def test_imports_point_strictly_down() -> None:
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {name_of(path).split("/")[0] for path in PACKAGE.rglob("*.py")}
    assert rooms - {"__init__", "__main__"} == set(floor)
    for file, name in imports():
        room, parts = file.split("/")[0], name.split(".")
        if parts[0] != "vgg_flax" or room in ("__init__", "__main__"):
            continue
        imported = parts[1] if len(parts) > 1 else "__init__"
        if imported in ("__init__", "__version__"):
            assert room == "cli", (file, name)
        else:
            assert room == imported or floor[imported] < floor[room], (file, name)


def test_heavy_packages_have_few_owners() -> None:
    for file, name in imports():
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or file in owners, (file, name)


def local_disk_uses(tree: ast.Module) -> Iterator[str]:
    """What in a module works on local paths only."""
    local_modules = {"pathlib", "shutil", "tempfile", "glob", "fileinput"}
    harmless = {
        "getpid",
        "cpu_count",
        "kill",
        "environ",
        "pathsep",
        "fspath",
        "PathLike",
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ({alias.name for alias in node.names} & local_modules)
        elif isinstance(node, ast.ImportFrom):
            if node.module in local_modules or node.module in ("os", "os.path"):
                yield node.module
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "open":
                yield "open"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name == "io.open" or (
                node.value.id == "os" and node.attr not in harmless
            ):
                yield name


def test_all_but_a_few_files_reach_a_runs_files_through_epath() -> None:
    using = {}
    for path in PACKAGE.rglob("*.py"):
        name = name_of(path)
        if used := sorted(set(local_disk_uses(ast.parse(path.read_text())))):
            using[name] = used
    assert set(using) == set(LOCAL), using
    assert using["runs/directory"] == ["shutil"]
    assert using["runs/profiling"] == ["tempfile"]


def test_what_needs_a_local_disk_is_seen() -> None:
    for line in (
        "import pathlib",
        "import a, shutil",
        "from pathlib import Path",
        "from os import path",
        "open('a')",
        "io.open('a')",
        "os.path.join('a')",
        "os.rename('a', 'b')",
    ):
        assert list(local_disk_uses(ast.parse(line))), line
    assert not list(local_disk_uses(ast.parse("path.open(); os.getpid()")))


def test_one_file_says_pmap() -> None:
    for path in PACKAGE.rglob("*.py"):
        if name_of(path) != "parallel/replicas":
            names = {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute)
            }
            assert "pmap" not in names, path


def test_every_file_says_what_it_is_and_public_functions_are_documented() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if is_definition and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import vgg_flax.config, train", "jax flax numpy"),
        ("import vgg_flax; vgg_flax.VGG, vgg_flax.VARIANTS", "orbax grain matplotlib"),
        ("import vgg_flax", "jax flax numpy orbax"),
        (HELP, "jax flax numpy orbax etils"),
    ],
)
def test_importing_takes_no_longer_than_it_must(program: str, absent: str) -> None:
    absent += " tensorflow torch tensorflow_datasets h5py safetensors requests"
    absent += " huggingface_hub"
    program += f"\nimport sys; print(sys.modules.keys() & {set(absent.split())})"
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "set()"


def private_uses(tree: ast.Module) -> Iterator[str]:
    """Underscored names of our own modules that a file imports or reaches for."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            ("vgg_flax", "tests", "conftest", "benchmarks")
        ):
            modules |= {alias.asname or alias.name for alias in node.names}
            yield from (a.name for a in node.names if is_private(a.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in modules:
                yield ast.unparse(node)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_module_uses_anothers_private_names() -> None:
    root = PACKAGE.parent
    files = [*PACKAGE.rglob("*.py"), root / "train.py"]
    for folder in ("tests", "benchmarks", "configs", "scripts"):
        files += (root / folder).rglob("*.py")
    using = {str(f): list(private_uses(ast.parse(f.read_text()))) for f in files}
    assert {file: names for file, names in using.items() if names} == {}


def test_private_uses_are_seen() -> None:
    for line in (
        "from vgg_flax.training.trainer import _Run",
        "from vgg_flax.training import trainer\ntrainer._Run()",
        "from tests import processes as p\np.Process._x",
    ):
        assert list(private_uses(ast.parse(line))), line
    assert not list(private_uses(ast.parse("import jax\njax._src; self._x")))


def test_rooms_hold_functions_that_fit_a_screen_and_files_read_in_one_sitting() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 360, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, (path, node.name)


def test_what_tests_share_is_in_files_of_their_own() -> None:
    for path in (PACKAGE.parent / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                assert not any(p.startswith("test_") for p in name.split(".")), path
