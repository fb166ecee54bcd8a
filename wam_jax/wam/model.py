"""From data to predictions: input maps, the trunk, heads."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from wam_jax.nn.embeddings import SINUSOID_CHANNELS, Conditioning, ImageProjection, TextProjection, sinusoid
from wam_jax.nn.module import standardize
from wam_jax.types import Text
from wam_jax.wam.layout import Layout
from wam_jax.wam.lens import Lens, Shown
from wam_jax.wam.maps import StreamMap
from wam_jax.wam.spec import KINDS, Expert, Interface, Spec, Stream
from wam_jax.wam.tokens import Cache, Tokens
from wam_jax.wam.trunk import Trunk
from wam_jax.wam.visibility import Group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """The clean data that passes are given, by stream; time is axis 1 and may end early (at a policy: after now).

    Attributes:
      values: data of each stream, as in a batch.
      present: which of it is there: [B, t, V] of frames, [B, t] otherwise; a stream without an entry is all there.
      counted: which of it counts in a loss, by as many of its first axes as the mask has; nothing at control time.
      proprio: normalised proprioception at the frames that are known; the state that conditions adaLN.
      text: of the instruction.
      embodiment: which robot's input and output maps.
      given: of each stream with ``given_channels``, those of all frames of ``values``; zeros without an entry.
      image: a frozen encoder's tokens of a given image, for experts that read it; None: they read none.
      episode: of packed rows, which one each frame belongs to; ``text`` then has an axis of them. None: one a row.
    """

    values: dict[str, Float[Array, "B t ..."]]
    present: dict[str, Bool[Array, "B t ..."]]
    counted: dict[str, Bool[Array, "B t ..."]]
    proprio: Float[Array, "B t P"]
    text: Text
    embodiment: Int[Array, "B"]
    given: dict[str, Float[Array, "B t V h w C"]] = dataclasses.field(default_factory=dict)
    image: Float[Array, "B I C"] | None = None
    episode: Int[Array, "B t"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noisy:
    """The future of a stream on its way from noise to data, in M independent draws over one context.

    Attributes:
      values: all blocks, time first.
      level: noise level of each draw and block (or of all blocks alike).
      present: of the values; absent ones are told to the model. None: all there.
    """

    values: Float[Array, "B M t ..."]
    level: Float[Array, "B M b"]
    present: Bool[Array, "B t ..."] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What every pass shares.

    Attributes:
      cache: the groups that ran already.
      text: the instruction at each expert's width.
      image: tokens of a given image at the width of each expert that reads it.
      summary: its mean, normalised; conditions adaLN.
      proprio, embodiment: as in ``Known``.
      time: control step of "now", added to rotary positions; rollouts with a history count on, else None.
      episode: as in ``Known``, of each block.
      lens: what passes show and change.
      attention: what the lens showed of it when groups were added to the cache last; see ``Shown``.
    """

    cache: Cache
    text: dict[str, Text]
    image: dict[str, Float[Array, "B I D"]]
    summary: Float[Array, "B C"] | Float[Array, "B e C"]
    proprio: Float[Array, "B t P"]
    embodiment: Int[Array, "B"]
    time: Float[Array, ""] | None = None
    episode: Int[Array, "B b"] | None = None
    lens: Lens | None = None
    attention: Float[Array, "layers B H n"] | None = None


class WorldActionModel(nnx.Module):
    """Predicts what a spec's table says: velocities of denoised streams, values of predicted ones."""

    def __init__(self, spec: Spec, interface: Interface, rngs: nnx.Rngs):
        self.spec, self.interface, self.layout = spec, interface, Layout(spec, interface)
        owned = [stream for stream in spec.streams if stream.data_of is None]
        self.maps = nnx.Dict({stream.name: StreamMap(stream, self.layout, rngs) for stream in owned})
        self.conditioning = nnx.Dict({e.name: self._make_conditioning(e, rngs) for e in spec.experts})
        reading = [e for e in spec.experts if e.text and e.attention_of is None]
        self.text_in = nnx.Dict({e.name: TextProjection(interface.text_width, e.width, rngs) for e in reading})
        looking = [e for e in spec.experts if e.image_width]
        self.image_in = nnx.Dict({e.name: ImageProjection(e.image_width, e.width, rngs) for e in looking})
        self.trunk = Trunk(spec, rngs)

    def _make_conditioning(self, expert: Expert, rngs: nnx.Rngs) -> Conditioning:
        sizes = {
            "text": self.interface.text_width,
            "state": self.interface.proprio_size,
            "levels": SINUSOID_CHANNELS * len(self.layout.levels_of(expert.name)),
        }
        return Conditioning(expert.width, {name: sizes[name] for name in expert.conditions}, rngs)

    def with_chunks(self, frames: int) -> "WorldActionModel":
        """The same parameters over blocks of another length."""
        twin = nnx.merge(*nnx.split(self))
        twin.spec = dataclasses.replace(self.spec, chunk_frames=frames)
        twin.layout = Layout(twin.spec, self.interface)
        for stream_map in twin.maps.values():
            stream_map.layout = twin.layout
        return twin

    def begin(self, known: Known, time: Float[Array, ""] | None = None, lens: Lens | None = None) -> Context:
        """Instruction and state, made ready for all passes; nothing has run yet."""
        if known.episode is not None:
            self._check_packed()
        dtype = jnp.dtype(self.spec.dtype)
        words = self._with_padding(known.text) if self.spec.padded_text else known.text
        text = {
            name: Text(features=project(words.features.astype(dtype)), mask=words.mask)
            for name, project in self.text_in.items()
        }
        looked = {} if known.image is None else dict(self.image_in.items())
        return Context(
            cache=Cache(),
            text=text,
            image={name: project(jnp.asarray(known.image, dtype)) for name, project in looked.items()},
            summary=standardize(pool(known.text)).astype(dtype),
            proprio=known.proprio.astype(dtype),
            embodiment=known.embodiment,
            time=time,
            episode=known.episode,
            lens=lens,
        )

    def _check_packed(self) -> None:
        """Raises: ValueError, if rows of several episodes cannot be told apart block by block."""
        if self.layout.frames_per_block != 1 or not self.layout.autoregressive:
            raise ValueError(
                f"{self.spec.name}: packed rows need a causal model with one frame a block; set chunk_frames=1, or "
                "data.packed=False"
            )

    def extend(
        self, context: Context, groups: Sequence[Group], known: Known, noisy: Mapping[str, Noisy] | None = None
    ) -> Context:
        """Runs groups whose tokens will not change and adds them to the cache."""
        if not groups:
            return dataclasses.replace(context, attention=None)
        ran = self._run(context, groups, known, noisy or {}, keep=True)
        return dataclasses.replace(context, cache=context.cache + ran.cache, attention=ran.shown.attention)

    def predict(
        self,
        context: Context,
        groups: Sequence[Group],
        known: Known,
        noisy: Mapping[str, Noisy],
        streams: Sequence[str],
    ) -> tuple[dict[str, Float[Array, "B M t ..."]], Shown]:
        """Velocity of denoised ``streams``, value of predicted ones, over all blocks that are among the groups.

        Args:
          context: from ``begin`` and ``extend``; ``groups`` may see what is in its cache.
          groups: what runs in this pass, draw 0; every draw of a stream in ``noisy`` runs beside it.
          known: data of clean groups.
          noisy: data of denoised groups.
          streams: whose prediction is wanted.

        Returns:
          the predictions, and what the context's lens shows of this pass and, of layers, of those in the cache.
        """
        groups = self._with_draws(groups, noisy)
        hidden = {g: e.hidden for g, e in zip(context.cache.groups, context.cache.entries, strict=True)}
        layers = {g: e.layers for g, e in zip(context.cache.groups, context.cache.entries, strict=True)}
        levels: dict[Group, Array] = {}
        attention = None
        if groups:
            ran = self._run(context, groups, known, noisy)
            hidden.update(zip(groups, ran.hidden, strict=True))
            layers.update(ran.shown.layers)
            levels, attention = ran.levels, ran.shown.attention
        shown = Shown({group: x for group, x in layers.items() if x is not None}, attention)
        return {name: self._head(name, context, hidden, levels, noisy) for name in streams}, shown

    # -- tokens in ----------------------------------------------------------------------------------------------------

    def _map(self, stream: str) -> StreamMap:
        return self.maps[self.spec.stream(stream).data_of or stream]

    def queried(self, group: Group) -> bool:
        """Whether a group's tokens are learned queries, not data."""
        stream = self.spec.stream(group.stream)
        return not group.clean and (stream.role == "predicted" or stream.head == "diffusion")

    def _with_draws(self, groups: Sequence[Group], noisy: Mapping[str, Noisy]) -> tuple[Group, ...]:
        found: list[Group] = []
        for group in groups:
            several = not group.clean and group.stream in noisy and not self.queried(group)
            draws = noisy[group.stream].level.shape[1] if several else 1
            found.extend(dataclasses.replace(group, draw=draw) for draw in range(draws))
        return tuple(found)

    def _run(
        self, context: Context, groups: Sequence[Group], known: Known, noisy: Mapping[str, Noisy], keep: bool = False
    ) -> "_Ran":
        """One pass through the trunk."""
        values = tuple(self._embed(group, context, known, noisy) for group in groups)
        positions = tuple(self._positions(group, context) for group in groups)
        sources = tuple(None if group.clean else self.layout.branch_source(group) for group in groups)
        rows, modulation, embedded = self._modulate(groups, context, noisy)
        episodes = tuple(self._key_episode(group, context.episode) for group in groups)
        tokens = Tokens(
            tuple(groups), values, positions, rows, modulation, sources, context.episode, episodes, context.lens
        )
        out, cache, shown = self.trunk(tokens, context.text, context.cache, keep, context.image)
        experts = [self.spec.stream(group.stream).expert for group in groups]
        levels = {g: embedded[e][:, row] for g, e, row in zip(groups, experts, rows, strict=True)}
        return _Ran(out, cache, levels, shown)

    def _key_episode(self, group: Group, episode: Int[Array, "B b"] | None) -> Int[Array, "B"] | None:
        """The episode whose tokens may see a group; none may see actions that lead from one to the next."""
        if episode is None:
            return None
        own = episode[:, group.block]
        if group.clean and group.block > 0 and KINDS[self.spec.stream(group.stream).kind] == "steps":
            return jnp.where(own == episode[:, group.block - 1], own, -1)
        return own

    def _embed(self, group: Group, context: Context, known: Known, noisy: Mapping[str, Noisy]) -> Array | None:
        stream, maps = self.spec.stream(group.stream), self._map(group.stream)
        dtype, batch = jnp.dtype(self.spec.dtype), len(context.embodiment)
        mask: Array | None
        if not group.clean and self.spec.expert(stream.expert).branch_of:
            return None
        if maps.kind == "learned" or self.queried(group):
            return jnp.broadcast_to(maps.queries[...].astype(dtype), (batch, *maps.queries.shape))
        if maps.kind == "features":
            data, mask = self._fitted(known.text)
        elif group.clean:
            data, mask = known.values[group.stream], known.present.get(group.stream)
            span = slice(*self.layout.span(stream, group.block))
        else:
            state = noisy[group.stream]
            data, mask = state.values[:, group.draw], state.present
            span = slice(*self.layout.future_span(stream, group.block))
        if maps.kind != "features":
            data, mask = data[:, span], None if mask is None else maps.present(mask[:, span])
            data = self._with_given(stream, data, known, group.block)
        tokens = maps.embed(data.astype(dtype), context.embodiment)
        return tokens if mask is None else jnp.where(mask[..., None], tokens, maps.missing[...].astype(dtype))

    def _with_given(self, stream: Stream, data: Array, known: Known, block: int) -> Array:
        """A block's data with its given channels behind its own."""
        if not stream.given_channels:
            return data
        given = jnp.zeros((*data.shape[:-1], stream.given_channels), data.dtype)
        if stream.name in known.given:
            given = known.given[stream.name][:, slice(*self.layout.span(stream, block))].astype(data.dtype)
        return jnp.concatenate([data, given], -1)

    def _with_padding(self, text: Text) -> Text:
        """The instruction with zeros after it, as tokens like any other."""
        features, mask = self._fitted(text)
        return Text(features=jnp.where(mask[..., None], features, 0.0), mask=jnp.ones_like(mask))

    def _fitted(self, text: Text) -> tuple[Array, Array]:
        """Text features and mask, padded to as many tokens as the layout has.

        Raises:
          ValueError: if there are more.
        """
        room, length = self.interface.text_tokens, text.mask.shape[-1]
        if length > room:
            raise ValueError(f"{self.spec.name}: an instruction of {length} tokens; the model was made for {room}")
        extra = [(0, 0)] * (text.mask.ndim - 1) + [(0, room - length)]
        return jnp.pad(text.features, [*extra, (0, 0)]), jnp.pad(text.mask, extra)

    def _positions(self, group: Group, context: Context) -> Array | np.ndarray:
        where = self._map(group.stream).positions(group.block)
        if context.time is None:
            return where
        return jnp.asarray(where).at[:, 0].add(context.time * self.layout.time_scale)

    def _modulate(self, groups: Sequence[Group], context: Context, noisy: Mapping[str, Noisy]):
        """Which row of modulation each group has, the rows of every expert, and their embeddings for the heads."""
        names = [self._row_name(group, noisy) for group in groups]
        distinct = list(dict.fromkeys(names))
        batch = len(context.embodiment)
        levels = jnp.stack([self._level(name, noisy, batch) for name in distinct], 1)
        known_frames = context.proprio.shape[1]
        frames = [min(name[2] * self.layout.frames_per_block, known_frames - 1) for name in distinct]
        summary = context.summary[:, None]
        if context.episode is not None:
            mine = context.episode[:, jnp.array([name[2] for name in distinct])]
            summary = jnp.take_along_axis(context.summary, mine[..., None], 1)
        conditions = {"text": summary, "state": context.proprio[:, jnp.array(frames)]}
        modulation, embedded = {}, {}
        for name, conditioning in self.conditioning.items():
            conditions["levels"] = self._levels_of(name, noisy, batch)[:, None]
            modulation[name], embedded[name] = conditioning(levels, conditions)
        return tuple(distinct.index(name) for name in names), modulation, embedded

    def _row_name(self, group: Group, noisy: Mapping[str, Noisy]) -> tuple[str, int, int, int]:
        """(stream or "clean", draw, block whose state conditions it, column of its noise level)."""
        started = group.block if group.clean or not self.layout.autoregressive else group.block - 1
        state = started if self.layout.autoregressive else 0
        if group.clean or group.stream not in noisy or self.queried(group):
            return ("clean", 0, state, 0)
        column = group.block - 1 if noisy[group.stream].level.shape[2] > 1 else 0
        return (group.stream, group.draw, state, column)

    def _level(self, name: tuple[str, int, int, int], noisy: Mapping[str, Noisy], batch: int) -> Float[Array, "B"]:
        stream, draw, _, column = name
        return jnp.zeros(batch) if stream == "clean" else noisy[stream].level[:, draw, column]

    def _levels_of(self, expert: str, noisy: Mapping[str, Noisy], batch: int) -> Float[Array, "B C"]:
        """The noise levels that condition an expert; a stream that takes no part counts as pure noise."""
        names = self.layout.levels_of(expert)
        levels = [noisy[name].level[:, 0, 0] if name in noisy else jnp.ones(batch) for name in names]
        return jnp.concatenate([jnp.zeros((batch, 0)), *(sinusoid(level) for level in levels)], -1).astype(
            self.spec.dtype
        )

    # -- predictions out ----------------------------------------------------------------------------------------------

    def _head(
        self, name: str, context: Context, hidden: Mapping[Group, Array], levels: Mapping[Group, Array], noisy
    ) -> Float[Array, "B M t ..."]:
        maps, stream = self._map(name), self.spec.stream(name)
        groups = [group for group in hidden if group.stream == name and not group.clean]
        if stream.head == "diffusion":
            return self._diffuse(maps, groups, hidden, noisy[name])
        draws: dict[int, list[Array]] = {}
        for group in sorted(groups, key=lambda g: (g.draw, g.block)):
            rows = maps.head(hidden[group], levels[group], context.embodiment)
            draws.setdefault(group.draw, []).append(maps.unflatten(rows))
        return jnp.stack([jnp.concatenate(blocks, 1) for blocks in draws.values()], 1)

    def _diffuse(self, maps: StreamMap, groups: Sequence[Group], hidden: Mapping[Group, Array], state: Noisy):
        blocks = []
        for group in sorted(groups, key=lambda g: g.block):
            span = slice(*self.layout.future_span(maps.stream, group.block))
            draws = state.level.shape[1]
            data = rearrange(state.values[:, :, span], "b m ... -> (b m) ...")
            rows = rearrange(maps.flatten(data), "(b m) n o -> b m n o", m=draws)
            column = group.block - 1 if state.level.shape[2] > 1 else 0
            out = maps.diffusion(hidden[group], rows, state.level[:, :, column])
            blocks.append(
                rearrange(maps.unflatten(rearrange(out, "b m n o -> (b m) n o")), "(b m) ... -> b m ...", m=draws)
            )
        return jnp.concatenate(blocks, 2)


@dataclasses.dataclass(frozen=True)
class _Ran:
    """What a pass gives: tokens after it, what it leaves, the level embedding of each group, what the lens shows."""

    hidden: tuple[Array, ...]
    cache: Cache
    levels: dict[Group, Array]
    shown: Shown


def pool(text: Text) -> Float[Array, "*B C"]:
    """Mean over the instruction's tokens."""
    count = jnp.maximum(text.mask.sum(-1, keepdims=True), 1)
    return jnp.where(text.mask[..., None], text.features, 0.0).sum(-2) / count
