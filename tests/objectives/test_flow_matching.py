"""Flow matching in closed form: an oracle has no loss; masks, shares, weights and distributions do what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wam_jax.objectives.flow_matching import flow_matching_loss, known_from_batch
from wam_jax.objectives.masked import masked_mean
from wam_jax.training.losses import wam_loss
from wam_jax.wam.lens import Shown
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.noise import (
    Asynchronous,
    Bell,
    Beta,
    Coupled,
    EdmMixture,
    Fixed,
    Independent,
    LogitNormal,
    Shifted,
    StreamNoise,
    Uniform,
    interpolate,
    shift,
)


@pytest.fixture
def loss(tiny, batch, monkeypatch):
    """``loss(name, error, batch, **changes)``: of a model that knows the data, but for ``error``."""

    def run(name="fast_wam", error=0.0, batch=batch, oracle=True, **changes):
        definition = tiny.define(name, **changes)
        model = definition.bind(tiny.params(definition))
        known = known_from_batch(model, batch, jnp.asarray(batch.latents))
        if oracle:
            clean = {
                s.name: model.layout.future(s, known.values[s.name]) for s in model.spec.streams if s.role != "context"
            }

            def predict(self, context, groups, known, noisy, streams):
                found = {}
                for stream in streams:
                    data = clean[stream][: len(known.embodiment), None]
                    if stream not in noisy:
                        found[stream] = data + error
                        continue
                    level = noisy[stream].level
                    level = jnp.repeat(level, data.shape[2] // level.shape[2] if level.shape[2] > 1 else 1, axis=2)
                    level = level.reshape(*level.shape, *[1] * (data.ndim - 3))
                    found[stream] = (noisy[stream].values - data) / jnp.maximum(level, 1e-6) + error
                return found, Shown({})

            monkeypatch.setattr(WorldActionModel, "predict", predict)
            monkeypatch.setattr(WorldActionModel, "extend", lambda self, context, groups, known, noisy=None: context)
        total, metrics = jax.jit(lambda: flow_matching_loss(model, known, jax.random.key(0)))()
        return float(total), {key: float(value) for key, value in metrics.items()}

    return run


@pytest.mark.parametrize("name", ["fast_wam", "dreamzero", "x_wam", "agra", "unipi"])
def test_oracle_has_no_loss(loss, name):
    total, metrics = loss(name)
    assert total < 1e-6
    assert "loss/action" in metrics


def test_loss_is_the_weighted_sum_of_squared_errors(loss):
    total, metrics = loss(error=0.5)
    assert metrics == {"loss/video": pytest.approx(0.25, rel=1e-3), "loss/action": pytest.approx(0.25, rel=1e-3)}
    assert total == pytest.approx(0.25 * (0.3 + 1.0), rel=1e-3)  # video weighs 0.3


def test_a_second_pass_over_the_video_is_not_trained(loss):
    assert set(loss("agra", error=0.5)[1]) == {"loss/video", "loss/action"}


def test_weighting_is_by_noise_level(loss):
    _, metrics = loss("fast_wam_joint", error=1.0)  # shifted uniform levels under a bell
    levels = np.asarray(shift(jnp.linspace(0, 1, 100_001), 5.0))
    assert metrics["loss/action"] == pytest.approx(np.exp(-2 * (levels - 0.5) ** 2).mean(), rel=0.15)


def test_what_is_past_the_end_does_not_count(loss, batch):
    outside = ~batch.action_mask[:, None]
    assert outside.any()
    assert loss("reactive", error=np.where(outside, 5.0, 0.0))[0] < 1e-6
    inside = np.where(outside, 0.0, 5.0)
    assert loss("reactive", error=inside)[0] == pytest.approx(25.0, rel=1e-3)


def test_one_dimension_of_the_action_can_be_left_out(loss, batch):
    mask = batch.action_mask.copy()
    mask[..., 3] = False
    narrow = dataclasses.replace(batch, action_mask=mask)
    error = np.zeros((1, 1, 1, 4))
    error[..., 3] = 5.0
    assert loss("reactive", error=error, batch=narrow)[0] < 1e-6
    assert loss("reactive", error=error)[0] > 1


def test_data_that_is_not_there_does_not_matter(loss, batch):
    """An absent camera, and an action-free sample, may hold anything."""

    def with_garbage(value: float):
        image_mask, action_mask = batch.image_mask.copy(), batch.action_mask.copy()
        image_mask[0, :, 1], action_mask[2] = False, False
        latents, actions = batch.latents.copy(), batch.actions.copy()
        latents[0, :, 1], actions[2] = value, value
        changes = {"latents": latents, "actions": actions, "image_mask": image_mask, "action_mask": action_mask}
        return loss(batch=dataclasses.replace(batch, **changes), oracle=False)[0]

    assert with_garbage(99.0) == with_garbage(0.0)


def test_the_end_of_an_episode_is_not_told(tiny, batch):
    """The model meets what the loader holds past the end; absence would tell it what no robot knows."""
    definition = tiny.define("fast_wam")
    model = definition.bind(tiny.params(definition))
    known = known_from_batch(model, batch, jnp.asarray(batch.latents))
    assert not batch.action_mask.all()
    assert np.asarray(known.present["action"]).all()
    assert np.asarray(known.present["video"]).all()
    np.testing.assert_array_equal(known.values["action"], batch.actions)


def test_action_free_video_has_no_action_loss_and_pure_noise_for_actions(loss, batch, tiny, monkeypatch):
    video = dataclasses.replace(batch, action_mask=np.zeros_like(batch.action_mask))
    _, metrics = loss(error=1.0, batch=video)
    assert metrics["loss/action"] == 0.0
    assert metrics["loss/video"] > 0.5
    seen = {}
    definition = tiny.define("fast_wam_joint")
    model = definition.bind(tiny.params(definition))

    def spy(self, context, groups, known, noisy, streams):
        seen.update(noisy)
        return {name: jnp.zeros_like(noisy[name].values) for name in streams}, Shown({})

    monkeypatch.setattr(WorldActionModel, "predict", spy)
    monkeypatch.setattr(WorldActionModel, "extend", lambda self, context, groups, known, noisy=None: context)
    half = dataclasses.replace(batch, action_mask=np.where(np.arange(8)[:, None, None] < 4, False, batch.action_mask))
    flow_matching_loss(model, known_from_batch(model, half, jnp.asarray(batch.latents)), jax.random.key(0))
    assert np.all(np.asarray(seen["action"].level[:4]) == 1.0)
    assert np.all(np.asarray(seen["action"].level[4:]) < 1.0)
    assert np.all(np.asarray(seen["action"].present[:4]))  # not marked absent: noise, as a mode's missing stream is


def test_missing_data_is_named(tiny, batch):
    model = tiny.define("x_wam").bind(tiny.params(tiny.define("x_wam")))
    bare = dataclasses.replace(batch, streams={})
    with pytest.raises(
        ValueError, match=r"x_wam: stream 'depth' has no data in the batch \(has: video, action, state\)"
    ):
        known_from_batch(model, bare, jnp.asarray(batch.latents))


def test_text_is_dropped_for_its_share(tiny, batch, monkeypatch):
    texts = []
    definition = tiny.define("fast_wam", text_dropout=0.5)
    model = definition.bind(tiny.params(definition))

    def begin(self, known, time=None, lens=None):
        texts.append(known.text)
        raise StopIteration  # the rest takes long and drops nothing

    monkeypatch.setattr(WorldActionModel, "begin", begin)
    known = known_from_batch(model, batch, jnp.asarray(batch.latents))
    for seed in range(20):
        with pytest.raises(StopIteration):
            flow_matching_loss(model, known, jax.random.key(seed))
    dropped = np.array([[not np.any(row) for row in np.asarray(text.features)] for text in texts])
    assert 0.3 < dropped.mean() < 0.7
    assert np.all(np.asarray(texts[0].mask).any(1))  # something is left to attend to


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
    ("distribution", "mean"),
    [
        (Uniform(), 0.5),
        (Fixed(1.0), 1.0),
        (Beta(1.5, 1.0), 0.6),
        (Beta(7.0, 1.0), 7 / 8),
        (Beta(1.5, 1.0, minimum=0.5), 0.8),
        (Shifted(Fixed(0.5), 5.0), 2.5 / 3),
        (LogitNormal(), 0.5),
        (LogitNormal(mean=0.7, uniform_share=0.2, minimum=0.02), None),
        (EdmMixture(), None),
    ],
    ids=str,
)
def test_noise_levels_lie_between_zero_and_one_around_their_mean(distribution, mean):
    levels = distribution.sample(jax.random.key(0), (4096,))
    assert float(levels.min()) >= getattr(distribution, "minimum", 0.0)
    assert float(levels.max()) <= 1.0
    if mean is not None:
        assert float(levels.mean()) == pytest.approx(mean, abs=0.02)


def test_beta_three_halves_has_the_density_of_a_root():
    levels = np.asarray(Beta(1.5, 1.0).sample(jax.random.key(1), (20_000,)))
    for bound in (0.25, 0.5, 0.75):  # P(t < b) = b^1.5
        assert np.mean(levels < bound) == pytest.approx(bound**1.5, abs=0.02)


def test_edm_mixture_is_a_lognormal_and_a_uniform_of_sigma():
    levels = np.asarray(EdmMixture().sample(jax.random.key(0), (20_000,)))
    sigma = levels / (1 - levels)
    assert np.mean(sigma > 40) == pytest.approx(0.3 * 45 / 84 + 0.7 * 0.0274, abs=0.02)
    assert np.median(np.asarray(EdmMixture(uniform_share=0.0).sample(jax.random.key(0), (20_000,)))) == pytest.approx(
        0.8, abs=0.01
    )


def levels_of(joint, shape=(4096, 1, 1), **noises):
    shapes = dict.fromkeys(noises, shape)
    return {k: np.asarray(v) for k, v in joint.sample(jax.random.key(0), noises, shapes).items()}


UNIFORM = StreamNoise(distribution=Uniform())


def test_independent_levels_do_not_correlate_and_coupled_ones_are_equal():
    apart = levels_of(Independent(), video=UNIFORM, action=UNIFORM)
    assert abs(np.corrcoef(apart["video"].ravel(), apart["action"].ravel())[0, 1]) < 0.05
    same = levels_of(Coupled(), video=UNIFORM, action=UNIFORM)
    np.testing.assert_array_equal(same["video"], same["action"])
    shifted = levels_of(Coupled(), video=UNIFORM, action=StreamNoise(distribution=Shifted(Uniform(), 5.0)))
    np.testing.assert_allclose(shifted["action"], shift(shifted["video"], 5.0), rtol=1e-6)


def test_asynchronous_actions_run_ahead_of_the_video():
    levels = levels_of(Asynchronous(leader="action"), video=UNIFORM, action=UNIFORM)
    action, video = levels["action"].ravel(), levels["video"].ravel()
    assert np.mean(action == 0) == pytest.approx(0.5, abs=0.03)
    assert np.all(video >= action)
    lag = (video - action)[action > 0] / (1 - action[action > 0])
    assert lag.mean() == pytest.approx(0.6, abs=0.02)  # Beta(1.5, 1)
    assert video[action == 0].mean() == pytest.approx(0.5, abs=0.03)


def test_bell_weighs_the_middle_most():
    assert float(Bell(2.0)(jnp.float32(0.5))) == 1.0
    assert float(Bell(2.0)(jnp.float32(0.0))) == pytest.approx(np.exp(-0.5))


def test_training_draws_the_length_of_blocks(tiny, batch):
    """The loss is that of one of the lengths, with the same parameters; which one, the step's key decides."""
    definition = tiny.define("repwam", chunk_draws=(1, 2))
    params = tiny.params(definition)
    loss = jax.jit(wam_loss(definition))
    latents = jnp.asarray(batch.latents)

    @jax.jit
    def of_length(key):
        model = definition.bind(params)
        known = known_from_batch(model, batch, latents)
        return [flow_matching_loss(model.with_chunks(length), known, key)[0] for length in (1, 2)]

    drawn = set()
    for seed in range(6):
        key = jax.random.key(seed)
        found = float(loss(params, None, batch, key, jnp.zeros((), jnp.int32))[0])
        by_length = [float(x) for x in of_length(jax.random.split(key)[1])]
        assert by_length[0] != by_length[1]
        drawn.add(int(np.argmin(np.abs(np.array(by_length) - found))))
        assert min(abs(x - found) for x in by_length) < 1e-4 * abs(found)
    assert drawn == {0, 1}
