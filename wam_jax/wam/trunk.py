"""The one diffusion transformer: experts side by side, joined by attention as the visibility rule says.

The layers run in *stretches*, each one scan over stacked blocks: the trunk itself (cut in two where an expert branches
off before the end), then every expert that reads it over a spread bridge. Within a stretch, tokens that run through the
same weights form a *lane*.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from wam_jax.nn.attention import attend, concatenate_tokens
from wam_jax.nn.block import DiTBlock
from wam_jax.nn.module import layer_slice, stack
from wam_jax.nn.rotary import rotary_table, rotate
from wam_jax.sharding import constrain, mesh_axis_size
from wam_jax.types import Text
from wam_jax.wam.spec import Bridge, Expert, Spec
from wam_jax.wam.visibility import Group, Segment, attention_plan, visibility_matrix

KeysValues = tuple[Float[Array, "*layers B n H Dh"], Float[Array, "*layers B n H Dh"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entry:
    """What one group left behind for later passes.

    Attributes:
      keys_values: in each stretch that it ran in, by the stretch's number; all layers.
      bridged: keys and values for each expert that reads it, all of that expert's layers.
      hidden: its tokens after its last layer.
      present: False hides the entry (a slot of a rolling cache that is not filled yet); None is always there.
    """

    keys_values: dict[int, KeysValues]
    bridged: dict[str, KeysValues]
    hidden: Float[Array, "B n D"]
    present: Bool[Array, ""] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The groups that all later passes attend to without running them again."""

    groups: tuple[Group, ...] = dataclasses.field(default=(), metadata={"static": True})
    entries: tuple[Entry, ...] = ()

    def __add__(self, other: "Cache") -> "Cache":
        return Cache(self.groups + other.groups, self.entries + other.entries)

    def entry(self, group: Group) -> Entry:
        return self.entries[self.groups.index(group)]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One pass's input.

    Attributes:
      groups: what runs.
      values: per group, its tokens at its expert's width; None copies the tokens of ``sources`` where it branches off.
      positions: per group, (time, row, column) of each token.
      rows: per group, which row of the modulation is its own.
      modulation: per expert, one row a distinct noise level (and state).
      sources: per group, the group it branches off from.
    """

    groups: tuple[Group, ...]
    values: tuple[Float[Array, "B n D"] | None, ...]
    positions: tuple[Float[Array | np.ndarray, "n 3"], ...]
    rows: tuple[int, ...]
    modulation: Mapping[str, Float[Array, "B S 6 D"]]
    sources: tuple[Group | None, ...]


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A run of layers over the same experts; ``start`` and ``stop`` index each expert's own stack."""

    number: int
    start: dict[str, int]
    stop: dict[str, int]

    @property
    def length(self) -> int:
        return next(self.stop[name] - start for name, start in self.start.items())


def stretches(spec: Spec) -> tuple[Stretch, ...]:
    """The trunk, and then what reads it."""
    behind = [e for e in spec.experts if e.bridge and not e.bridge.parallel]
    branches = [e for e in spec.experts if e.branch_of]
    trunk = [e.name for e in spec.experts if e not in behind and e not in branches]
    depths = {spec.layers(e) for e in branches}
    if len(depths) > 1:
        raise ValueError(f"{spec.name}: branches have {sorted(depths)} layers; give them equal numbers")
    cut = spec.num_layers - depths.pop() if depths else spec.num_layers
    runs = [(dict.fromkeys(trunk, 0), dict.fromkeys(trunk, cut))]
    if branches:
        names = [e.name for e in branches]
        runs.append(
            (
                {**dict.fromkeys(trunk, cut), **dict.fromkeys(names, 0)},
                dict.fromkeys([*trunk, *names], spec.num_layers) | dict.fromkeys(names, spec.num_layers - cut),
            )
        )
    runs += [({e.name: 0}, {e.name: spec.layers(e)}) for e in behind]
    return tuple(Stretch(number, start, stop) for number, (start, stop) in enumerate(runs))


def tapped_layers(bridge: Bridge, source_layers: int, own_layers: int) -> tuple[int, ...]:
    """The source's layer that each own layer reads: AGRA's round(j (M - 1) / (N - 1)), or one for all."""
    if isinstance(bridge.layers, int):
        return (bridge.layers,) * own_layers
    if own_layers == 1:
        return (source_layers - 1,)
    return tuple(round(j * (source_layers - 1) / (own_layers - 1)) for j in range(own_layers))


class Trunk(nnx.Module):
    """Stacked DiT blocks, one stack an expert."""

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        self.spec = spec
        self.blocks = nnx.Dict({e.name: stack(self._make_block(e), spec.layers(e), rngs) for e in spec.experts})

    def _make_block(self, expert: Expert) -> Callable[[nnx.Rngs], DiTBlock]:
        spec = self.spec
        return lambda rngs: DiTBlock(
            expert.width,
            expert.ffn_width,
            spec.num_heads,
            spec.head_dim,
            rngs,
            own_attention=expert.attention_of is None,
            text=expert.text,
            bridge=spec.expert(expert.bridge.source).width if expert.bridge else None,
            output_gain=0.5 / np.sqrt(spec.layers(expert) / 4),
        )

    def __call__(
        self, tokens: Tokens, text: Mapping[str, Text], cache: Cache = Cache(), keep: bool = False
    ) -> tuple[tuple[Float[Array, "B n D"], ...], Cache]:
        """Runs all layers.

        Args:
          tokens: of the groups to run.
          text: instruction features at each expert's width, for cross-attention.
          cache: what these groups may also see.
          keep: return what these groups leave for later passes.

        Returns:
          each group's tokens after the last layer, and a cache of these groups (empty unless ``keep``).
        """
        state = _State(tokens, cache)
        for stretch in stretches(self.spec):
            self._run(stretch, state, text, keep)
        hidden = tuple(state.x[group] for group in tokens.groups)
        if not keep:
            return hidden, Cache()
        entries = tuple(
            Entry(state.kept[group], state.bridged[group], x) for group, x in zip(tokens.groups, hidden, strict=True)
        )
        return hidden, Cache(tokens.groups, entries)

    def _run(self, stretch: Stretch, state: "_State", text: Mapping[str, Text], keep: bool) -> None:
        """One stretch: scans its layers, and notes in ``state`` what they leave."""
        members = [i for i, g in enumerate(state.tokens.groups) if self.spec.stream(g.stream).expert in stretch.start]
        if not members:
            return
        run = _StretchRun(self.spec, stretch, state, members)
        graphs, params = {}, {}
        for name in stretch.start:
            graphs[name], arrays = layer_slice(self.blocks[name])
            params[name] = jax.tree.map(lambda a, n=name: a[stretch.start[n] : stretch.stop[n]], arrays)

        def layer(x, inputs):
            layer_params, cached, bridged = inputs
            blocks = {name: nnx.merge(graphs[name], layer_params[name]) for name in graphs}
            return run.layer(blocks, x, text, cached, bridged, keep)

        policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
        if self.spec.remat != "none":
            layer = jax.checkpoint(layer, policy=policies[self.spec.remat])
        inputs = (params, run.cached, run.bridged)
        unroll = min(self.spec.unroll, stretch.length)
        x, (kept, taps, parallel) = jax.lax.scan(layer, run.start(), inputs, unroll=unroll)
        run.finish(x, kept, parallel)
        self._tap(stretch, run, taps, state)

    def _tap(self, stretch: Stretch, run: "_StretchRun", taps: Mapping, state: "_State") -> None:
        """Projects tapped hidden states to keys and values for every expert that reads them later."""
        for reader in self.spec.experts:
            if not reader.bridge or reader.bridge.parallel or reader.bridge.source not in stretch.start:
                continue
            layers = np.array(tapped_layers(reader.bridge, self.spec.num_layers, self.spec.layers(reader)))
            graph, arrays = layer_slice(self.blocks[reader.name])
            project = jax.vmap(lambda p, h, graph=graph: nnx.merge(graph, p).bridge.keys_values(h))
            for lane in run.lanes:
                if lane.expert != reader.bridge.source:
                    continue
                hidden = taps[lane.name][layers]
                hidden = jax.lax.stop_gradient(hidden) if reader.bridge.detach else hidden
                keys, values = project(arrays, hidden)
                for group, *pair in zip(lane.groups, lane.split(keys, 2), lane.split(values, 2), strict=True):
                    state.bridged[group][reader.name] = tuple(pair)


class _State:
    """What a pass has computed so far, by group."""

    def __init__(self, tokens: Tokens, cache: Cache):
        self.tokens, self.cache = tokens, cache
        self.x = {g: v for g, v in zip(tokens.groups, tokens.values, strict=True) if v is not None}
        self.kept: dict[Group, dict[int, KeysValues]] = {group: {} for group in tokens.groups}
        self.bridged: dict[Group, dict[str, KeysValues]] = {group: {} for group in tokens.groups}


@dataclasses.dataclass(frozen=True)
class Lane:
    """Groups whose tokens run through one expert's weights as one array [B, N, ...].

    ``rows`` > 1 under context parallelism: the array holds, device after device along the mesh axis, every group's
    share of that device, so that cutting out a group never moves data.
    """

    expert: str
    rows: int
    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        return f"{self.expert}/{self.rows}"

    def gather(self, parts: Sequence[Any], axis: int = 1) -> Any:
        """One array from the groups' own."""
        if self.rows == 1:
            return _concatenate(parts, axis)
        cut = [part.reshape(*part.shape[:axis], self.rows, -1, *part.shape[axis + 1 :]) for part in parts]
        joined = _concatenate(cut, axis + 1)
        return joined.reshape(*joined.shape[:axis], -1, *joined.shape[axis + 2 :])

    def split(self, x: Array, axis: int = 1) -> list[Array]:
        """The groups' own arrays."""
        if len(self.groups) == 1:
            return [x]
        cuts = np.cumsum([group.size // self.rows for group in self.groups])[:-1]
        if self.rows == 1:
            return jnp.split(x, cuts, axis)
        x = x.reshape(*x.shape[:axis], self.rows, -1, *x.shape[axis + 1 :])
        parts = jnp.split(x, cuts, axis + 1)
        return [part.reshape(*part.shape[:axis], -1, *part.shape[axis + 2 :]) for part in parts]

    def constrain(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Says where the tokens live: along ``context`` if they are cut, else on every device of it."""
        return constrain(x, ("batch", "tokens" if self.rows > 1 else None, None))


def _concatenate(parts: Sequence[Any], axis: int) -> Any:
    if len(parts) == 1:
        return parts[0]
    return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts, axis)


class _StretchRun:
    """One stretch of one pass: its lanes and attention plans, made once while tracing and used in every layer."""

    def __init__(self, spec: Spec, stretch: Stretch, state: _State, members: list[int]):
        self.spec, self.stretch, self.state = spec, stretch, state
        tokens, cache = state.tokens, state.cache
        self.groups = tuple(tokens.groups[i] for i in members)
        self.lanes = tuple(self._make_lanes())
        where = {group: i for i, group in enumerate(tokens.groups)}
        self.rotary, self.modulation = {}, {}
        for lane in self.lanes:
            numbers = [where[group] for group in lane.groups]
            positions = lane.gather([tokens.positions[i] for i in numbers], axis=0)
            self.rotary[lane.name] = rotary_table(positions, spec.head_dim)
            rows = [tokens.rows[i] for i in numbers]
            self.modulation[lane.name] = _per_token(lane, tokens.modulation[lane.expert], rows)
        self._plan_attention(cache)

    def _make_lanes(self):
        context = mesh_axis_size("context")
        for expert in self.stretch.start:
            own = [g for g in self.groups if self._expert(g).name == expert]
            for rows, divides in ((context, True), (1, False)) if context > 1 else ((1, None),):
                groups = tuple(g for g in own if divides is None or (g.size % context == 0) == divides)
                if groups:
                    yield Lane(expert, rows, groups)

    def _plan_attention(self, cache: Cache) -> None:
        number = self.stretch.number
        queries = [group for lane in self.lanes for group in lane.groups]
        inside = [(g, e) for g, e in zip(cache.groups, cache.entries, strict=True) if number in e.keys_values]
        keys = [*(g for g, _ in inside), *queries]
        visible = visibility_matrix(queries, keys, self.spec.visibility)
        joint = np.array([[not self._bridged(q, k) for k in keys] for q in queries], bool).reshape(visible.shape)
        self.plan: tuple[Segment, ...] = attention_plan(visible & joint)
        self.cached = tuple(entry.keys_values[number] for _, entry in inside)
        self.present = {i: entry.present for i, (_, entry) in enumerate(inside) if entry.present is not None}
        self.queries = queries
        self._plan_bridges(cache)

    def _plan_bridges(self, cache: Cache) -> None:
        """Per reading expert: which groups it reads, from the cache, from an earlier stretch, or beside it."""
        self.bridge_plans: dict[str, tuple[Segment, ...]] = {}
        self.bridged: dict[str, tuple[KeysValues, ...]] = {}
        self.beside: dict[str, list[Group]] = {}
        self.bridge_present: dict[str, dict[int, Array]] = {}
        for name in self.stretch.start:
            bridge = self.spec.expert(name).bridge
            if bridge is None:
                continue
            known = [
                (g, e.bridged[name], e.present)
                for g, e in zip(cache.groups, cache.entries, strict=True)
                if name in e.bridged
            ]
            known += [(g, kv[name], None) for g, kv in self.state.bridged.items() if name in kv]
            beside = [g for g in self.queries if self._expert(g).name == bridge.source] if bridge.parallel else []
            own = [g for lane in self.lanes if lane.expert == name for g in lane.groups]
            visible = visibility_matrix(own, [*(g for g, _, _ in known), *beside], self.spec.visibility)
            self.bridge_plans[name] = attention_plan(visible, may_be_blind=True)
            self.bridged[name] = tuple(kv for _, kv, _ in known)
            self.bridge_present[name] = {i: p for i, (_, _, p) in enumerate(known) if p is not None}
            self.beside[name] = beside

    def _expert(self, group: Group) -> Expert:
        return self.spec.expert_of(group.stream)

    def _bridged(self, query: Group, key: Group) -> bool:
        """Whether the query reaches the key over a bridge rather than by joint attention."""
        bridge = self._expert(query).bridge
        return bridge is not None and self._expert(key).name == bridge.source

    def start(self) -> dict[str, Array]:
        """Each lane's tokens before the first layer."""
        x, tokens = self.state.x, self.state.tokens
        for group, source in zip(tokens.groups, tokens.sources, strict=True):
            if group in self.groups and group not in x and source is not None:
                x[group] = x[source]
        return {lane.name: lane.constrain(lane.gather([x[g] for g in lane.groups])) for lane in self.lanes}

    def layer(self, blocks: Mapping[str, DiTBlock], x: dict[str, Array], text, cached, bridged, keep: bool):
        """One layer of every lane: (tokens by lane), and what to keep of it."""
        queries, own = {}, {}
        for lane in self.lanes:
            attention = blocks[self._owner(lane.expert)].attention
            query, key, value = blocks[lane.expert].project(x[lane.name], self.modulation[lane.name], attention)
            table = self.rotary[lane.name]
            query, key = rotate(query, table), rotate(key, table)
            for group, q, k, v in zip(lane.groups, *(lane.split(a) for a in (query, key, value)), strict=True):
                queries[group], own[group] = q, (k, v)
        own_in_order = tuple(own[group] for group in self.queries)
        attended = self._attend(self.plan, self.queries, queries, (*cached, *own_in_order), self.present)
        taps = {lane.name: x[lane.name] for lane in self.lanes}  # what parallel bridges read; replaced below for taps
        parallel = self._parallel_keys_values(blocks, taps)
        after = {}
        for lane in self.lanes:
            block, modulation = blocks[lane.expert], self.modulation[lane.name]
            attention, words = blocks[self._owner(lane.expert)].attention, text.get(self._owner(lane.expert))
            y = block.attend(
                x[lane.name], lane.gather([attended[g] for g in lane.groups]), modulation, attention,
                None if words is None else words.features, None if words is None else words.mask,
            )  # fmt: skip
            if lane.expert in self.bridge_plans:
                y = self._read(lane, block, y, (*bridged[lane.expert], *parallel[lane.expert]))
            after[lane.name] = lane.constrain(block.feed_forward(y, modulation))
        tapped = {lane.name: after[lane.name] for lane in self.lanes if lane.expert in self._tapped}
        return after, (own_in_order if keep else None, tapped, parallel if keep else None)

    @functools.cached_property
    def _tapped(self) -> set[str]:
        return {e.bridge.source for e in self.spec.experts if e.bridge and not e.bridge.parallel}

    def _owner(self, expert: str) -> str:
        return self.spec.expert(expert).attention_of or expert

    def _parallel_keys_values(self, blocks: Mapping[str, DiTBlock], x: Mapping[str, Array]) -> dict:
        """Per reading expert: keys and values of the groups beside it, from this layer's input."""
        found: dict[str, tuple[KeysValues, ...]] = dict.fromkeys(self.bridge_plans, ())
        for name, beside in self.beside.items():
            bridge, pairs = self.spec.expert(name).bridge, {}
            if bridge is None or not beside:
                continue
            for lane in self.lanes:
                if lane.expert == bridge.source:
                    hidden = jax.lax.stop_gradient(x[lane.name]) if bridge.detach else x[lane.name]
                    parts = (lane.split(a) for a in blocks[name].bridge.keys_values(hidden))
                    pairs.update({g: (k, v) for g, k, v in zip(lane.groups, *parts, strict=True)})
            found[name] = tuple(pairs[group] for group in beside)
        return found

    def _read(self, lane: Lane, block: DiTBlock, x: Array, available: tuple[KeysValues, ...]) -> Array:
        """Tokens of one lane after its bridge."""
        own = [g for other in self.lanes if other.expert == lane.expert for g in other.groups]
        queries = dict(zip(lane.groups, lane.split(block.bridge.queries(x)), strict=True))
        plan = self.bridge_plans[lane.expert]
        attended = self._attend(plan, own, queries, available, self.bridge_present[lane.expert])
        return block.read(x, lane.gather([attended[g] for g in lane.groups]))

    def _attend(
        self,
        plan: tuple[Segment, ...],
        order: Sequence[Group],
        queries: Mapping[Group, Array],
        available: Sequence[KeysValues],
        present: Mapping[int, Array],
    ) -> dict[Group, Array]:
        """What each query group attended to: one unmasked call a segment, unless it holds slots that may be empty."""
        attended: dict[Group, Array] = {}
        for segment in plan:
            members = [order[i] for i in segment.queries if order[i] in queries]
            if not members:
                continue
            if not segment.keys:
                attended.update({group: jnp.zeros_like(queries[group]) for group in members})
                continue
            keys, values = (concatenate_tokens([available[i][side] for i in segment.keys]) for side in (0, 1))
            mask = _key_mask(segment, available, present)
            rows = {lane.rows for lane in self.lanes for g in members if g in lane.groups}
            lane = Lane("", rows.pop() if len(rows) == 1 else 1, tuple(members))
            out = attend(lane.gather([queries[g] for g in members]), keys, values, mask)
            attended.update(zip(members, lane.split(out), strict=True))
        return attended

    def finish(self, x: Mapping[str, Array], kept, parallel) -> None:
        """Notes the tokens after the last layer, and what was kept."""
        for lane in self.lanes:
            self.state.x.update(zip(lane.groups, lane.split(x[lane.name]), strict=True))
        if kept is not None:
            for group, pair in zip(self.queries, kept, strict=True):
                self.state.kept[group][self.stretch.number] = pair
            for name, beside in self.beside.items():
                for group, pair in zip(beside, parallel[name], strict=True):
                    self.state.bridged[group][name] = pair


def _key_mask(
    segment: Segment, available: Sequence[KeysValues], present: Mapping[int, Array]
) -> Bool[Array, "B N"] | None:
    """Which keys are there; None where all are."""
    if not any(i in present for i in segment.keys):
        return None
    parts = []
    for i in segment.keys:
        shape = available[i][0].shape[:2]
        parts.append(jnp.broadcast_to(present[i], shape) if i in present else jnp.ones(shape, bool))
    return jnp.concatenate(parts, axis=1)


def _per_token(lane: Lane, modulation: Float[Array, "B S 6 D"], rows: Sequence[int]) -> Float[Array, "B N|1 6 D"]:
    """Modulation of each token, or of all at once where they share one row."""
    if len(set(rows)) == 1:
        return modulation[:, rows[0], None]
    parts = [jnp.repeat(modulation[:, row, None], g.size, axis=1) for g, row in zip(lane.groups, rows, strict=True)]
    return lane.gather(parts)
