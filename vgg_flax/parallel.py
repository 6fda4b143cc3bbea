"""One replica's step over many devices: the only file that says pmap.

The state has no device axis; batches get one here. Every process feeds its own
devices; the mapped axis runs over the devices of all of them.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS_NAME = "batch"

Devices = Sequence[Any]  # of jax.Device, which type checkers take for a variable


def pmap_step(
    step: Callable[..., Any],
    *,
    donate_state: bool,
    devices: Devices | None = None,
) -> Any:
    """Maps `step(state, batch)` over devices: state unmapped, batch cut on axis 0.

    What `step` returns must be equal on all replicas (psum or pmean it): `out_axes`
    of None takes the first replica's value and checks nothing.

    Args:
      step: a function for one replica, with collectives over `AXIS_NAME`.
      donate_state: whether the state's buffers become the new state's.
      devices: of this and all other processes; None: all there are.
    """
    return jax.pmap(
        step,
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        out_axes=(None, None) if donate_state else None,
        donate_argnums=(0,) if donate_state else (),
        devices=devices,
    )


def compile_step(mapped: Any, state: Any, batch: Any) -> Any:
    """The compiled step for just these shapes; any other raises, none recompiles.

    In several processes the mapped step itself, which compiles at its first call: pmap
    makes global arrays of local ones around the compiled step, not within.
    """
    if jax.process_count() > 1:
        return mapped
    return mapped.lower(state, batch).compile()


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
    """Shards `batches` onto the devices, `size` of them ahead of their use."""
    batches = iter(batches)
    queue = collections.deque(
        shard(batch, devices) for batch in itertools.islice(batches, size)
    )
    while queue:
        yield queue.popleft()
        queue.extend(shard(batch, devices) for batch in itertools.islice(batches, 1))


def _sharding(devices: Devices | None, spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(
        Mesh(np.array(devices or jax.local_devices()), (AXIS_NAME,)), spec
    )
