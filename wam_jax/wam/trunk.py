"""The one diffusion transformer: experts side by side, joined by attention as the visibility rules say."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.attention import attend, concatenate_tokens
from wam_jax.nn.block import DiTBlock
from wam_jax.nn.module import layer_slice, stack
from wam_jax.nn.rotary import rotary_table, rotate
from wam_jax.types import Text
from wam_jax.wam.spec import Spec
from wam_jax.wam.visibility import Group, Segment, attention_plan, visibility_matrix

KeysValues = tuple[Float[Array, "*layers B n H Dh"], Float[Array, "*layers B n H Dh"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the clean groups in every layer: the prefix that all later passes attend to."""

    groups: tuple[Group, ...] = dataclasses.field(metadata={"static": True})
    keys_values: tuple[KeysValues, ...]


@dataclasses.dataclass(frozen=True)
class Modulation:
    """An expert's adaLN modulation, one entry a distinct noise level."""

    levels: tuple[str, ...]
    values: Float[Array, "B S 6 D"]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One pass's input.

    Attributes:
      groups: what runs.
      values: per group, its tokens at its expert's width.
      positions: per group, (time, row, column) of each token.
      modulation: per expert.
    """

    groups: tuple[Group, ...]
    values: tuple[Float[Array, "B n D"], ...]
    positions: tuple[Float[np.ndarray, "n 3"], ...]
    modulation: Mapping[str, Modulation]


class Trunk(nnx.Module):
    """Stacked DiT blocks, one stack an expert, scanned together."""

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        gain = 0.5 / np.sqrt(spec.num_layers / 4)

        def block(width: int, ffn_width: int):
            return lambda layer_rngs: DiTBlock(
                width, ffn_width, spec.num_heads, spec.head_dim, layer_rngs, output_gain=gain
            )

        self.spec = spec
        self.blocks = nnx.Dict(
            {
                expert.name: stack(block(expert.width, expert.ffn_width), spec.num_layers, rngs)
                for expert in spec.experts
            }
        )

    def __call__(
        self, tokens: Tokens, text: Mapping[str, Text], cache: Cache | None = None, keep: bool = False
    ) -> tuple[tuple[Float[Array, "B n D"], ...], Cache | None]:
        """Runs all layers.

        Args:
          tokens: the groups to run.
          text: the instruction at each expert's width.
          cache: the clean prefix, computed before, that these groups may also see.
          keep: return this pass's keys and values as a cache (for clean groups).

        Returns:
          each group's tokens after the last layer, and the new cache if ``keep``.
        """
        cached_groups = () if cache is None else cache.groups
        joint = _JointAttention(self.spec, tokens.groups, tokens.positions, cached_groups)
        modulation = {
            name: _per_token([tokens.groups[i] for i in members], tokens.modulation[name])
            for name, members in joint.members.items()
        }
        start = {
            name: concatenate_tokens([tokens.values[i] for i in members]) for name, members in joint.members.items()
        }
        slices = {name: layer_slice(self.blocks[name]) for name in joint.members}
        graphs = {name: graph for name, (graph, _) in slices.items()}
        params = {name: arrays for name, (_, arrays) in slices.items()}

        def layer(x, inputs):
            layer_params, cached = inputs
            blocks = {name: nnx.merge(graphs[name], layer_params[name]) for name in graphs}
            attended, own = joint({n: blocks[n].project(x[n], modulation[n]) for n in blocks}, cached)
            x = {n: blocks[n].finish(x[n], attended[n], modulation[n], text[n].features, text[n].mask) for n in blocks}
            return x, own if keep else None

        if self.spec.remat == "full":
            layer = jax.checkpoint(layer)
        inputs = (params, () if cache is None else cache.keys_values)
        x, kept = jax.lax.scan(layer, start, inputs, unroll=self.spec.unroll)
        by_group: list = [None] * len(tokens.groups)
        for name, members in joint.members.items():
            for index, part in zip(members, joint.split(x[name], members), strict=True):
                by_group[index] = part
        return tuple(by_group), Cache(tokens.groups, kept) if keep else None


class _JointAttention:
    """The attention plan of one pass, made once while tracing and applied in every layer."""

    def __init__(
        self, spec: Spec, groups: tuple[Group, ...], positions: tuple[np.ndarray, ...], cached: tuple[Group, ...]
    ):
        self.groups = groups
        self.members = {
            expert.name: tuple(i for i, group in enumerate(groups) if spec.stream(group.stream).expert == expert.name)
            for expert in spec.experts
        }
        self.members = {name: members for name, members in self.members.items() if members}
        self.rotary = {
            name: rotary_table(np.concatenate([positions[i] for i in members]), spec.head_dim)
            for name, members in self.members.items()
        }
        visible = visibility_matrix(groups, (*cached, *groups), spec.visibility)
        self.plan: tuple[Segment, ...] = attention_plan(visible)

    def __call__(self, projected: Mapping[str, tuple[Array, Array, Array]], cached: tuple[KeysValues, ...]):
        """Attended values per expert, and this pass's own (keys, values) per group."""
        queries: dict[int, Array] = {}
        own: dict[int, KeysValues] = {}
        for name, (query, key, value) in projected.items():
            members, table = self.members[name], self.rotary[name]
            parts = (self.split(x, members) for x in (rotate(query, table), rotate(key, table), value))
            for index, q, k, v in zip(members, *parts, strict=True):
                queries[index], own[index] = q, (k, v)
        own_in_order = tuple(own[i] for i in range(len(self.groups)))
        available = (*cached, *own_in_order)
        attended: dict[int, Array] = {}
        for segment in self.plan:
            keys, values = (concatenate_tokens([available[i][side] for i in segment.keys]) for side in (0, 1))
            out = attend(concatenate_tokens([queries[i] for i in segment.queries]), keys, values)
            for index, part in zip(segment.queries, self.split(out, segment.queries), strict=True):
                attended[index] = part
        by_expert = {name: concatenate_tokens([attended[i] for i in members]) for name, members in self.members.items()}
        return by_expert, own_in_order

    def split(self, x: Array, members: tuple[int, ...]) -> list[Array]:
        """Cuts tokens along axis 1 into the groups ``members``."""
        sizes = [self.groups[i].size for i in members]
        return [x] if len(sizes) == 1 else jnp.split(x, np.cumsum(sizes)[:-1], axis=1)


def _per_token(groups: list[Group], modulation: Modulation) -> Float[Array, "B N|1 6 D"]:
    """Modulation of each token, or of all at once where they share one noise level."""
    if len(modulation.levels) == 1:
        return modulation.values
    columns = [modulation.levels.index(group.level) for group in groups]
    parts = [modulation.values[:, column, None] for column in columns]
    return jnp.concatenate([jnp.repeat(part, g.size, axis=1) for g, part in zip(groups, parts, strict=True)], axis=1)
