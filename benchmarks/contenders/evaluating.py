"""`vgg-flax evaluate` on a folder of photos, or the bare forward pass of its batches.

The command runs twice in this process, over a batch and over as many more as are asked
for; the difference is theirs alone, without imports, loading and compiling.
"""

import os
import pathlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vgg_flax
from benchmarks.contenders import serve
from vgg_flax import cli


def _command(spec: dict[str, Any]) -> serve.Run:
    size = spec["batch"]
    available = len(list(pathlib.Path(spec["photos"], "test").glob("*/*")))

    def seconds(batches: int) -> float:
        count = batches * size
        assert count <= available, f"{count} images of {available}: lower --seconds"
        with tempfile.TemporaryDirectory(dir=spec["folder"]) as output:
            arguments = ["evaluate", spec["weights"], f"--data={spec['photos']}"]
            arguments += ["--split=test", f"--batch-size={size}", f"--limit={count}"]
            begin = time.perf_counter()
            code = cli.main([*arguments, f"--output={output}"])
            assert code == 0, f"exit code {code}"
            return time.perf_counter() - begin

    return lambda repetitions: seconds(1 + repetitions) - seconds(1)


def _forward(spec: dict[str, Any]) -> serve.Run:
    net = vgg_flax.load(spec["weights"])
    side = net.preprocessing.crop_size
    shape = (spec["batch"], side, side, 3)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    forward = jax.jit(lambda net, images: net(images))  # as `infer` is measured

    def run(repetitions: int) -> None:
        out: Any = None
        for _ in range(repetitions):
            out = forward(net, images)
        jax.block_until_ready(out)

    return run


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`: "command" or "forward"."""
    folder = os.path.join(spec["folder"], "compiled")  # the second run finds it there
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return {"command": _command, "forward": _forward}[spec["what"]](spec), {}


if __name__ == "__main__":
    serve.serve(prepare)
