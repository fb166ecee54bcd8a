"""Hidden video tokens are drawn to a frozen encoder's features; nothing of that is left in what acts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.nn.module import define
from wam_jax.objectives.flow_matching import Auxiliary, flow_matching_loss, known_from_batch
from wam_jax.objectives.hidden_alignment import AlignedModel, AlignmentConfig
from wam_jax.policy import present
from wam_jax.training.losses import wam_loss
from wam_jax.types import TEACHER, StreamData
from wam_jax.wam.lens import Lens, Shown
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.noise import Fixed
from wam_jax.wam.sample import sample

WIDTH = 5
CONFIG = AlignmentConfig(weight=0.5, on="action_condition", layers=(0, 1), projector="linear", teacher_width=WIDTH)


def aligned(tiny, name: str = "agra", **changes):
    spec = tiny.spec(name)
    config = dataclasses.replace(CONFIG, **changes)
    return define(lambda rngs: AlignedModel(spec, tiny.interface, config, rngs))


def taught(batch, seed: int = 0):
    """The batch with features of a grid finer than the tokens'."""
    values = np.random.default_rng(seed).normal(size=(8, 3, 2, 4, 4, WIDTH)).astype(np.float32)
    return dataclasses.replace(
        batch, streams={**batch.streams, TEACHER: StreamData(values=values, mask=batch.image_mask)}
    )


def shown(model, tokens) -> Shown:
    """Tokens [l, B, T, n, D] as those of the present and of the action's pass."""
    first = next(g for g in model.layout.groups if g.stream == "video" and g.clean)
    later = next(g for g in model.layout.groups if g.stream == "features" and not g.clean)
    return Shown({first: tokens[:, :, 0], later: tokens[:, :, 1:].reshape(*tokens.shape[:2], -1, tokens.shape[-1])})


def test_the_loss_is_minus_one_where_tokens_are_the_features_whatever_their_length(tiny):
    model = aligned(tiny).bind(tiny.params(aligned(tiny)))
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(8, 3, 2, 2, 2, WIDTH)), jnp.float32)  # on the tokens' own grid
    for projector in model.projectors:
        projector.linears[0].kernel[...] = jnp.eye(24, WIDTH)
        projector.linears[0].bias[...] = jnp.zeros(WIDTH)
    tokens = jnp.pad(features, [(0, 0)] * 5 + [(0, 24 - WIDTH)]).reshape(8, 3, 8, 24)
    both, mask = jnp.stack([tokens, 7 * tokens]), jnp.ones((8, 3, 2), bool)
    assert float(model.alignment_loss(shown(model, both), features, mask)) == pytest.approx(-1, abs=1e-5)
    assert float(model.alignment_loss(shown(model, both), -3 * features, mask)) == pytest.approx(1, abs=1e-5)
    elsewhere = features.at[:, 2].set(-features[:, 2])
    half = model.alignment_loss(shown(model, both), elsewhere, mask)
    assert float(half) == pytest.approx(-1 / 3, abs=1e-5)  # a frame of three points away
    told = model.alignment_loss(shown(model, both), elsewhere, mask.at[:, 2].set(False))
    assert float(told) == pytest.approx(-1, abs=1e-5)  # which is not there


def test_gradients_reach_the_video_up_to_the_layer_and_not_the_teacher(tiny, batch):
    definition = aligned(tiny, layers=(0,))
    params, data = tiny.params(definition), taught(batch)

    @jax.jit
    def loss(params, features):
        model = definition.bind(params)
        auxiliary = model.auxiliary(features, jnp.asarray(data.image_mask))
        known = known_from_batch(model, data, jnp.asarray(data.latents))
        return flow_matching_loss(model, known, jax.random.key(0), auxiliary)[1]["loss/alignment"]

    of_params, of_teacher = jax.grad(loss, (0, 1))(params, jnp.asarray(data.streams[TEACHER].values))
    assert float(jnp.abs(of_teacher).max()) == 0
    video = of_params["trunk"]["blocks"]["video"]["ffn"]["up"]["kernel"]
    assert float(jnp.abs(video[0]).max()) > 1e-6
    assert float(jnp.abs(video[1]).max()) == 0  # behind the aligned layer
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(of_params["trunk"]["blocks"]["action"])) == 0
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(of_params["projectors"]))


def test_the_whole_loss_is_the_plain_one_and_the_weighted_alignment(tiny, batch):
    definition, frozen = aligned(tiny), None
    params, data = tiny.params(definition), taught(batch)
    plain = tiny.define("agra")
    bare = {name: tree for name, tree in params.items() if name != "projectors"}
    key, step = jax.random.key(0), jnp.asarray(0)
    loss, metrics = jax.jit(wam_loss(definition))(params, frozen, data, key, step)
    expected, _ = jax.jit(wam_loss(plain))(bare, frozen, batch, key, step)
    np.testing.assert_allclose(loss, expected + 0.5 * metrics["loss/alignment"], rtol=1e-5)


def test_what_acts_has_no_projectors_and_samples_the_same_bit_for_bit(tiny, batch):
    definition, plain = aligned(tiny), tiny.define("agra")
    params = tiny.params(definition)
    bare = {name: tree for name, tree in params.items() if name != "projectors"}
    assert jax.tree.structure(bare) == jax.tree.structure(plain.shapes())

    def act(definition, params):
        def run(params):
            model = definition.bind(params)
            known = present(model, jnp.asarray(batch.latents[:, :1]), jnp.asarray(batch.proprio[:, 0]), batch)
            return sample(model, known, jax.random.key(0), want=("action",), steps=2)["action"]

        return jax.jit(run)(params)

    np.testing.assert_array_equal(act(definition, params), act(plain, bare))


def test_the_pass_that_actions_read_is_the_same_in_training_and_in_acting(tiny, batch, monkeypatch):
    """At fixed noise 1 it is given the present and noise; with the same noise, its tokens are the same."""
    definition = tiny.define("agra")
    model = definition.bind(tiny.params(definition))
    assert model.spec.stream("features").noise.distribution == Fixed(1.0)
    noisy, predict = {}, WorldActionModel.predict

    def spy(self, context, groups, known, states, streams):
        found = predict(self, context, groups, known, states, streams)
        if "action" in streams:
            noisy.update(training=(states["features"], tuple(found[1].layers.items())))
        return found

    monkeypatch.setattr(WorldActionModel, "predict", spy)
    lens = Lens(layers=(0, 1))
    watch = Auxiliary(name="none", weight=0.0, lens=lens, stream="features", loss=lambda shown: jnp.zeros(()))
    group = next(g for g in model.layout.groups if g.stream == "features")

    @jax.jit
    def both():
        flow_matching_loss(model, known_from_batch(model, batch, jnp.asarray(batch.latents)), jax.random.key(0), watch)
        state, layers = noisy["training"]
        now = present(model, jnp.asarray(batch.latents[:, :1]), jnp.asarray(batch.proprio[:, 0]), batch)
        context = model.extend(model.begin(now, lens=lens), [g for g in model.layout.context if g.block == 0], now)
        acting = model.extend(context, [group], now, {"features": state}).cache
        return dict(layers)[group], acting.entries[acting.groups.index(group)].layers

    training, acting = both()
    np.testing.assert_allclose(acting, training, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "on", "groups"),
    [
        ("agra", "action_condition", {"video 0", "features 1 noisy"}),
        ("agra", "video", {"video 0", "video 1 noisy"}),
        ("fast_wam", "action_condition", {"video 0"}),  # its actions read the present alone
        ("uwm", "action_condition", {"video 0", "video 1 noisy"}),
        ("fast_wam_idm", "action_condition", {"video 0", "video 1"}),  # and here a future that is done
        ("repwam", "action_condition", {"video 0", "video 1", "video 1 noisy", "video 2 noisy"}),
    ],
)
def test_what_is_aligned(tiny, name, on, groups):
    model = aligned(tiny, name, on=on)
    assert {str(group) for group in model.bind(model.shapes()).aligned_groups()} == groups


def test_where_actions_read_the_present_alone_all_of_the_batch_is_aligned(tiny, batch):
    """Though video is denoised on a share of it."""
    definition = aligned(tiny, "fast_wam")
    seen = []

    def run(params):
        model = definition.bind(params)
        auxiliary = model.auxiliary(jnp.asarray(taught(batch).streams[TEACHER].values), jnp.asarray(batch.image_mask))
        watch = dataclasses.replace(auxiliary, loss=lambda shown: seen.append(shown) or auxiliary.loss(shown))
        return flow_matching_loss(model, known_from_batch(model, batch, batch.latents), jax.random.key(0), watch)[0]

    jax.eval_shape(run, tiny.params(definition))
    assert len(seen) == 1
    assert {x.shape[1] for x in seen[0].layers.values()} == {len(batch.latents)}


def test_video_that_is_not_trained_is_not_aligned_in_silence(tiny):
    with pytest.raises(ValueError, match="alignment on 'video': reactive trains no video; choose action_condition"):
        aligned(tiny, "reactive", on="video").shapes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on": "shared"}, r"alignment on 'shared' is unknown \(has: video, action_condition\)"),
        ({"projector": "cnn"}, r"alignment.projector 'cnn' is unknown \(has: linear, mlp, conv\)"),
        ({"layers": (2,)}, r"alignment.layers has 2; agra has layers 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        aligned(tiny, **changes).shapes()
