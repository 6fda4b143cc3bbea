"""A replica's step: what compiling it leaves in memory, how far it runs ahead."""

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


# Nothing is read until the end: 32 steps under way are all that jaxlib has room for.
STEPS = """
import jax, jax.numpy as jnp
from vgg_flax import parallel

def step(state, batch):
    total = jax.lax.psum((batch @ batch).sum(), parallel.AXIS_NAME)
    return {"steps": state["steps"] + 1}, METRICS

state = parallel.replicate({"steps": jnp.int32(0)})
batch = parallel.shard(jnp.ones((1024, 512)) / 512)
mapped = parallel.pmap_step(step, donate_state=True)
compiled = COMPILE
for number in range(100):
    state, metrics = compiled(state, batch)
print(state["steps"], metrics)
"""


@pytest.mark.parametrize(
    ("how", "metrics", "printed"),
    [
        ("mapped", "total", "100 1024.0\n"),
        ("parallel.compile_step(mapped, state, batch)", "total", "100 1024.0\n"),
        ("mapped", "()", "100 ()\n"),
    ],
)
def test_steps_of_which_nothing_is_read_end_on_several_cpus(
    how: str, metrics: str, printed: str
) -> None:
    program = STEPS.replace("COMPILE", how).replace("METRICS", metrics)
    process = processes.start_python([("-c", program)], devices=2)
    ended = processes.finish(process[0])
    assert ended.code == 0, ended
    assert ended.out == printed
