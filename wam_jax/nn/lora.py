"""Low-rank adaptation of linear layers (LoRA; Hu et al. 2021, arXiv 2106.09685).

An adapted layer computes x W + (alpha / rank) x A B. Its factors lie beside its kernel in the parameter tree, as
``lora_a`` and ``lora_b``, so that freezing, sharding and saving treat them like any other parameter. B starts at zero:
an adapted model begins as the one it adapts.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from wam_jax.nn.module import Definition, Linear, Params, define, normal

FACTORS = r"(.*/)?lora_[ab]"  # their paths


def is_factor(path: str) -> bool:
    """Whether a parameter is one of the two factors."""
    return re.fullmatch(FACTORS, path) is not None


M = TypeVar("M", bound=nnx.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Attributes:

    rank: of the update of each layer.
    alpha: the update is scaled by alpha / rank.
    targets: regular expression; a layer whose path (as ``trunk/blocks/video/ffn/up``) contains it is adapted.
    """

    rank: int
    alpha: float
    targets: str = r"trunk/.*(query|key|value|output|up|down)$"

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; it must be 1 or more")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"lora.targets {self.targets!r} is no regular expression: {error}") from None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def with_lora(definition: Definition[M], lora: Lora) -> Definition[M]:
    """The definition with factors in every layer that ``lora.targets`` names; other parameters start as before.

    Raises:
      ValueError: if no layer does.
    """

    def make(rngs: nnx.Rngs) -> M:
        module = definition.make(rngs)
        found = [layer for path, layer in _linears(module) if re.search(lora.targets, path)]
        if not found:
            paths = sorted(path for path, _ in _linears(module))
            raise ValueError(f"lora.targets {lora.targets!r} names no linear layer (has: {', '.join(paths[:6])}, ...)")
        for layer in found:
            _adapt(layer, lora, rngs)
        return module

    return define(make)


def merge(params: Params, scale: float) -> Params:
    """Plain parameters that compute the same: each update added to its kernel. ``scale``: ``Lora.scale``."""
    return _each_adapted(params, lambda layer: {**_plain(layer), "kernel": layer["kernel"] + update(layer, scale)})


def unmerge(merged: Params, adapted: Params, scale: float) -> Params:
    """The inverse of ``merge``, given the tree with the factors: its kernels are replaced by those without the update.

    Raises:
      KeyError: if the trees are not of the same model.
    """

    def split(plain: Any, layer: Any) -> Any:
        if not isinstance(layer, dict):
            return plain
        if "lora_a" not in layer:
            return {name: split(plain[name], value) for name, value in layer.items()}
        factors = {name: value for name, value in layer.items() if name.startswith("lora_")}
        return {**plain, "kernel": plain["kernel"] - update(layer, scale), **factors}

    return split(merged, adapted)


def update(layer: Params, scale: float) -> jax.Array:
    """scale · A B of one adapted layer, or of a stack of them; float32."""
    a, b = (layer[name].astype(jnp.float32) for name in ("lora_a", "lora_b"))
    return (scale * jnp.einsum("...ir,...ro->...io", a, b)).astype(layer["kernel"].dtype)


def _linears(module: nnx.Module) -> list[tuple[str, Linear]]:
    """Every linear layer (a stack counts as one) and its path."""
    found = nnx.iter_modules(module)
    return [("/".join(map(str, path)), layer) for path, layer in found if isinstance(layer, Linear)]


def _adapt(layer: Linear, lora: Lora, rngs: nnx.Rngs) -> None:
    *stacked, inputs, outputs = layer.kernel.shape
    *layers, axis_in, axis_out = layer.kernel.get_metadata("axes")
    start = normal(inputs)(rngs.params(), (*stacked, inputs, lora.rank))
    layer.lora_a = nnx.data(nnx.Param(start, axes=(*layers, axis_in, None)))  # was None, which is no data
    layer.lora_b = nnx.data(nnx.Param(jnp.zeros((*stacked, lora.rank, outputs)), axes=(*layers, None, axis_out)))
    layer.lora_scale = lora.scale


def _plain(layer: Params) -> Params:
    return {name: value for name, value in layer.items() if not name.startswith("lora_")}


def _each_adapted(tree: Any, change: Callable[[Params], Params]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "lora_a" in tree:
        return change(tree)
    return {name: _each_adapted(value, change) for name, value in tree.items()}
