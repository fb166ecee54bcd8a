"""The attention plan and the cached prefix compute what a dense mask over all tokens does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wam_jax.nn.module import define, layer_slice
from wam_jax.nn.rotary import rotary_table, rotate
from wam_jax.types import Text
from wam_jax.wam.trunk import Modulation, Tokens, Trunk
from wam_jax.wam.visibility import COUPLINGS, Group, visibility_matrix

CLEAN = (Group(stream="video", block=0, clean=True, size=4), Group(stream="state", block=0, clean=True, size=1))
NOISY = tuple(
    Group(stream=stream, block=block, clean=False, size=size, draw=draw)
    for draw in (0, 1)
    for stream, block, size in (("video", 1, 3), ("action", 1, 2), ("video", 2, 3))
)


def make_tokens(spec, groups, seed=0) -> Tokens:
    """Random tokens; each group's depend only on the group, so that passes over fewer groups get the same."""
    values, positions, modulation = [], [], {}
    for group in groups:
        rng = np.random.default_rng([seed, *repr(group).encode()])
        width = spec.expert(spec.stream(group.stream).expert).width
        values.append(jnp.asarray(rng.normal(size=(2, group.size, width)), jnp.float32))
        positions.append(rng.uniform(0, 8, (group.size, 3)).astype(np.float32))
    for expert in spec.experts:
        levels = tuple(dict.fromkeys(g.level for g in groups if spec.stream(g.stream).expert == expert.name))
        columns = [
            np.random.default_rng(list(f"{expert.name} {level}".encode())).normal(0, 0.5, (2, 6, expert.width))
            for level in levels
        ]
        if levels:
            modulation[expert.name] = Modulation(levels, jnp.asarray(np.stack(columns, 1), jnp.float32))
    return Tokens(tuple(groups), tuple(values), tuple(positions), modulation)


def make_text(spec) -> dict[str, Text]:
    mask = jnp.array([[True, True, False], [True, True, True]])
    rng = np.random.default_rng(3)
    return {
        expert.name: Text(features=jnp.asarray(rng.normal(size=(2, 3, expert.width)), jnp.float32), mask=mask)
        for expert in spec.experts
    }


def dense_trunk(trunk, tokens, text) -> list[jax.Array]:
    """The reference: layer by layer, group by group, one softmax over all tokens under a dense mask."""
    spec, groups = trunk.spec, tokens.groups
    group_of_token = np.repeat(np.arange(len(groups)), [group.size for group in groups])
    mask = visibility_matrix(groups, groups, spec.visibility)[np.ix_(group_of_token, group_of_token)]
    experts = [spec.stream(group.stream).expert for group in groups]
    modulations = [
        tokens.modulation[e].values[:, [tokens.modulation[e].levels.index(g.level)]]
        for e, g in zip(experts, groups, strict=True)
    ]
    tables = [rotary_table(where, spec.head_dim) for where in tokens.positions]
    x = list(tokens.values)
    for layer in range(spec.num_layers):
        blocks = {}
        for name, stacked in trunk.blocks.items():
            graph, arrays = layer_slice(stacked)
            blocks[name] = nnx.merge(graph, jax.tree.map(lambda a: a[layer], arrays))  # noqa: B023
        projected = [blocks[e].project(x[i], modulations[i]) for i, e in enumerate(experts)]
        query, key = (
            jnp.concatenate([rotate(p[side], t) for p, t in zip(projected, tables, strict=True)], 1) for side in (0, 1)
        )
        value = jnp.concatenate([p[2] for p in projected], 1)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(spec.head_dim)
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), -1)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        parts = jnp.split(attended, np.cumsum([g.size for g in groups])[:-1], axis=1)
        x = [
            blocks[e].finish(x[i], parts[i], modulations[i], text[e].features, text[e].mask)
            for i, e in enumerate(experts)
        ]
    return x


@pytest.fixture(scope="module", params=sorted(COUPLINGS))
def passes(request, tiny) -> dict[str, list[np.ndarray]]:
    """The same groups through the trunk in several ways; one program, so that it compiles once."""
    spec = tiny.spec(coupling=request.param)
    definition = define(lambda rngs: Trunk(spec, rngs))

    @jax.jit
    def run(params):
        trunk, text, everything = definition.bind(params), make_text(spec), (*CLEAN, *NOISY)
        together, _ = trunk(make_tokens(spec, everything), text)
        backward, _ = trunk(make_tokens(spec, everything[::-1]), text)
        clean, cache = trunk(make_tokens(spec, CLEAN), text, keep=True)
        noisy, _ = trunk(make_tokens(spec, NOISY), text, cache)
        return {
            "together": together,
            "backward": backward[::-1],
            "cached": (*clean, *noisy),
            "dense": dense_trunk(trunk, make_tokens(spec, everything), text),
        }

    return {name: [np.asarray(x) for x in values] for name, values in run(definition.init(jax.random.key(0))).items()}


@pytest.mark.parametrize("way", ["dense", "cached", "backward"])
def test_plan_equals_a_dense_mask_a_cached_prefix_and_another_order(passes, way):
    for group, ours, other in zip((*CLEAN, *NOISY), passes["together"], passes[way], strict=True):
        np.testing.assert_allclose(ours, other, atol=2e-5, err_msg=f"{group}")
