"""From noise to data: a mode's stages, each a table of noise levels, on what can be computed once."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wam_jax.types import Text
from wam_jax.wam.lens import Lens
from wam_jax.wam.model import Context, Known, Noisy, WorldActionModel
from wam_jax.wam.spec import KINDS, Mode, Move, Stage
from wam_jax.wam.visibility import Group

Values = dict[str, Float[Array, "B ..."]]
ATTENTION = "attention"  # beside the streams that are generated, where a lens shows it


def sample(
    model: WorldActionModel,
    known: Known,
    key: jax.Array,
    mode: str = "policy",
    *,
    want: Collection[str] | None = None,
    given: Mapping[str, Array] | None = None,
    steps: int | None = None,
    context: Context | None = None,
    lens: Lens | None = None,
) -> Values:
    """Generates streams as a mode of the spec says.

    What a stage does not change, and what depends on that alone, is computed once and cached: the present, a pass at
    fixed noise, an imagined future that actions are read from. Moves that ``want`` does not depend on are left out.

    Args:
      model: bound to parameters.
      known: the present, the instruction.
      key: of the initial noise.
      mode: one of ``spec.modes``.
      want: the streams to return; all that the mode generates by default.
      given: the future of the mode's given streams, [B, t, ...].
      steps: of every stage, instead of the spec's (moves' own steps are then ignored).
      context: from ``model.begin``, with a history in its cache; made from ``known`` by default.
      lens: of a context that is made here.

    Returns:
      by stream, its future [B, t, ...]: of a causal spec the next block, else all blocks. With a lens that shows
      attention, also ``ATTENTION``: [B, steps, layers, H, n] of all stages in which the reader runs.

    Raises:
      ValueError: if the mode lacks a stream that it needs, or a given stream is not given.
    """
    plan, given = model.spec.mode(mode), dict(given or {})
    if set(given) != set(plan.given):
        raise ValueError(f"{model.spec.name}: mode {mode!r} is given {sorted(plan.given)}, got {sorted(given)}")
    stages = needed_moves(model, plan, want)
    run = _Sampler(model, plan, known, key, given, model.begin(known, lens=lens) if context is None else context)
    for number, stage in enumerate(stages):
        later = {move.stream for after in stages[number:] for move in after.moves}
        run.stage(dataclasses.replace(stage, steps=steps or stage.steps), later, bool(steps))
    moved = {move.stream for stage in stages for move in stage.moves}
    found = {name: run.states[name].values[:, 0] for name in sorted(moved if want is None else want)}
    return found | ({ATTENTION: jnp.moveaxis(jnp.concatenate(run.attention), 2, 0)} if run.attention else {})


def needed_moves(model: WorldActionModel, plan: Mode, want: Collection[str] | None) -> list[Stage]:
    """A mode's stages, with only the moves that the wanted streams depend on.

    Raises:
      ValueError: if the mode does not generate a wanted stream.
    """
    moved = {move.stream for stage in plan.stages for move in stage.moves}
    want = moved if want is None else set(want)
    if absent := sorted(want - moved):
        raise ValueError(
            f"{model.spec.name}: mode {plan.name!r} does not generate {absent[0]!r} (has: {sorted(moved)})"
        )
    kept: list[Stage] = []
    relevant: set[str] = set()
    for stage in reversed(plan.stages):
        ends = {w for w in want if any(m.stream == w for m in stage.moves)}
        relevant |= model.layout.dependencies(ends) if ends else set()
        moves = tuple(move for move in stage.moves if move.stream in relevant)
        if moves:
            relevant |= model.layout.dependencies([move.stream for move in moves])
            kept.insert(0, dataclasses.replace(stage, moves=moves))
    return kept


class _Sampler:
    """The streams on their way, stage after stage."""

    def __init__(self, model, plan: Mode, known: Known, key: jax.Array, given: Mapping[str, Array], context: Context):
        self.model, self.layout, self.plan, self.known = model, model.layout, plan, known
        self.block = 1 if self.layout.autoregressive else None
        self.context = context
        self.attention: list[Array] = []  # [steps, layers, B, H, n] of each stage
        self.levels: dict[str, float] = {}  # where each stream is now; known while tracing
        self.states: dict[str, Noisy] = {}
        batch = len(known.embodiment)
        moved = [move.stream for stage in plan.stages for move in stage.moves]
        for name in dict.fromkeys((*moved, *plan.missing, *plan.given)):
            stream = model.spec.stream(name)
            shape = (batch, 1, *self.layout.future_shape(stream, self.block))
            index = model.spec.generated.index(name)
            noise = jax.random.normal(jax.random.fold_in(key, index), shape)
            if name in given and given[name].shape[1:] != shape[2:]:
                raise ValueError(
                    f"{model.spec.name}: given {name!r} has shape {given[name].shape[1:]}, the future has {shape[2:]}"
                )
            values = given[name][:, None] if name in given else noise if stream.role == "denoised" else jnp.zeros(shape)
            self._set(name, values, 0.0 if name in given else 1.0)
        for name in plan.given:
            self._finish(name)

    def stage(self, stage: Stage, later: Collection[str], even: bool) -> None:
        """Runs one stage. ``later``: the streams that this stage or one after it moves."""
        model, layout = self.model, self.layout
        streams = [move.stream for move in stage.moves]
        needed = layout.needed(streams, self.block)
        self._check(needed)
        # A diffusion head's stream changes in the head; to the trunk it is a query, the same in every step.
        changing = {s for s in later if model.spec.stream(s).head != "diffusion"}
        now = {s for s in streams if s in changing}
        self.context = self._extend(self.context, self.known, layout.constant(needed, changing))
        passes = [(self.context, self.known)]
        if any(move.guidance != 1.0 for move in stage.moves):
            passes.append(self._without_text())
        constant = layout.constant(needed, now)
        passes = [(self._extend(context, known, constant), known) for context, known in passes]
        groups = tuple(g for g in needed if g not in passes[0][0].cache.groups)

        def velocity(states: Mapping[str, Noisy]) -> dict[str, Array]:
            ran = [
                model.predict(context, groups, known, {**self.states, **states}, streams) for context, known in passes
            ]
            found, shown = dict(ran[0][0]), ran[0][1]
            if len(ran) > 1:
                plain = ran[1][0]
                found = {
                    m.stream: plain[m.stream] + m.guidance * (found[m.stream] - plain[m.stream]) for m in stage.moves
                }
            return found if shown.attention is None else found | {ATTENTION: shown.attention}

        self._integrate(stage, velocity, even)
        for move in stage.moves:
            if move.to == 0.0:
                self._finish(move.stream)

    def _integrate(self, stage: Stage, velocity, even: bool) -> None:
        table = {m.stream: level_table(m, self.levels[m.stream], stage.steps, even) for m in stage.moves}
        start = {m.stream: self.states[m.stream].values for m in stage.moves}
        predicted = {m.stream for m in stage.moves if self.model.spec.stream(m.stream).role == "predicted"}

        def at(values: Values, levels: Mapping[str, Array]) -> dict[str, Noisy]:
            return {
                n: dataclasses.replace(self.states[n], values=v, level=jnp.full_like(self.states[n].level, levels[n]))
                for n, v in values.items()
            }

        def step(values: Values, levels: dict[str, tuple[Array, Array]]):
            before = {n: pair[0] for n, pair in levels.items()}
            after = {n: pair[1] for n, pair in levels.items()}
            slope = velocity(at(values, before))
            moved = {
                n: slope[n] if n in predicted else x + (after[n] - before[n]) * slope[n] for n, x in values.items()
            }
            if stage.solver == "heun":
                second = velocity(at(moved, after))
                mean = {n: (slope[n] + second[n]) / 2 for n in values}
                moved = {
                    n: second[n] if n in predicted else x + (after[n] - before[n]) * mean[n] for n, x in values.items()
                }
            return moved, slope.get(ATTENTION)

        pairs = {name: (jnp.asarray(t[:-1]), jnp.asarray(t[1:])) for name, t in table.items()}
        final, attention = jax.lax.scan(step, start, pairs)
        if attention is not None:
            self.attention.append(attention)
        for move in stage.moves:
            self._set(move.stream, final[move.stream], move.to)

    def _set(self, name: str, values: Array, level: float) -> None:
        self.levels[name] = level
        self.states[name] = Noisy(values=values, level=jnp.full((values.shape[0], 1, 1), level, jnp.float32))

    def _finish(self, name: str) -> None:
        """A finished stream may now be seen as given, as true data are in training."""
        stream, data = self.model.spec.stream(name), self.states[name].values[:, 0]
        if KINDS[stream.kind] == "patches" and name in self.known.values:
            data = jnp.concatenate([self.known.values[name][:, :1], data], 1)
        elif KINDS[stream.kind] == "frames":
            frames, step = self.layout.data_shape(stream)[0], self.layout.frames_per_block
            whole = jnp.zeros((len(data), frames, data.shape[-1]))
            if name in self.known.values:
                whole = whole.at[:, :1].set(self.known.values[name][:, :1])
            data = whole.at[:, step : step * data.shape[1] + 1 : step].set(data)
        present = dict(self.known.present)
        if name in present:  # a camera that is absent now is so in what is imagined
            frames = jnp.minimum(jnp.arange(data.shape[1]), present[name].shape[1] - 1)
            present[name] = present[name][:, frames]
        self.known = dataclasses.replace(self.known, values={**self.known.values, name: data}, present=present)

    def _extend(self, context: Context, known: Known, groups: Iterable[Group]) -> Context:
        new = [g for g in groups if g not in context.cache.groups]
        context = self.model.extend(context, new, known, self.states)
        if context.attention is not None:  # of readers that run once, such as a diffusion head's queries
            self.attention.append(context.attention[None])
        return context

    def _without_text(self) -> tuple[Context, Known]:
        nothing = dataclasses.replace(self.known, text=without_text(self.known.text))
        context = self.model.begin(nothing, self.context.time, self.context.lens)
        # What a causal model remembers was read with its instruction; a second memory without one is not kept.
        cache = self.context.cache if self.layout.autoregressive else context.cache
        return dataclasses.replace(context, cache=cache), nothing

    def _check(self, needed: Iterable[Group]) -> None:
        where = f"{self.model.spec.name}: mode {self.plan.name!r}"
        for group in needed:
            if not group.clean and group.stream not in self.states and not self.model.queried(group):
                raise ValueError(f"{where} depends on {group.stream!r}; move it, give it, or name it missing")
            unfinished = group.clean and group.stream in self.model.spec.generated and group.block > 0
            if unfinished and self.levels.get(group.stream) != 0.0:
                raise ValueError(
                    f"{where} reads the imagined {group.stream!r}; give it, or move it to 0 in an earlier stage"
                )


def level_table(move: Move, start: float, steps: int, even: bool = False) -> Float[np.ndarray, "S+1"]:
    """A stream's noise level before each of a stage's steps, and after the last.

    A move with fewer steps than its stage holds its level between them.

    Raises:
      ValueError: if it has more, or if the level would rise.
    """
    own = steps if even or move.steps is None else move.steps
    if move.to > start:
        raise ValueError(f"stream {move.stream!r} would move up, from noise level {start:g} to {move.to:g}")
    if own > steps:
        raise ValueError(f"stream {move.stream!r} has {own} steps in a stage of {steps}; raise the stage's steps")
    first, last = (_unshift(level, move.shift) for level in (start, move.to))
    u = np.linspace(first, last, own + 1)
    grid = move.shift * u / (1 + (move.shift - 1) * u)
    return grid[np.arange(steps + 1) * own // steps].astype(np.float32)


def _unshift(level: float, factor: float) -> float:
    return level / (factor - (factor - 1) * level)


def without_text(text: Text) -> Text:
    """No instruction: one token of zeros."""
    first = jnp.zeros_like(text.mask).at[..., 0].set(True)
    return Text(features=jnp.zeros_like(text.features), mask=first)
