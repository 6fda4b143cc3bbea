"""FC kernels cut over the replicas: gathered, reduced, placed and fetched."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_flax.parallel import replicas
from vgg_flax.parallel.replicas import AXIS_NAME, Devices

EXCHANGES = ("neighbours", "scatter")


@dataclasses.dataclass(frozen=True)
class FCShards:
    """FC kernels cut over the replicas, each of which keeps and updates its rows.

    fc6, fc7 and fc8 are 124 of VGG16's 138 million parameters. Cut, they are gathered
    under the convolutions of the forward pass, their gradients are reduced under those
    of the backward pass (`halve`), and a replica stores and updates 1/N of them.

    How gradients are reduced depends on the devices. On a TPU's torus "neighbours"
    exchange halves, by ppermute, which runs beside the computation; elsewhere one
    psum_scatter ("scatter") leaves it to the library that knows the wires.

    Attributes:
      shapes: of the full kernels, by layer; empty: nothing is cut.
      replicas: N, over all processes.
      dtype: of what travels: the computation's.
      devices: of the replicas; None: all there are.
      exchange: one of `EXCHANGES`; None: "neighbours" on TPUs, else "scatter".
    """

    shapes: dict[str, tuple[int, ...]]
    replicas: int
    dtype: Any = jnp.float32
    devices: Devices | None = None
    exchange: str | None = None

    @property
    def chosen_exchange(self) -> str:
        """`exchange`, or what suits the devices."""
        if self.exchange is not None:
            return self.exchange
        platform = (self.devices or jax.devices())[0].platform
        return "neighbours" if platform == "tpu" else "scatter"

    @property
    def description(self) -> str:
        """How they are cut, for people."""
        how = "one reduce-scatter"
        if self._by_neighbours:
            how = f"exchanges with neighbours in {self.rounds} round(s)"
        return f"cut over {self.replicas} replicas, gradients reduced by {how}"

    # What one replica does, within a mapped step. A kernel [.., in, out] is N chunks of
    # rows [N, rows, out]; a replica's own is the one at its index.

    @property
    def rounds(self) -> int:
        """How many times `halve` is to be called, with 0, 1, ..."""
        return len(self._orders[0]) if self.shapes else 0

    @property
    def growth(self) -> int:
        """How many chunks `halve` takes for each that it gives."""
        return 2 if self._by_neighbours else self.replicas

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

        By neighbours replica i exchanges half of what it has with replica i ^ 2**k,
        and adds. The sums stay in the params' type and are rounded to `dtype` only to
        travel. Neighbours exchange the largest halves, and the two halves of the
        columns go along different axes of the torus. By a psum_scatter, and where N is
        no power of two, the one round takes all chunks at once.
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

    def psum(self, tree: Any) -> Any:
        """The sums over the replicas of all leaves but the cut kernels' gradients.

        Those are a replica's own rows, and `halve` has summed them.
        """
        return self._psum(tree, lambda path: not self.is_cut(path))

    def add_rows(self, tree: Any) -> Any:
        """The sums over the replicas of those leaves that each has of its own rows.

        Of a tree that mirrors the params, such as sums of squares or Gram matrices;
        what is of whole leaves, every replica has.
        """
        return self._psum(tree, self.is_cut) if self.shapes else tree

    def _psum(self, tree: Any, chosen: Callable[[Any], bool]) -> Any:
        if jax.lax.axis_size(AXIS_NAME) == 1:
            return tree  # which XLA for CPUs would copy
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        parts = [leaf for path, leaf in paths if chosen(path)]
        summed = iter(jax.lax.psum(parts, AXIS_NAME))
        return structure.unflatten(
            [next(summed) if chosen(path) else leaf for path, leaf in paths]
        )

    def is_cut(self, path: Any) -> bool:
        """Whether the leaf at a path of JAX's is of a kernel that is cut."""
        return _layer(path) in self.shapes and path[-1].key == "kernel"

    def whole_shape(self, path: Any, leaf: jax.Array) -> tuple[int, ...]:
        """The shape of a leaf of params, the others' rows included."""
        return self.shapes[_layer(path)] if self.is_cut(path) else leaf.shape

    def norm(self, tree: Any) -> jax.Array:
        """The L2 norm of params or gradients, the others' rows included."""
        flat = jax.tree_util.tree_leaves_with_path(tree)
        squares = [[jnp.zeros(())], [jnp.zeros(())]]
        for path, leaf in flat:
            squares[self.is_cut(path)].append(jnp.sum(jnp.square(leaf)))
        whole, rows = (sum(part) for part in squares)
        return jnp.sqrt(whole + (jax.lax.psum(rows, AXIS_NAME) if self.shapes else 0))

    # What a process does, outside.

    def axes(self, tree: Any) -> Any:
        """For pmap: 0 where a leaf has an axis of devices, else None."""
        if not self.shapes:
            return None
        return jax.tree_util.tree_map_with_path(
            lambda path, _: 0 if self.is_cut(path) else None, tree
        )

    def shapes_of(self, tree: Any) -> Any:
        """A pytree of whole leaves' shapes as it is after `place`, in one process."""

        def shape(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
            if not self.is_cut(path):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            rows = self._rows(leaf.shape)
            return jax.ShapeDtypeStruct(
                (self.replicas, rows, leaf.shape[-1]), leaf.dtype
            )

        return jax.tree_util.tree_map_with_path(shape, tree)

    def place(self, tree: Any) -> Any:
        """Puts whole leaves on this process's devices, those to be cut as rows.

        A step that is given them may have their memory, and that of the arrays of JAX
        that they were.
        """

        def put(path: Any, x: Any) -> jax.Array:
            if self.is_cut(path):
                return replicas.scatter(self._cut, x, self.devices)
            placed = replicas.replicate(x, self.devices)
            if isinstance(x, np.ndarray) and jax.default_backend() == "cpu":
                # Else it is NumPy's memory, and XLA updates in place only its own.
                return jnp.copy(placed)
            return placed

        return jax.tree_util.tree_map_with_path(put, tree)

    def fetch(self, tree: Any) -> Any:
        """The inverse of `place`: whole leaves, those that were cut on the host.

        All processes must call it at the same step.
        """

        def whole(path: Any, x: jax.Array) -> Any:
            if not self.is_cut(path):
                return x
            shape = self.shapes[_layer(path)]
            return replicas.gather(lambda x: self._join(x, shape), x, self.devices)

        return jax.tree_util.tree_map_with_path(whole, tree)

    @property
    def _orders(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of each half of the columns: how far each round's partner is; 0: all at once.

        Neighbours in the list of devices alternate between the axes of a torus, at
        least at first.
        """
        if not self._by_neighbours:
            return (0,), (0,)
        count = self.replicas.bit_length() - 1
        first = tuple(2**k for k in range(count))
        swapped = tuple(first[k ^ 1 if k ^ 1 < count else k] for k in range(count))
        return first, swapped

    @property
    def _by_neighbours(self) -> bool:
        is_power_of_two = self.replicas & (self.replicas - 1) == 0
        return is_power_of_two and self.chosen_exchange == "neighbours"

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


def replace_kernels(params: Any, kernels: dict[str, jax.Array]) -> Any:
    """`params` with other kernels in the layers that `kernels` names."""
    changed = {k: {**params[k], "kernel": kernel} for k, kernel in kernels.items()}
    return {**params, **changed}


def _layer(path: Any) -> str:
    """The layer that a leaf belongs to, of params or of what mirrors them."""
    return str(getattr(path[-2], "key", "")) if len(path) > 1 else ""


UNCUT = FCShards({}, 1)
