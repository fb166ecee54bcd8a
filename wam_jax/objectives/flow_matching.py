"""Flow matching over all generated streams of a world action model.

Lipman et al. (arXiv 2210.02747), in the project's convention: x_t = (1 - t) x + t ε, target ε - x. Streams that are
predicted at once are regressed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wam_jax.objectives.masked import masked_mean
from wam_jax.sharding import mesh_axis_size, some_samples
from wam_jax.types import Batch
from wam_jax.wam.lens import Lens, Shown
from wam_jax.wam.model import Context, Known, Noisy, WorldActionModel
from wam_jax.wam.noise import StreamNoise, interpolate
from wam_jax.wam.sample import without_text
from wam_jax.wam.spec import KINDS, Stream

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """A loss on what a lens shows of a pass.

    Attributes:
      name: of its metric, after ``loss/``.
      weight: of its part of the whole.
      lens: what is shown.
      stream: the pass in which its noisy tokens run; None: any, for what is shown of what is given.
      loss: of what is shown; it may be of the first samples of the batch only.
    """

    name: str
    weight: float
    lens: Lens
    stream: str | None
    loss: Callable[[Shown], Float[Array, ""]]


def flow_matching_loss(
    model: WorldActionModel, known: Known, key: jax.Array, auxiliary: Auxiliary | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """Weighted sum over the generated streams of the masked mean squared error.

    Args:
      model: bound to parameters.
      known: the whole window, future included (``known_from_batch``).
      key: all of the step's randomness.
      auxiliary: a loss beside it, on hidden states of the same passes.

    Returns:
      the loss, and each stream's own error as ``loss/<stream>``; a stream of weight 0 has none.
    """
    spec, layout = model.spec, model.layout
    context_key, text_key, *part_keys = jax.random.split(key, 2 + len(layout.components))
    targets = {name: _target(model, known, name) for name in spec.generated}
    known = _drop_text(_noise_context(known, spec.context_noise, context_key, model), spec.text_dropout, text_key)
    lens = auxiliary.lens if auxiliary else None
    context = model.extend(model.begin(known, lens=lens), layout.context, known)
    total, metrics, host = jnp.zeros(()), {}, _host(model, auxiliary)
    for part, part_key in zip(layout.components, part_keys, strict=True):
        errors, shown = _errors(model, context, known, {name: targets[name] for name in part}, part_key)
        for stream, error in errors.items():
            total = total + spec.stream(stream).loss_weight * error
            metrics[f"loss/{stream}"] = error
        if auxiliary and part == host:
            metrics[f"loss/{auxiliary.name}"] = auxiliary.loss(shown)
            total = total + auxiliary.weight * metrics[f"loss/{auxiliary.name}"]
    return total, metrics


def _host(model: WorldActionModel, auxiliary: Auxiliary | None) -> tuple[str, ...] | None:
    """The component in whose pass an auxiliary loss is: of those that have its stream, that on most of the batch."""
    if auxiliary is None:
        return None
    parts = [part for part in model.layout.components if auxiliary.stream is None or auxiliary.stream in part]
    return max(parts, key=lambda part: _batch_share(_noises(model, part)))


def known_from_batch(model: WorldActionModel, batch: Batch, latents: Float[Array, "B T V h w C"]) -> Known:
    """What a batch holds for each stream of the spec, and which of it counts in the loss.

    The model is told that a camera or a whole stream is absent, and sees zeros for it. It is not told where an episode
    ends: there the loader holds the last value, and nothing tells a robot that acts that its episode is about to end.

    Raises:
      ValueError: if the batch has no data for a stream; names it.
    """
    data = {
        "video": (latents, batch.image_mask),
        "action": (batch.actions, batch.action_mask),
        "state": (batch.proprio, batch.proprio_mask),
        **{name: (stream.values, stream.mask) for name, stream in batch.streams.items()},
    }
    values, present, counted = {}, {}, {}
    for stream in model.spec.streams:
        if KINDS[stream.kind] in ("features", "learned"):
            continue
        source = stream.data_of or stream.name
        source = source if source in data else stream.kind
        if source not in data:
            raise ValueError(
                f"{model.spec.name}: stream {stream.name!r} has no data in the batch (has: {', '.join(data)}); "
                "set data.value_discount or data.depth_cameras, or add it to Batch.streams"
            )
        found, mask = (jnp.asarray(x) for x in data[source])
        there = _there(stream, mask)
        spread = there.reshape(*there.shape, *[1] * (found.ndim - there.ndim))
        values[stream.name] = jnp.where(spread, found.astype(jnp.float32), 0.0)
        present[stream.name], counted[stream.name] = there, _within(model, stream, mask, batch.episode)
    proprio = jnp.where(batch.proprio_mask.any(1, keepdims=True), batch.proprio, 0.0)
    return Known(
        values=values,
        present=present,
        counted=counted,
        proprio=jnp.asarray(proprio),
        text=batch.text,
        embodiment=jnp.asarray(batch.embodiment),
        episode=None if batch.episode is None else jnp.asarray(batch.episode),
    )


def _within(
    model: WorldActionModel, stream: Stream, mask: Bool[Array, "B t ..."], episode: Int[Array, "B T"] | None
) -> Bool[Array, "B t ..."]:
    """What counts: of packed rows, nothing that leads from one episode to the next."""
    if episode is None:
        return mask
    same = jnp.asarray(episode[:, 1:] == episode[:, :-1])
    if KINDS[stream.kind] == "steps":
        spread = jnp.repeat(same, mask.shape[1] // same.shape[1], 1)
    else:
        spread = jnp.pad(same, ((0, 0), (1, 0)), constant_values=True)
    return mask & spread.reshape(*spread.shape, *[1] * (mask.ndim - 2))


def _there(stream: Stream, mask: Bool[Array, "B t ..."]) -> Bool[Array, "B t ..."]:
    """Which data the model is told to be there at all: [B, t, V] of frames, [B, t] otherwise."""
    if KINDS[stream.kind] == "patches":  # a camera that works now works in the future
        return jnp.broadcast_to(mask[:, :1], mask.shape)
    return jnp.broadcast_to(mask.reshape(len(mask), -1).any(1, keepdims=True), mask.shape[:2])


@dataclasses.dataclass(frozen=True)
class _Target:
    """The future of a stream: its data, which of it counts in the loss, which of it the model is told to be there."""

    data: Float[Array, "B t ..."]
    mask: Bool[Array, "B t ..."]
    present: Bool[Array, "B t ..."]

    @property
    def any(self) -> Bool[Array, "B"]:
        """Whether a sample has the stream at all."""
        return self.present.reshape(len(self.present), -1).any(1)


def _target(model: WorldActionModel, known: Known, name: str) -> _Target:
    stream = model.spec.stream(name)
    return _Target(*(model.layout.future(stream, x[name]) for x in (known.values, known.counted, known.present)))


def _errors(
    model: WorldActionModel, context: Context, known: Known, targets: dict[str, _Target], key: jax.Array
) -> tuple[dict[str, Float[Array, ""]], Shown]:
    """Error of each stream of a component, on its share of the batch; what the context's lens shows of the pass."""
    spec = model.spec
    noises = _noises(model, targets)
    context, known, targets = _some(_share(noises, len(known.embodiment)), (context, known, targets))
    noisy, velocity = _add_noise(model, noises, targets, key)
    trained = [name for name in targets if spec.stream(name).loss_weight]
    groups = [g for g in model.layout.needed(trained) if g not in context.cache.groups]
    predicted, shown = model.predict(context, groups, known, noisy, trained)
    errors = {}
    for name in trained:
        target, noise = targets[name], spec.stream(name).noise
        squared = (predicted[name] - velocity.get(name, target.data[:, None])) ** 2
        if noise and noise.weighting:
            squared = squared * noise.weighting(_over_time(model, noisy[name].level, squared))
        mask = target.mask.reshape(*target.mask.shape, *[1] * (target.data.ndim - target.mask.ndim))[:, None]
        if name in noisy:  # what is clean already has no noise to tell
            mask = mask & (_over_time(model, noisy[name].level, squared) > 0)
        errors[name] = masked_mean(squared, mask)
    return errors, shown


def _noises(model: WorldActionModel, names: Iterable[str]) -> dict[str, StreamNoise]:
    """Of those that are denoised."""
    return {name: noise for name in names if (noise := model.spec.stream(name).noise) is not None}


def _batch_share(noises: dict[str, StreamNoise]) -> float:
    return min((noise.batch_share for noise in noises.values()), default=1.0)


def _share(noises: dict[str, StreamNoise], batch: int) -> int:
    """The number of samples on which a component is trained.

    Raises:
      ValueError: if they do not divide over the devices that share the batch.
    """
    share = _batch_share(noises)
    count, devices = math.ceil(share * batch), mesh_axis_size("data") * mesh_axis_size("fsdp")
    if count % devices:
        raise ValueError(
            f"{', '.join(noises)}: batch_share={share} of {batch} samples is {count}, which does not divide over "
            f"{devices} devices; change train.batch_size"
        )
    return count


def _add_noise(
    model: WorldActionModel, noises: dict[str, StreamNoise], targets: dict[str, _Target], key: jax.Array
) -> tuple[dict[str, Noisy], dict[str, Array]]:
    """Each denoised stream at levels of its own, and the velocity ε - x that leads there."""
    level_key, noise_key = jax.random.split(key)
    shapes = {
        name: (len(targets[name].any), noise.draws, model.layout.num_blocks if noise.per_block else 1)
        for name, noise in noises.items()
    }
    levels = model.spec.noise.sample(level_key, noises, shapes)
    noisy, velocity = {}, {}
    for index, name in enumerate(noises):
        target, (batch, draws, _) = targets[name], shapes[name]
        epsilon = jax.random.normal(jax.random.fold_in(noise_key, index), (batch, draws, *target.data.shape[1:]))
        # What a sample lacks altogether is pure noise to the rest (UWM), as it is when a mode calls it missing.
        level = jnp.where(target.any[:, None, None], levels[name], 1.0)
        present = target.present | ~target.any.reshape(-1, *[1] * (target.present.ndim - 1))
        values = interpolate(target.data[:, None], epsilon, _over_time(model, level, epsilon))
        noisy[name] = Noisy(values=values, level=level, present=present)
        velocity[name] = epsilon - target.data[:, None]
    return noisy, velocity


def _over_time(
    model: WorldActionModel, level: Float[Array, "B M b"], data: Float[Array, "B M t ..."]
) -> Float[Array, "B M t ..."]:
    """A level for every moment of the data, broadcast over the rest."""
    if level.shape[2] > 1:
        level = jnp.repeat(level, data.shape[2] // model.layout.num_blocks, axis=2)
    return level.reshape(*level.shape, *[1] * (data.ndim - 3))


def _noise_context(known: Known, std: float, key: jax.Array, model: WorldActionModel) -> Known:
    """Augments the clean latents that passes are given; targets were taken before."""
    if not std:
        return known
    values = dict(known.values)
    for index, stream in enumerate(model.spec.streams):
        if KINDS[stream.kind] == "patches":
            noise = jax.random.normal(jax.random.fold_in(key, index), values[stream.name].shape)
            values[stream.name] = values[stream.name] + std * noise
    return dataclasses.replace(known, values=values)


def _drop_text(known: Known, share: float, key: jax.Array) -> Known:
    """Some samples without their instruction, so that guidance has something to compare with."""
    if not share:
        return known
    drop = jax.random.uniform(key, (*known.text.mask.shape[:-1], 1)) < share
    nothing = without_text(known.text)
    features = jnp.where(drop[..., None], nothing.features, known.text.features)
    mask = jnp.where(drop, nothing.mask, known.text.mask)
    return dataclasses.replace(known, text=dataclasses.replace(known.text, features=features, mask=mask))


def _some(count: int, tree):
    """``count`` samples of everything."""
    context, known, targets = tree
    if count == len(known.embodiment):
        return tree
    cut = functools.partial(some_samples, count=count)
    cache = dataclasses.replace(context.cache, entries=tuple(_cut_entry(e, count) for e in context.cache.entries))
    rest = jax.tree.map(cut, dataclasses.replace(context, cache=type(cache)()))
    return (
        dataclasses.replace(rest, cache=cache),
        jax.tree.map(cut, known),
        {name: _Target(cut(t.data), cut(t.mask), cut(t.present)) for name, t in targets.items()},
    )


def _cut_entry(entry, count: int):
    """Keys and values have their layers first."""
    layered = (entry.keys_values, entry.bridged, entry.layers)
    keys_values, bridged, layers = jax.tree.map(lambda x: some_samples(x, count, axis=1), layered)
    hidden, episode = jax.tree.map(lambda x: some_samples(x, count), (entry.hidden, entry.episode))
    return dataclasses.replace(
        entry, keys_values=keys_values, bridged=bridged, hidden=hidden, episode=episode, layers=layers
    )
