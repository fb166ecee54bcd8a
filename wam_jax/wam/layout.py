"""Which token groups a spec has on given data, and which of them a pass needs."""

import dataclasses
import functools
from collections.abc import Collection, Iterable

import numpy as np
from jaxtyping import Array, Bool

from wam_jax.wam.noise import Independent
from wam_jax.wam.spec import KINDS, Interface, Spec, Stream
from wam_jax.wam.visibility import Group, components, reachable, visibility_matrix

_OBSERVED = ("video", "action", "latent_action", "state")  # what is known once it has happened


@dataclasses.dataclass(frozen=True)
class Layout:
    """The token groups of one window of data. Block 0 is now, blocks 1 … ``num_blocks`` are the future.

    Raises:
      ValueError: if frames or actions do not divide into blocks.
    """

    spec: Spec
    interface: Interface

    def __post_init__(self):
        frames, chunk = len(self.interface.frame_steps) - 1, self.spec.chunk_frames
        if chunk and frames % chunk:
            raise ValueError(
                f"{self.spec.name}: {frames} future frames do not divide into blocks of chunk_frames={chunk}; "
                "change data.frame_steps or chunk_frames"
            )
        if self.interface.action_horizon % self.num_blocks:
            raise ValueError(
                f"{self.spec.name}: {self.interface.action_horizon} actions do not divide into {self.num_blocks} "
                "blocks; change data.action_horizon or chunk_frames"
            )
        steps = np.diff(self.interface.frame_steps)[:: max(1, self.frames_per_block)] * self.frames_per_block
        if self.autoregressive and any(steps != self.actions_per_block):
            raise ValueError(
                f"{self.spec.name}: a block of {self.frames_per_block} frames takes {sorted(set(steps.tolist()))} "
                f"control steps but has {self.actions_per_block} actions; change data.frame_steps or "
                "data.action_horizon"
            )
        self._check_history()
        self._check_draws()
        self._check_leaks()

    @property
    def time_scale(self) -> float:
        """Rotary positions a control step."""
        steps = self.interface.frame_steps
        return 1 / (steps[1] - steps[0]) if self.spec.time_scale is None else self.spec.time_scale

    def _check_history(self) -> None:
        if not any(g.clean and g.block == 0 for g in self.needed(self.spec.generated, 1)):
            raise ValueError(f"{self.spec.name}: block 1 sees nothing of the present; widen its window")
        if not self.autoregressive:
            return
        if self.spec.history < 1:
            raise ValueError(f"{self.spec.name}: acts on what came before; set history to 1 or more blocks")
        for stream in self.spec.streams:
            if KINDS[stream.kind] in ("features", "learned"):
                raise ValueError(
                    f"{self.spec.name}: stream {stream.name!r} belongs to no block, so the rolling cache cannot hold "
                    "it; use text cross-attention instead"
                )

    def _check_draws(self) -> None:
        for part in self.components:
            noises = {n: stream.noise for n in part if (stream := self.spec.stream(n)).noise}
            shares = sorted({noise.batch_share for noise in noises.values()})
            draws = sorted({self._draws(name) for name in noises})
            if len(shares) > 1 or len([count for count in draws if count > 1]) > 1:
                raise ValueError(
                    f"{self.spec.name}: streams {', '.join(part)} influence each other, so they need equal "
                    f"noise.batch_share, got {shares}, and noise.draws, or one draw, got {draws}"
                )
            if len(draws) > 1 and not isinstance(self.spec.noise, Independent):
                raise ValueError(f"{self.spec.name}: noise that streams share needs equal noise.draws, got {draws}")
            self._check_several_draws(part)
        for expert in self.spec.experts:
            for name in self.levels_of(expert.name):
                if (noise := self.spec.stream(name).noise) and (noise.draws > 1 or noise.per_block):
                    raise ValueError(
                        f"{self.spec.name}: expert {expert.name!r} is conditioned on noise levels, so {name!r} needs "
                        "noise.draws=1 and noise.per_block=False"
                    )

    def _draws(self, name: str) -> int:
        """How often a stream's noisy tokens run beside each other; a diffusion head draws behind its queries."""
        stream = self.spec.stream(name)
        return stream.noise.draws if stream.noise and stream.head != "diffusion" else 1

    def _check_several_draws(self, part: tuple[str, ...]) -> None:
        """What runs once is shared by all draws of what sees it, so it may not tell one of them of another."""
        for group in self.needed(part):
            if not group.clean and self._draws(group.stream) > 1:
                continue
            for j in np.flatnonzero(self.depends[self.groups.index(group)]):
                key = self.groups[j]
                if not key.clean and self._draws(key.stream) > 1:
                    raise ValueError(
                        f"{self.spec.name}: {group} depends on {key}, so draws of it would see each other; set "
                        "noise.draws=1"
                    )

    def _check_leaks(self) -> None:
        """Nothing may be predicted from what is only known once it has come true."""
        for i, group in enumerate(self.groups):
            for j in np.flatnonzero(self.depends[i]):
                key = self.groups[j]
                if group.clean or not self._leaks(group, key):
                    continue
                raise ValueError(
                    f"{self.spec.name}: visibility '{self.spec.visibility}' lets {group} depend on the true {key}, "
                    "which is not known yet; look at it with: wam zoo show NAME --picture FILE"
                )

    def _leaks(self, group: Group, key: Group) -> bool:
        """Whether what ``key`` holds is only known once ``group`` is: the same data, or what comes after."""
        of_group, of_key = self.spec.stream(group.stream), self.spec.stream(key.stream)
        same = (of_group.data_of or of_group.name) == (of_key.data_of or of_key.name)
        if not key.clean:  # another noise over the same data; what is not trained may be seen, and sees nothing by it
            return same and of_group.name != of_key.name and of_group.loss_weight > 0
        if key.block == 0 or key.block < group.block:
            return False
        if key.block > group.block or same or of_key.role == "context":
            return True
        # An imagined block is finished at test time, but the state at its end is not known.
        return self.autoregressive and "state" in self.spec.expert(of_key.expert).conditions

    @property
    def num_blocks(self) -> int:
        """Blocks of the future."""
        return max(1, (len(self.interface.frame_steps) - 1) // self.spec.chunk_frames) if self.spec.chunk_frames else 1

    @property
    def frames_per_block(self) -> int:
        return (len(self.interface.frame_steps) - 1) // self.num_blocks

    @property
    def actions_per_block(self) -> int:
        """Actions that are predicted, and should be executed, between two observations of a causal model."""
        return self.interface.action_horizon // self.num_blocks

    def span(self, stream: Stream, block: int) -> tuple[int, int]:
        """First and last + 1 index of a block along the time axis of the stream's data."""
        kind, frames = KINDS[stream.kind], self.frames_per_block
        if kind == "patches":
            return (0, 1) if block == 0 else (1 + (block - 1) * frames, 1 + block * frames)
        if kind == "frames":  # the state at the end of the block
            return (block * frames, block * frames + 1)
        per_block = frames if stream.kind == "latent_action" else self.actions_per_block
        return ((block - 1) * per_block, block * per_block)

    def blocks(self, stream: Stream) -> range:
        """The blocks in which a stream has data: those of the future, and now where it is observed."""
        observed = KINDS[stream.kind] in ("patches", "frames")
        return range(0 if observed else 1, self.num_blocks + 1)

    def data_shape(self, stream: Stream) -> tuple[int, ...]:
        """Shape of one sample of the stream's data over the whole window, time first."""
        frames, latent = len(self.interface.frame_steps), self.interface.latent_shape
        sizes = {
            "video": (frames, self.interface.cameras, *latent),
            "depth": (frames, self.interface.cameras, *latent),
            "flow": (frames, self.interface.cameras, *latent),
            "action": (self.interface.action_horizon, self.interface.action_size),
            "latent_action": (frames - 1, self.interface.latent_action_size),
            "state": (frames, self.interface.proprio_size),
            "value": (frames, 1),
            "understanding": (self.interface.text_tokens, self.interface.text_width),
        }
        return sizes[stream.kind]

    def future_shape(self, stream: Stream, block: int | None = None) -> tuple[int, ...]:
        """Shape of one sample of what is predicted: of one block, or of all."""
        return (self.future_span(stream, self.num_blocks if block is None else 1)[1], *self.data_shape(stream)[1:])

    def future(self, stream: Stream, data: Array) -> Array:
        """The part of a stream's data (time is axis 1) that is predicted."""
        if KINDS[stream.kind] == "frames":
            return data[:, self.frames_per_block :: self.frames_per_block]
        return data[:, self.span(stream, 1)[0] :]

    def future_span(self, stream: Stream, block: int) -> tuple[int, int]:
        """First and last + 1 index of a block in ``future``."""
        if KINDS[stream.kind] == "frames":
            return block - 1, block
        start, stop = self.span(stream, block)
        before = self.span(stream, 1)[0]
        return start - before, stop - before

    def size(self, stream: Stream, block: int) -> int:
        """Tokens of a block."""
        kind, (start, stop) = KINDS[stream.kind], self.span(stream, block)
        per_frame = self.tokens_per_frame
        if stream.injected:
            return per_frame // self.interface.cameras
        return {
            "patches": (stop - start) * per_frame,
            "steps": stop - start,
            "frames": 1,
            "features": self.interface.text_tokens,
            "learned": stream.tokens,
        }[kind]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one camera's tokens."""
        rows, columns, _ = self.interface.latent_shape
        p = self.spec.patch_size
        if rows % p or columns % p:
            raise ValueError(
                f"latents of {rows} x {columns} do not divide by spec.patch_size={p}; "
                "change it or the tokenizer's patch size"
            )
        return rows // p, columns // p

    @property
    def tokens_per_frame(self) -> int:
        """Of all cameras."""
        return self.interface.cameras * self.grid[0] * self.grid[1]

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every group that could be: context, what is predicted, and clean copies of it, block by block."""
        groups: list[Group] = []
        for block in range(self.num_blocks + 1):
            for stream in self.spec.streams:
                groups.extend(self._groups(stream, block))
        return tuple(groups)

    def _groups(self, stream: Stream, block: int) -> Iterable[Group]:
        if KINDS[stream.kind] in ("features", "learned"):
            if block == 0:
                yield Group(stream=stream.name, block=0, clean=True, size=self.size(stream, 0))
            return
        if block not in self.blocks(stream):
            return
        group = Group(stream=stream.name, block=block, clean=True, size=self.size(stream, block))
        if stream.role == "context" or (stream.kind in _OBSERVED and stream.data_of is None):
            yield group
        if stream.role != "context" and block > 0:
            yield dataclasses.replace(group, clean=False)

    @functools.cached_property
    def visible(self) -> Bool[np.ndarray, "G G"]:
        """Who sees whom, among all groups: what the rule allows and the coupling can carry."""
        experts = [self.spec.expert_of(group.stream).name for group in self.groups]
        coupled = np.array([[self.spec.coupled(q, k) for k in experts] for q in experts])
        return visibility_matrix(self.groups, self.groups, self.spec.visibility) & coupled

    @functools.cached_property
    def depends(self) -> Bool[np.ndarray, "G G"]:
        """Which group influences which, through however many others."""
        edges = self.visible.copy()
        for i, group in enumerate(self.groups):
            levels = self.levels_of(self.spec.stream(group.stream).expert)
            edges[i] |= [not key.clean and key.stream in levels for key in self.groups]
            if source := self.branch_source(group):
                edges[i, self.groups.index(source)] = True
        return reachable(edges)

    def levels_of(self, expert: str) -> tuple[str, ...]:
        """The denoised streams whose noise levels condition an expert: those that its own tokens see."""
        if "levels" not in self.spec.expert(expert).conditions:
            return ()
        own = [self.spec.stream(group.stream).expert == expert for group in self.groups]
        seen = {self.groups[j].stream for j in np.flatnonzero(self.visible[own].any(0)) if not self.groups[j].clean}
        return tuple(s.name for s in self.spec.streams if s.role == "denoised" and s.name in seen)

    def branch_source(self, group: Group) -> Group | None:
        """The group of the trunk whose tokens this one begins with, if its expert branches off."""
        of = self.spec.expert_of(group.stream).branch_of
        if of is None:
            return None
        for stream in self.spec.streams:
            if stream.expert == of and KINDS[stream.kind] == KINDS[self.spec.stream(group.stream).kind]:
                return dataclasses.replace(group, stream=stream.name, clean=False)
        raise ValueError(f"{self.spec.name}: {group.stream} branches off {of!r}, which has no stream of patches")

    def needed(self, streams: Collection[str], block: int | None = None) -> tuple[Group, ...]:
        """What is predicted of these streams (in one block, or in all), and every group that it depends on."""
        chosen = [not g.clean and g.stream in streams and block in (None, g.block) for g in self.groups]
        return tuple(self.groups[i] for i in np.flatnonzero(self.depends[chosen].any(0)))

    def constant(self, groups: Iterable[Group], moving: Collection[str]) -> tuple[Group, ...]:
        """Those of ``groups`` that depend on nothing predicted of the ``moving`` streams: to be computed once."""
        changes = np.array([not g.clean and g.stream in moving for g in self.groups])
        index = {group: i for i, group in enumerate(self.groups)}
        groups = tuple(groups)
        changing = [g for g in groups if (self.depends[index[g]] & changes).any()]
        kept_back = {*changing, *(self.branch_source(g) for g in changing if not g.clean)}
        return tuple(g for g in groups if g not in kept_back)

    @functools.cached_property
    def context(self) -> tuple[Group, ...]:
        """What training computes once for all its passes: needed by some, and dependent on nothing predicted."""
        return self.constant(self.needed(self.spec.generated), self.spec.generated)

    @functools.cached_property
    def components(self) -> tuple[tuple[str, ...], ...]:
        """The generated streams, in sets that do not influence each other, so that each can be run apart."""
        names = self.spec.generated
        sees = np.zeros((len(names), len(names)), bool)
        for i, query in enumerate(names):
            groups = self.needed([query])
            for j, key in enumerate(names):
                sees[i, j] = any(not g.clean and g.stream == key for g in groups)
        return components(sees, names)

    def dependencies(self, streams: Collection[str]) -> set[str]:
        """The generated streams that have to run, or to be given, for these."""
        block = 1 if self.autoregressive else None
        return {g.stream for g in self.needed(streams, block) if not g.clean or g.block > 0}

    def droppable(self, mode: str) -> tuple[str, ...]:
        """Generated streams that need not run for the actions of a mode: leaving them out changes nothing."""
        moved = [m.stream for s in self.spec.mode(mode).stages for m in s.moves]
        acting = [name for name in moved if self.spec.stream(name).kind in ("action", "latent_action")]
        used = self.dependencies(acting)
        return tuple(name for name in self.spec.generated if acting and name not in used)

    @functools.cached_property
    def autoregressive(self) -> bool:
        """Whether blocks are predicted one after the other, each given what really came before (teacher forcing)."""
        return any(
            self.visible[i, j] and k.clean and 0 < k.block < q.block
            for i, q in enumerate(self.groups)
            if not q.clean
            for j, k in enumerate(self.groups)
        )
