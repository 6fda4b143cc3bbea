"""Compiling a replica's step leaves nothing behind that the step is in need of."""

import platform

import pytest

from tests import processes

# Fifty products are a long program; printed is what the C library still keeps, in MiB.
PROGRAM = """
import ctypes, pathlib, resource
import jax, jax.numpy as jnp
from vgg_flax import parallel

def step(scale, batch):
    x = batch["image"]
    for turn in range(50):
        x = jnp.sin(x * scale + turn) @ x
    return scale, {"loss": jax.lax.psum(x.sum(), parallel.AXIS_NAME)}

def resident():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize() / 2**20

scale = parallel.replicate(jnp.float32(1))
batch = parallel.shard({"image": jnp.ones((8, 32, 32))})
mapped = parallel.pmap_step(step, donate_state=True)
compiled = COMPILE
before = resident()
ctypes.CDLL(None).malloc_trim(0)
print(before - resident())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="without glibc, whose malloc is asked"
)
def test_what_compiling_took_of_memory_is_given_back() -> None:
    """The second, which compiles by itself, shows that there is something to give."""
    by_us = "parallel.compile_step(mapped, scale, batch)"
    by_jax = "mapped.lower(scale, batch).compile()"
    kept = []
    for how in (by_us, by_jax):
        process = processes.start_python(
            [("-c", PROGRAM.replace("COMPILE", how))],
            devices=1,
            environment={"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": ""},
        )
        ended = processes.finish(process[0])
        assert ended.code == 0, ended
        kept.append(float(ended.out))
    assert kept[0] < 0.1 * kept[1]
