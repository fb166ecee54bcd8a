"""Demonstrations: the expert with noise on its actions, a batch of episodes as one compiled program."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Int64, PRNGKeyArray, UInt8

from wam_jax.sim.compilation import jit
from wam_jax.sim.control import ACTION_SCALE
from wam_jax.sim.tabletop import SimState, Tabletop
from wam_jax.sim.variation import in_shapes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """``N`` episodes of ``S`` steps; the observation of step t is from before action t.

    Attributes:
      images: pictures of the cameras, in the environment's order.
      depth: depth pictures of the same cameras, grey (`render.depth_from_image` gives metres), where asked for.
      proprio: tcp (m), commanded tcp (m), gripper opening.
      action: what was executed (``SimState.applied_action``), so actions add up to the command's motion.
      success: whether the instruction held after action t.
      instruction: index into the environment's ``instructions``.
    """

    images: UInt8[Array, "N S V H W 3"]
    depth: UInt8[Array, "N S V H W"] | None
    proprio: Float32[Array, "N S 7"]
    action: Float32[Array, "N S 4"]
    success: Bool[Array, "N S"]
    instruction: Int32[Array, "N"]

    @property
    def reward(self) -> Float32[Array, "N S"]:
        """1 where the instruction held after the action, else 0."""
        return self.success.astype(jnp.float32)


def generate(
    env: Tabletop,
    key: PRNGKeyArray,
    num_episodes: int,
    num_steps: int,
    action_noise: float = 0.15,
    wander_steps: int = 0,
    depth: bool = False,
    shapes: tuple[tuple[int, ...], ...] = (),
) -> Demonstrations:
    """Runs the expert, a pure function of ``key``.

    Args:
      action_noise: standard deviation of Gaussian noise on the three motions, in units of the action.
      wander_steps: steps before the first recorded one, in which the arm goes some way towards a random place. An
        expert that always starts at home leaves no example of how to come back from beside its path.
      depth: whether to draw depth pictures too.
      shapes: of each of ``OBJECT_COLORS``, the ``Variation.object_shapes`` that its objects are drawn from; empty:
        their own. Needs ``Tabletop(varied=True)``.
    """
    return _generate(env, key, num_episodes, num_steps, action_noise, wander_steps, depth, shapes)


@functools.partial(jit, static_argnums=(0, 2, 3, 5, 6, 7))
def _generate(
    env: Tabletop,
    key: PRNGKeyArray,
    num_episodes: int,
    num_steps: int,
    action_noise,
    wander_steps: int,
    depth: bool,
    shapes: tuple[tuple[int, ...], ...],
) -> Demonstrations:
    reset_key, noise_key = jax.random.split(key)
    states = reset_in_shapes(env, jax.random.split(reset_key, num_episodes), jax.random.fold_in(key, 3), shapes)
    if wander_steps:
        states = wander(env, states, jax.random.fold_in(key, 2), wander_steps)

    def render(state):
        return env.render_with_depth(state) if depth else (env.render(state), None)

    def step(states, key):
        action = jax.vmap(env.expert)(states)
        noise = action_noise * jax.random.normal(key, (num_episodes, 3))
        after = jax.vmap(env.step)(states, action.at[:, :3].add(noise))
        success = jax.vmap(env.outcome)(after).success
        return after, (*jax.vmap(render)(states), jax.vmap(env.proprio)(states), after.applied_action, success)

    _, steps = jax.lax.scan(step, states, jax.random.split(noise_key, num_steps))
    pictures, depths, proprio, action, success = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)
    return Demonstrations(
        images=pictures,
        depth=depths,
        proprio=proprio,
        action=action,
        success=success,
        instruction=states.instruction,
    )


def reset_in_shapes(
    env: Tabletop, keys: PRNGKeyArray, key: PRNGKeyArray, shapes: tuple[tuple[int, ...], ...]
) -> SimState:
    """New episodes, with the looks of each drawn from ``shapes`` (as in ``generate``)."""
    if not shapes:
        return jax.vmap(env.reset)(keys)
    return jax.vmap(env.reset)(keys, in_shapes(key, shapes, len(keys)))


def wander(env: Tabletop, states: SimState, key: PRNGKeyArray, steps: int) -> SimState:
    """Moves each arm a random share of the way to a random place above the table, gripper open."""
    place_key, share_key = jax.random.split(key)
    low, high = jnp.array(env.wander_box)
    start = states.command
    place = jax.random.uniform(place_key, start.shape, minval=low, maxval=high)
    goal = start + jax.random.uniform(share_key, (len(start), 1)) * (place - start)

    def step(states, _):
        motion = jnp.clip((goal - states.command) / ACTION_SCALE, -1.0, 1.0)
        return jax.vmap(env.step)(states, jnp.pad(motion, ((0, 0), (0, 1)), constant_values=1.0)), None

    return jax.lax.scan(step, states, length=steps)[0]


def generate_batches(
    env: Tabletop,
    key: PRNGKeyArray,
    num_episodes: int,
    num_steps: int | None = None,
    action_noise: float = 0.15,
    wander_steps: int = 0,
    batch_size: int = 128,
    depth: bool = False,
    shapes: tuple[tuple[int, ...], ...] = (),
) -> Iterator[Demonstrations]:
    """Yields ``num_episodes`` in batches; episode i is the same however many are asked for.

    Args:
      num_steps: of each episode; the task's ``expert_steps`` by default.
      batch_size: episodes that one compiled program runs at a time; the last batch is cut, not compiled anew.
      depth, shapes: as in ``generate``.
    """
    steps = num_steps or env.expert_steps
    for index, start in enumerate(range(0, num_episodes, batch_size)):
        batch_key = jax.random.fold_in(key, index)
        batch = generate(env, batch_key, batch_size, steps, action_noise, wander_steps, depth, shapes)
        left = num_episodes - start
        yield batch if left >= batch_size else jax.tree.map(lambda x, n=left: x[:n], batch)


def steps_to_success(success: Bool[np.ndarray, "N S"]) -> Int64[np.ndarray, "N"]:
    """The number of steps until the instruction holds for good; ``S`` where it does not at the end."""
    held_from = success.shape[1] - np.argmin(success[:, ::-1], axis=1)
    return np.where(success.all(1), 0, held_from)
