"""A policy is a pure function: observation in, action chunk out."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.module import Definition, Params
from wam_jax.tokenizers.visual import FrozenTokenizer
from wam_jax.types import Observation
from wam_jax.wam.model import Prefix, WorldActionModel
from wam_jax.wam.sample import sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyParams:
    """The arrays of a policy."""

    model: Params
    tokenizer: FrozenTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """Everything static about acting with a world action model; close over it in a jitted function.

    Attributes:
      definition: of the model.
      codec: decodes normalised chunks to the robot's actions.
      proprio: normalises the robot's proprioception.
      steps: Euler steps; the spec's by default.
    """

    definition: Definition[WorldActionModel]
    codec: ActionCodec
    proprio: Affine
    steps: int | None = None

    def act(
        self, params: PolicyParams, policy_state: None, observation: Observation, rng: jax.Array
    ) -> tuple[Float[Array, "B K A"], None]:
        """One chunk of raw robot actions for each observation. This policy keeps no state between chunks."""
        model, prefix = self._prefix(params, observation)
        chunk = sample(model, prefix, rng, ("action",), self.steps)["action"]
        return jnp.asarray(self.codec.decode(chunk)), policy_state

    def imagine(self, params: PolicyParams, observation: Observation, rng: jax.Array) -> UInt8[Array, "B T-1 V H W 3"]:
        """The future frames that the model expects, decoded to pixels."""
        model, prefix = self._prefix(params, observation)
        return params.tokenizer.decode(sample(model, prefix, rng, ("video",))["video"])

    def _prefix(self, params: PolicyParams, observation: Observation) -> tuple[WorldActionModel, Prefix]:
        model = self.definition.bind(params.model)
        latents = params.tokenizer.encode(observation.images)
        proprio = jnp.asarray(self.proprio.normalise(observation.proprio))
        return model, model.prefix(latents, proprio, observation.text)
