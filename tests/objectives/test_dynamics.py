"""The dynamics loss counts what is there, both ways, and a short training leaves less than standing still does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.nn.vector_quantizer import COMMITMENT, SHARING
from wam_jax.objectives.dynamics import dynamics_loss
from wam_jax.tokenizers.latent_action import LatentActionConfig, define_latent_actions

CONFIG = LatentActionConfig(latent_shape=(4, 4, 3), cameras=2, hidden=16, codebook=8, beta=0.5)
SHAPE = (4, 3, 2, 4, 4, 3)
LATENTS = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
EVERYTHING = np.ones(SHAPE[:3], bool)


def run(kind="transport", latents=LATENTS, mask=EVERYTHING, scale=0.3):
    """Loss and metrics of random parameters."""
    definition = define_latent_actions(dataclasses.replace(CONFIG, kind=kind))
    leaves, tree = jax.tree.flatten(definition.shapes())
    rng = np.random.default_rng(1)
    params = tree.unflatten([jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32) for leaf in leaves])
    loss = jax.jit(lambda *x: dynamics_loss(definition.bind(params), *x, jax.random.key(0)))
    total, metrics = loss(jnp.asarray(latents), jnp.asarray(mask))
    return float(total), {name: float(value) for name, value in metrics.items()}


def test_consistency_is_the_forward_loss_of_the_reversed_window():
    mask = EVERYTHING.copy()
    mask[1, 2] = mask[2, 0, 1] = False
    total, metrics = run(mask=mask)
    _, reverse = run(latents=LATENTS[:, ::-1], mask=mask[:, ::-1])
    assert metrics["loss/consistency"] == pytest.approx(reverse["loss/forward"], rel=1e-5)
    assert metrics["loss/forward"] == pytest.approx(reverse["loss/consistency"], rel=1e-5)
    assert metrics["loss/consistency"] != pytest.approx(metrics["loss/forward"], rel=1e-3)
    assert total == pytest.approx(metrics["loss/forward"] + metrics["loss/consistency"], rel=1e-5)


@pytest.mark.parametrize("kind", ["transport", "vq", "vae"])
def test_what_is_masked_does_not_count(kind):
    mask = EVERYTHING.copy()
    mask[0, 2] = mask[1, :, 1] = mask[3] = False  # the end of an episode, a camera, a whole sample
    garbage = np.where(mask[..., None, None, None], LATENTS, np.nan)
    kept, changed = run(kind, mask=mask), run(kind, garbage, mask)
    assert changed == kept
    assert np.isfinite([kept[0], *kept[1].values()]).all()
    assert kept != run(kind)
    there = mask[:, :-1] & mask[:, 1:]
    repeat = np.mean((LATENTS[:, 1:] - LATENTS[:, :-1])[there] ** 2)
    assert kept[1]["repeat_error"] == pytest.approx(repeat, rel=1e-5)


def test_nothing_there_is_no_loss():
    for kind in ("transport", "vq", "vae"):
        total, metrics = run(kind, mask=~EVERYTHING)
        assert total == 0
        assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("kind", ["vq", "vae"])
def test_a_model_that_adds_nothing_repeats_the_present(kind):
    _, metrics = run(kind, scale=0.0)
    assert metrics["error_ratio"] == pytest.approx(1, rel=1e-5)
    assert metrics["residual_ratio"] == 0
    if kind == "vq":
        assert (metrics["codebook_perplexity"], metrics["codes_used"]) == (pytest.approx(1), 1 / 8)
    else:
        assert (metrics["kl"], metrics["active_units"]) == (0, 0)


def test_bottlenecks_add_their_own_losses():
    total, metrics = run("vae")
    assert total == pytest.approx(metrics["loss/forward"] + CONFIG.beta * metrics["kl"], rel=1e-5)
    total, metrics = run("vq")
    assert -SHARING * np.log(CONFIG.codebook) < total - metrics["loss/forward"] < (1 + COMMITMENT) * 4


def windows(count: int) -> np.ndarray:
    """[B, 2, 1, 5, 5, 3]: an object of 2 x 2 tokens goes one row or column, over a background of its own."""
    rng = np.random.default_rng(2)
    latents = np.repeat(0.5 * rng.normal(size=(count, 1, 1, 5, 5, 3)), 2, 1).astype(np.float32)
    moves = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
    for window in latents:
        before = rng.integers(1, 3, 2)
        for frame, (row, column) in zip(window[:, 0], (before, before + moves[rng.integers(4)]), strict=True):
            frame[row : row + 2, column : column + 2] = (2.0, -2.0, 1.0)
    return latents


@pytest.mark.parametrize(("kind", "bound"), [("transport", 0.2), ("vq", 0.6), ("vae", 0.4)])
def test_training_leaves_less_than_standing_still(kind, bound):
    config = LatentActionConfig(kind=kind, latent_shape=(5, 5, 3), hidden=32, codebook=8, beta=1e-3)
    definition, data = define_latent_actions(config), jnp.asarray(windows(256))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 200))

    def step(carry, key):
        params, state = carry
        latents = data[jax.random.randint(key, (32,), 0, len(data))]
        loss = lambda p: dynamics_loss(definition.bind(p), latents, jnp.ones(latents.shape[:3], bool), key)  # noqa: E731
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), metrics

    params = definition.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 200)
    _, metrics = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys))(params)
    last = {name: float(values[-20:].mean()) for name, values in metrics.items()}
    assert last["error_ratio"] < bound
    assert last.get("codebook_perplexity", 4) > 3  # of four motions
    assert last.get("active_units", 4) > 1


def test_latents_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"^latents of shape \(4, 3, 2, 4, 3, 3\) are not .* = \(2, 4, 4, 3\); set "):
        run(latents=LATENTS[..., :3, :], mask=EVERYTHING)
