"""Adam whose moments are kept in two bytes or one: for memory, at the price of a few operations a step.

Values are rounded up or down at random, in proportion (stochastic rounding), so that the many small changes of a slow
moving average are kept on average; rounding to the nearest would drop every change below half a unit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

_DTYPES = {"bfloat16": jnp.bfloat16, "float8": jnp.float8_e4m3fn}
_LARGEST = 448.0  # of float8_e4m3fn


class CompactAdamState(NamedTuple):
    """Moments, each with a factor a row (last axis); the second as its square root, to halve its range of exponents."""

    steps: Int[Array, ""]
    mu: Any
    mu_scale: Any
    root_nu: Any
    root_nu_scale: Any


def scale_by_compact_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, dtype: str = "bfloat16"
) -> optax.GradientTransformation:
    """``optax.scale_by_adam`` with moments in ``bfloat16`` or ``float8`` (e4m3 with a float32 factor a row)."""
    adam, kept = optax.scale_by_adam(b1=b1, b2=b2, eps=eps), _DTYPES[dtype]

    def init(params: Any) -> CompactAdamState:
        def empty() -> Any:
            return jax.tree.map(lambda p: jnp.zeros(p.shape, kept), params)

        def ones() -> Any:
            return jax.tree.map(lambda p: jnp.ones(_rows(p.shape), jnp.float32), params)

        return CompactAdamState(jnp.zeros((), jnp.int32), empty(), ones(), empty(), ones())

    def update(grads: Any, state: CompactAdamState, params: Any = None) -> tuple[Any, CompactAdamState]:
        mu = jax.tree.map(_read, state.mu, state.mu_scale)
        nu = jax.tree.map(lambda x, scale: _read(x, scale) ** 2, state.root_nu, state.root_nu_scale)
        updates, after = adam.update(grads, optax.ScaleByAdamState(state.steps, mu, nu), params)
        key = jax.random.fold_in(jax.random.key(0), state.steps)
        kept_mu, mu_scale = _write(after.mu, jax.random.fold_in(key, 0), kept)
        roots = jax.tree.map(jnp.sqrt, after.nu)
        root_nu, root_nu_scale = _write(roots, jax.random.fold_in(key, 1), kept)
        return updates, CompactAdamState(after.count, kept_mu, mu_scale, root_nu, root_nu_scale)

    return optax.GradientTransformation(init, update)


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], 1) if shape else ()


def _read(x: Array, scale: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(jnp.float32) * scale


def _write(tree: Any, key: jax.Array, dtype: Any) -> tuple[Any, Any]:
    leaves, structure = jax.tree.flatten(tree)
    pairs = [_pack(x, jax.random.fold_in(key, number), dtype) for number, x in enumerate(leaves)]
    values, scales = zip(*pairs, strict=True)
    return jax.tree.unflatten(structure, values), jax.tree.unflatten(structure, scales)


def _pack(x: Float[Array, "..."], key: jax.Array, dtype: Any) -> tuple[Array, Float[Array, "..."]]:
    scale = jnp.ones(_rows(x.shape), jnp.float32)
    if dtype == jnp.float8_e4m3fn:
        largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True) if x.ndim else jnp.abs(x)
        scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
    return round_at_random(x / scale, key, dtype), scale


def round_at_random(x: Float[Array, "..."], key: jax.Array, dtype: Any) -> Array:
    """``x`` in a shorter dtype, rounded up or down with the odds that keep its mean (in the dtype's normal range)."""
    dropped = 23 - jnp.finfo(dtype).nmant  # float32 has 23 bits of mantissa
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> (32 - dropped)
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(jax.lax.bitcast_convert_type(bits, jnp.float32), -limit, limit).astype(dtype)
