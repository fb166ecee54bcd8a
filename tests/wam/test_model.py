"""Who influences whom in the model's velocities, and that scanning and rematerialising change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.objectives.flow_matching import flow_matching_loss
from wam_jax.wam.model import Noisy, WorldActionModel
from wam_jax.wam.sample import sample, stream_shape
from wam_jax.wam.visibility import COUPLINGS

DRAWS = 2


class Velocities:
    """A tiny model of one coupling, with random noisy streams, and its jitted velocity."""

    def __init__(self, tiny, batch, coupling: str):
        self.definition = tiny.define(coupling=coupling)
        self.params = tiny.params(self.definition)
        self.batch = batch
        rng = np.random.default_rng(2)
        model = self.definition.bind(self.params)
        self.noisy = {
            stream: Noisy(
                rng.normal(size=(8, DRAWS, *stream_shape(model, stream))).astype(np.float32),
                rng.uniform(size=(8, DRAWS)).astype(np.float32),
            )
            for stream in ("video", "action")
        }
        self._velocity = jax.jit(self._run)

    def _run(self, params, noisy):
        model = self.definition.bind(params)
        prefix = model.prefix(jnp.asarray(self.batch.latents[:, 0]), self.batch.proprio, self.batch.text)
        return model.velocity(prefix, noisy)

    def __call__(self, noisy=None) -> dict[str, np.ndarray]:
        return jax.tree.map(np.asarray, self._velocity(self.params, noisy or self.noisy))

    def with_changed(self, stream: str, draw: int | slice = slice(None)) -> dict[str, np.ndarray]:
        """The velocities after one stream's values and noise levels were changed in these draws."""
        values, level = self.noisy[stream].values.copy(), self.noisy[stream].level.copy()
        values[:, draw] += 1.0
        level[:, draw] = 1 - level[:, draw]
        return self({**self.noisy, stream: Noisy(values, level)})


@pytest.fixture(scope="module")
def velocities(tiny, batch):
    return {coupling: Velocities(tiny, batch, coupling) for coupling in COUPLINGS}


@pytest.mark.parametrize("coupling", sorted(COUPLINGS))
def test_a_stream_influences_the_other_only_where_the_coupling_says_so(velocities, coupling):
    run = velocities[coupling]
    before = run()
    for changed, other in (("video", "action"), ("action", "video")):
        after = run.with_changed(changed)
        assert np.abs(after[changed] - before[changed]).max() > 1e-2
        if coupling in ("mutual", f"{other}_sees_{changed}"):
            assert np.abs(after[other] - before[other]).max() > 1e-4
        else:
            np.testing.assert_array_equal(after[other], before[other])  # bitwise


@pytest.mark.parametrize("coupling", ["isolated", "mutual"])
def test_draws_do_not_influence_each_other(velocities, coupling):
    run = velocities[coupling]
    before = run()
    for stream in ("video", "action"):
        after = run.with_changed(stream, draw=1)
        assert np.abs(after[stream][:, 1] - before[stream][:, 1]).max() > 1e-2
        for name in before:
            np.testing.assert_array_equal(after[name][:, 0], before[name][:, 0])


@pytest.mark.parametrize("coupling", ["isolated", "mutual"])
def test_several_draws_at_once_equal_one_at_a_time(velocities, coupling):
    run = velocities[coupling]
    together = run()
    for draw in range(DRAWS):
        alone = run(jax.tree.map(lambda x: x[:, draw : draw + 1], run.noisy))  # noqa: B023
        for name in together:
            np.testing.assert_allclose(alone[name][:, 0], together[name][:, draw], rtol=1e-5, atol=1e-5)


def test_velocity_depends_on_the_present_the_proprioception_and_the_instruction(velocities):
    run = velocities["isolated"]
    model = run.definition.bind(run.params)
    batch = run.batch
    present = jnp.asarray(batch.latents[:, 0])

    @jax.jit
    def action(latents, proprio, text):
        return model.velocity(model.prefix(latents, proprio, text), {"action": run.noisy["action"]})["action"]

    before = action(present, batch.proprio, batch.text)
    features = np.where(batch.text.mask[..., None], batch.text.features, 100.0)
    padded = dataclasses.replace(batch.text, features=features)
    np.testing.assert_array_equal(action(present, batch.proprio, padded), before)
    for changed in (
        action(present + 1, batch.proprio, batch.text),
        action(present, batch.proprio + 1, batch.text),
        action(present, batch.proprio, dataclasses.replace(batch.text, features=batch.text.features + 1)),
    ):
        assert np.abs(changed - before).max(axis=(1, 2, 3)).min() > 1e-4


def test_untrained_model_predicts_no_motion(tiny, batch):
    definition = tiny.define()
    model = definition.bind(definition.init(jax.random.key(0)))
    prefix = model.prefix(jnp.asarray(batch.latents[:, 0]), batch.proprio, batch.text)
    noisy = Noisy(jnp.ones((8, 1, *stream_shape(model, "action"))), jnp.full((8, 1), 0.5))
    np.testing.assert_array_equal(model.velocity(prefix, {"action": noisy})["action"], 0)


@pytest.mark.parametrize(
    ("coupling", "expected"),
    [("isolated", {("action",)}), ("action_sees_video", {("action", "video")})],
)
def test_sampling_actions_runs_only_what_they_depend_on(tiny, batch, monkeypatch, coupling, expected):
    run, ran = WorldActionModel.velocity, set()

    def spy(self, prefix, noisy):
        ran.add(tuple(sorted(noisy)))
        return run(self, prefix, noisy)

    monkeypatch.setattr(WorldActionModel, "velocity", spy)
    definition = tiny.define(coupling=coupling)
    model = definition.bind(tiny.params(definition))
    prefix = model.prefix(jnp.asarray(batch.latents[:, 0]), batch.proprio, batch.text)
    chunk = sample(model, prefix, jax.random.key(0), ("action",), steps=2)
    assert ran == expected
    assert set(chunk) == {"action"}


def loss_and_gradient(tiny, batch, **changes):
    definition = tiny.define(**changes)

    def loss(params):
        return flow_matching_loss(definition.bind(params), batch, jnp.asarray(batch.latents), jax.random.key(0))[0]

    return jax.jit(jax.value_and_grad(loss))(tiny.params(definition))


@pytest.fixture(scope="module")
def scanned(tiny, batch):
    return loss_and_gradient(tiny, batch)


@pytest.mark.parametrize("changes", [{"unroll": 2}, {"remat": "full"}], ids=["unrolled", "rematerialised"])
def test_unrolling_and_rematerialising_leave_loss_and_gradient(tiny, batch, scanned, changes):
    (loss, gradient), (expected_loss, expected_gradient) = loss_and_gradient(tiny, batch, **changes), scanned
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected_gradient))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


def test_latents_that_do_not_divide_into_patches_are_refused(tiny):
    with pytest.raises(ValueError, match=r"latents of 4 x 4 do not divide by spec.patch_size=3; change it"):
        WorldActionModel(dataclasses.replace(tiny.spec(), patch_size=3), tiny.interface, rngs=None)
