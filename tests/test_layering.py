"""Imports point strictly down the floors, and heavy packages stay where they belong."""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

PACKAGE = pathlib.Path(__file__).parent.parent / "vgg_flax"
FLOORS = (
    {"config", "layers", "metrics", "hlo", "chips"},
    {"model"},
    {
        "preprocess",
        "optimizer",
        "parallel",
        "distributed",
        "datasets",
        "paper",
        "journal",
        "recipe",
        "run_directory",
        "profiling",
        "plan",
    }
    | {"imagenet", "description"},
    {"dataset", "train_step", "events", "weights", "protocols", "report"},
    {"evaluation", "checkpoint", "progress", "label_sets"},
    {"starting", "saving", "net"},
    {"trainer"},
    {"heatmap", "folding", "export", "conversion", "posteriors"},
    {"prediction", "experiments", "aot"},
    {"results", "roofline"},
    {"scoring"},
    {"commands"},
    {"cli"},
)
OWNERS = {  # top-level package -> the only modules that import it
    "orbax": {"checkpoint"},
    "grain": {"dataset"},
    "tensorflow_datasets": {"dataset", "datasets"},
    "matplotlib": {"report"},
    "tensorboardX": {"progress"},
    "tqdm": {"progress", "weights"},
    "h5py": {"weights"},
    "safetensors": {"weights"},
    "huggingface_hub": {"weights"},
    "pooch": {"weights"},
    "pyarrow": {"report"},
    "requests": {"weights"},
    "tensorflow": set(),
    "torch": set(),
    "torchvision": set(),
}
# Files that need a local disk, and why. All else goes through etils' epath.
LOCAL = {
    "distributed": "hashes this package's own source",
    "imagenet": "reads this package's own data",
    "run_directory": "asks for free space, where is_local",
    "profiling": "the profiler writes to local disks only; copied from there by epath",
    "datasets/prepared": "a scratch folder beside TFDS' data_dir, renamed into place",
    "prediction": "does not follow links into a circle",
    "export": "writes a file for the person at the keyboard",
    "conversion": "reads and writes weight files, as the next ones",
    "weights/mapped_file": "maps files into memory",
    "weights/hdf5_file": "HDF5's library opens files itself",
    "weights/torch_file": "reads what mapped_file maps",
    "weights/checksum": "hashes what mapped_file maps",
    "weights/fetch": "keeps downloads in a cache",
    "weights/writers": "writes beside and renames",
}


def imports() -> Iterator[tuple[str, str]]:
    """(module, imported dotted name), of all imports, those in functions too."""
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        module = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{relative}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from ((module, name) for name in names)


def test_imports_point_strictly_down() -> None:
    floor = {module: i for i, modules in enumerate(FLOORS) for module in modules}
    files = {
        p.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for p in PACKAGE.rglob("*.py")
    }
    assert files - {"__init__", "__main__"} == set(floor)
    for module, name in imports():
        parts = name.split(".")
        if parts[0] != "vgg_flax" or module in ("__init__", "__main__"):
            continue
        imported = parts[1] if len(parts) > 1 else "__init__"
        if imported == "__init__":
            assert module == "cli", (module, name)
        elif not (module == imported and module in ("datasets", "weights", "commands")):
            assert floor[imported] < floor[module], (module, name)


def test_heavy_packages_have_one_owner() -> None:
    for module, name in imports():
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or module in owners, (module, name)


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
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if used := sorted(set(local_disk_uses(ast.parse(path.read_text())))):
            using[name] = used
    assert set(using) == set(LOCAL), using
    assert using["run_directory"] == ["shutil"]
    assert using["profiling"] == ["tempfile"]


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


def test_only_parallel_says_pmap() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "parallel.py":
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


def test_importing_the_package_is_light() -> None:
    program = (
        "import sys, vgg_flax; vgg_flax.VGG, vgg_flax.VARIANTS; "
        "print([m for m in ('tensorflow', 'torch', 'orbax', 'grain', "
        "'tensorflow_datasets', 'matplotlib', 'h5py', 'safetensors', "
        "'huggingface_hub', 'pooch') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "[]"
