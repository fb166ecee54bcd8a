"""What training carries from step to step: nothing but arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from wam_jax.nn.module import Definition, Params
from wam_jax.sharding import param_shardings, replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, their moving average, optimizer moments, and how many steps were taken."""

    step: Int[Array, ""]
    params: Params
    ema: Params
    optimizer: Any


def state_shardings(definition: Definition, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A ``NamedSharding`` for every array of the state: moments and average live where their parameter lives."""
    shapes = definition.shapes()
    params = param_shardings(mesh, definition.axes(), shapes)
    everywhere = replicated(mesh)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, shapes),
        params,
        transform_non_params=lambda _: everywhere,
        is_leaf=lambda x: isinstance(x, NamedSharding),
    )
    return TrainState(everywhere, params, params, moments)  # type: ignore[arg-type]


def init_state(definition: Definition, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """A fresh state, created where it will live: no device ever holds the whole of a sharded parameter."""

    def init(key):
        params = definition.init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    shardings = state_shardings(definition, optimizer, mesh)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def count_params(params: Params) -> int:
    """Number of scalars."""
    return sum(x.size for x in jax.tree.leaves(params))
