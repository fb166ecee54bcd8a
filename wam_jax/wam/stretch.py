"""A run of layers over the same experts: which tokens run together, who attends to whom, and one layer of it.

The layers run in *stretches*, each one scan over stacked blocks: the trunk itself (cut in two where an expert branches
off before the end), then every expert that reads tapped layers over a bridge. Within a stretch, tokens that run through
the same weights form a *lane*.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wam_jax.nn.attention import CrossAttention, KeysValues, attend, concatenate_tokens
from wam_jax.nn.block import DiTBlock
from wam_jax.nn.rotary import rotary_table, rotate
from wam_jax.sharding import mesh_axis_size
from wam_jax.types import Text
from wam_jax.wam.lanes import Lane
from wam_jax.wam.lens import Shown, mean_attention, read_through
from wam_jax.wam.spec import Expert, Spec
from wam_jax.wam.tokens import Cache, Tokens
from wam_jax.wam.visibility import Group, Segment, attention_plan, visibility_matrix


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


class PassState:
    """What a pass has computed so far, by group."""

    def __init__(self, tokens: Tokens, cache: Cache):
        self.tokens, self.cache = tokens, cache
        self.x = {g: v for g, v in zip(tokens.groups, tokens.values, strict=True) if v is not None}
        self.kept: dict[Group, dict[int, KeysValues]] = {group: {} for group in tokens.groups}
        self.bridged: dict[Group, dict[str, KeysValues]] = {group: {} for group in tokens.groups}
        episodes = tokens.key_episode or (None,) * len(tokens.groups)
        self.key_episode = dict(zip(tokens.groups, episodes, strict=True))
        self.positions = dict(zip(tokens.groups, tokens.positions, strict=True))
        self.positions.update({g: e.positions for g, e in zip(cache.groups, cache.entries, strict=True)})
        self.layers: dict[Group, list[Array]] = {}
        self.attention: list[Array] = []

    def shown(self) -> Shown:
        """What the lens shows of all stretches."""
        lens = self.tokens.lens
        if lens is None:
            return Shown({})
        layers = {group: jnp.concatenate(parts)[np.array(lens.layers)] for group, parts in self.layers.items()}
        return Shown(layers, jnp.concatenate(self.attention) if self.attention else None)


@dataclasses.dataclass(frozen=True)
class Keys:
    """What can be attended to in one way, in order: group by group.

    Attributes:
      present: of those that may be absent in part, by number, which tokens are there.
      episodes: whose tokens may see each.
      rotated: whether rotary positions turned them.
    """

    groups: Sequence[Group]
    present: Mapping[int, Array]
    episodes: Sequence[Array | None]
    rotated: bool


class StretchRun:
    """One stretch of one pass: its lanes and attention plans, made once while tracing and used in every layer."""

    def __init__(self, spec: Spec, stretch: Stretch, state: PassState, members: list[int]):
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
        present = {i: entry.present for i, (_, entry) in enumerate(inside) if entry.present is not None}
        episodes = [*(entry.episode for _, entry in inside), *(self.state.key_episode[g] for g in queries)]
        self.keys = Keys(keys, present, episodes, rotated=True)
        self.queries = queries
        self._plan_bridges(cache)

    def _plan_bridges(self, cache: Cache) -> None:
        """Per reading expert: which groups it reads, from the cache, from an earlier stretch, or beside it."""
        self.bridge_plans: dict[str, tuple[Segment, ...]] = {}
        self.bridged: dict[str, tuple[KeysValues, ...]] = {}
        self.beside: dict[str, list[Group]] = {}
        self.bridge_keys: dict[str, Keys] = {}
        for name in self.stretch.start:
            bridge = self.spec.expert(name).bridge
            if bridge is None:
                continue
            known = [
                (g, e.bridged[name], e.present, e.episode)
                for g, e in zip(cache.groups, cache.entries, strict=True)
                if name in e.bridged
            ]
            own_episode = self.state.key_episode
            known += [(g, kv[name], None, own_episode[g]) for g, kv in self.state.bridged.items() if name in kv]
            beside = [g for g in self.queries if self._expert(g).name == bridge.source] if bridge.parallel else []
            own = [g for lane in self.lanes if lane.expert == name for g in lane.groups]
            groups = [*(g for g, *_ in known), *beside]
            visible = visibility_matrix(own, groups, self.spec.visibility)
            self.bridge_plans[name] = attention_plan(visible, may_be_blind=True)
            self.bridged[name] = tuple(kv for _, kv, *_ in known)
            present = {i: p for i, (_, _, p, _) in enumerate(known) if p is not None}
            episodes = [*(e for *_, e in known), *(own_episode[g] for g in beside)]
            self.bridge_keys[name] = Keys(groups, present, episodes, rotated=False)
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

    def layer(self, blocks: Mapping[str, DiTBlock], x: dict[str, Array], text, image, cached, bridged, keep: bool):
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
        available = (*cached, *own_in_order)
        seen: list[tuple[int, Array]] = []  # by so many queries
        attended = self._attend(self.plan, self.queries, queries, self.keys, available, seen)
        parallel = self._parallel_keys_values(blocks, x)
        after = {}
        for lane in self.lanes:
            block, modulation = blocks[lane.expert], self.modulation[lane.name]
            owner = self._owner(lane.expert)
            gathered, read = lane.gather([attended[g] for g in lane.groups]), None
            if owner in text:
                read = functools.partial(self._read_text, lane, text[owner], image.get(owner))
            y = block.attend(x[lane.name], gathered, modulation, blocks[owner].attention, read)
            if lane.expert in self.bridge_plans:
                y = self._read(lane, block, y, (*bridged[lane.expert], *parallel[lane.expert]), seen)
            after[lane.name] = lane.constrain(block.feed_forward(y, modulation))
        tapped = {lane.name: after[lane.name] for lane in self.lanes if lane.expert in self._tapped}
        return after, (own_in_order if keep else None, tapped, parallel if keep else None, mean_attention(seen))

    @functools.cached_property
    def _tapped(self) -> set[str]:
        """Experts of which every layer's tokens are wanted."""
        tapped = {e.bridge.source for e in self.spec.experts if e.bridge and not e.bridge.parallel}
        return tapped | {self._expert(group).name for group in self._shown_groups}

    @functools.cached_property
    def _shown_groups(self) -> tuple[Group, ...]:
        """Groups of this stretch whose tokens the lens shows."""
        lens = self.state.tokens.lens
        if lens is None or not lens.layers:
            return ()
        return tuple(g for g in self.groups if lens.is_source(self.spec, g))

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

    def _read_text(
        self, lane: Lane, words: Text, image: Array | None, attention: CrossAttention, x: Float[Array, "B N D"]
    ) -> Float[Array, "B N D"]:
        """Cross-attention of a lane to the instruction; of packed rows, of every block to its episode's."""
        episode = self.state.tokens.episode
        if episode is None:
            return attention(x, words.features, words.mask, image)
        parts = dict(zip(lane.groups, lane.split(x), strict=True))
        for size in {group.size for group in lane.groups}:  # blocks of equal size are one call
            groups = [group for group in lane.groups if group.size == size]
            mine = episode[:, jnp.array([group.block for group in groups])]  # [B, groups]
            features, mask = (jax.vmap(lambda t, e: t[e])(t, mine) for t in (words.features, words.mask))
            stacked = jnp.stack([parts[group] for group in groups], 1)
            flat = (a.reshape(-1, *a.shape[2:]) for a in (stacked, features, mask))
            found = attention(*flat).reshape(stacked.shape)
            parts.update({group: found[:, i] for i, group in enumerate(groups)})
        return lane.gather([parts[group] for group in lane.groups])

    def _read(
        self, lane: Lane, block: DiTBlock, x: Array, available: tuple[KeysValues, ...], seen: list[tuple[int, Array]]
    ) -> Array:
        """Tokens of one lane after its bridge."""
        own = [g for other in self.lanes if other.expert == lane.expert for g in other.groups]
        queries = dict(zip(lane.groups, lane.split(block.bridge.queries(x)), strict=True))
        keys = self.bridge_keys[lane.expert]
        attended = self._attend(self.bridge_plans[lane.expert], own, queries, keys, available, seen)
        return block.read(x, lane.gather([attended[g] for g in lane.groups]))

    def _attend(
        self,
        plan: tuple[Segment, ...],
        order: Sequence[Group],
        queries: Mapping[Group, Array],
        keys: Keys,
        available: Sequence[KeysValues],
        seen: list[tuple[int, Array]],
    ) -> dict[Group, Array]:
        """What each query group attended to: one call a segment.

        It is unmasked, unless it holds slots that may be empty or the rows are packed. What the lens shows of the
        reader's attention is added to ``seen``.
        """
        attended: dict[Group, Array] = {}
        lens = self.state.tokens.lens
        for segment in plan:
            for members in self._readers_apart([order[i] for i in segment.queries if order[i] in queries]):
                if not segment.keys:
                    attended.update({group: jnp.zeros_like(queries[group]) for group in members})
                    continue
                pairs = [available[i] for i in segment.keys]
                mask = _key_mask(segment, available, keys.present)
                if self.state.tokens.episode is not None:
                    sizes = [key.shape[1] for key, _ in pairs]
                    own = self._own_episode(members, sizes, [keys.episodes[i] for i in segment.keys])
                    mask = own if mask is None else mask & own
                rows = {lane.rows for lane in self.lanes for g in members if g in lane.groups}
                lane = Lane("", rows.pop() if len(rows) == 1 else 1, tuple(members))
                query = lane.gather([queries[g] for g in members])
                if lens is not None and lens.reads(self.spec, members[0]):
                    groups = [keys.groups[i] for i in segment.keys]
                    where = [self.state.positions[group] if keys.rotated else None for group in groups]
                    source = [lens.looks_at(self.spec, group) for group in groups]
                    if keys.rotated and lens.change is not None:
                        self._check_positions(groups, where, source)
                    shown = lens.frame_tokens if lens.shows(self.spec, members[0]) else None
                    pairs, attention = read_through(lens.change, shown, query, pairs, source, where, mask)
                    seen += [] if attention is None else [(query.shape[1], attention)]
                joined = (concatenate_tokens([pair[side] for pair in pairs]) for side in (0, 1))
                out = attend(query, *joined, key_mask=mask)
                attended.update(zip(members, lane.split(out), strict=True))
        return attended

    def _check_positions(self, groups: Sequence[Group], where: Sequence[object], source: Sequence[bool]) -> None:
        """Raises: ValueError, if keys that the lens changes were cached without where they are from."""
        lost = [g for g, positions, changed in zip(groups, where, source, strict=True) if changed and positions is None]
        if lost:
            raise ValueError(f"{self.spec.name}: {lost[0]} was cached without this lens; give it to `begin`, too")

    def _readers_apart(self, members: list[Group]) -> list[list[Group]]:
        """Those that the lens treats alike in one list each."""
        lens = self.state.tokens.lens
        parts: dict[object, list[Group]] = {}
        for group in members:
            kind = (lens.reads(self.spec, group), lens.shows(self.spec, group)) if lens else None
            parts.setdefault(kind, []).append(group)
        return list(parts.values())

    def _own_episode(
        self, members: Sequence[Group], sizes: Sequence[int], keys: Sequence[Array | None]
    ) -> Bool[Array, "B N"]:
        """Which keys are of the queries' episode.

        Raises:
          ValueError: if the queries are of several blocks, which may be of several episodes.
        """
        blocks = {group.block for group in members}
        if len(blocks) > 1:
            raise ValueError(
                f"{self.spec.name}: blocks {sorted(blocks)} attend to the same tokens in one call, so rows cannot be "
                "packed; set data.packed=False"
            )
        episode = self.state.tokens.episode
        assert episode is not None
        mine = episode[:, blocks.pop()]
        parts = [jnp.repeat((jnp.asarray(key) == mine)[:, None], n, 1) for key, n in zip(keys, sizes, strict=True)]
        return jnp.concatenate(parts, 1)

    def show(self, taps: Mapping[str, Array], attention: Array | None) -> None:
        """Notes what the lens shows of these layers."""
        for lane in self.lanes:
            if lane.name in taps:
                for group, x in zip(lane.groups, lane.split(taps[lane.name], 2), strict=True):
                    if group in self._shown_groups:
                        self.state.layers.setdefault(group, []).append(x)
        if attention is not None:
            self.state.attention.append(attention)

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
