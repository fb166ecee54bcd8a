"""Who influences whom in a model's predictions, and what must leave them unchanged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.objectives.flow_matching import flow_matching_loss, known_from_batch
from wam_jax.wam.model import Noisy
from wam_jax.wam.spec import KINDS
from wam_jax.wam.visibility import Group

# One of each kind of coupling and visibility; every other system is a variation.
SYSTEMS = (
    "fast_wam",
    "gigaworld_policy",
    "dreamzero",
    "lingbot_va",
    "agra",
    "x_wam",
    "uva",
    "motus",
    "h_bridge",
    "repwam",
)
DRAWS = 2


class Predictions:
    """A tiny model with random noisy streams, and its jitted predictions of everything at once."""

    def __init__(self, tiny, batch, name: str, **changes):
        self.definition = tiny.define(name, **changes)
        self.params = tiny.params(self.definition)
        self.model = self.definition.bind(self.params)
        self.known = known_from_batch(self.model, batch, jnp.asarray(batch.latents))
        rng = np.random.default_rng(2)
        layout = self.model.layout
        self.noisy = {}
        for stream in self.model.spec.streams:
            if stream.role == "denoised":
                draws = stream.noise.draws
                shape = (8, draws, *layout.future_shape(stream))
                values, level = rng.normal(size=shape), rng.uniform(size=(8, draws, 1))
                self.noisy[stream.name] = Noisy(
                    values=jnp.asarray(values, jnp.float32), level=jnp.asarray(level, jnp.float32)
                )
        self._run = jax.jit(self._predict)

    def _predict(self, params, known, noisy):
        model = self.definition.bind(params)
        names = model.spec.generated
        return model.predict(model.begin(known), model.layout.needed(names), known, noisy, names)[0]

    def __call__(self, known=None, noisy=None) -> dict[str, np.ndarray]:
        return jax.tree.map(np.asarray, self._run(self.params, known or self.known, noisy or self.noisy))

    def changed(self, group: Group, draw: int = 0) -> dict[str, np.ndarray]:
        """The predictions after the data of one group has changed."""
        layout, stream = self.model.layout, self.model.spec.stream(group.stream)
        if group.clean:
            span = slice(*layout.span(stream, group.block))
            data = self.known.values[group.stream]
            values = {**self.known.values, group.stream: data.at[:, span].add(1.0)}
            return self(known=dataclasses.replace(self.known, values=values))
        span, state = slice(*layout.future_span(stream, group.block)), self.noisy[group.stream]
        state = dataclasses.replace(state, values=state.values.at[:, draw, span].add(1.0))
        return self(noisy={**self.noisy, group.stream: state})

    def of(self, predictions: dict[str, np.ndarray], group: Group) -> np.ndarray:
        stream = self.model.spec.stream(group.stream)
        return predictions[group.stream][:, :, slice(*self.model.layout.future_span(stream, group.block))]


@pytest.fixture(scope="module", params=SYSTEMS)
def predictions(request, tiny, batch):
    return Predictions(tiny, batch, request.param)


def test_a_group_influences_exactly_what_depends_on_it(predictions):
    layout, before = predictions.model.layout, predictions()
    groups, depends = layout.groups, layout.depends
    targets = [g for g in groups if not g.clean]
    for j, source in enumerate(groups):
        stream = predictions.model.spec.stream(source.stream)
        if KINDS[stream.kind] in ("features", "learned") or (
            predictions.model.queried(source) and stream.head != "diffusion"
        ):
            continue
        after = predictions.changed(source)
        for target in targets:
            i = groups.index(target)
            ours, old = predictions.of(after, target), predictions.of(before, target)
            # A diffusion head's noise is seen by its own token only: to the trunk it is a query.
            alone = not source.clean and stream.head == "diffusion" and source != target
            influences = bool(depends[i, j]) and not alone
            if influences:
                assert np.abs(ours - old).max() > 1e-6, f"{source} -> {target}"
            else:
                np.testing.assert_array_equal(ours, old, err_msg=f"{source} -> {target}")  # bitwise


def test_draws_do_not_influence_each_other(tiny, batch):
    run = Predictions(tiny, batch, "fast_wam")
    before = run()
    after = run.changed(Group(stream="action", block=1, clean=False, size=4), draw=1)
    assert np.abs(after["action"][:, 1] - before["action"][:, 1]).max() > 1e-2
    np.testing.assert_array_equal(after["action"][:, 0], before["action"][:, 0])
    np.testing.assert_array_equal(after["video"], before["video"])


@pytest.mark.parametrize("name", ["fast_wam", "agra"])
def test_several_draws_at_once_equal_one_at_a_time(tiny, batch, name):
    run = Predictions(tiny, batch, name, action_draws=DRAWS)
    together = run()
    state = run.noisy["action"]
    for draw in range(DRAWS):
        one = Noisy(values=state.values[:, [draw]], level=state.level[:, [draw]])
        alone = run(noisy={**run.noisy, "action": one})
        np.testing.assert_allclose(alone["action"][:, 0], together["action"][:, draw], atol=1e-5)


def test_what_is_masked_does_not_matter_and_is_told_apart_from_zeros(tiny, batch):
    run = Predictions(tiny, batch, "fast_wam")

    def with_now(mask: bool, value: float):
        present = {**run.known.present, "video": run.known.present["video"].at[:, 0, 1].set(mask)}
        video = run.known.values["video"].at[:, 0, 1].set(value)
        return run(dataclasses.replace(run.known, values={**run.known.values, "video": video}, present=present))[
            "action"
        ]

    np.testing.assert_array_equal(with_now(False, 0.0), with_now(False, 7.0))
    assert np.abs(with_now(False, 0.0) - with_now(True, 0.0)).max() > 1e-4


def test_every_embodiment_has_maps_of_its_own(tiny, batch):
    run = Predictions(tiny, batch, "gigaworld_policy")
    other = run(dataclasses.replace(run.known, embodiment=1 - run.known.embodiment))["action"]
    assert np.abs(other - run()["action"]).max(axis=(1, 2, 3)).min() > 1e-4


def test_instruction_counts_and_its_padding_does_not(tiny, batch):
    run = Predictions(tiny, batch, "fast_wam")
    text = run.known.text
    padded = dataclasses.replace(text, features=jnp.where(text.mask[..., None], text.features, 9.0))
    other = dataclasses.replace(text, features=text.features + 1)
    before = run()["action"]
    np.testing.assert_array_equal(run(dataclasses.replace(run.known, text=padded))["action"], before)
    assert np.abs(run(dataclasses.replace(run.known, text=other))["action"] - before).max() > 1e-4


def test_untrained_model_predicts_no_motion(tiny, batch):
    run = Predictions(tiny, batch, "fast_wam")
    run.params = run.definition.init(jax.random.key(0))
    for velocity in run().values():
        np.testing.assert_array_equal(velocity, 0)


def loss_and_gradient(tiny, batch, name, **changes):
    definition = tiny.define(name, **changes)

    def loss(params):
        model = definition.bind(params)
        return flow_matching_loss(model, known_from_batch(model, batch, jnp.asarray(batch.latents)), jax.random.key(0))[
            0
        ]

    return jax.jit(jax.value_and_grad(loss))(tiny.params(definition))


@pytest.mark.slow  # compiles gradients of whole losses
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fast_wam", {"unroll": 2, "remat": "full"}),
        ("fast_wam", {"unroll": 2}),
        ("fast_wam", {"remat": "dots"}),
        ("agra", {"unroll": 2}),
        ("agra", {"remat": "full"}),
    ],
    ids=str,
)
def test_unrolling_and_rematerialising_leave_loss_and_gradient(tiny, batch, name, changes):
    expected_loss, expected = loss_and_gradient(tiny, batch, name)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    loss, gradient = loss_and_gradient(tiny, batch, name, **changes)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.slow
def test_a_detached_bridge_sends_no_gradient_to_the_video(tiny, batch):
    def video_gradient(name: str) -> float:
        definition = tiny.define(name)

        def loss(params):
            model = definition.bind(params)
            known = known_from_batch(model, batch, jnp.asarray(batch.latents))
            return flow_matching_loss(model, known, jax.random.key(0))[1]["loss/action"]

        gradient = jax.jit(jax.grad(loss))(tiny.params(definition))
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient["trunk"]["blocks"]["video"]))

    assert video_gradient("vpp") == 0.0
    assert video_gradient("agra") > 1e-4


def test_latents_that_do_not_divide_into_patches_are_refused(tiny):
    with pytest.raises(ValueError, match=r"latents of 4 x 4 do not divide by spec.patch_size=3; change it"):
        tiny.define("fast_wam", patch_size=3)


def test_bf16_keeps_parameters_and_predictions_in_float32(tiny, batch):
    run, exact = Predictions(tiny, batch, "fast_wam", dtype="bfloat16"), Predictions(tiny, batch, "fast_wam")
    assert {x.dtype for x in jax.tree.leaves(run.params)} == {jnp.dtype("float32")}
    ours, expected = run()["action"], exact()["action"]
    assert ours.dtype == np.float32
    assert np.abs(ours - expected).max() < 0.1 * np.abs(expected).max()
