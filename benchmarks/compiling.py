"""vgg16's training step for TPUs that are not here: exchanges and memory, as a table.

python -m benchmarks compiling [ROW ...]: each row is one `vgg-flax compile`, in a
process of its own, for a minute or more. Needs the extra `tpu-aot`. Quoted by
docs/compiling.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import tabulate

_RECIPE = "configs/vgg16_imagenet.py"
_WHOLE, _REMAT = "--config.shard_fc=false", "--config.remat=true"
_TWO = "--config.optimizer.accumulation_steps=2"
ROWS = {  # what is asked of the compiler: slice, images a chip, changes to the recipe
    "v5e:4x4": ("v5e:4x4", 32, ()),
    "v5e:4x4, FC whole": ("v5e:4x4", 32, (_WHOLE,)),
    "v5e:16x16": ("v5e:16x16", 32, ()),
    "v6e:16x16": ("v6e:16x16", 32, ()),
    "v5p:8x8x4": ("v5p:8x8x4", 32, ()),
    "v5e:16x16, 1,024 images": ("v5e:16x16", 1024, ()),
    "v5e:2x2, FC whole": ("v5e:2x2", 32, (_WHOLE,)),
    "v5e:2x2, 128 images": ("v5e:2x2", 128, (_WHOLE,)),
    "v5e:2x2, 128 images, remat": ("v5e:2x2", 128, (_WHOLE, _REMAT)),
    "v5e:2x2, 128 images, remat, 2 steps": ("v5e:2x2", 128, (_WHOLE, _REMAT, _TWO)),
}


def compile_row(name: str) -> list[str]:
    """A line of the table."""
    topology, images, changes = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "report.json"
        arguments = [f"--config={_RECIPE}", f"--topology={topology}", *changes]
        arguments += [f"--per-chip-batch={images}", f"--output={output}"]
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "vgg_flax", "compile", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = f"{time.perf_counter() - begin:.0f}"
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()[-1]
            return [name, f"exit {done.returncode}: {said[:60]} ...", "", "", seconds]
        report = json.loads(output.read_text())
    return [
        name,
        f"{report['exposed_bytes'] / 1e6:.1f}",
        *(f"{report['memory'][k] / 2**20:,.0f}" for k in ("temporary", "peak")),
        seconds,
    ]


def main() -> None:
    """Compiles the rows that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"of {list(ROWS)}; default: all")
    chosen = parser.parse_args().rows or list(ROWS)
    assert pathlib.Path(_RECIPE).is_file(), "run me from the project's folder"
    header = ["vgg16", "exposed MB", "temporary MiB", "peak MiB", "compiled in s"]
    rows = []
    for name in chosen:
        rows.append(compile_row(name))
        print(*rows[-1], sep="; ", file=sys.stderr)
    print(tabulate.tabulate(rows, header, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
