"""Loading vgg16 from safetensors: seconds, and the peak of anonymous memory.

python -m benchmarks.loading [FILE]: FILE, or a file of random weights that is written
first. Memory is RssAnon, sampled every 5 ms, above that of the process before `load`:
the file's own pages are mapped and can be dropped.
"""

import argparse
import pathlib
import tempfile
import threading
import time

import numpy as np

from vgg_flax import net  # the import is no part of the load
from vgg_flax.weights.containers import writers
from vgg_flax.weights.lineages import layouts


def anonymous_mib() -> float:
    """This process's anonymous memory."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("RssAnon")) / 1024


def write_random(path: pathlib.Path) -> None:
    """vgg16 as torchvision names it, random, 553 MB."""
    widths, channels, tensors = iter((64, 128, 256, 512, 512)), 3, {}
    rng = np.random.default_rng(0)
    stage, width = "", 0
    for slot in layouts.slots(layouts.BY_NAME["torchvision"], "vgg16"):
        if slot.layer.startswith("fc"):
            out = {"fc6": 4096, "fc7": 4096, "fc8": 1000}[slot.layer]
            inputs = {"fc6": 25088, "fc7": 4096, "fc8": 4096}[slot.layer]
            shape = (out, inputs)
        else:
            if slot.layer[4] != stage:
                stage, width = slot.layer[4], next(widths)
            shape = (width, channels, 3, 3)
            channels = width if slot.leaf == "bias" else channels
        noise = rng.standard_normal(shape[:1] if slot.leaf == "bias" else shape, "f")
        tensors[slot.foreign] = noise * np.float32(0.05)
    writers.write_safetensors(path, tensors, {})


def measure(path: pathlib.Path) -> None:
    """Prints one load's figures."""
    before, peak, done = anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    loaded = net.load(path)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    size = path.stat().st_size / 2**20
    above = max(peak[0], anonymous_mib()) - before
    print(
        f"{loaded.variant}, {size:,.0f} MiB: {seconds:.2f} s, {above:,.0f} MiB of "
        f"anonymous memory at the peak, {above / size:.2f} times the file"
    )


def main() -> None:
    """Measures FILE, or random weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=pathlib.Path)
    given = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder:
        path = given or pathlib.Path(folder) / "vgg16.safetensors"
        if given is None:
            write_random(path)
        measure(path)


if __name__ == "__main__":
    main()
