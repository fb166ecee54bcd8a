"""The residual policy starts as nothing, stays within its bound, and leaves what it reads alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.posttraining.adapters import AdapterConfig, define_adapters
from wam_jax.posttraining.residual import ResidualConfig, define_residual
from wam_jax.types import Text

CHUNK, ACTION, PROPRIO, TEXT, BOUNDS = 4, 3, 5, 8, (0.5, 0.5, 1.5)


@pytest.fixture(scope="module")
def parts():
    """Both definitions and parameters, and what a policy sees."""
    adapters = define_adapters(AdapterConfig(size=8, action_widths=(16, 8)), 4, CHUNK, ACTION)
    residual = define_residual(ResidualConfig(image_widths=(8, 8)), 8, 2, PROPRIO, BOUNDS)
    rng = np.random.default_rng(0)
    words = jnp.asarray(rng.normal(size=(6, 2, TEXT)), jnp.float32)
    seen = (
        jnp.asarray(rng.normal(size=(6, 2 * CHUNK, ACTION)), jnp.float32),
        jnp.asarray(rng.normal(size=(6, PROPRIO)), jnp.float32),
        jnp.asarray(rng.integers(0, 255, (6, 2, 16, 16, 3)), jnp.uint8),
        Text(features=words, mask=jnp.ones((6, 2), bool)),
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
    base, proprio, images, _ = parts[4]
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
    assert (np.abs(run(loud, *parts[4])).max((0, 1)) <= np.array(BOUNDS)).all()


def test_what_is_not_normalised_has_a_bound_of_its_own():
    affine = Affine(np.array([0, 0.1, 0], np.float32), np.array([2, 1, 1], np.float32))
    codec = ActionCodec(np.array([True, False, False]), affine)
    assert ResidualConfig(bound=0.5, command_bound=1.5).bounds(codec) == (0.25, 0.5, 1.5)


def test_the_place_of_what_is_seen_matters(parts):
    """Pictures of one bright dot, here and there: the means of all channels are alike."""
    *_, residual, params, (base, proprio, _, text) = parts
    params = {**params, "out": {**params["out"], "kernel": jnp.ones_like(params["out"]["kernel"])}}
    dots = jnp.zeros((6, 2, 16, 16, 3), jnp.uint8)
    here, there = dots.at[:, :, 4, 4].set(255), dots.at[:, :, 12, 12].set(255)
    run = jax.jit(lambda images: residual.bind(params)(parts[0].bind(parts[1]), base, proprio, images, text))
    assert np.abs(run(here) - run(there)).max() > 1e-4


def dots_by_word():
    """Pictures with a red and a blue dot, of which the words name one; moved is towards it, left or right."""
    rng = np.random.default_rng(1)
    left, red_named = rng.integers(0, 2, 64), rng.integers(0, 2, 64)
    images = np.zeros((64, 2, 16, 16, 3), np.uint8)
    for row, at in enumerate(left):
        images[row, :, 8, 3 + 9 * at, 0] = images[row, :, 8, 12 - 9 * at, 2] = 255
    words = rng.normal(size=(2, 2, TEXT))[red_named]
    text = Text(features=jnp.asarray(words, jnp.float32), mask=jnp.ones((64, 2), bool))
    return jnp.asarray(images), text, jnp.asarray(np.where(left == red_named, 1.0, -1.0))


@pytest.mark.parametrize(("words", "bound"), [(True, 0.5), (False, 0.9)])
def test_words_tell_which_of_two_things_to_move_to(parts, words, bound):
    """Without them, nothing tells: the error stays that of standing still."""
    adapters, adapter_params, *_ = parts
    residual = define_residual(ResidualConfig(image_widths=(8, 8), words=words), 8, 2, PROPRIO, (1.0,) * 3, TEXT)
    images, text, way = dots_by_word()
    still, felt = jnp.zeros((64, CHUNK, ACTION)), jnp.zeros((64, PROPRIO))
    bound_adapters = adapters.bind(jax.tree.map(lambda x: 3 * x, adapter_params))  # as drawn, they decode to nothing
    params, optimizer = residual.init(jax.random.key(1)), optax.adam(1e-2)

    def error(params):
        moved = residual.bind(params)(bound_adapters, still, felt, images, text)
        return jnp.mean((moved[..., 0] - 0.3 * way[:, None]) ** 2) / 0.09

    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(error)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    for _ in range(200):
        params, state, loss = step(params, state)
    assert loss < bound if words else loss > bound


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"residual.width=36 does not divide by twice residual.heads=4"):
        ResidualConfig(width=36)
    with pytest.raises(ValueError, match=r"residual.image_widths has 12, which does not divide by 8"):
        ResidualConfig(image_widths=(16, 12))


def test_no_gradient_reaches_the_base_or_the_adapters(parts):
    adapters, adapter_params, residual, params, (base, proprio, images, text) = parts
    moving = {**params, "out": {**params["out"], "kernel": jnp.ones_like(params["out"]["kernel"])}}

    def loss(adapter_params, base):
        return jnp.sum(residual.bind(moving)(adapters.bind(adapter_params), base, proprio, images, text) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(adapter_params, base)
    assert value > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))
