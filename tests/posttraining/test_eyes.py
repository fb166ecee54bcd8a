"""Features of frames say what each shows, and nothing of its neighbours; they teach the world model nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.posttraining.eyes import feature_width, frame_features

SYSTEMS = ("fast_wam", "unipi", "repwam", "wan")


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_frames_features_are_its_own(tiny, system):
    definition = tiny.define(system)
    params = tiny.params(definition)
    see = jax.jit(lambda params, latents: frame_features(definition.bind(params), latents))
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 4, 4, 2)), jnp.float32)
    seen = see(params, latents)
    assert seen.shape == (2, 3, feature_width(definition.bind(definition.shapes())))
    np.testing.assert_allclose(see(params, latents[:, ::-1]), seen[:, ::-1], atol=1e-5)
    moved = see(params, latents.at[0, 1].multiply(-1))
    assert np.abs(moved - seen)[0, 1].max() > 1e-3
    np.testing.assert_allclose(moved[1], seen[1], atol=1e-5)
    slope = jax.grad(lambda params: see(params, latents).sum())(params)
    assert not any(np.abs(x).max() for x in jax.tree.leaves(slope))
