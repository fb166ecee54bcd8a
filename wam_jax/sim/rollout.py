"""Closed-loop rollouts: policy, physics and pixels as one compiled program over a batch of episodes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from wam_jax.policy import Policy, PolicyParams
from wam_jax.sim import compilation
from wam_jax.sim.render import Stage
from wam_jax.sim.tabletop import SimState, Tabletop
from wam_jax.sim.tasks import Outcome
from wam_jax.sim.variation import Variation
from wam_jax.types import Observation, Text


class Actor(NamedTuple):
    """What controls a batch of episodes.

    Attributes:
      start: ``start(params, states)`` gives its memory.
      act: ``act(params, memory, states, passed, key)`` gives the actions to execute before acting anew, the memory
        after, and notes for whoever asks; ``passed`` is what the cameras could see before each of the last E steps (at
        the start: now).
      width: E, the number of actions.
    """

    start: Callable[[Any, SimState], Any]
    act: Callable[[Any, Any, SimState, Stage, jax.Array], tuple[Float[Array, "N E A"], Any, Any]]
    width: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class WamParams:
    """What a world action model needs to act on instructions.

    Attributes:
      policy: model and tokenizer.
      text: features of every instruction of the environment, row by row; then of other wordings of them, if any.
      embodiment: which of the model's robots the simulator's is.
      misinform: give the policy an instruction that names another object (the control for language).
    """

    policy: PolicyParams
    text: Text
    embodiment: Int[Array, ""]
    misinform: Bool[Array, ""]


def wam_actor(env: Tabletop, policy: Policy, execute: int) -> Actor:
    """Renders, infers a chunk, and executes its first ``execute`` actions (receding horizon).

    Raises:
      ValueError: if the policy's chunks are shorter, or if it remembers them as executed and they are longer.
    """

    def start(params: WamParams, states: SimState) -> Any:
        return policy.init_state(params.policy, observe(env, params, states))

    def act(
        params: WamParams, memory: Any, states: SimState, passed: Stage, key: jax.Array
    ) -> tuple[Float[Array, "N E A"], Any, None]:
        seen = observe(env, params, states, passed, policy.images(params.policy))
        if env.varied:
            seen = dataclasses.replace(seen, images=_noisy(seen.images, states.variation.pixel_noise, key))
        chunk, memory = policy.act(params.policy, memory, seen, key)
        if memory is not None and chunk.shape[1] != execute:
            raise ValueError(
                f"the model predicts and remembers {chunk.shape[1]} actions at a time; "
                f"set evaluation.execute={chunk.shape[1]} (it is {execute})"
            )
        if chunk.shape[1] < execute:
            raise ValueError(
                f"the model gives {chunk.shape[1]} actions at a time; set evaluation.execute to at most that"
            )
        return chunk[:, :execute], memory, None

    return Actor(start, act, execute)


def scripted_actor(env: Tabletop) -> Actor:
    """The scripted expert, or random actions: the parameter 0 or 1 chooses, so that one program serves both."""

    def act(randomness: Float[Array, ""], memory: None, states: SimState, passed: Stage, key: jax.Array):
        expert = jax.vmap(env.expert)(states)
        noise = jax.random.uniform(key, expert.shape, minval=-1.0, maxval=1.0)
        return jnp.where(randomness > 0, noise, expert)[:, None], memory, None

    return Actor(lambda params, states: None, act, 1)


def _noisy(images: UInt8[Array, "N I V H W 3"], std: Float[Array, "N"], key: jax.Array) -> UInt8[Array, "N I V H W 3"]:
    noise = (
        255 * std.reshape(-1, *[1] * (images.ndim - 1)) * jax.random.normal(jax.random.fold_in(key, 1), images.shape)
    )
    return jnp.round(jnp.clip(images + noise, 0, 255)).astype(jnp.uint8)


def observe(
    env: Tabletop, params: WamParams, states: SimState, passed: Stage | None = None, ages: Sequence[int] = (0,)
) -> Observation:
    """What the policy sees of a batch of states: images of so many steps ago, the last of now."""
    told = jnp.where(params.misinform, jax.vmap(env.wrong_instruction)(states), states.instruction)
    told = told + states.variation.wording * len(env.instructions)
    now = jax.vmap(env.stage)(states)
    stages = [jax.tree.map(lambda x, age=age: x[-age], passed) if age else now for age in ages]
    stage = jax.tree.map(lambda *x: jnp.stack(x, 1), *stages)
    return Observation(
        images=jax.vmap(jax.vmap(env.draw))(stage),
        proprio=jax.vmap(env.proprio)(states),
        text=Text(features=params.text.features[told], mask=params.text.mask[told]),
        embodiment=jnp.broadcast_to(params.embodiment, told.shape),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """What happened in a batch of episodes, small enough to keep: pictures are drawn from it afterwards.

    Attributes:
      outcome: after each step, by the true instruction.
      stage: what the cameras could see before each step.
      proprio: before each step.
      instruction: the true one, by which outcomes are judged.
    """

    outcome: Outcome  # arrays [T, N]
    stage: Stage  # arrays [T, N, ...]
    proprio: Float[Array, "T N P"]
    instruction: Int[Array, "N"]


def rollout(env: Tabletop, actor: Actor, num_steps: int) -> Callable[..., Trace]:
    """A jitted ``run(params, episode_keys, key, variation=None)``.

    ``episode_keys`` [N] decide the starts, so that two policies can be compared on the same episodes; ``key`` is the
    policy's own randomness. ``variation`` has the conditions of each episode; None: those of training.
    """

    def run(params: Any, episode_keys: Array, key: jax.Array, variation: Variation | None = None) -> Trace:
        return unroll(env, actor, params, reset(env, episode_keys, variation), num_steps, key)[0]

    return compilation.jit(run)


def reset(env: Tabletop, keys: Array, variation: Variation | None = None) -> SimState:
    """The starts that ``keys`` [N] decide, in conditions of their own; None: those of training."""
    return jax.vmap(env.reset)(keys, *(() if variation is None else (variation,)))


def at_skill(env: Tabletop, states: SimState, skill: Int[Array, "N"], num_steps: int) -> SimState:
    """The moment in which the expert, from these states on, has done so many of the task's skills.

    Where it does not within ``num_steps``, the last one; ``SimState.done`` says how many it did.
    """

    def step(states: SimState, _: None) -> tuple[SimState, None]:
        after = jax.vmap(env.step)(states, jax.vmap(env.expert)(states))
        there = states.done >= skill
        return jax.tree.map(lambda x, y: jnp.where(there.reshape(-1, *[1] * (x.ndim - 1)), x, y), states, after), None

    return jax.lax.scan(step, states, length=num_steps)[0]


def unroll(
    env: Tabletop, actor: Actor, params: Any, states: SimState, num_steps: int, key: jax.Array
) -> tuple[Trace, Any]:
    """What happens from these states on, and the actor's notes of each time that it acted; to be jitted."""

    def step(states, action):
        before = jax.vmap(env.stage)(states), jax.vmap(env.proprio)(states)
        states = jax.vmap(env.step)(states, action)
        return states, (jax.vmap(env.outcome)(states), *before)

    def replan(carry, key):
        states, memory, passed = carry
        actions, memory, notes = actor.act(params, memory, states, passed, key)
        states, seen = jax.lax.scan(step, states, jnp.swapaxes(actions, 0, 1))
        return (states, memory, seen[1]), (seen, notes)

    now = jax.tree.map(lambda x: jnp.repeat(x[None], actor.width, 0), jax.vmap(env.stage)(states))
    start = (states, actor.start(params, states), now)
    _, (steps, notes) = jax.lax.scan(replan, start, jax.random.split(key, -(-num_steps // actor.width)))
    outcome, stage, proprio = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_steps], steps)
    return Trace(outcome=outcome, stage=stage, proprio=proprio, instruction=states.instruction), notes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """Rollouts to look at.

    Attributes:
      frames: what the cameras saw before each step.
      proprio: of the robot at the same moments.
      imagined: at each replanning, the future frames that the model expected.
      success: whether the instruction held at the end.
      instruction: index into the environment's ``instructions``.
    """

    frames: UInt8[Array, "T N V H W 3"]
    proprio: Float[Array, "T N P"]
    imagined: UInt8[Array, "R N F V H W 3"]
    success: Bool[Array, "N"]
    instruction: Int[Array, "N"]


def draw(env: Tabletop) -> Callable[[Stage], UInt8[Array, "T N V H W 3"]]:
    """A jitted ``frames(stage)`` for the stage of a trace."""
    return compilation.jit(jax.vmap(jax.vmap(env.draw)))


def imagine(
    policy: Policy, execute: int
) -> Callable[[WamParams, Array, Array, Array, jax.Array], UInt8[Array, "R N F V H W 3"]]:
    """A jitted ``futures(params, frames [T, N, ...], proprio [T, N, P], instruction [N], key)``, of whole episodes.

    What the policy expects each of the ``R`` times that it acts, ``execute`` steps apart.
    """

    def run(params: WamParams, frames: Array, proprio: Array, instruction: Array, key: jax.Array) -> Array:
        latents = jnp.swapaxes(policy.watch(params.policy, jnp.swapaxes(frames, 0, 1), execute), 0, 1)
        frames, proprio = frames[::execute], proprio[::execute]
        told = jnp.broadcast_to(instruction, proprio.shape[:2])
        text = Text(features=params.text.features[told], mask=params.text.mask[told])
        observation = Observation(
            images=frames[:, :, None],
            proprio=proprio,
            text=text,
            embodiment=jnp.broadcast_to(params.embodiment, told.shape),
        )
        flat, latents = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (observation, latents))
        return policy.imagine(params.policy, flat, key, latents).reshape(*told.shape, -1, *frames.shape[2:])

    return jax.jit(run)
