"""A frozen policy and the residual that corrects it, as one policy: it acts and is evaluated like any other."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from data_pipelines.transforms import ActionCodec
from wam_jax.nn.module import Definition, Params
from wam_jax.policy import Policy, PolicyParams, PolicyState
from wam_jax.posttraining.adapters import Adapters
from wam_jax.posttraining.chunk_view import ChunkView
from wam_jax.posttraining.eyes import present_tokens
from wam_jax.posttraining.residual import HiddenTokens, ResidualPolicy
from wam_jax.serving.remote import RemotePolicy
from wam_jax.types import Observation
from wam_jax.wam.lens import Lens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrectedParams(PolicyParams):
    """The base's arrays, and what corrects it."""

    adapters: Params
    residual: Params


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CorrectedPolicy(Policy):
    """Acts as the base does, plus a residual. With a residual of zero, it is the base bit for bit.

    Attributes:
      adapters, residual: definitions.
      chunks: the adapters' units of actions; its blocks are chunks.
      view: how the action adapter sees them.
    """

    adapters: Definition[Adapters]
    residual: Definition[ResidualPolicy]
    chunks: ActionCodec
    view: ChunkView

    def act(
        self,
        params: CorrectedParams,  # type: ignore[override]
        policy_state: PolicyState | None,
        observation: Observation,
        rng: jax.Array,
    ) -> tuple[Float[Array, "B M A"], PolicyState | None]:
        """One chunk of raw robot actions for each observation."""
        base, policy_state = self.propose(params, policy_state, observation, rng)
        return self.correct(params, policy_state, base, observation)

    def look(
        self,
        params: CorrectedParams,  # type: ignore[override]
        observation: Observation,
        rng: jax.Array,
        lens: Lens,
    ) -> tuple[Float[Array, "B M A"], Float[Array, "B S L H n"] | None]:
        """As ``Policy.look``: the base through the lens, corrected, in the adapters' units."""
        base, attention = super().look(params, observation, rng, lens)
        raw = jnp.asarray(self.codec.decode(base))[:, : self.chunks.block_steps]
        return self.wanted(params, raw, observation), attention

    def propose(
        self, params: PolicyParams, policy_state: PolicyState | None, observation: Observation, rng: jax.Array
    ) -> tuple[Float[Array, "B M A"], PolicyState | None]:
        """What the base alone would do."""
        base, policy_state = super().act(params, policy_state, observation, rng)
        return base[:, : self.chunks.block_steps], policy_state

    def correct(
        self,
        params: CorrectedParams,
        policy_state: PolicyState | None,
        base: Float[Array, "B M A"],
        observation: Observation,
    ) -> tuple[Float[Array, "B M A"], PolicyState | None]:
        """What is done instead; a base that remembers what it did is told."""
        encoded = jnp.asarray(self.chunks.encode(base))
        moved = self.chunks.decode(self.wanted(params, base, observation)) - self.chunks.decode(encoded)
        actions = base + jnp.asarray(moved)
        return actions, self.remembering(policy_state, actions)

    def wanted(
        self, params: CorrectedParams, base: Float[Array, "B M A"], observation: Observation
    ) -> Float[Array, "B M A"]:
        """The corrected chunk in the adapters' units; gradients reach the residual alone."""
        encoded = jax.lax.stop_gradient(jnp.asarray(self.chunks.encode(base)))
        proprio = jnp.asarray(self.proprio.normalise(observation.proprio))
        adapters = self.adapters.bind(params.adapters)
        residual = self.residual.bind(params.residual)
        seen = self.view(encoded, observation.proprio[:, None])
        shown = observation.images[:, -1]
        if isinstance(residual.sight, HiddenTokens):
            model = self.definition.bind(params.model)
            shown = present_tokens(model, self._now(model, params, observation))
        return encoded + residual(adapters, seen, proprio, shown)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CorrectedRemotePolicy(CorrectedPolicy, RemotePolicy):
    """The same of a policy that is elsewhere: what ``CorrectedPolicy`` asks of a policy, ``RemotePolicy`` answers."""
