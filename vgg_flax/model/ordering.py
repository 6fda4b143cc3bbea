"""Which of two things XLA computes first, on CPUs."""

import jax
import jax.numpy as jnp


def after(x: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, computed once x is there; elsewhere than on CPUs, `value`.

    XLA for CPUs orders by data alone, and drops barriers before it does. So a zero is
    added which it takes for something made of x.

    Args:
      x: a floating-point scalar, NaN or not.
      value: any floating-point array.
    """
    return jax.lax.platform_dependent(x, value, cpu=_add_zero, default=lambda _, v: v)


def _add_zero(x: jax.Array, value: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}")
    zero = jnp.zeros_like(bits)
    return value + jax.lax.clamp(zero, bits, zero).astype(value.dtype)
