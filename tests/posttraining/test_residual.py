"""The residual policy starts as nothing, stays within its bound, and leaves what it reads alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.posttraining.adapters import AdapterConfig, define_adapters
from wam_jax.posttraining.residual import ResidualConfig, define_residual

CHUNK, ACTION, PROPRIO, TOKENS = 4, 3, 5, (8, 16)
BOUNDS = ((0.3, 0.3, 1.5), (0.4, 0.4, 1.5), (0.5, 0.5, 1.5), (0.6, 0.6, 1.5))


@pytest.fixture(scope="module")
def parts():
    """Both definitions and parameters, and what a policy sees."""
    adapters = define_adapters(AdapterConfig(size=8, action_widths=(16, 8)), 4, CHUNK, ACTION)
    residual = define_residual(ResidualConfig(image_widths=(8, 8)), 8, 2, PROPRIO, BOUNDS)
    rng = np.random.default_rng(0)
    seen = (
        jnp.asarray(rng.normal(size=(6, 2 * CHUNK, ACTION)), jnp.float32),
        jnp.asarray(rng.normal(size=(6, PROPRIO)), jnp.float32),
        jnp.asarray(rng.integers(0, 255, (6, 2, 16, 16, 3)), jnp.uint8),
    )
    return adapters, adapters.init(jax.random.key(0)), residual, residual.init(jax.random.key(1)), seen


def act(parts, params):
    adapters, adapter_params, residual, _, seen = parts
    return residual.bind(params)(adapters.bind(adapter_params), *seen)


def test_at_its_start_the_policy_is_the_base_bit_for_bit(parts):
    base = parts[4][0]
    motion = jax.jit(lambda params: act(parts, params))(parts[3])
    assert motion.shape == base.shape
    assert not np.asarray(motion).any()


def test_it_learns_from_its_zero_start_and_reads_all_that_it_is_given(parts):
    base, proprio, images = parts[4]
    level = images.mean((1, 2, 3, 4)) / 128 - 1
    wanted = 0.3 * jnp.sign(proprio[:, :1] + 4 * level[:, None])[..., None] * jnp.sign(base[:, :1, :1])
    target = jnp.broadcast_to(wanted, base.shape) * jnp.repeat(jnp.array([1.0, -1.0]), CHUNK)[None, :, None]
    params, optimizer = parts[3], optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean((act(parts, p) - target) ** 2))(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(150):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.65 * losses[0]  # as far as a decoder that was never trained can say it
    adapters, adapter_params, residual, *_ = parts
    run = jax.jit(lambda params, *seen: residual.bind(params)(adapters.bind(adapter_params), *seen))
    for number in range(3):
        other = [jnp.roll(x, 1, 0) if i == number else x for i, x in enumerate(parts[4])]
        assert np.abs(run(params, *other) - run(params, *parts[4])).max() > 1e-2
    loud = jax.tree.map(lambda x: 50 * x, params)
    within = np.abs(run(loud, *parts[4])).reshape(6, 2, CHUNK, ACTION).max((0, 1)) <= np.float32(BOUNDS)
    assert within.all()


def test_bounds_are_of_single_steps_and_what_is_not_normalised_has_its_own():
    affine = Affine(np.array([0, 0.1, 0], np.float32), np.array([2, 1, 1], np.float32))
    codec = ActionCodec(np.array([True, False, False]), affine, block=3)
    found = ResidualConfig(bound=0.5, command_bound=1.5).bounds(codec)
    assert found == ((0.25, 0.5, 1.5), (0.5, 0.5, 1.5), (0.75, 0.5, 1.5))  # the first is a sum of steps


def test_the_place_of_what_is_seen_matters(parts):
    """Pictures of one bright dot, here and there: the means of all channels are alike."""
    *_, residual, params, (base, proprio, _) = parts
    params = {**params, "out": {**params["out"], "kernel": jnp.ones_like(params["out"]["kernel"])}}
    dots = jnp.zeros((6, 2, 16, 16, 3), jnp.uint8)
    here, there = dots.at[:, :, 4, 4].set(255), dots.at[:, :, 12, 12].set(255)
    run = jax.jit(lambda images: residual.bind(params)(parts[0].bind(parts[1]), base, proprio, images))
    assert np.abs(run(here) - run(there)).max() > 1e-4


def test_through_the_bases_eyes_it_knows_what_is_in_which_place(parts):
    adapters, adapter_params, *_, (base, proprio, _) = parts
    residual = define_residual(ResidualConfig(sees="base"), 8, 2, PROPRIO, BOUNDS, TOKENS)
    params = residual.init(jax.random.key(1))
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(6, *TOKENS)), jnp.float32)
    run = jax.jit(lambda params, seen: residual.bind(params)(adapters.bind(adapter_params), base, proprio, seen))
    assert not np.asarray(run(params, tokens)).any()  # at its start, too
    moving = {**params, "out": {**params["out"], "kernel": jnp.ones_like(params["out"]["kernel"])}}
    assert np.abs(run(moving, tokens) - run(moving, tokens[:, ::-1])).max() > 1e-4
    with pytest.raises(ValueError, match="the policy shows no hidden tokens; set posttrain"):
        define_residual(ResidualConfig(sees="base"), 8, 2, PROPRIO, BOUNDS).shapes()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"residual.width=36 does not divide by twice residual.heads=4"):
        ResidualConfig(width=36)
    with pytest.raises(ValueError, match=r"residual.image_widths has 12, which does not divide by 8"):
        ResidualConfig(image_widths=(16, 12))
    with pytest.raises(ValueError, match=r"residual.sees='words' is unknown \(has: pictures, base\)"):
        ResidualConfig(sees="words")


def test_no_gradient_reaches_the_base_or_the_adapters(parts):
    adapters, adapter_params, residual, params, (base, proprio, images) = parts
    moving = {**params, "out": {**params["out"], "kernel": jnp.ones_like(params["out"]["kernel"])}}

    def loss(adapter_params, base):
        return jnp.sum(residual.bind(moving)(adapters.bind(adapter_params), base, proprio, images) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(adapter_params, base)
    assert value > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))
