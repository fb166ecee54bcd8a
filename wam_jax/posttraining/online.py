"""Post-training from what a world model imagines (World2Act's second stage, arXiv 2603.10422): no reward, no labels.

A batch of episodes is run in the simulator. What each did, chunk by chunk, should be like what was imagined from its
start, and unlike what was imagined for the episodes beside it. Gradients reach the policy through its actions only; the
simulator is not differentiated.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from data_pipelines.transforms import ActionCodec
from wam_jax.nn.module import Definition, Params
from wam_jax.objectives.alignment import unit
from wam_jax.objectives.contrastive import info_nce
from wam_jax.policy import Policy, PolicyParams, PolicyState
from wam_jax.posttraining.adapters import Adapters, gathered, paired, similarities
from wam_jax.posttraining.chunk_view import ChunkView
from wam_jax.posttraining.corrected import CorrectedParams, CorrectedPolicy
from wam_jax.sim.render import Stage
from wam_jax.sim.rollout import Actor, WamParams, observe, unroll
from wam_jax.sim.tabletop import SimState, Tabletop
from wam_jax.training.step import LossFn
from wam_jax.types import Observation, Text


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Starts:
    """A batch of episodes.

    Attributes:
      states: where they begin.
      video: the video adapter's vectors of what was imagined from there.
    """

    states: SimState
    video: Float[Array, "N T D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    """What the loss needs and does not train.

    Attributes:
      base: the policy that post-training starts from.
      adapters: of stage 1.
      text: features of every instruction of the environment.
      embodiment: which of the policy's robots the simulator's is.
    """

    base: PolicyParams
    adapters: Params
    text: Text
    embodiment: Int[Array, ""]


class Performer(Protocol):
    """Who acts in the simulator."""

    @property
    def policy(self) -> Policy:
        """By which it acts when it is evaluated."""

    def act(
        self, params: Any, policy_state: PolicyState | None, observation: Observation, key: jax.Array
    ) -> tuple[Float[Array, "N M A"], PolicyState | None, Any]:
        """Raw actions, its memory, and a note: of a learner, what ``wanted`` needs to find them again."""


class Learner(Performer, Protocol):
    """What of a policy is post-trained."""

    def acting(self, trained: Params, frozen: Frozen) -> Any:
        """All parameters of the policy."""

    def wanted(self, params: Any, seen: Observation, notes: Any) -> Float[Array, "T N M A"]:
        """The same actions in the adapters' units, differentiable; ``T`` times of ``N`` episodes."""


@dataclasses.dataclass(frozen=True)
class ResidualLearner:
    """A residual on a frozen base."""

    policy: CorrectedPolicy

    def acting(self, trained: Params, frozen: Frozen) -> CorrectedParams:
        """The base with the residual that is trained."""
        base = frozen.base
        return CorrectedParams(model=base.model, tokenizer=base.tokenizer, adapters=frozen.adapters, residual=trained)

    def act(
        self, params: CorrectedParams, policy_state: PolicyState | None, observation: Observation, key: jax.Array
    ) -> tuple[Float[Array, "N M A"], PolicyState | None, Any]:
        """Corrected actions; noted are the base's."""
        base, policy_state = self.policy.propose(params, policy_state, observation, key)
        actions, policy_state = self.policy.correct(params, policy_state, base, observation)
        return actions, policy_state, base

    def wanted(
        self, params: CorrectedParams, seen: Observation, notes: Float[Array, "T N M A"]
    ) -> Float[Array, "T N M A"]:
        """All at once: the residual is small."""
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (notes, seen))
        return self.policy.wanted(params, *flat).reshape(notes.shape)


@dataclasses.dataclass(frozen=True)
class WholeLearner:
    """The policy's own parameters, or LoRA's factors in them (the comparator).

    Attributes:
      policy: without a memory.
      chunks: the adapters' units of actions.
    """

    policy: Policy
    chunks: ActionCodec

    def acting(self, trained: Params, frozen: Frozen) -> PolicyParams:
        """The base's tokenizer with the model that is trained."""
        return dataclasses.replace(frozen.base, model=trained)

    def act(
        self, params: PolicyParams, policy_state: PolicyState | None, observation: Observation, key: jax.Array
    ) -> tuple[Float[Array, "N M A"], PolicyState | None, Any]:
        """Its actions; noted is the key that they were drawn with."""
        actions, policy_state = self.policy.act(params, policy_state, observation, key)
        return actions[:, : self.chunks.block_steps], policy_state, key

    def wanted(self, params: PolicyParams, seen: Observation, notes: jax.Array) -> Float[Array, "T N M A"]:
        """Drawn again, time after time; each is computed once more for its gradient, or memory would not do.

        As they are before the robot's limits: where these cut, no gradient would be left.
        """
        free = dataclasses.replace(self.policy, codec=dataclasses.replace(self.policy.codec, limit=None))

        @jax.checkpoint
        def draw(observation: Observation, key: jax.Array) -> Array:
            actions, _ = free.act(params, None, observation, key)
            return jnp.asarray(self.chunks.encode(actions[:, : self.chunks.block_steps]))

        return jax.lax.map(lambda moment: draw(*moment), (seen, notes))


class Rolled(NamedTuple):
    """Episodes as a policy met them.

    Attributes:
      seen, notes: what it saw each of ``T`` times, and what it noted.
      success: how they ended.
      advice: what the expert would have done instead each time; None where it was not asked.
    """

    seen: Observation
    notes: Any
    success: Float[Array, "N"]
    advice: Float[Array, "T N M A"] | None


def roll(
    env: Tabletop,
    performer: Performer,
    params: WamParams,
    states: SimState,
    steps: int,
    chunk: int,
    key: jax.Array,
    advised: bool = False,
) -> Rolled:
    """Runs ``steps`` steps, in chunks of ``chunk`` actions; ``advised``: the expert is asked before each chunk."""
    policy = performer.policy

    def start(params: WamParams, states: SimState) -> PolicyState | None:
        return policy.init_state(params.policy, observe(env, params, states))

    def advise(states: SimState, _: None) -> tuple[SimState, Array]:
        action = jax.vmap(env.expert)(states)
        return jax.vmap(env.step)(states, action), env.executed(action)

    def act(params: WamParams, memory: PolicyState | None, states: SimState, passed: Stage, key: jax.Array):
        seen = observe(env, params, states, passed, policy.images(params.policy))
        actions, memory, note = performer.act(params.policy, memory, seen, key)
        advice = jnp.swapaxes(jax.lax.scan(advise, states, length=chunk)[1], 0, 1) if advised else None
        return actions, memory, (seen, note, advice)

    trace, (seen, notes, advice) = unroll(env, Actor(start, act, chunk), params, states, steps, key)
    return Rolled(seen, notes, trace.outcome.success[-1].astype(jnp.float32), advice)


def online_loss(
    env: Tabletop,
    learner: Learner,
    adapters: Definition[Adapters],
    chunks: ActionCodec,
    view: ChunkView,
) -> LossFn:
    """InfoNCE between imagined video and the actions of the same episodes; the batch is ``Starts``, frozen ``Frozen``.

    The metrics have the similarity of pairs (which tracks success, the paper finds), of others, how often a pair is
    found, and the share of these episodes in which the instruction holds at the end of what was imagined, which nothing
    here is trained on.

    Args:
      env: where episodes run; compile the step with ``sim.compilation.jit``.
      learner: what is trained.
      adapters: of stage 1.
      chunks: their units of actions.
      view: how they see them.
    """
    meet, length = _meeting(env, learner, chunks, view), chunks.block_steps

    def loss(trained: Params, frozen: Frozen, batch: Starts, key: jax.Array, step: Array):
        params, bound = learner.acting(trained, frozen), _bound(adapters, frozen)
        done = meet(params, frozen, batch, key, batch.video.shape[1] * length)
        video, vectors, success = gathered(batch.video, bound.of_actions(done.actions), done.success)
        similarity = similarities(bound.config, video, vectors)
        contrastive = info_nce(similarity, bound.config.temperature)
        return contrastive, {**paired(similarity), "rollout_success": success.mean()}

    return loss


class Followed(NamedTuple):
    """Whole episodes, beside what was imagined for them.

    Attributes:
      similarity: of what was done and what was imagined.
      success: 1 where the instruction held at the end.
    """

    similarity: Float[Array, "N"]
    success: Float[Array, "N"]


Follow = Callable[[Any, Frozen, Starts, jax.Array], Any]  # parameters of a policy as it acts


def whole_episodes(
    env: Tabletop, learner: Learner, adapters: Definition[Adapters], chunks: ActionCodec, view: ChunkView
) -> Follow:
    """Gives ``Followed``: episodes to their end, as when they are judged; compared is the time that was imagined."""
    meet = _meeting(env, learner, chunks, view)

    def run(params: Any, frozen: Frozen, batch: Starts, key: jax.Array) -> Followed:
        bound, done = _bound(adapters, frozen), meet(params, frozen, batch, key, env.episode_steps)
        return Followed(_of_pairs(bound, batch, done.actions), done.success)

    return run


def gradient_directions(
    env: Tabletop, learner: Learner, adapters: Definition[Adapters], chunks: ActionCodec, view: ChunkView
) -> Follow:
    """Gives the cosine of similarity's gradient and of what the expert would have changed, see ``agreement``: [N].

    1: who follows the gradient does what the expert would; 0: it says nothing about that.
    """
    meet, length = _meeting(env, learner, chunks, view, advised=True), chunks.block_steps

    def run(params: Any, frozen: Frozen, batch: Starts, key: jax.Array) -> Float[Array, "N"]:
        bound, done = _bound(adapters, frozen), meet(params, frozen, batch, key, batch.video.shape[1] * length)
        slope = jax.grad(lambda actions: _of_pairs(bound, batch, actions).sum())(done.actions)
        assert done.advised is not None
        return agreement(slope, done.advised - done.actions, length)

    return run


def _of_pairs(adapters: Adapters, batch: Starts, actions: Float[Array, "N T*M A"]) -> Float[Array, "N"]:
    return jnp.diagonal(similarities(adapters.config, *gathered(batch.video, adapters.of_actions(actions))))


def agreement(slope: Float[Array, "N T*M A"], way: Float[Array, "N T*M A"], chunk: int) -> Float[Array, "N"]:
    """Cosine of both, chunk by chunk, and its mean over chunks by the length of ``way``.

    Numbers that are zero all along a chunk's ``way`` are not compared.
    """
    slope, way = (rearrange(x, "n (t m) a -> n t m a", m=chunk) for x in (slope, way))
    slope = jnp.where((way != 0).any(2, keepdims=True), slope, 0.0)
    along = jnp.sum(unit(rearrange(slope, "n t m a -> n t (m a)")) * rearrange(way, "n t m a -> n t (m a)"), (1, 2))
    return along / jnp.maximum(jnp.linalg.norm(way, axis=(2, 3)).sum(-1), 1e-6)


class _Done(NamedTuple):
    """Chunks as adapters see them, executed and as the expert would have done them; and how episodes ended."""

    actions: Float[Array, "N T*M A"]
    advised: Float[Array, "N T*M A"] | None
    success: Float[Array, "N"]


def _meeting(
    env: Tabletop,
    learner: Learner,
    chunks: ActionCodec,
    view: ChunkView,
    advised: bool = False,
) -> Callable[[Any, Frozen, Starts, jax.Array, int], _Done]:
    """What is done in the time that was imagined, and success after ``steps`` steps."""
    length = chunks.block_steps

    def meet(params: Any, frozen: Frozen, batch: Starts, key: jax.Array, steps: int) -> _Done:
        informed = WamParams(
            policy=jax.lax.stop_gradient(params),
            text=frozen.text,
            embodiment=frozen.embodiment,
            misinform=jnp.asarray(False),
        )
        rolled = jax.lax.stop_gradient(roll(env, learner, informed, batch.states, steps, length, key, advised))
        seen, notes, advice = jax.tree.map(
            lambda x: x[: batch.video.shape[1]], (rolled.seen, rolled.notes, rolled.advice)
        )
        wanted = rearrange(learner.wanted(params, seen, notes), "t n m a -> n (t m) a")
        # What is executed counts, or the loss falls by motions that the robot cuts off; gradients are those of what is
        # wanted, so that a gripper's sign can turn.
        executed = jnp.asarray(chunks.encode(env.executed(jnp.asarray(chunks.decode(wanted)))))
        places = jnp.swapaxes(seen.proprio, 0, 1)
        done = view(wanted + jax.lax.stop_gradient(executed - wanted), places)
        if advice is not None:
            advice = view(jnp.asarray(chunks.encode(rearrange(advice, "t n m a -> n (t m) a"))), places)
        return _Done(done, advice, rolled.success)

    return meet


def _bound(adapters: Definition[Adapters], frozen: Frozen) -> Adapters:
    """They are not trained."""
    return adapters.bind(jax.lax.stop_gradient(frozen.adapters))
