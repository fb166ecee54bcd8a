"""What training carries from step to step: nothing but arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from wam_jax.nn.module import Definition, Params
from wam_jax.sharding import param_shardings, replicated
from wam_jax.training.partition import Select, everything, subset


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What is trained, its moving average (empty where none is kept), optimizer moments, how many steps were taken."""

    step: Int[Array, ""]
    params: Params
    ema: Params
    optimizer: Any

    @property
    def acting(self) -> Params:
        """What evaluation uses: the moving average, or the parameters where none is kept."""
        return self.ema or self.params


def state_shardings(
    definition: Definition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trained: Select = everything,
    average: bool = True,
) -> TrainState:
    """A ``NamedSharding`` for every array of the state: moments and average live where their parameter lives."""
    shapes = subset(definition.shapes(), trained)
    params = subset(param_shardings(mesh, definition.axes(), definition.shapes()), trained)
    everywhere = replicated(mesh)

    def place(moment: jax.ShapeDtypeStruct, sharding: NamedSharding, param: jax.ShapeDtypeStruct) -> NamedSharding:
        if moment.ndim != param.ndim:  # a factored moment: small
            return everywhere
        spec = (*sharding.spec, *(None for _ in range(param.ndim - len(sharding.spec))))
        kept = [axis if a == b else None for axis, a, b in zip(spec, moment.shape, param.shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*kept))

    moments = optax.tree.map_params(
        optimizer,
        place,
        jax.eval_shape(optimizer.init, shapes),
        params,
        shapes,
        transform_non_params=lambda _: everywhere,
        is_leaf=lambda x: isinstance(x, NamedSharding),
    )
    return TrainState(everywhere, params, params if average else {}, moments)  # type: ignore[arg-type]


def start_state(params: Params, optimizer: optax.GradientTransformation, average: bool = True) -> TrainState:
    """The state before the first step."""
    ema = jax.tree.map(jnp.copy, params) if average else {}
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def init_state(definition: Definition, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """A fresh state, created where it will live: no device ever holds the whole of a sharded parameter."""
    shardings = state_shardings(definition, optimizer, mesh)
    start = jax.jit(lambda key: start_state(definition.init(key), optimizer), out_shardings=shardings)
    return start(jax.random.key(seed))


def count_params(params: Params) -> int:
    """Number of scalars."""
    return sum(x.size for x in jax.tree.leaves(params))
