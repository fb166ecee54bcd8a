"""A corrected policy is its base until its residual moves, and then moves it by what the residual says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.encoders import words
from wam_jax.policy import PolicyParams
from wam_jax.posttraining.corrected import CorrectedParams, CorrectedRemotePolicy
from wam_jax.posttraining.online import ResidualLearner, WholeLearner
from wam_jax.types import Text


def moving(params: CorrectedParams) -> CorrectedParams:
    out = {**params.residual["out"], "kernel": jnp.ones_like(params.residual["out"]["kernel"])}
    return dataclasses.replace(params, residual={**params.residual, "out": out})


def test_with_a_residual_of_zero_it_is_the_base_bit_for_bit(fast_wam):
    base, policy, params, seen = fast_wam
    plain = PolicyParams(model=params.model, tokenizer=params.tokenizer)
    expected, _ = jax.jit(base.act)(plain, None, seen, jax.random.key(3))
    found, _ = jax.jit(policy.act)(params, None, seen, jax.random.key(3))
    np.testing.assert_array_equal(found, expected[:, : policy.chunks.block])


class Elsewhere:
    """A policy whose actions, six at a time, are what each robot's state begins with."""

    address = "ws://nowhere"

    def ask(self, message):
        assert message["prompt"] == ["up", "down", "up"]
        assert {name: images.shape for name, images in message["images"].items()} == {"a": (3, 16, 16, 3)}
        return {"actions": np.broadcast_to(message["proprio"][:, None, :4], (3, 6, 4)).copy()}


def test_a_policy_elsewhere_is_corrected_within_a_compiled_loop(fast_wam):
    _, policy, params, seen = fast_wam
    encoded = words.text_encoder().encode(["up", "down", "up"], 16)
    text = Text(features=jnp.asarray(encoded.features), mask=jnp.asarray(encoded.mask))
    seen = dataclasses.replace(seen, text=text)
    own = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    remote = CorrectedRemotePolicy(**own, connection=Elsewhere(), cameras=("a",), shape=(6, 4))

    @jax.jit
    def act(params):
        def step(proprio, key):
            actions, _ = remote.act(params, None, dataclasses.replace(seen, proprio=proprio), key)
            return proprio + 1, actions

        return jax.lax.scan(step, seen.proprio, jax.random.split(jax.random.key(0), 2))[1]

    first = np.broadcast_to(np.asarray(seen.proprio)[:, None, :4], (3, policy.chunks.block, 4))
    np.testing.assert_array_equal(act(params), np.stack([first, np.float32(first + 1)]))
    assert np.abs(act(moving(params)) - act(params)).max() > 1e-3
    assert (remote.block(), remote.images(params), remote.init_state(params, seen)) == (None, (0,), None)


def test_what_is_executed_is_what_the_loss_sees(fast_wam):
    _, policy, params, seen = fast_wam
    params, learner = moving(params), ResidualLearner(policy)
    actions, _, note = jax.jit(learner.act)(params, None, seen, jax.random.key(3))
    wanted = jax.jit(learner.wanted)(params, jax.tree.map(lambda x: x[None], seen), note[None])[0]
    assert np.abs(actions - note).max() > 1e-3
    within = np.abs(policy.chunks.decode(wanted)) < 1 - 1e-5  # beyond the limit, the rest is carried over
    np.testing.assert_allclose(
        np.where(within, policy.chunks.decode(wanted) - policy.chunks.decode(policy.chunks.encode(note)), 0),
        np.where(within, actions - note, 0),
        atol=1e-5,
    )


def test_only_the_residual_gets_a_gradient(fast_wam):
    _, policy, params, seen = fast_wam
    learner, still = ResidualLearner(policy), moving(params)

    def loss(params: CorrectedParams):
        *_, note = learner.act(jax.lax.stop_gradient(params), None, seen, jax.random.key(3))
        return jnp.sum(learner.wanted(params, jax.tree.map(lambda x: x[None], seen), note[None]) ** 2)

    gradients = jax.jit(jax.grad(loss, allow_int=True))(still)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients.residual))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((gradients.model, gradients.adapters)))


def test_the_whole_policy_is_drawn_again_as_it_acted(fast_wam):
    base, policy, params, seen = fast_wam
    plain = PolicyParams(model=params.model, tokenizer=params.tokenizer)
    learner, keys = WholeLearner(base, policy.chunks), jax.random.split(jax.random.key(5), 2)
    act = jax.jit(lambda key: learner.act(plain, None, seen, key)[0])
    acted = jnp.stack([act(key) for key in keys])
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), seen)
    wanted = jax.jit(learner.wanted)(plain, twice, keys)
    np.testing.assert_allclose(policy.chunks.decode(wanted), acted, atol=1e-5)
    assert np.abs(acted[..., :3]).max() == 1  # where the robot's limits cut, what is wanted goes on
    reached = policy.chunks.affine.unnormalise(np.asarray(wanted))[..., :3]
    assert np.abs(np.diff(reached, axis=2)).max() > 1 + 1e-3


def test_through_the_bases_eyes_a_residual_sees_and_hears_and_changes_nothing_there(make_corrected):
    base, policy, params, seen = make_corrected("fast_wam", 6, (0, 4), sees="base")
    plain = PolicyParams(model=params.model, tokenizer=params.tokenizer)
    expected, _ = jax.jit(base.act)(plain, None, seen, jax.random.key(3))
    found, _ = jax.jit(policy.act)(params, None, seen, jax.random.key(3))
    np.testing.assert_array_equal(found, expected[:, : policy.chunks.block_steps])
    chunk, moved = expected[:, : policy.chunks.block_steps], jax.jit(policy.wanted)
    told = dataclasses.replace(seen, text=jax.tree.map(lambda x: x[::-1], seen.text))
    shown = dataclasses.replace(seen, images=seen.images[::-1])
    out = {**params.residual["out"], "kernel": 0.01 * moving(params).residual["out"]["kernel"]}  # within its bounds
    params = dataclasses.replace(params, residual={**params.residual, "out": out})
    for other in (told, shown):
        assert np.abs(moved(params, chunk, other) - moved(params, chunk, seen)).max() > 1e-4
    slope = jax.grad(lambda params: policy.wanted(params, chunk, seen).sum(), allow_int=True)(params)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(slope.residual))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((slope.model, slope.adapters)))


@pytest.mark.parametrize("sees", ["pictures", "base"])
def test_a_base_that_remembers_is_told_what_was_done(make_corrected, sees):
    base, policy, params, seen = make_corrected("repwam", 8, (0, 4, 8), sees=sees)
    params = moving(params)
    memory = policy.init_state(params, seen)
    actions, memory = jax.jit(policy.act)(params, memory, seen, jax.random.key(3))
    alone, own = jax.jit(policy.propose)(params, policy.init_state(params, seen), seen, jax.random.key(3))
    assert np.abs(actions - alone).max() > 1e-3
    np.testing.assert_allclose(base.codec.decode(memory.executed["action"]), actions, atol=1e-5)
    np.testing.assert_allclose(base.codec.decode(own.executed["action"]), alone, atol=1e-5)
