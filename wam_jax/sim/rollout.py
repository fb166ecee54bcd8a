"""Closed-loop rollouts: policy, physics and pixels as one compiled program over a batch of episodes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from wam_jax.policy import Policy, PolicyParams
from wam_jax.sim import compilation
from wam_jax.sim.tabletop import SimState, Tabletop
from wam_jax.sim.tasks import Outcome
from wam_jax.types import Observation, Text

# parameters, batched states, key -> the actions to execute before acting anew
Actor = Callable[[Any, SimState, jax.Array], Float[Array, "N E A"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class WamParams:
    """What a world action model needs to act on instructions.

    Attributes:
      policy: model and tokenizer.
      text: features of every instruction of the environment, row by row.
      misinform: give the policy an instruction that names another object (the control for language).
    """

    policy: PolicyParams
    text: Text
    misinform: Bool[Array, ""]


def wam_actor(env: Tabletop, policy: Policy, execute: int) -> Actor:
    """Renders, infers a chunk, and executes its first ``execute`` actions (receding horizon)."""

    def act(params: WamParams, states: SimState, key: jax.Array) -> Float[Array, "N E A"]:
        chunk, _ = policy.act(params.policy, None, observe(env, params, states), key)
        return chunk[:, :execute]

    return act


def scripted_actor(env: Tabletop) -> Actor:
    """The scripted expert, or random actions: the parameter 0 or 1 chooses, so that one program serves both."""

    def act(randomness: Float[Array, ""], states: SimState, key: jax.Array) -> Float[Array, "N 1 A"]:
        expert = jax.vmap(env.expert)(states)
        noise = jax.random.uniform(key, expert.shape, minval=-1.0, maxval=1.0)
        return jnp.where(randomness > 0, noise, expert)[:, None]

    return act


def observe(env: Tabletop, params: WamParams, states: SimState) -> Observation:
    """What the policy sees of a batch of states."""
    told = jnp.where(params.misinform, jax.vmap(env.wrong_instruction)(states), states.instruction)
    return Observation(
        images=jax.vmap(env.render)(states),
        proprio=jax.vmap(env.proprio)(states),
        text=Text(features=params.text.features[told], mask=params.text.mask[told]),
    )


def rollout(env: Tabletop, actor: Actor, num_steps: int) -> Callable[[Any, Array, jax.Array], Outcome]:
    """A jitted ``run(params, episode_keys, key) -> Outcome`` with arrays [T, N].

    ``episode_keys`` [N] decide the starts, so that two policies can be compared on the same episodes; ``key`` is the
    policy's own randomness. The outcome at t is judged after t + 1 steps, always against the true instruction.
    """

    def run(params: Any, episode_keys: Array, key: jax.Array) -> Outcome:
        states = jax.vmap(env.reset)(episode_keys)

        def replan(states, key):
            return execute(env, states, actor(params, states, key))

        width = jax.eval_shape(actor, params, states, key).shape[1]
        _, outcomes = jax.lax.scan(replan, states, jax.random.split(key, -(-num_steps // width)))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_steps], outcomes)

    return compilation.jit(run)


def execute(env: Tabletop, states: SimState, actions: Float[Array, "N E A"]) -> tuple[SimState, Outcome]:
    """Runs E actions; outcomes are [E, N]."""

    def step(states, action):
        states = jax.vmap(env.step)(states, action)
        return states, jax.vmap(env.outcome)(states)

    return jax.lax.scan(step, states, jnp.swapaxes(actions, 0, 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """Rollouts to look at.

    Attributes:
      frames: what the cameras saw before each step.
      imagined: at each replanning, the future frames the model expected.
      success: whether the instruction held at the end.
      instruction: what the policy was told.
    """

    frames: UInt8[Array, "T N V H W 3"]
    imagined: UInt8[Array, "R N F V H W 3"]
    success: Bool[Array, "N"]
    instruction: Int[Array, "N"]


def record(
    env: Tabletop, policy: Policy, execute_steps: int, num_steps: int
) -> Callable[[WamParams, Array, jax.Array], Recording]:
    """A jitted ``run(params, episode_keys, key)`` that also renders every step and imagines at every replanning."""
    actor = wam_actor(env, policy, execute_steps)

    def run(params: WamParams, episode_keys: Array, key: jax.Array) -> Recording:
        states = jax.vmap(env.reset)(episode_keys)
        told = states.instruction

        def replan(states, key):
            act_key, imagine_key = jax.random.split(key)
            imagined = policy.imagine(params.policy, observe(env, params, states), imagine_key)

            def step(states, action):
                frame = jax.vmap(env.render)(states)
                return jax.vmap(env.step)(states, action), frame

            actions = actor(params, states, act_key)
            states, frames = jax.lax.scan(step, states, jnp.swapaxes(actions, 0, 1))
            return states, (frames, imagined)

        states, (frames, imagined) = jax.lax.scan(replan, states, jax.random.split(key, num_steps // execute_steps))
        return Recording(
            frames=frames.reshape(-1, *frames.shape[2:]),
            imagined=imagined,
            success=jax.vmap(env.outcome)(states).success,
            instruction=told,
        )

    return compilation.jit(run)
