"""Convolutions as CPUs get them against XLA's own, under JAX's transformations."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_flax.model import convolution, layers, winograd

# Batch, height, width, in, out, the kernel's sides, padding. The first four have enough
# to do for Winograd's (see `much_to_do`): in one go (in float32), in blocks with a rest
# of images, odd and an image at a time, in three strips an image with a rest of rows.
# The others are XLA's, or a matmul's on CPUs: tiny, or the classifier's.
SHAPES = {
    "one block": (4, 16, 16, 64, 32, 3, "SAME"),
    "a rest of images": (7, 16, 16, 64, 32, 3, "SAME"),
    "odd": (7, 31, 33, 72, 16, 3, "SAME"),
    "strips": (2, 70, 501, 16, 16, 3, "SAME"),
    "1x1": (9, 20, 20, 600, 2, 1, "SAME"),
    "sliding": (2, 17, 16, 96, 2, 7, "VALID"),
    "one position": (5, 7, 7, 96, 20, 7, "VALID"),
    "every position": (2, 3, 4, 96, 20, 1, "VALID"),
    "small": (3, 13, 40, 3, 8, 3, "SAME"),
    "tiny": (3, 2, 2, 4, 4, 3, "SAME"),
}


@pytest.fixture(autouse=True)
def much_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth is enough to be Winograd's here, and fills a block or a strip."""
    monkeypatch.setattr(convolution, "FEW_PRODUCTS", 1 << 24)
    monkeypatch.setattr(winograd, "BLOCK_BYTES", 1 << 21)
    monkeypatch.setattr(winograd, "STRIP_BYTES", 1 << 23)


def plain(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def operands(name: str, dtype: str, more: int = 0) -> tuple[jax.Array, jax.Array, str]:
    batch, height, width, inputs, outputs, side, padding = SHAPES[name]
    x = draw((more,) * bool(more) + (batch, height, width, inputs), dtype, 1)
    kernel = draw((more,) * bool(more) + (side, side, inputs, outputs), dtype, 2)
    return x, kernel, padding


def test_what_has_much_to_do_is_winograds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return plain(x, kernel, "SAME")

    monkeypatch.setattr(winograd, "convolve", convolve)
    for name in SHAPES:
        lowered(*operands(name, "float32"))
    names = ("one block", "a rest of images", "odd", "strips")
    assert seen == [SHAPES[name][:4] for name in names]


def lowered(x: jax.Array, kernel: jax.Array, padding: str) -> str:
    ours = jax.jit(lambda x, k: convolution.convolve(x, k, padding))
    return ours.lower(x, kernel).as_text()


def assert_close(ours: Any, expected: Any, bound: float) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert jnp.abs(a - b).max() <= bound * jnp.abs(b).max()


def both(
    transform: Callable[[Callable[..., jax.Array]], Callable[..., Any]],
    padding: str,
    *arguments: jax.Array,
) -> tuple[Any, Any]:
    """What `transform` makes of our convolution's function, and of XLA's."""

    def of(convolve: Callable[..., jax.Array]) -> Any:
        function = transform(lambda x, kernel: jnp.tanh(convolve(x, kernel, padding)))
        return jax.jit(function)(*arguments)

    return of(convolution.convolve), of(plain)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_it_and_its_gradients_are_xlas(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        x, kernel, padding = operands(name, dtype)
        g = draw(plain(x, kernel, padding).shape, dtype, 3)

        def pulled(function: Callable[..., jax.Array]) -> Callable[..., Any]:
            return lambda *arguments: (
                function(*arguments),
                jax.vjp(function, *arguments)[1](g),
            )

        ours, expected = both(pulled, padding, x, kernel)
        assert_close(ours, expected, 1e-12 if dtype == "float64" else 1e-4)


def gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Of the sum of a result, by images and kernel."""
    return jax.grad(lambda x, kernel: function(x, kernel).sum(), (0, 1))


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jvp": lambda f: lambda x, k: jax.jvp(f, (x, k), (k.sum() * x, x.sum() * k)),
    # By two numbers: by every pixel it would be minutes.
    "jacfwd": lambda f: (
        lambda x, k: jax.jacfwd(lambda scales: f(scales[0] * x, scales[1] * k))(
            jnp.ones(2, x.dtype)
        )
    ),
    "jacrev": lambda f: jax.jacrev(lambda x, k: f(x, k).sum((0, 1, 2)), (0, 1)),
    "second derivatives": lambda f: (
        lambda x, k: jax.jvp(
            jax.grad(lambda x, k: f(x, k).sum(), (0, 1)), (x, k), (x, k)
        )
    ),
    "remat": lambda f: jax.grad(jax.checkpoint(lambda x, k: f(x, k).sum()), (0, 1)),
}


@pytest.mark.parametrize("name", ["odd", "a rest of images", "sliding"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformations_apply(transform: str, name: str) -> None:
    with jax.enable_x64(True):
        x, kernel, padding = operands(name, "float64")
        assert_close(*both(TRANSFORMS[transform], padding, x, kernel), 1e-12)


@pytest.mark.parametrize(
    "name", ["odd", "sliding", "one position", "every position", "tiny", "small"]
)
def test_it_is_linear_in_each(name: str) -> None:
    """By `linear_transpose`, which takes no more: twice it is the function itself."""
    x, kernel, padding = operands(name, "float32")
    y = plain(x, kernel, padding)

    def transposed(convolve: Callable[..., jax.Array]) -> Any:
        def of_x(x: jax.Array) -> jax.Array:
            return convolve(x, kernel, padding)

        def of_kernel(kernel: jax.Array) -> jax.Array:
            return convolve(x, kernel, padding)

        def again(x: jax.Array) -> jax.Array:
            to_x = jax.linear_transpose(of_x, x)
            (z,) = jax.linear_transpose(lambda y: to_x(y)[0], y)(x)
            return z

        to_x, to_kernel = (
            jax.linear_transpose(f, a)(y) for f, a in ((of_x, x), (of_kernel, kernel))
        )
        return to_x, to_kernel, again(x)

    ours, expected = transposed(convolution.convolve), transposed(plain)
    assert_close(ours, expected, 1e-4)


@pytest.mark.parametrize("name", ["a rest of images", "sliding", "tiny"])
@pytest.mark.parametrize(
    "axes",
    [
        (0, None),
        pytest.param((None, 0), marks=pytest.mark.slow),
        pytest.param((0, 0), marks=pytest.mark.slow),
    ],
)
def test_vmap_applies(axes: tuple[int | None, int | None], name: str) -> None:
    """Over images, over kernels (an ensemble), over both; of the gradient too."""
    with jax.enable_x64(True):
        x, kernel, padding = operands(name, "float64", more=2)
        x, kernel = (
            a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)
        )

        def mapped(function: Callable[..., jax.Array]) -> Callable[..., Any]:
            return jax.vmap(gradient(function), axes)

        assert_close(*both(mapped, padding, x, kernel), 1e-12)


@pytest.mark.parametrize("name", ["one block", "sliding", "tiny"])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_over_none_gives_none(
    axes: tuple[int | None, int | None], name: str
) -> None:
    x, kernel, padding = operands(name, "float32")
    x, kernel = (
        jnp.zeros((0, *a.shape)) if axis == 0 else a
        for a, axis in zip((x, kernel), axes, strict=True)
    )
    ours, expected = both(lambda f: jax.vmap(gradient(f), axes), padding, x, kernel)
    shapes = jax.tree.map(jnp.shape, ours)
    assert shapes == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize("edge", [5, 6])
def test_a_map_smaller_than_its_window_has_no_position(edge: int) -> None:
    x, kernel = jnp.ones((3, edge, 9, 8)), jnp.ones((7, 7, 8, 4))
    assert convolution.convolve(x, kernel, "VALID").shape == (3, 0, 3, 4)


def test_replicas_sum_the_gradient_of_a_shared_kernel_once() -> None:
    """By `shard_map`, which sums it itself, and by `pmap`, where that is asked for."""
    x, kernel, padding = operands("strips", "float32")
    expected = jax.jit(gradient(lambda x, k: plain(x, k, padding) ** 2))(x, kernel)
    step = gradient(lambda x, k: convolution.convolve(x, k, padding) ** 2)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("replicas",))
    images, every = jax.P("replicas"), jax.P()
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(images, every), out_specs=(images, every)
    )
    assert_close(jax.jit(sharded)(x, kernel), expected, 1e-4)
    parts = x.reshape(2, 1, *x.shape[1:])
    by_x, by_kernel = jax.pmap(step, in_axes=(0, None))(parts, kernel)
    assert_close((by_x.reshape(x.shape), by_kernel.sum(0)), expected, 1e-4)


def taken(function: Callable[..., Any], *shapes: tuple[int, ...]) -> float:
    """How many of the first shape's arrays a compiled function has room for besides."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(function).lower(*arrays).compile()
    return program.memory_analysis().temp_size_in_bytes / (4 * math.prod(shapes[0]))


def through(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """Eight layers."""
    for kernel in kernels:
        x = layers.relu(convolution.convolve(x, kernel, "SAME"))
    return x


def test_layers_share_no_zeros_and_copy_no_maps() -> None:
    """19 maps; with the zeros of JAX's loop, and copies of them and of maps, 25."""
    by_kernels = jax.grad(lambda x, kernels: through(x, kernels).sum(), 1)
    assert taken(by_kernels, (16, 32, 32, 64), (8, 3, 3, 64, 64)) < 21


def test_a_kernel_is_transformed_when_its_layer_is_computed() -> None:
    """Sixteen matrices are 1.8 times a kernel, and here 32 times a map."""
    assert taken(through, (1, 16, 16, 512), (8, 3, 3, 512, 512)) < 3 * 32


def compiled(function: Callable[..., Any], *arguments: jax.Array) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


@pytest.mark.parametrize("is_mapped", [True, False])
@pytest.mark.parametrize("is_xlas", [True, False])
def test_columns_of_too_many_windows_are_not_made(
    monkeypatch: pytest.MonkeyPatch, is_xlas: bool, is_mapped: bool
) -> None:
    """Of 110 windows in each of two images, 7 x 7 x 96 elements; of `vmap` too."""
    monkeypatch.setattr(convolution, "MANY_COLUMNS", 220 * 4704 - is_xlas)
    x, kernel, padding = operands("sliding", "float32")

    def convolve(x: jax.Array) -> jax.Array:
        return convolution.convolve(x, kernel, padding)

    text = (
        compiled(jax.vmap(convolve), x[:, None]) if is_mapped else compiled(convolve, x)
    )
    assert (" convolution(" in text) == is_xlas


@pytest.mark.parametrize("name", ["one block", "sliding", "one position", "tiny"])
def test_a_backward_pass_of_its_own_keeps_the_operands_alone(name: str) -> None:
    x, kernel, padding = operands(name, "float32")
    forward = jax.jit(lambda x, k: convolution.convolve(x, k, padding))
    kept = jax.eval_shape(lambda x, k: jax.vjp(forward, x, k)[1], x, kernel)
    assert sum(a.size for a in jax.tree.leaves(kept)) <= x.size + kernel.size


@pytest.mark.parametrize(
    ("sizes", "side", "padding"),
    [
        ((32, 1), 1, "VALID"),
        ((8, 2), 1, "VALID"),
        ((8, 3), 2, "VALID"),
        ((8, 2), 3, "SAME"),
    ],
)
def test_a_reduction_computes_no_matmul_itself(
    sizes: tuple[int, int], side: int, padding: str
) -> None:
    """In jaxlib 0.10 the classifier's then took 25 times as long for a softmax."""
    batch, edge = sizes
    x = draw((batch, edge, edge, 512), "float32")
    kernel = draw((side, side, 512, 512), "float32")
    square = draw((1, 1, 512, 512), "float32")

    def sums(x: jax.Array, kernel: jax.Array, square: jax.Array) -> jax.Array:
        y = layers.relu(convolution.convolve(x, kernel, padding))
        return convolution.convolve(y, square, "VALID").sum(-1)

    computations = compiled(sums, x, kernel, square).split("\n\n")
    of_matmuls = [text for text in computations if " dot(" in text]
    assert sum(text.count(" dot(") for text in of_matmuls) == 2
    assert all("ENTRY" in text or " reduce(" not in text for text in of_matmuls)


@pytest.mark.parametrize("name", ["one block", "sliding"])
def test_an_explicit_mesh_gets_xlas_own(name: str) -> None:
    x, kernel, padding = operands(name, "float32")
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        cut = jax.device_put(x, jax.NamedSharding(mesh, jax.P("d")))
        y = jax.jit(lambda x, k: convolution.convolve(x, k, padding))(cut, kernel)
    assert_close(y, plain(x, kernel, padding), 1e-4)


def test_bfloat16_is_xlas_own() -> None:
    """Sums of four pixels in bfloat16 would lose what one matmul keeps."""
    x, kernel, padding = operands("a rest of images", "bfloat16")
    assert_close(*both(gradient, padding, x, kernel), 0)


@pytest.mark.parametrize(
    "name", ["a rest of images", "sliding", "one position", "tiny"]
)
def test_an_export_may_leave_the_batch_open(name: str) -> None:
    """And take a part of it, of which nobody knows that it is not none."""
    x, kernel, padding = operands(name, "float32")
    (open_batch,) = jax.export.symbolic_shape("b")

    def half(x: jax.Array, kernel: jax.Array) -> Any:
        return gradient(lambda x, k: convolution.convolve(x, k, padding))(
            x[: x.shape[0] // 2], kernel
        )

    exported = jax.export.export(jax.jit(half))(
        jax.ShapeDtypeStruct((open_batch, *x.shape[1:]), x.dtype), kernel
    )
    assert_close(exported.call(x, kernel), half(x, kernel), 1e-4)
    by_x, by_kernel = exported.call(x[:1], kernel)  # a half of one is none
    assert by_x.shape[0] == 0 and not by_kernel.any()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    "name", ["one block", "a rest of images", "1x1", "sliding", "tiny"]
)
def test_other_platforms_get_the_plain_convolution(platform: str, name: str) -> None:
    """For the two gradients and the result, and no loop."""
    x, kernel, padding = operands(name, "float32")

    def lowered(convolve: Callable[..., jax.Array]) -> dict[str, int]:
        function = jax.jit(gradient(lambda x, k: jnp.tanh(convolve(x, k, padding))))
        step = function.trace(x, kernel)
        text = step.lower(lowering_platforms=(platform,)).as_text()
        found = ("convolution(", "while", "dot_general", "concatenate")
        return {what: text.count(f"stablehlo.{what}") for what in found}

    assert lowered(convolution.convolve) == lowered(plain)
