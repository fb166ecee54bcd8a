"""The attention plans and the cache compute what dense masks over all tokens do, whatever the coupling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from wam_jax.nn.module import define, layer_slice
from wam_jax.nn.rotary import rotary_table, rotate
from wam_jax.types import Text
from wam_jax.wam.noise import StreamNoise
from wam_jax.wam.spec import Bridge, Expert, Mode, Spec, Stream
from wam_jax.wam.tokens import Tokens
from wam_jax.wam.trunk import Trunk, tapped_layers
from wam_jax.wam.visibility import (
    BIDIRECTIONAL,
    CHUNK_CAUSAL,
    CROSS,
    FIRST_FRAME_CAUSAL,
    FRAME_CAUSAL,
    Group,
    visibility_matrix,
)  # fmt: skip

BATCH = 2
COUPLINGS = ("unified", "mixture", "own_ffn", "spread", "one_layer", "parallel", "branch")
TIME = {"bidirectional": BIDIRECTIONAL, "first_frame": FIRST_FRAME_CAUSAL, "frame": FRAME_CAUSAL, "chunk": CHUNK_CAUSAL}


def make_spec(coupling: str, time: str, cross: str, layers: int = 2, remat: str = "none") -> Spec:
    """Video and actions, coupled one way or another."""
    video = Expert(name="video", width=8, ffn_width=12)
    action = {
        "mixture": Expert(name="action", width=12, ffn_width=8),
        "own_ffn": Expert(name="action", width=8, ffn_width=8, attention_of="video"),
        "spread": Expert(name="action", width=12, ffn_width=8, layers=3, bridge=Bridge(source="video")),
        "one_layer": Expert(name="action", width=12, ffn_width=8, layers=2, bridge=Bridge(source="video", layers=0)),
        "parallel": Expert(name="action", width=12, ffn_width=8, bridge=Bridge(source="video", layers="parallel")),
        "branch": Expert(name="depth", width=8, ffn_width=8, layers=1, branch_of="video"),
    }
    experts = [video, *([action[coupling]] if coupling in action else [])]
    if coupling == "parallel":
        experts[0] = dataclasses.replace(video, bridge=Bridge(source="action", layers="parallel"))
    of_action = {"unified": "video", "branch": "video"}.get(coupling, "action")
    streams = [
        Stream(name="video", kind="video", expert="video", noise=StreamNoise()),
        Stream(name="action", kind="action", expert=of_action, noise=StreamNoise()),
    ]
    if coupling == "branch":
        streams.append(Stream(name="depth", kind="depth", expert="depth", role="predicted"))
    return Spec(
        name=coupling, experts=tuple(experts), streams=tuple(streams), modes=(Mode(name="policy", stages=()),),
        num_layers=layers, num_heads=2, head_dim=6, visibility=TIME[time] & CROSS[cross], chunk_frames=1, remat=remat,
    )  # fmt: skip


def make_groups(spec: Spec, frames: int) -> tuple[Group, ...]:
    groups = []
    for block in range(frames + 1):
        for stream in spec.streams:
            size = 2 if stream.kind == "action" else 3
            if block and (stream.name != "depth"):
                groups.append(Group(stream=stream.name, block=block, clean=False, size=size))
            elif block:
                groups.append(Group(stream="depth", block=block, clean=False, size=3))
            if stream.name == "video" or (stream.name == "action" and block):
                groups.append(Group(stream=stream.name, block=block, clean=True, size=size))
    return tuple(groups)


def make_tokens(spec: Spec, groups: tuple[Group, ...]) -> Tokens:
    """Random tokens; each group's depend only on the group, so that passes over fewer groups get the same."""
    values, positions, sources, rows = [], [], [], []
    for group in groups:
        rng = np.random.default_rng([*repr(group).encode()])
        branched = spec.expert_of(group.stream).branch_of
        width = spec.expert_of(group.stream).width
        source = Group(stream="video", block=group.block, clean=False, size=group.size) if branched else None
        values.append(None if source else jnp.asarray(rng.normal(size=(BATCH, group.size, width)), jnp.float32))
        positions.append(rng.uniform(0, 8, (group.size, 3)).astype(np.float32))
        sources.append(source)
        rows.append(0 if group.clean else 1 if group.stream == "video" else 2)
    rng = np.random.default_rng(5)
    modulation = {e.name: jnp.asarray(rng.normal(0, 0.5, (BATCH, 3, 6, e.width)), jnp.float32) for e in spec.experts}
    return Tokens(groups, tuple(values), tuple(positions), tuple(rows), modulation, tuple(sources))


def make_text(spec: Spec) -> dict[str, Text]:
    mask, rng = jnp.array([[True, True, False], [True, True, True]]), np.random.default_rng(3)
    return {
        e.name: Text(features=jnp.asarray(rng.normal(size=(BATCH, 3, e.width)), jnp.float32), mask=mask)
        for e in spec.experts
        if e.attention_of is None
    }


def dense(query, key, value, mask):
    """Plain softmax attention under a dense mask; a query without any key gets zeros."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, -1e30), -1), 0.0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


class DenseTrunk:
    """The reference: group by group and layer by layer, one softmax over all tokens under a dense mask."""

    def __init__(self, trunk: Trunk, tokens: Tokens, text: dict[str, Text]):
        self.spec, self.trunk, self.tokens, self.text = trunk.spec, trunk, tokens, text
        self.x = dict(zip(tokens.groups, tokens.values, strict=True))
        self.taps: list[dict[Group, jax.Array]] = []

    def run(self) -> list[jax.Array]:
        spec, first, later = self.spec, [], []
        for expert in spec.experts:
            (later if expert.bridge and not expert.bridge.parallel else first).append(expert)
        for layer in range(spec.num_layers):
            running = [e for e in first if layer >= spec.num_layers - spec.layers(e)]
            for group, source in zip(self.tokens.groups, self.tokens.sources, strict=True):
                if source is not None and layer == spec.num_layers - spec.layers(spec.expert_of(group.stream)):
                    self.x[group] = self.x[source]
            self.layer(running, {e.name: layer - (spec.num_layers - spec.layers(e)) for e in running}, None)
            self.taps.append(dict(self.x))
        for expert in later:
            taps = tapped_layers(expert.bridge, spec.num_layers, spec.layers(expert))
            for layer, tap in enumerate(taps):
                self.layer([expert], {expert.name: layer}, self.taps[tap])
        return [self.x[group] for group in self.tokens.groups]

    def block(self, name: str, layer: int):
        graph, arrays = layer_slice(self.trunk.blocks[name])
        return nnx.merge(graph, jax.tree.map(lambda a: a[layer], arrays))

    def layer(self, experts, layers, tapped):
        spec, names = self.spec, {e.name for e in experts}
        groups = [g for g in self.tokens.groups if spec.stream(g.stream).expert in names]
        owner = {e.name: e.attention_of or e.name for e in experts}
        blocks = {e.name: self.block(e.name, layers[e.name]) for e in experts}
        mod, qkv, before = {}, {}, dict(self.x)
        for group in groups:
            expert, i = spec.stream(group.stream).expert, self.tokens.groups.index(group)
            mod[group] = self.tokens.modulation[expert][:, self.tokens.rows[i], None]
            q, k, v = blocks[expert].project(self.x[group], mod[group], blocks[owner[expert]].attention)
            table = rotary_table(self.tokens.positions[i], spec.head_dim)
            qkv[group] = rotate(q, table), rotate(k, table), v
        for group in groups:
            expert = spec.expert_of(group.stream)
            block, attention, words = (
                blocks[expert.name],
                blocks[owner[expert.name]].attention,
                self.text[owner[expert.name]],
            )
            bridge = expert.bridge
            joint = [g for g in groups if not bridge or spec.stream(g.stream).expert != bridge.source]
            attended = dense(
                qkv[group][0],
                *(jnp.concatenate([qkv[g][s] for g in joint], 1) for s in (1, 2)),
                self.mask(group, joint),
            )

            def read_text(cross, y, words=words):
                return cross(y, words.features, words.mask)

            x = block.attend(self.x[group], attended, mod[group], attention, read_text)
            if bridge:
                source = before if tapped is None else tapped
                read = [g for g in self.tokens.groups if spec.stream(g.stream).expert == bridge.source]
                pairs = [block.bridge.keys_values(source[g]) for g in read]
                keys, values = (jnp.concatenate([p[s] for p in pairs], 1) for s in (0, 1))
                x = block.read(x, dense(block.bridge.queries(x), keys, values, self.mask(group, read)))
            before[("new", group)] = block.feed_forward(x, mod[group])
        for group in groups:
            self.x[group] = before[("new", group)]

    def mask(self, query: Group, keys: list[Group]):
        row = visibility_matrix([query], keys, self.spec.visibility)[0]
        return jnp.asarray(np.repeat(row, [g.size for g in keys]))


def prefix_of(spec: Spec, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Clean groups that see only clean groups, as a cache would hold them."""
    visible = visibility_matrix(groups, groups, spec.visibility)
    return tuple(
        g
        for g, row in zip(groups, visible, strict=True)
        if g.clean and all(k.clean for k, s in zip(groups, row, strict=True) if s)
    )


@pytest.mark.slow
@settings(max_examples=20)
@given(st.sampled_from(COUPLINGS), st.sampled_from(sorted(TIME)), st.sampled_from(sorted(CROSS)), st.integers(1, 2))
def test_plan_and_cache_equal_dense_masks(coupling, time, cross, frames):
    check_against_dense(coupling, time, cross, frames)


SLOW = ("parallel", "one_layer", "branch", "unified")  # the others compile the same code


@pytest.mark.parametrize("coupling", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in COUPLINGS])
def test_every_coupling_equals_dense_masks(coupling):
    check_against_dense(coupling, "chunk", "mutual", 2)


def check_against_dense(coupling: str, time: str, cross: str, frames: int) -> None:
    spec = make_spec(coupling, time, cross)
    groups = make_groups(spec, frames)
    definition = define(lambda rngs: Trunk(spec, rngs))
    prefix = prefix_of(spec, groups)
    rest = tuple(g for g in groups if g not in prefix)

    @jax.jit
    def run(params):
        trunk, text = definition.bind(params), make_text(spec)
        together, *_ = trunk(make_tokens(spec, groups), text)
        cache = trunk(make_tokens(spec, prefix), text, keep=True)[1] if prefix else None
        later, *_ = trunk(make_tokens(spec, rest), text, *([cache] if cache else []))
        return together, later, DenseTrunk(trunk, make_tokens(spec, groups), text).run()

    leaves, tree = jax.tree.flatten(definition.shapes())
    rng = np.random.default_rng(0)
    params = tree.unflatten([jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves])
    together, later, expected = run(params)
    for group, ours, reference in zip(groups, together, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=5e-5, rtol=1e-4, err_msg=f"{coupling} {group}")
    for group, ours in zip(rest, later, strict=True):
        np.testing.assert_allclose(ours, together[groups.index(group)], atol=5e-5, rtol=1e-4, err_msg=f"cached {group}")


def test_taps_are_spread_from_the_first_layer_to_the_last():
    assert tapped_layers(Bridge(source="video"), 28, 8) == (0, 4, 8, 12, 15, 19, 23, 27)
    assert tapped_layers(Bridge(source="video"), 5, 1) == (4,)
    assert tapped_layers(Bridge(source="video", layers=17), 28, 3) == (17, 17, 17)
