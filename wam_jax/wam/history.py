"""A rolling key-value cache: what really happened, block after block, for models that are causal in time.

A history is a value: ``observe`` gives a new one. While imagining several blocks ahead (``generate``), predicted blocks
stand in it; a robot that acts adds what it really observed and executed to the history it had before, so predictions
never outlive their execution (LingBot-VA).
"""

import dataclasses
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wam_jax.wam.model import Context, Known, WorldActionModel
from wam_jax.wam.sample import Values, sample
from wam_jax.wam.spec import KINDS, Stream
from wam_jax.wam.tokens import Cache, Entry
from wam_jax.wam.visibility import Group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The newest block last; all blocks are numbered up to 0 (now).

    Attributes:
      cache: ``spec.history`` blocks of the same groups; slots not filled yet are marked absent.
      time: control step of now.
      started: whether there is a block at all.
    """

    cache: Cache
    time: Float[Array, ""]
    started: Bool[Array, ""]


def entry_groups(model: WorldActionModel) -> tuple[Group, ...]:
    """The groups of one block that later blocks see, numbered as block 1."""
    return tuple(g for g in model.layout.needed(model.spec.generated, 2) if g.clean and g.block == 1)


def empty_history(model: WorldActionModel, known: Known) -> History:
    """No past; ``known`` only gives the shapes."""
    blank = jax.eval_shape(lambda k: _run_block(model, model.begin(k, jnp.zeros(())), k), _as_block(model, known, None))
    entries = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank.entries)
    absent = tuple(dataclasses.replace(entry, present=jnp.zeros(entry.hidden.shape[-2], bool)) for entry in entries)
    slots = [_numbered(Cache(blank.groups, absent), -age) for age in reversed(range(model.spec.history))]
    return History(sum(slots, Cache()), jnp.zeros(()), jnp.zeros((), bool))


def observe(
    model: WorldActionModel, history: History, known: Known, executed: Mapping[str, Float[Array, "B k _"]] | None
) -> tuple[History, Context]:
    """Adds the present block: ``known``'s frames and state, and what of ``acting_streams`` led to them (None at first).

    The frames are those since the last call, as many as a block has, the newest last; at the start only the last one
    counts.

    Returns:
      the history, and the context for predicting the next block.
    """
    block = _as_block(model, known, executed)
    step, now = float(model.layout.actions_per_block), newest(model, known)

    def first(history: History) -> History:
        context = model.begin(now, jnp.zeros(()))
        groups = tuple(g for g in model.layout.needed(model.spec.generated, 1) if g.clean and g.block == 0)
        cache = model.extend(context, groups, now).cache
        return History(_with_first(history.cache, cache), jnp.zeros(()), jnp.ones((), bool))

    def further(history: History) -> History:
        context = dataclasses.replace(model.begin(block, history.time), cache=history.cache)
        return History(_shifted(history.cache, _run_block(model, context, block)), history.time + step, history.started)

    history = jax.lax.cond(history.started, further, first, history)
    context = dataclasses.replace(model.begin(now, history.time), cache=history.cache)
    return history, context


def newest(model: WorldActionModel, known: Known) -> Known:
    """Of the frames that are known, the last: what sampling begins from."""
    views = [s.name for s in model.spec.streams if KINDS[s.kind] == "patches" and s.name in known.values]
    return dataclasses.replace(known, values={**known.values, **{name: known.values[name][:, -1:] for name in views}})


def generate(
    model: WorldActionModel,
    known: Known,
    key: jax.Array,
    mode: str = "policy",
    want: Collection[str] | None = None,
    steps: int | None = None,
) -> Values:
    """``sample`` over the whole window: a causal spec goes on block after block, taking what it predicted as real.

    The state stays that of the start, for what it will be is not known.
    """
    if not model.layout.autoregressive:
        return sample(model, known, key, mode, want=want, steps=steps)
    history, executed, parts = empty_history(model, known), None, []
    acting = [stream.name for stream in acting_streams(model)]
    for block in range(model.layout.num_blocks):
        history, context = observe(model, history, known, executed)
        now = newest(model, known)
        found = sample(model, now, jax.random.fold_in(key, block), mode, steps=steps, context=context)
        parts.append(found)
        executed = {name: found[name] for name in acting if name in found}
        values = {n: found.get(n, data) for n, data in known.values.items() if n not in acting}
        known = dataclasses.replace(known, values={**known.values, **values})
    names = parts[0] if want is None else want
    return {name: jnp.concatenate([part[name] for part in parts], 1) for name in names}


def _run_block(model: WorldActionModel, context: Context, known: Known) -> Cache:
    """Keys and values of one block's clean groups, which also see the history."""
    groups = entry_groups(model)
    history = context.cache
    cache = model.extend(context, groups, known).cache
    added = len(history.groups)
    return Cache(cache.groups[added:], cache.entries[added:])


def _as_block(model: WorldActionModel, known: Known, executed: Mapping[str, Array] | None) -> Known:
    """The present as the data of block 1: a window whose first frame is not looked at."""
    values, frames = {}, model.layout.frames_per_block
    for name, data in known.values.items():
        held = jnp.repeat(data[:, :1], 1 + frames - data.shape[1], 1)  # the first, and what is not known of the others
        values[name] = jnp.concatenate([held, data], 1)
    values |= {**nothing_executed(model, len(known.embodiment)), **(executed or {})}
    return dataclasses.replace(known, values=values, present={})


def nothing_executed(model: WorldActionModel, batch: int) -> dict[str, Float[Array, "B k _"]]:
    """Of each of ``acting_streams``, one block of zeros."""
    return {stream.name: jnp.zeros((batch, *model.layout.future_shape(stream, 1))) for stream in acting_streams(model)}


def acting_streams(model: WorldActionModel) -> list[Stream]:
    """What is executed: actions, and latent actions in their stead or beside them."""
    return [stream for stream in model.spec.streams if stream.kind in ("action", "latent_action")]


def _with_first(blank: Cache, first: Cache) -> Cache:
    """``first`` as the newest block of an empty history.

    It is shorter: groups that it lacks stay absent, and so do the frames before the first.
    """
    entries = list(blank.entries)
    for group, entry in zip(first.groups, first.entries, strict=True):
        for place, slot in enumerate(blank.groups):
            if group == dataclasses.replace(slot, size=group.size):
                entries[place] = _padded(entry, slot.size - group.size, entries[place])
    return Cache(blank.groups, tuple(entries))


def _padded(entry: Entry, extra: int, like: Entry) -> Entry:
    """An entry with absent tokens before its own, in the dtypes of ``like``."""

    def pad(x: Array, token_axis: int) -> Array:
        return jnp.pad(x, [(extra if axis == x.ndim + token_axis else 0, 0) for axis in range(x.ndim)])

    padded = Entry(
        keys_values=jax.tree.map(lambda x: pad(x, -3), entry.keys_values),
        bridged=jax.tree.map(lambda x: pad(x, -3), entry.bridged),
        hidden=pad(entry.hidden, -2),
        present=jnp.pad(jnp.ones(entry.hidden.shape[-2], bool), (extra, 0)),
    )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), padded, like)


def _shifted(old: Cache, new: Cache) -> Cache:
    """The oldest block leaves, ``new`` (block 1) becomes now."""
    size = len(new.groups)
    entries = (*old.entries[size:], *(_present(entry) for entry in new.entries))
    return Cache(old.groups, tuple(entries))


def _present(entry: Entry) -> Entry:
    return dataclasses.replace(entry, present=jnp.ones(entry.hidden.shape[-2], bool))


def _numbered(cache: Cache, block: int) -> Cache:
    return Cache(tuple(dataclasses.replace(group, block=block) for group in cache.groups), cache.entries)
