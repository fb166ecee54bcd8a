"""A corrected policy is its base until its residual moves, and then moves it by what the residual says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.module import define
from wam_jax.policy import Policy, PolicyParams
from wam_jax.posttraining.adapters import AdapterConfig, define_adapters
from wam_jax.posttraining.corrected import CorrectedParams, CorrectedPolicy
from wam_jax.posttraining.online import ResidualLearner, WholeLearner
from wam_jax.posttraining.residual import ResidualConfig, define_residual
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.types import Observation, Text
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface
from wam_jax.zoo import make_spec

CHUNK = 4
SIZES = {"layers": 1, "video": 32, "video_ffn": 64, "action": 16, "action_ffn": 32}


def corrected(system: str, horizon: int, frame_steps: tuple[int, ...], tubelet: int = 1):
    """A policy, its corrected form, and parameters that make both act."""
    spec = make_spec(system, **SIZES, **({"action_steps": 2, "video_steps": 2} if system == "fast_wam" else {}))
    interface = Interface(
        latent_shape=(2, 2, 4), cameras=2, frame_steps=frame_steps, action_horizon=horizon, action_size=4,
        proprio_size=7, text_width=8,
    )  # fmt: skip
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    config = TokenizerConfig(
        image_size=(16, 16), channels=4, width=16, encoder_layers=1, decoder_layers=1, tubelet=tubelet
    )
    tokenizer = FrozenTokenizer(define_tokenizer(config).init(jax.random.key(0)), jnp.zeros(4), jnp.ones(4), config)
    deltas = np.array([True, True, True, False])
    scale = np.array([2.0, 2.0, 2.0, 1.0], np.float32)
    block = CHUNK if system == "repwam" else None
    codec = ActionCodec(deltas, Affine(np.zeros(4, np.float32), scale), np.ones(4, np.float32), block)
    base = Policy(definition=definition, codec=codec, proprio=Affine.identity(7))
    adapters = define_adapters(AdapterConfig(size=8, video_widths=(8, 8), action_widths=(16, 8)), 8, CHUNK, 4)
    residual = define_residual(ResidualConfig(image_widths=(8, 8)), 8, 2, 7, 4)
    policy = CorrectedPolicy(
        **{field.name: getattr(base, field.name) for field in dataclasses.fields(Policy)},
        adapters=adapters,
        residual=residual,
        chunks=dataclasses.replace(codec, block=CHUNK),
    )
    random = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(definition.shapes())
    model = tree.unflatten([jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves])
    params = CorrectedParams(
        model=model,
        tokenizer=tokenizer,
        adapters=adapters.init(jax.random.key(1)),
        residual=residual.init(jax.random.key(2)),
    )
    images = len(policy.images(params))
    seen = Observation(
        images=jnp.asarray(random.integers(0, 255, (3, images, 2, 16, 16, 3)), jnp.uint8),
        proprio=jnp.asarray(random.normal(size=(3, 7)), jnp.float32),
        text=Text(features=jnp.asarray(random.normal(size=(3, 3, 8)), jnp.float32), mask=jnp.ones((3, 3), bool)),
        embodiment=jnp.zeros(3, int),
    )
    return base, policy, params, seen


@pytest.fixture(scope="module")
def fast_wam():
    return corrected("fast_wam", 6, (0, 4))


def moving(params: CorrectedParams) -> CorrectedParams:
    return dataclasses.replace(params, residual={**params.residual, "gate": jnp.ones(4)})


def test_with_a_residual_of_zero_it_is_the_base_bit_for_bit(fast_wam):
    base, policy, params, seen = fast_wam
    plain = PolicyParams(model=params.model, tokenizer=params.tokenizer)
    expected, _ = jax.jit(base.act)(plain, None, seen, jax.random.key(3))
    found, _ = jax.jit(policy.act)(params, None, seen, jax.random.key(3))
    np.testing.assert_array_equal(found, expected[:, :CHUNK])


def test_what_is_executed_is_what_the_loss_sees(fast_wam):
    _, policy, params, seen = fast_wam
    params, learner = moving(params), ResidualLearner(policy)
    actions, _, note = jax.jit(learner.act)(params, None, seen, jax.random.key(3))
    wanted = learner.wanted(params, jax.tree.map(lambda x: x[None], seen), note[None])[0]
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
    acted = jnp.stack([learner.act(plain, None, seen, key)[0] for key in keys])
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), seen)
    np.testing.assert_allclose(learner.wanted(plain, twice, keys), policy.chunks.encode(acted), atol=1e-5)


def test_a_base_that_remembers_is_told_what_was_done():
    base, policy, params, seen = corrected("repwam", 2 * CHUNK, (0, 4, 8))
    params = moving(params)
    memory = policy.init_state(params, seen)
    actions, memory = jax.jit(policy.act)(params, memory, seen, jax.random.key(3))
    alone, own = jax.jit(policy.propose)(params, policy.init_state(params, seen), seen, jax.random.key(3))
    assert np.abs(actions - alone).max() > 1e-3
    np.testing.assert_allclose(base.codec.decode(memory.executed), actions, atol=1e-5)
    np.testing.assert_allclose(base.codec.decode(own.executed), alone, atol=1e-5)
