"""What training carries from step to step: nothing but arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from wam_jax.nn.module import Definition, Params, paths
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
    places, sizes, everywhere = paths(params), paths(shapes), replicated(mesh)

    def place(keys: tuple, moment: jax.ShapeDtypeStruct) -> NamedSharding:
        """Of an array in the optimizer's state, which ends in its parameter's path: ``0/mu/trunk/...``."""
        names = jax.tree_util.keystr(keys, simple=True, separator="/").split("/")
        owner = next((p for i in range(len(names)) if (p := "/".join(names[i:])) in places), None)
        if owner is None or moment.ndim != len(sizes[owner].shape):  # a counter, or a factored moment: small
            return everywhere
        spec = (*places[owner].spec, *(None for _ in range(moment.ndim - len(places[owner].spec))))
        same = (a == b for a, b in zip(moment.shape, sizes[owner].shape, strict=True))
        return NamedSharding(
            mesh, PartitionSpec(*(axis if kept else None for axis, kept in zip(spec, same, strict=True)))
        )

    moments = jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, shapes))
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
