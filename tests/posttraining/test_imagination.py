"""Windows follow one another, each told its own words; drift is measured moment by moment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.golden import load_golden

from wam_jax.encoders import dinov3
from wam_jax.encoders.frozen import FrozenEncoder, Preprocessing
from wam_jax.encoders.vit import LayersConfig
from wam_jax.policy import PolicyParams
from wam_jax.posttraining.imagination import (
    drift,
    features_of_moments,
    imagine_windows,
    skill_of_windows,
    steps_of_skills,
)
from wam_jax.types import Observation, Text


class Counting:
    """Imagines two pictures: the last one a word brighter, and two words brighter."""

    def imagine_latents(self, params, observation, key):
        word = observation.text.features[:, 0, 0].reshape(-1, 1, 1, 1, 1, 1)
        steps = jnp.arange(1, 3).reshape(1, 2, 1, 1, 1, 1)
        seen = observation.images[:, -1:].astype(jnp.float32) + 100 * observation.proprio[0, 0]
        return seen / 2, (seen + word * steps) / 2


class Doubling:
    """Pictures are twice their latents."""

    def decode(self, latents):
        return (2 * latents).astype(jnp.uint8)


def test_each_window_starts_where_the_one_before_ended_and_hears_its_own_words():
    words = jnp.array([[1.0, 2.0], [3.0, 3.0], [0.0, 10.0]])  # windows x episodes
    texts = Text(features=words[..., None, None], mask=jnp.ones((3, 2, 1), bool))
    start = jnp.array([5, 50], jnp.uint8).reshape(2, 1, 1, 1, 1, 1) * jnp.ones((2, 1, 1, 4, 4, 3), jnp.uint8)
    now = Observation(
        images=start, proprio=jnp.zeros((2, 1)), text=jax.tree.map(lambda x: x[0], texts), embodiment=jnp.zeros(2, int)
    )
    params = PolicyParams(model={}, tokenizer=Doubling())
    found, latents = imagine_windows(Counting(), params, now, texts, jax.random.key(0))
    assert found.shape == (2, 6, 1, 4, 4, 3)
    assert found[:, :, 0, 0, 0, 0].tolist() == [[6, 7, 10, 13, 13, 13], [52, 54, 57, 60, 70, 80]]
    assert (2 * latents[:, :, 0, 0, 0, 0]).tolist() == [[5, 6, 7, 10, 13, 13, 13], [50, 52, 54, 57, 60, 70, 80]]


def test_every_episode_hears_of_a_skill_when_it_is_at_it():
    done = np.zeros((40, 3), int)
    for episode, ends in enumerate([(8, 30), (12, 32), (3, 99)]):  # the last never does its second
        for end in ends:
            done[end:, episode] += 1
    found = skill_of_windows(done, 2, 8)  # the median of those that finish: 32 steps
    assert found.tolist() == [[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert skill_of_windows(done, 2, 10).tolist() == [[0, 0, 0], [1, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert skill_of_windows(np.zeros((40, 3), int), 2, 8).tolist() == [[0, 0, 0]] * 5  # nobody ever does it
    assert steps_of_skills(done, 2).tolist() == [11.0, 21.0]  # medians of (9, 13) and of (22, 20): once a step is over
    assert steps_of_skills(np.zeros((40, 3), int), 2).tolist() == [40.0, 40.0]


def test_drift_is_none_for_what_happened_and_grows_with_what_differs():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 255, (3, 4, 1, 16, 16, 3), np.uint8)
    imagined = true.copy()
    imagined[:, 2:] = 255 - imagined[:, 2:]
    places = rng.uniform(size=(3, 4, 4))
    read = places + np.arange(4)[None, :, None] * np.array([0.03, 0.04, 0.0, 0.0])
    found = drift(imagined, true, (read, places), None)
    assert set(found) == {"psnr", "ssim", "position_error"}
    assert found["psnr"][:2] == pytest.approx([58.9, 58.9], abs=0.1)
    assert max(found["psnr"][2:]) < 15
    np.testing.assert_allclose(found["position_error"], [0, 0.025, 0.05, 0.075], atol=1e-9)


def test_the_frechet_distance_is_that_of_each_moment():
    layers = LayersConfig(32, 2, 2, 48, epsilon=1e-5, layer_scale=True, biases=frozenset({"query", "value"}))
    made = dinov3.frozen(dinov3.Config(layers, 4, 2), load_golden("dinov3").weights)
    encoder = FrozenEncoder(made.params, made.definition, Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3))
    rng = np.random.default_rng(1)
    true = rng.integers(0, 255, (40, 2, 1, 16, 16, 3), np.uint8)
    imagined = true.copy()
    imagined[:, 1] //= 4
    places = np.zeros((40, 2, 2))
    found = drift(imagined, true, (places, places), None, {"tiny": (encoder, features_of_moments(encoder, true))})[
        "frechet_tiny"
    ]
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found[1] > 10 * max(found[0], 1e-6)
