"""Which of two things XLA computes first, on CPUs."""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def after(x: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, computed once x is there; elsewhere than on CPUs, `value`.

    XLA for CPUs orders by data alone, and drops barriers before it does. So a zero is
    added which it takes for something made of x.

    Args:
      x: a floating-point scalar, NaN or not.
      value: any floating-point array.
    """
    return jax.lax.platform_dependent(x, value, cpu=_add_zero, default=lambda _, v: v)


def settled(x: jax.Array) -> jax.Array:
    """`x`, whole before anything is made of it; elsewhere than on CPUs, `x`.

    jaxlib 0.10 computes matmuls within the loop of a reduction that follows, such as a
    softmax's: vgg16's FC layers took 0.8 s at a batch of eight, which take 0.03.

    Args:
      x: of a floating-point dtype.
    """
    if any(jax.typeof(x).sharding.spec):  # of an explicit mesh
        return x
    return _settled.bind(x)


def _add_zero(x: jax.Array, value: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}")
    zero = jnp.zeros_like(bits)
    return value + jax.lax.clamp(zero, bits, zero).astype(value.dtype)


def _whole(x: jax.Array) -> jax.Array:
    if 0 in x.shape:
        return x
    is_known = [isinstance(size, int) for size in x.shape]
    one = x[tuple(0 if known else slice(None) for known in is_known)]
    if one.ndim:  # nobody knows of a size which an export leaves open that it is not 0
        one = jnp.pad(one, [(0, 1)] * one.ndim)[(0,) * one.ndim]
    return _add_zero(one, x)


# A primitive, as only one may say that it is linear.
_settled = Primitive("settled")
_settled.def_impl(jax.jit(_settled.bind))
_settled.def_abstract_eval(lambda x: x)
ad.deflinear(_settled, lambda cotangent: [cotangent])
batching.defvectorized(_settled)
for _platform, _function in ((None, lambda x: x), ("cpu", _whole)):
    mlir.register_lowering(
        _settled, mlir.lower_fun(_function, multiple_results=False), _platform
    )
