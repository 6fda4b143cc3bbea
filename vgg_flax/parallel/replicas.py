"""One replica's step over many devices: the only file that says pmap.

The state has no device axis, but for FC kernels that are cut over the replicas; batches
get one here. Every process feeds its own devices; the mapped axis runs over the devices
of all of them.
"""

import collections
import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vgg_flax.parallel.ahead import ahead

AXIS_NAME = "batch"

_MOST_UNDER_WAY = 4  # of steps on several CPUs

Devices = Sequence[Any]  # of jax.Device, which type checkers take for a variable


def pmap_step(
    step: Callable[..., Any],
    *,
    donate_state: bool,
    state_axes: Any = None,
    batch_axes: Any = 0,
    devices: Devices | None = None,
) -> Any:
    """Maps `step(state, batch)` over devices: state unmapped, batch cut on axis 0.

    What `step` returns must be equal on all replicas (psum or pmean it): `out_axes`
    of None takes the first replica's value and checks nothing. A call returns before
    the step is done; on several CPUs it waits when several of them are under way.

    Args:
      step: a function for one replica, with collectives over `AXIS_NAME`.
      donate_state: whether the state's buffers become the new state's, which is then
        the first of two things that `step` returns.
      state_axes: `FCShards.axes` of the state, where some of it is cut.
      batch_axes: of the batch, where some of it is not: a tuple of 0 and None.
      devices: of this and all other processes; None: all there are.
    """
    make = functools.partial(_pmap, donate_state=donate_state, devices=devices)
    if state_axes is not None and jax.process_count() > 1:
        mapped = _flat(step, make, donate_state, state_axes, batch_axes)
    else:
        mapped = make(step, state_axes, batch_axes)
    here = [
        device
        for device in devices or jax.local_devices()
        if device.process_index == jax.process_index()
    ]
    is_paced = len(here) > 1 and here[0].platform == "cpu"
    return _Paced(mapped, donate_state) if is_paced else mapped


def _pmap(
    step: Callable[..., Any],
    state_axes: Any,
    batch_axes: Any,
    donate_state: bool,
    devices: Devices | None,
) -> Any:
    return jax.pmap(
        step,
        axis_name=AXIS_NAME,
        in_axes=(state_axes, batch_axes),
        out_axes=(state_axes, None) if donate_state else None,
        donate_argnums=(0,) if donate_state else (),
        devices=devices,
    )


class _Paced:
    """A mapped step, or a compiled one, of whose calls few are under way at once.

    jaxlib 0.10 starts steps on several CPUs by the threads that compute them: once more
    than 32 are asked for, these wait for room, so that none of those is ever done, and
    after a minute the process ends.
    """

    def __init__(self, step: Any, donates_state: bool) -> None:
        self._step = step
        self._donates_state = donates_state
        # Of jax.Array, whose `is_ready` type checkers do not know.
        self._under_way: collections.deque[Any] = collections.deque()

    def __call__(self, state: Any, batch: Any) -> Any:
        while self._under_way:
            oldest = self._under_way[0]
            if not oldest.is_deleted():  # by the caller
                if len(self._under_way) == _MOST_UNDER_WAY:
                    jax.block_until_ready(oldest)
                elif not oldest.is_ready():
                    break
            self._under_way.popleft()
        out = self._step(state, batch)
        # One array tells for all, and is kept until then: a small one, and none of the
        # state, which the next step takes over.
        leaves = jax.tree.leaves(out[1] if self._donates_state else out)
        if leaves:
            self._under_way.append(min(leaves, key=lambda leaf: leaf.nbytes))
        else:  # there is nothing to ask later
            jax.block_until_ready(out)
        return out

    def lower(self, state: Any, batch: Any) -> Any:
        return self._step.lower(state, batch)

    def compiled(self, step: Any) -> "_Paced":
        """This one's `lower(...).compile()`."""
        return _Paced(step, self._donates_state)


def _flat(
    step: Callable[..., Any],
    make: Callable[[Callable[..., Any], Any, Any], Any],
    donate_state: bool,
    state_axes: Any,
    batch_axes: Any,
) -> Callable[[Any, Any], Any]:
    """`pmap_step` in several processes: there pmap hashes axes, and dicts have none.

    Args:
      make: of a step, the axes of its state and of its batch, the mapped one.
    """
    axes = tuple(jax.tree.leaves(state_axes, is_leaf=lambda axis: axis is None))
    made: list[Any] = []  # the mapped step, once the state's structure is known

    def call(state: Any, batch: Any) -> Any:
        leaves, structure = jax.tree.flatten(state)

        def flat(leaves: tuple[Any, ...], batch: Any) -> Any:
            out = step(structure.unflatten(leaves), batch)
            return (tuple(jax.tree.leaves(out[0])), out[1]) if donate_state else out

        if not made:
            made.append(make(flat, axes, batch_axes))
        out = made[0](tuple(leaves), batch)
        return (structure.unflatten(out[0]), out[1]) if donate_state else out

    return call


def compile_step(mapped: Any, state: Any, batch: Any) -> Any:
    """The compiled step for just these shapes; any other raises, none recompiles.

    What compiling took of memory is given back. In several processes the mapped step
    itself, which compiles at its first call: pmap makes global arrays of local ones
    around the compiled step, not within.
    """
    if jax.process_count() > 1:
        return mapped
    compiled = mapped.lower(state, batch).compile()
    _return_memory()
    return mapped.compiled(compiled) if isinstance(mapped, _Paced) else compiled


def _return_memory() -> None:
    """Gives the system back what compiling took: half a gigabyte for a step of vgg16.

    glibc would keep it, beside all that the step takes.
    """
    if sys.platform == "linux":  # where the C library is glibc, or has no such function
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def replicate(tree: Any, devices: Devices | None = None) -> Any:
    """Puts a pytree on each local device, whole and without a device axis."""
    return jax.device_put(tree, _sharding(devices, PartitionSpec()))


def shard(batch: Any, devices: Devices | None = None) -> Any:
    """Puts this process's batch on its devices: `[local, ...]` -> `[D, each, ...]`."""
    count = len(devices or jax.local_devices())
    sharding = _sharding(devices, PartitionSpec(AXIS_NAME))
    split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    return jax.device_put(split, sharding)


def prefetch(
    batches: Iterable[Any],
    size: int = 2,
    devices: Devices | None = None,
) -> Iterator[Any]:
    """Shards `batches` onto the devices, `size` of them at a time."""
    return ahead((shard(batch, devices) for batch in batches), size - 1)


def _sharding(devices: Devices | None, spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(
        Mesh(np.array(devices or jax.local_devices()), (AXIS_NAME,)), spec
    )


def scatter(
    cut: Callable[[jax.Array], jax.Array], x: Any, devices: Devices | None = None
) -> jax.Array:
    """Puts `cut(x)[i]` on replica i, of all processes': `x` -> `[D, ...]`."""

    def take(x: jax.Array, _: jax.Array) -> jax.Array:
        return cut(x)[jax.lax.axis_index(AXIS_NAME)]

    mapped = np.zeros(len(devices or jax.local_devices()))  # pmap wants one
    place = jax.pmap(take, axis_name=AXIS_NAME, in_axes=(None, 0), devices=devices)
    return place(x, mapped)


def gather(
    join: Callable[[jax.Array], jax.Array], x: jax.Array, devices: Devices | None = None
) -> np.ndarray:
    """`join` of all replicas' parts `[N, ...]`, on the host: the inverse of `scatter`.

    All processes must call it at the same step.
    """
    collect = jax.pmap(
        lambda part: join(jax.lax.all_gather(part, AXIS_NAME)),
        axis_name=AXIS_NAME,
        out_axes=None,
        devices=devices,
    )
    return jax.device_get(collect(x))
