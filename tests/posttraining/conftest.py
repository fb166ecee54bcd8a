"""A tiny policy and what corrects it, which several tests act with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.module import define
from wam_jax.policy import Policy
from wam_jax.posttraining.adapters import AdapterConfig, define_adapters
from wam_jax.posttraining.chunk_view import ChunkView
from wam_jax.posttraining.corrected import CorrectedParams, CorrectedPolicy
from wam_jax.posttraining.eyes import present_size
from wam_jax.posttraining.residual import ResidualConfig, define_residual
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.types import Observation, Text
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface
from wam_jax.zoo import make_spec

CHUNK = 4
SIZES = {"layers": 1, "video": 32, "video_ffn": 64, "action": 16, "action_ffn": 32}


def corrected(system: str, horizon: int, frame_steps: tuple[int, ...], tubelet: int = 1, sees: str = "pictures"):
    """A policy, its corrected form, parameters that make both act, and what three robots see."""
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
    sizes, tokens = ResidualConfig(image_widths=(8, 8), sees=sees), present_size(definition.bind(definition.shapes()))
    residual = define_residual(sizes, 8, 2, 7, ((0.5, 0.5, 0.5, 1.5),) * CHUNK, tokens)
    policy = CorrectedPolicy(
        **{field.name: getattr(base, field.name) for field in dataclasses.fields(Policy)},
        adapters=adapters,
        residual=residual,
        chunks=dataclasses.replace(codec, block=CHUNK),
        view=ChunkView.make(codec, base.proprio, (3, 4, 5), 0.025, (3,)),
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


@pytest.fixture(scope="session")
def make_corrected():
    """``corrected``."""
    return corrected


@pytest.fixture(scope="session")
def fast_wam():
    return corrected("fast_wam", 6, (0, 4))
