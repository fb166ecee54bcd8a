"""What a policy does by itself: pairs of video and actions that cost no demonstration (stage 1 of World2Act).

Adapters that know demonstrations alone have seen nothing of what a policy does wrong. They still tell its successes
from its failures, but what they are moved by in its actions is hardly what is wrong with them: along their gradient
similarity grows, and the hand comes no nearer. The simulator shows what any action leads to, without reward or label.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from data_pipelines.transforms import ActionCodec, AnyArray
from wam_jax.policy import Policy, PolicyParams, PolicyState
from wam_jax.posttraining.online import roll
from wam_jax.sim.rollout import WamParams
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.variation import Variation
from wam_jax.types import Batch, Observation, Text

_JITTER = 0.3  # of each step, as a share of what a whole chunk is moved by


class OwnEpisodes(NamedTuple):
    """Attributes:

    images, proprio: at the start, and after each of ``T`` chunks; proprioception is raw.
    actions: raw; what of them is executed where nothing is in the way.
    instruction: index into the environment's instructions.
    """

    images: UInt8[AnyArray, "N T+1 V H W 3"]
    proprio: Float[AnyArray, "N T+1 P"]
    actions: Float[AnyArray, "N T*M A"]
    instruction: Int[AnyArray, "N"]


@dataclasses.dataclass(frozen=True)
class Wanderer:
    """A policy that goes astray.

    Attributes:
      policy: whose actions are moved, chunk by chunk.
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
        actions = actions[:, : self.chunks.block]
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


def wander(
    env: Tabletop, wanderer: Wanderer, chunks: int
) -> Callable[[WamParams, jax.Array, Variation | None, jax.Array], OwnEpisodes]:
    """``episodes = run(params, keys, looks, key)``: so many chunks from the starts of ``keys``.

    Compile it with ``sim.compilation.jit``.
    """

    def run(params: WamParams, keys: jax.Array, looks: Variation | None, key: jax.Array) -> OwnEpisodes:
        states = jax.vmap(env.reset)(keys, *(() if looks is None else (looks,)))
        length = wanderer.chunks.block
        assert length is not None
        # Once more, to see where the last one led.
        rolled = roll(env, wanderer, params, states, (chunks + 1) * length, length, key)
        actions = env.executed(rearrange(rolled.notes[:chunks], "t n m a -> n (t m) a"))
        images, proprio = (jnp.swapaxes(x, 0, 1) for x in (rolled.seen.images[:, :, -1], rolled.seen.proprio))
        return OwnEpisodes(images, proprio, actions, states.instruction)

    return run


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnSequences:
    """The same as the sequences that adapters learn from.

    Attributes:
      frames: pictures, or latents where these are computed ahead.
      actions, proprio: normalised.
      text: features of each episode's instruction.
      embodiment: number of the robot.
      told: what tells them from others.
    """

    frames: Any
    actions: Float[np.ndarray, "K T*M A"]
    proprio: Float[np.ndarray, "K T+1 P"]
    text: Text
    embodiment: int
    told: dict[str, Any]

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, rows: Sequence[int] | Int[np.ndarray, "B"]) -> Batch:
        """Some of them, whole."""
        rows = np.asarray(rows)
        frames, actions, proprio = self.frames[rows], self.actions[rows], self.proprio[rows]
        pictures = frames.dtype == np.uint8
        arrays: dict[str, Any] = {
            "images": frames if pictures else None,
            "latents": None if pictures else frames,
            "image_mask": np.ones(frames.shape[:3], bool),
            "actions": actions,
            "action_mask": np.ones(actions.shape, bool),
            "proprio": proprio,
            "proprio_mask": np.ones(proprio.shape, bool),
            "embodiment": np.full(len(rows), self.embodiment, np.int32),
        }
        return Batch(text=jax.tree.map(lambda x: x[rows], self.text), **arrays)
