"""How modules are declared, initialised and called.

A module is a ``flax.nnx`` class: it declares parameters and names their logical axes. It is split once, into a static
``Definition`` and a plain nested dict of arrays; from then on everything is a pure function of that dict, under
``jax.jit``, ``jax.grad`` and ``lax.scan``.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

Params = dict[str, Any]  # a nested dict of arrays
Axes = tuple[str | None, ...]  # a logical axis name a dimension; see wam_jax/sharding.py
M = TypeVar("M", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Definition(Generic[M]):
    """A module without its arrays: hashable, safe to close over in a jitted function."""

    graph: Any
    make: Callable[[nnx.Rngs], M]
    keys: Any = dataclasses.field(compare=False)  # the parameter tree with flax's own keys: of lists, numbers

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32. Pure in ``key``."""
        return _named(nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(key)))))

    def bind(self, params: Params) -> M:
        """The module with these arrays, ready to be called."""
        return nnx.merge(self.graph, _as_flax_has_it(params, self.keys))

    def shapes(self) -> Params:
        """The parameter tree as ``jax.ShapeDtypeStruct``; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def axes(self) -> Params:
        """The parameter tree with each array replaced by its tuple of logical axes."""
        state = nnx.state(nnx.eval_shape(lambda: self.make(nnx.Rngs(0))))
        return _named(nnx.to_pure_dict(nnx.map_state(lambda _, param: param.get_metadata("axes"), state)))


def _named(tree: Any) -> Any:
    """The numbers of list entries as strings, so that a path is a string everywhere."""
    return {str(key): _named(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _as_flax_has_it(tree: Any, keys: Any) -> Any:
    """The inverse of ``_named``. By name, entry 10 of a list would come before entry 2."""
    if not isinstance(tree, dict):
        return tree
    own = {str(key): key for key in keys}
    return {own[name]: _as_flax_has_it(value, keys[own[name]]) for name, value in tree.items()}


def paths(params: Params) -> dict[str, Any]:
    """The arrays by path, as ``trunk/blocks/video/ffn/up/kernel``."""
    return flatten_dict(params, sep="/")


def by_path(flat: Mapping[str, Any]) -> Params:
    """The inverse of ``paths``."""
    return unflatten_dict(dict(flat), sep="/")


def define(make: Callable[[nnx.Rngs], M]) -> Definition[M]:
    """The definition of the module that ``make`` builds; no parameter is allocated."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return Definition(graph, make, nnx.to_pure_dict(state))


def stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """``count`` layers as one module whose arrays have a leading ``layers`` axis, for ``lax.scan``."""
    definition = define(make)
    params = jax.vmap(definition.init)(jax.random.split(rngs.params(), count))
    stacked = jax.tree.map(lambda value, axes: nnx.Param(value, axes=("layers", *axes)), params, definition.axes())
    return definition.bind(stacked)


def layer_slice(stacked: M) -> tuple[Any, Params]:
    """A stack as (graph definition of one layer, arrays to scan over)."""
    graph, state = nnx.split(stacked)
    return graph, nnx.to_pure_dict(state)


def normal(fan_in: int, gain: float = 1.0) -> Callable[[jax.Array, tuple[int, ...]], Array]:
    """Initialiser: normal with standard deviation gain / sqrt(fan_in)."""
    return lambda key, shape: jax.random.normal(key, shape) * (gain / math.sqrt(fan_in))


class Linear(nnx.Module):
    """``y = x W + b``, computed in the dtype of ``x`` from float32 parameters; see nn/lora.py for the factors."""

    lora_scale: float

    def __init__(self, inputs: int, outputs: int, axes: Axes, rngs: nnx.Rngs, gain: float = 1.0, bias: bool = True):
        self.kernel = nnx.Param(normal(inputs, gain)(rngs.params(), (inputs, outputs)), axes=axes)
        self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[1:]) if bias else None
        self.lora_a: nnx.Param | None = None
        self.lora_b: nnx.Param | None = None

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        y = x @ self.kernel[...].astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            y = y + self.lora_scale * (x @ self.lora_a[...].astype(x.dtype) @ self.lora_b[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learned scale, in float32."""

    def __init__(self, width: int, axes: Axes, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(width), axes=axes)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with learned scale and bias, in float32."""

    def __init__(self, width: int, axes: Axes, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(width), axes=axes)
        self.bias = nnx.Param(jnp.zeros(width), axes=axes)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return (standardize(x.astype(jnp.float32), self.epsilon) * self.scale[...] + self.bias[...]).astype(x.dtype)


def standardize(x: Float[Array, "*B D"], epsilon: float = 1e-6) -> Float[Array, "*B D"]:
    """Layer normalisation without parameters: mean 0, variance 1 over the last axis; computed in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)
    return y.astype(x.dtype)


class FeedForward(nnx.Module):
    """Linear, tanh-GELU, linear (the Wan feed-forward)."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs, gain: float = 1.0):
        self.up = Linear(width, hidden, ("embed", "mlp"), rngs)
        self.down = Linear(hidden, width, ("mlp", "embed"), rngs, gain=gain)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))
