"""Adapters bring what belongs together to one place, and actions back from there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.posttraining.adapters import PRESETS, AdapterConfig, adapter_loss, define_adapters

CHUNK, ACTION, CHUNKS = 4, 3, 5
SMALL = {"size": 8, "video_widths": (8, 16), "action_widths": (32, 16)}


def pairs(count: int, seed: int):
    """Actions, and latents in which they can be seen."""
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(count, CHUNKS * CHUNK, ACTION)).astype(np.float32)
    shown = actions.reshape(count, CHUNKS, CHUNK, ACTION).mean(2)
    where = np.concatenate([np.zeros((count, 1, ACTION)), np.cumsum(shown, 1)], 1)  # a frame shows where it led
    latents = np.broadcast_to(where[:, :, None, None, None], (count, CHUNKS + 1, 1, 4, 4, ACTION))
    return jnp.asarray(latents + 0.1 * rng.normal(size=latents.shape), jnp.float32), jnp.asarray(actions)


@pytest.mark.parametrize("name", PRESETS)
def test_published_sizes(name):
    adapters = define_adapters(PRESETS[name], 16, CHUNK, 7)
    widths = {"latents": [32, 32], "features": [256, 256]}[name]
    params = adapters.init(jax.random.key(0))
    video = jnp.zeros((2, 4, 2, 8, 8, 8)) if name == "latents" else jnp.zeros((2, 4, 16))

    @jax.jit
    def run(params, video, actions):
        model = adapters.bind(params)
        coded = model.of_actions(actions)
        return model.of_video(video), coded, model.decode(coded)

    seen, coded, decoded = run(params, video, jnp.zeros((2, 12, 7)))
    assert [x.shape for x in (seen, coded)] == [(2, 3, width) for width in widths]
    assert decoded.shape == (2, 12, 7)
    action = [layer["kernel"].shape for layer in params["action"]["layers"].values()]
    assert action == [(28, 128), (128, 64), (64, widths[1])]


def test_training_makes_pairs_alike_on_sequences_it_never_saw():
    definition = define_adapters(AdapterConfig(**SMALL), ACTION, CHUNK, ACTION)
    params, optimizer = definition.init(jax.random.key(0)), optax.adam(3e-3)

    @jax.jit
    def step(params, state, latents, actions):
        def loss(params):
            return adapter_loss(definition.bind(params), latents, actions)

        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics

    state = optimizer.init(params)
    for number in range(400):
        params, state, _ = step(params, state, *pairs(16, number))
    measure = jax.jit(lambda params: adapter_loss(definition.bind(params), *pairs(16, 999))[1])
    before, after = measure(definition.init(jax.random.key(0))), measure(params)
    assert after["retrieval"] >= 0.9
    assert before["retrieval"] < 0.5
    assert after["similarity"] > after["similarity_of_others"] + 0.3
    assert after["reconstruction"] < before["reconstruction"]


@pytest.mark.parametrize("video", ["latents", "features"])
def test_absent_chunks_change_nothing(video):
    definition = define_adapters(AdapterConfig(video=video, **SMALL), ACTION, CHUNK, ACTION)
    params, (latents, actions) = definition.init(jax.random.key(1)), pairs(4, 0)
    loss = jax.jit(lambda *what: adapter_loss(definition.bind(params), *what)[0])
    latents = latents if video == "latents" else latents.mean((2, 3, 4))
    mask = jnp.broadcast_to(jnp.arange(CHUNKS) < 3, (4, CHUNKS))
    expected = loss(latents[:, :4], actions[:, : 3 * CHUNK])
    found = loss(latents.at[:, 4:].set(7.0), actions.at[:, 3 * CHUNK :].set(7.0), mask)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_pooled_to_places_a_vector_knows_where_in_the_picture_something_is():
    """Two pictures with the same spot, away from all borders: a mean gives nearly the same for both."""
    latents = np.zeros((2, 2, 1, 16, 16, ACTION), np.float32)
    latents[0, 1, 0, 4:8, 4:8], latents[1, 1, 0, 8:12, 8:12] = 3.0, 3.0  # a whole stride of the convolutions apart

    def apart(pool: str) -> float:
        definition = define_adapters(AdapterConfig(**SMALL, pool=pool), ACTION, CHUNK, ACTION)
        one, other = definition.bind(definition.init(jax.random.key(0))).of_video(jnp.asarray(latents))[:, 0]
        return float(jnp.linalg.norm(one - other) / jnp.linalg.norm(one))

    assert apart("mean") < 0.1 * apart("where")


def test_own_actions_elsewhere_are_negatives():
    definition = define_adapters(AdapterConfig(**SMALL), ACTION, CHUNK, ACTION)
    latents, actions = pairs(6, 0)
    adapters = definition.bind(definition.init(jax.random.key(0)))
    plain, metrics = adapter_loss(adapters, latents, actions)
    further, again = adapter_loss(adapters, latents, actions, None, jnp.stack([actions, actions + 1]))
    assert metrics["similarity"] == pytest.approx(again["similarity"])
    assert float(further) > float(plain) + 0.05  # at least its own vector once more


def test_what_does_not_fit_is_refused():
    model = define_adapters(AdapterConfig(**SMALL), ACTION, CHUNK, ACTION)
    adapters = model.bind(model.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"actions of shape \(1, 6, 3\) are no chunks of 4 actions of 3 numbers"):
        adapters.of_actions(jnp.zeros((1, 6, 3)))
    with pytest.raises(ValueError, match=r"adapters.similarity 'best' is unknown \(has: chunkwise, pooled\)"):
        AdapterConfig(similarity="best")
    with pytest.raises(ValueError, match=r"adapters.video 'pixels' is unknown \(has: latents, features\)"):
        AdapterConfig(video="pixels")  # type: ignore[arg-type]
