"""What a policy does by itself: pairs of video and actions that cost no demonstration (stage 1 of World2Act).

Adapters that know demonstrations alone have seen nothing of what a policy does wrong: they may tell its successes from
its failures, and not what to change. The simulator shows what any action leads to, without reward or label.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from data_pipelines.transforms import ActionCodec, AnyArray
from wam_jax.policy import Policy, PolicyParams, PolicyState
from wam_jax.posttraining.online import roll
from wam_jax.sim.rollout import WamParams
from wam_jax.sim.tabletop import SimState, Tabletop
from wam_jax.types import Observation

_JITTER = 0.3  # of each step, as a share of what a whole chunk is moved by


class OwnEpisodes(NamedTuple):
    """Attributes:

    frames, proprio: at the start, and after each of ``T`` chunks; pictures or their latents, raw proprioception.
    actions: raw, as post-training compares them: within the robot's limits, also where something else is in the way.
    instruction: index into the environment's instructions.
    """

    frames: Any
    proprio: Float[AnyArray, "N T+1 P"]
    actions: Float[AnyArray, "N T*M A"]
    instruction: Int[AnyArray, "N"]


@dataclasses.dataclass(frozen=True)
class NoisyPerformer:
    """A policy whose motions are disturbed.

    Attributes:
      policy: whose actions are disturbed, chunk by chunk.
      chunks: of what length; which dimensions hold motion, the others are left alone.
      noise: how far steps are moved, in raw actions: each chunk has a direction and a share of it, each step a little
        jitter.
    """

    policy: Policy
    chunks: ActionCodec
    noise: float

    def act(
        self, params: PolicyParams, policy_state: PolicyState | None, observation: Observation, key: jax.Array
    ) -> tuple[Float[Array, "N M A"], PolicyState | None, Float[Array, "N M A"]]:
        """Actions, the policy's memory, and the actions once more, as a note."""
        own, share, way, jitter = jax.random.split(key, 4)
        actions, policy_state = self.policy.act(params, policy_state, observation, own)
        actions = actions[:, : self.chunks.block_steps]
        count, _, size = actions.shape
        moved = jax.random.uniform(way, (count, 1, size), minval=-1.0)
        moved = moved + _JITTER * jax.random.normal(jitter, actions.shape)
        moved = self.noise * jax.random.uniform(share, (count, 1, 1)) * moved
        actions = actions + jnp.where(self.chunks.cumulative, moved, 0.0)
        if self.chunks.limit is not None:
            actions = jnp.where(
                self.chunks.cumulative, jnp.clip(actions, -self.chunks.limit, self.chunks.limit), actions
            )
        return actions, self.policy.remembering(policy_state, actions), actions


def own_episodes(
    env: Tabletop, performer: NoisyPerformer, chunks: int
) -> Callable[[WamParams, SimState, jax.Array], OwnEpisodes]:
    """``episodes = run(params, states, key)``: so many chunks from these states on.

    Compile it with ``sim.compilation.jit``.
    """

    def run(params: WamParams, states: SimState, key: jax.Array) -> OwnEpisodes:
        length = performer.chunks.block_steps
        # Once more, to see where the last one led.
        rolled = roll(env, performer, params, states, (chunks + 1) * length, length, key)
        actions = env.executed(rearrange(rolled.notes[:chunks], "t n m a -> n (t m) a"))
        images, proprio = (jnp.swapaxes(x, 0, 1) for x in (rolled.seen.images[:, :, -1], rolled.seen.proprio))
        return OwnEpisodes(images, proprio, actions, states.instruction)

    return run
