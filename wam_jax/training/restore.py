"""A trained model back from its directory, ready to act: nothing but the checkpoint is needed."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.module import Definition, define
from wam_jax.policy import Policy, PolicyParams
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.training.checkpoint import CheckpointError, Checkpoints
from wam_jax.training.optimizer import OptimizerConfig, make_optimizer
from wam_jax.training.state import TrainState, init_state
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface
from wam_jax.zoo import make_spec


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model from a run directory.

    Attributes:
      policy, params: what acts (``params.model`` is the moving average).
      untrained: the same policy at its random start, for a baseline.
      step: of the checkpoint.
      meta: the checkpoint's JSON part.
    """

    policy: Policy
    params: PolicyParams
    untrained: PolicyParams
    step: int
    meta: dict[str, Any]


def define_model(identity: dict[str, Any]) -> Definition[WorldActionModel]:
    """The definition of the model that a checkpoint's ``identity`` describes."""
    spec = make_spec(identity["model"]["name"], identity["model"]["size"], **identity["model"]["options"])
    sizes = identity["interface"]
    interface = Interface(
        **{**sizes, "latent_shape": tuple(sizes["latent_shape"]), "frame_steps": tuple(sizes["frame_steps"])}
    )
    return define(lambda rngs: WorldActionModel(spec, interface, rngs))


def load_trained(directory: Path, mesh: jax.sharding.Mesh) -> Trained:
    """The newest checkpoint of a run.

    Raises:
      CheckpointError: if there is none.
    """
    folder = directory / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint in {directory}; train one with: wam train --config CONFIG")
    checkpoints = Checkpoints(folder)
    meta = checkpoints.meta()
    identity = meta["identity"]
    definition = define_model(identity)
    optimizer = make_optimizer(OptimizerConfig(**identity["optimizer"]))
    fresh = init_state(definition, optimizer, identity["seed"], mesh)
    state: TrainState = checkpoints.load("state", fresh)
    tokenizer: FrozenTokenizer = checkpoints.load("tokenizer", abstract_tokenizer(identity["tokenizer"]))
    checkpoints.close()
    policy = Policy(
        definition=definition,
        codec=ActionCodec.from_dict(meta["identity"]["codec"]),
        proprio=Affine.from_dict(meta["identity"]["proprio"]),
    )
    trained, untrained = (PolicyParams(model=model, tokenizer=tokenizer) for model in (state.ema, fresh.params))
    return Trained(policy, trained, untrained, int(state.step), meta)


def abstract_tokenizer(sizes: dict[str, Any]) -> FrozenTokenizer:
    """Shapes of a frozen tokenizer's arrays, from the JSON of its ``TokenizerConfig``."""
    config = TokenizerConfig(**{**sizes, "image_size": tuple(sizes["image_size"])})
    channels = jax.ShapeDtypeStruct((config.channels,), "float32")
    return FrozenTokenizer(define_tokenizer(config).shapes(), channels, channels, config)  # type: ignore[arg-type]
