"""Adam with short moments: as Adam within the precision of what is kept, and unbiased."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.training.compact import round_at_random, scale_by_compact_adam


@pytest.mark.parametrize(("dtype", "digits"), [(jnp.bfloat16, 2**-7), (jnp.float8_e4m3fn, 2**-3)])
def test_rounding_at_random_keeps_the_mean_and_is_one_unit_off_at_most(dtype, digits):
    x = jnp.full(20_000, 1.0 + 0.3 * digits)
    rounded = np.asarray(round_at_random(x, jax.random.key(0), dtype), np.float32)
    assert set(np.unique(rounded)) == {1.0, np.float32(1.0 + digits)}
    assert rounded.mean() == pytest.approx(float(x[0]), abs=4 * 0.5 * digits / np.sqrt(x.size))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fn])
def test_values_that_the_dtype_holds_stay(dtype):
    x = jnp.asarray([0.0, 1.0, -1.5, 448.0, -0.25])
    np.testing.assert_array_equal(round_at_random(x, jax.random.key(0), dtype).astype(jnp.float32), x)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float8", 0.2)])
def test_moments_follow_adams(dtype, tolerance):
    """After 200 noisy steps, over many parameters: the updates' relative difference is that of the precision."""
    exact, compact = optax.scale_by_adam(b2=0.98), scale_by_compact_adam(b2=0.98, dtype=dtype)
    params = {"w": jnp.zeros((4, 256))}
    states = exact.init(params), compact.init(params)

    @jax.jit
    def step(states, key):
        grads = {"w": 1e-3 * (1 + jax.random.normal(key, (4, 256)))}
        (a, first), (b, second) = exact.update(grads, states[0]), compact.update(grads, states[1])
        return (first, second), (a["w"], b["w"])

    for number in range(200):
        states, (a, b) = step(states, jax.random.key(number))
    assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a)) < tolerance
    assert float(jnp.abs((a - b).mean()) / jnp.abs(a).mean()) < tolerance / 5  # and no drift


def test_bytes_a_parameter():
    params = {"w": jnp.zeros((64, 1024))}
    kept = {
        dtype: sum(x.nbytes for x in jax.tree.leaves(scale_by_compact_adam(dtype=dtype).init(params)))
        for dtype in ("bfloat16", "float8")
    }
    assert kept["bfloat16"] / params["w"].size < 4.01
    assert kept["float8"] / params["w"].size < 2.01
