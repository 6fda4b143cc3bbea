"""One replica's step over many devices: the only file that says pmap.

The state has no device axis, but for FC kernels that are cut over the replicas; batches
get one here. Every process feeds its own devices; the mapped axis runs over the devices
of all of them.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS_NAME = "batch"

Devices = Sequence[Any]  # of jax.Device, which type checkers take for a variable


@dataclasses.dataclass(frozen=True)
class FCShards:
    """FC kernels cut over the replicas, each of which keeps and updates its rows.

    fc6, fc7 and fc8 are 124 of VGG16's 138 million parameters. Cut, they are gathered
    under the convolutions of the forward pass, their gradients are reduced under those
    of the backward pass (`halve`), and a replica stores and updates 1/N of them.

    Attributes:
      shapes: of the full kernels, by layer; empty: nothing is cut.
      replicas: N, over all processes.
      dtype: of what travels: the computation's.
      devices: of the replicas; None: all there are.
    """

    shapes: dict[str, tuple[int, ...]]
    replicas: int
    dtype: Any = jnp.float32
    devices: Devices | None = None

    # What one replica does, within a mapped step. A kernel [.., in, out] is N chunks of
    # rows [N, rows, out]; a replica's own is the one at its index.

    @property
    def rounds(self) -> int:
        """How many times `halve` is to be called, with 0, 1, ..."""
        return len(self._orders[0]) if self.shapes else 0

    def rows(self, params: Any) -> dict[str, jax.Array]:
        """This replica's rows of the kernels that are cut, ready for `gather`."""
        return {
            layer: params[layer]["kernel"].astype(self.dtype) for layer in self.shapes
        }

    def gather(self, layer: str, rows: jax.Array) -> jax.Array:
        """The whole kernel of `layer`, in `dtype`, from all replicas' rows."""
        chunks = jax.lax.all_gather(rows, AXIS_NAME, tiled=True)
        return self._join(chunks, self.shapes[layer])

    def whole(self, params: Any) -> Any:
        """`params` with all kernels whole."""
        kernels = {k: self.gather(k, rows) for k, rows in self.rows(params).items()}
        return replace_kernels(params, kernels)

    def cut(self, grads: Any) -> Any:
        """The gradients of whole kernels, ready for `halve`."""
        return {
            layer: jnp.split(self._cut(grads[layer]["kernel"]), 2, axis=-1)
            for layer in self.shapes
        }

    def halve(self, number: int, pending: Any) -> Any:
        """A round of reduce-scatter: half as many chunks `[M, rows, out / 2]`.

        Replica i exchanges half of what it has with replica i ^ 2**k, and adds. The
        sums stay in the params' type and are rounded to `dtype` only to travel. Made
        of ppermute, which TPUs do beside the computation; they stand still for a
        psum_scatter. Neighbours exchange the largest halves, and the two halves of
        the columns go along different axes of the torus. Where N is no power of two,
        the one round is a psum_scatter.
        """
        return {
            layer: [
                self._exchange(x, order[number], list(order[number:]))
                for x, order in zip(halves, self._orders, strict=True)
            ]
            for layer, halves in pending.items()
        }

    def _exchange(self, x: jax.Array, distance: int, left: list[int]) -> jax.Array:
        """Adds the partner's part of x, whose chunks differ in the bits `left`."""
        if not distance:
            x = jax.lax.psum_scatter(x.astype(self.dtype), AXIS_NAME, tiled=True)
            return x.astype(self._sum_dtype)
        odd = jax.lax.axis_index(AXIS_NAME) // distance % 2
        below = 2 ** sum(d < distance for d in left)
        pairs = x.reshape(-1, 2, below, *x.shape[1:])
        own, other = (
            jax.lax.dynamic_index_in_dim(pairs, index, axis=1, keepdims=False)
            for index in (odd, 1 - odd)
        )
        partners = [(i, i ^ distance) for i in range(self.replicas)]
        received = jax.lax.ppermute(other.astype(self.dtype), AXIS_NAME, partners)
        total = own.astype(self._sum_dtype) + received.astype(self._sum_dtype)
        return total.reshape(-1, *x.shape[1:])

    def own(self, pending: Any) -> dict[str, jax.Array]:
        """What the last round left: the gradient of each replica's own rows."""
        return {
            layer: jnp.concatenate([x[0] for x in halves], axis=-1)
            for layer, halves in pending.items()
        }

    def norm(self, tree: Any) -> jax.Array:
        """The L2 norm of params or gradients, the others' rows included."""
        flat = jax.tree_util.tree_leaves_with_path(tree)
        squares = [[jnp.zeros(())], [jnp.zeros(())]]
        for path, leaf in flat:
            squares[self._is_cut(path)].append(jnp.sum(jnp.square(leaf)))
        whole, rows = (sum(part) for part in squares)
        return jnp.sqrt(whole + (jax.lax.psum(rows, AXIS_NAME) if self.shapes else 0))

    # What a process does, outside.

    def axes(self, tree: Any) -> Any:
        """For pmap: 0 where a leaf has an axis of devices, else None."""
        if not self.shapes:
            return None
        return jax.tree_util.tree_map_with_path(
            lambda path, _: 0 if self._is_cut(path) else None, tree
        )

    def shapes_of(self, tree: Any) -> Any:
        """A pytree of whole leaves' shapes as it is after `place`, in one process."""

        def shape(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
            if not self._is_cut(path):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            rows = self._rows(leaf.shape)
            return jax.ShapeDtypeStruct(
                (self.replicas, rows, leaf.shape[-1]), leaf.dtype
            )

        return jax.tree_util.tree_map_with_path(shape, tree)

    def place(self, tree: Any) -> Any:
        """Puts whole leaves on this process's devices, those to be cut as rows."""

        def take(x: jax.Array, _: jax.Array) -> jax.Array:
            return self._cut(x)[jax.lax.axis_index(AXIS_NAME)]

        cut = jax.pmap(
            take, axis_name=AXIS_NAME, in_axes=(None, 0), devices=self.devices
        )
        mapped = np.zeros(len(self.devices or jax.local_devices()))  # pmap wants one
        return jax.tree_util.tree_map_with_path(
            lambda path, x: (
                cut(x, mapped) if self._is_cut(path) else replicate(x, self.devices)
            ),
            tree,
        )

    def fetch(self, tree: Any) -> Any:
        """The inverse of `place`: whole leaves, those that were cut on the host.

        All processes must call it at the same step.
        """

        def whole(path: Any, x: jax.Array) -> Any:
            if not self._is_cut(path):
                return x
            shape = self.shapes[_layer(path)]
            join = jax.pmap(
                lambda x: self._join(jax.lax.all_gather(x, AXIS_NAME), shape),
                axis_name=AXIS_NAME,
                out_axes=None,
                devices=self.devices,
            )
            return jax.device_get(join(x))

        return jax.tree_util.tree_map_with_path(whole, tree)

    @property
    def _orders(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of each half of the columns: how far each round's partner is; 0: all at once.

        Neighbours in the list of devices alternate between the axes of a torus, at
        least at first.
        """
        count = self.replicas.bit_length() - 1
        if 2**count != self.replicas:
            return (0,), (0,)
        first = tuple(2**k for k in range(count))
        swapped = tuple(first[k ^ 1 if k ^ 1 < count else k] for k in range(count))
        return first, swapped

    @property
    def _sum_dtype(self) -> jnp.dtype:
        return jnp.promote_types(self.dtype, jnp.float32)

    def _rows(self, shape: tuple[int, ...]) -> int:
        return -(-math.prod(shape[:-1]) // self.replicas)

    def _cut(self, x: jax.Array) -> jax.Array:
        x = x.reshape(-1, x.shape[-1])
        rows = self._rows(x.shape)
        x = jnp.pad(x, ((0, rows * self.replicas - x.shape[0]), (0, 0)))
        return x.reshape(self.replicas, rows, -1)

    def _join(self, chunks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        rows = chunks.reshape(-1, shape[-1])
        return rows[: math.prod(shape[:-1])].reshape(shape)

    def _is_cut(self, path: Any) -> bool:
        return _layer(path) in self.shapes and path[-1].key == "kernel"


def replace_kernels(params: Any, kernels: dict[str, jax.Array]) -> Any:
    """`params` with other kernels in the layers that `kernels` names."""
    changed = {k: {**params[k], "kernel": kernel} for k, kernel in kernels.items()}
    return {**params, **changed}


def _layer(path: Any) -> str:
    """The layer that a leaf belongs to, of params or of what mirrors them."""
    return str(getattr(path[-2], "key", "")) if len(path) > 1 else ""


UNCUT = FCShards({}, 1)


def pmap_step(
    step: Callable[..., Any],
    *,
    donate_state: bool,
    state_axes: Any = None,
    devices: Devices | None = None,
) -> Any:
    """Maps `step(state, batch)` over devices: state unmapped, batch cut on axis 0.

    What `step` returns must be equal on all replicas (psum or pmean it): `out_axes`
    of None takes the first replica's value and checks nothing.

    Args:
      step: a function for one replica, with collectives over `AXIS_NAME`.
      donate_state: whether the state's buffers become the new state's, which is then
        the first of two things that `step` returns.
      state_axes: `FCShards.axes` of the state, where some of it is cut.
      devices: of this and all other processes; None: all there are.
    """
    if state_axes is not None and jax.process_count() > 1:
        return _pmap_flat(step, donate_state, state_axes, devices)
    return jax.pmap(
        step,
        axis_name=AXIS_NAME,
        in_axes=(state_axes, 0),
        out_axes=(state_axes, None) if donate_state else None,
        donate_argnums=(0,) if donate_state else (),
        devices=devices,
    )


def _pmap_flat(
    step: Callable[..., Any],
    donate_state: bool,
    state_axes: Any,
    devices: Devices | None,
) -> Callable[[Any, Any], Any]:
    """`pmap_step` in several processes: there pmap hashes axes, and dicts have none."""
    axes = tuple(jax.tree.leaves(state_axes, is_leaf=lambda axis: axis is None))
    made: list[Any] = []  # the mapped step, once the state's structure is known

    def call(state: Any, batch: Any) -> Any:
        leaves, structure = jax.tree.flatten(state)

        def flat(leaves: tuple[Any, ...], batch: Any) -> Any:
            out = step(structure.unflatten(leaves), batch)
            return (tuple(jax.tree.leaves(out[0])), out[1]) if donate_state else out

        if not made:
            made.append(
                jax.pmap(
                    flat,
                    axis_name=AXIS_NAME,
                    in_axes=(axes, 0),
                    out_axes=(axes, None) if donate_state else None,
                    donate_argnums=(0,) if donate_state else (),
                    devices=devices,
                )
            )
        out = made[0](tuple(leaves), batch)
        return (structure.unflatten(out[0]), out[1]) if donate_state else out

    return call


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
