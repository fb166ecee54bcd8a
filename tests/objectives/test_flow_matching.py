"""Flow matching in closed form: an oracle has no loss and samples the data; masks and shares do what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wam_jax.objectives.flow_matching import flow_matching_loss, masked_mean
from wam_jax.wam.model import Prefix
from wam_jax.wam.noise import LogitNormal, Uniform, interpolate
from wam_jax.wam.sample import sample
from wam_jax.wam.trunk import Cache


class Oracle:
    """Knows the data x, so its velocity is exact: ε - x = (x_t - x) / t. ``error`` is added to it."""

    def __init__(self, spec, interface, batch, error: float = 0.0):
        self.spec, self.interface, self.error = spec, interface, error
        self.data = {"video": batch.latents[:, 1:], "action": batch.actions * batch.action_mask}

    def prefix(self, latents, proprio, text) -> Prefix:
        nothing = jnp.zeros((1, latents.shape[0], 0, 1, 1))
        return Prefix(Cache((), ((nothing, nothing),)), {}, {})

    def velocity(self, prefix, noisy):
        out = {}
        for stream, state in noisy.items():
            data = self.data[stream][: state.level.shape[0], None]
            level = state.level.reshape(*state.level.shape, *[1] * (data.ndim - 2))
            out[stream] = (state.values - data) / level + self.error
        return out


@pytest.fixture
def oracle(tiny, batch):
    return lambda **options: Oracle(tiny.spec(), tiny.interface, batch, **options)


def test_oracle_has_no_loss(oracle, batch):
    loss, metrics = flow_matching_loss(oracle(), batch, jnp.asarray(batch.latents), jax.random.key(0))
    assert float(loss) < 1e-8
    assert set(metrics) == {"loss/video", "loss/action"}


def test_loss_is_the_weighted_sum_of_squared_velocity_errors(oracle, batch):
    loss, metrics = flow_matching_loss(oracle(error=0.5), batch, jnp.asarray(batch.latents), jax.random.key(0))
    errors = {name: float(value) for name, value in metrics.items()}
    assert errors == {"loss/video": pytest.approx(0.25, rel=1e-3), "loss/action": pytest.approx(0.25, rel=1e-3)}
    assert float(loss) == pytest.approx(0.25 * (0.3 + 1.0), rel=1e-3)  # video weighs 0.3


@pytest.mark.parametrize("steps", [1, 5])
def test_euler_with_the_oracle_recovers_the_data(oracle, batch, steps):
    model = oracle()
    prefix = model.prefix(batch.latents[:, 0], batch.proprio, batch.text)
    result = sample(model, prefix, jax.random.key(1), ("action", "video"), steps)
    for stream, data in model.data.items():
        np.testing.assert_allclose(result[stream], data, atol=1e-5)


def test_what_is_masked_does_not_matter(tiny, batch):
    definition = tiny.define()
    params = tiny.params(definition)

    @jax.jit
    def loss(batch):
        return flow_matching_loss(definition.bind(params), batch, batch.latents, jax.random.key(0))[0]

    garbage = dataclasses.replace(batch, actions=np.where(batch.action_mask, batch.actions, 99.0).astype(np.float32))
    zeroed = dataclasses.replace(batch, actions=np.where(batch.action_mask, batch.actions, 0.0).astype(np.float32))
    assert float(loss(garbage)) == float(loss(zeroed)) == float(loss(batch))
    kept = dataclasses.replace(batch, actions=np.where(batch.action_mask, 99.0, batch.actions).astype(np.float32))
    assert float(loss(kept)) != float(loss(batch))


def test_action_free_video_has_no_action_loss(oracle, batch):
    video = dataclasses.replace(batch, action_mask=np.zeros_like(batch.action_mask))
    _, metrics = flow_matching_loss(oracle(error=1.0), video, jnp.asarray(batch.latents), jax.random.key(0))
    assert float(metrics["loss/action"]) == 0.0
    assert float(metrics["loss/video"]) > 0.5


@given(st.lists(st.tuples(st.floats(-5, 5, width=32), st.booleans()), min_size=1, max_size=12))
def test_masked_mean_is_the_mean_of_what_is_kept(entries):
    values, mask = np.array([v for v, _ in entries], np.float32), np.array([m for _, m in entries])
    expected = values[mask].mean() if mask.any() else 0.0
    assert float(masked_mean(jnp.asarray(values), jnp.asarray(mask))) == pytest.approx(expected, abs=1e-5)


def test_masked_mean_counts_broadcast_entries_and_ignores_what_is_not_finite():
    values = jnp.array([[1.0, 3.0], [jnp.nan, jnp.inf]])
    assert float(masked_mean(values, jnp.array([[True], [False]]))) == 2.0


def test_interpolation_runs_from_data_to_noise_along_the_velocity():
    data, noise = jnp.array([1.0, -2.0]), jnp.array([0.5, 4.0])
    np.testing.assert_array_equal(interpolate(data, noise, jnp.zeros(2)), data)
    np.testing.assert_array_equal(interpolate(data, noise, jnp.ones(2)), noise)
    slope = jax.jacfwd(lambda level: interpolate(data, noise, level))(jnp.float32(0.3))
    np.testing.assert_allclose(slope, noise - data, rtol=1e-6)


@pytest.mark.parametrize(
    "distribution",
    [Uniform(), LogitNormal(mean=0.7, uniform_share=0.2, minimum=0.02), LogitNormal(mean=0.5)],
    ids=["uniform", "mixed", "logit-normal"],
)
def test_noise_levels_stay_between_minimum_and_one(distribution):
    levels = distribution.sample(jax.random.key(0), (4096,))
    assert float(levels.min()) >= getattr(distribution, "minimum", 0.0)
    assert float(levels.max()) <= 1.0


def test_logit_normal_has_its_median_at_the_sigmoid_of_its_mean():
    levels = LogitNormal(mean=0.7).sample(jax.random.key(0), (4096,))
    assert float(jnp.median(levels)) == pytest.approx(float(jax.nn.sigmoid(0.7)), abs=0.02)
