"""Looking into a pass through the trunk, and changing what all other tokens read of the video's.

Objectives on hidden states and diagnostics of what actions look at use it; without a lens none of this is computed.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wam_jax.nn.attention import KeysValues
from wam_jax.nn.rotary import AnyArray, rotary_table, rotate
from wam_jax.wam.spec import Spec
from wam_jax.wam.visibility import Group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lens:
    """What a pass shows beside its result, and what it changes.

    Attributes:
      layers: the trunk's layers after which tokens of ``source`` are shown.
      attention: show how much of each position of ``source`` the tokens of ``reader`` attend to.
      change: what all but ``source`` itself read of it instead: position i of every frame as the sum over j of
        change[i, j] times position j. Keys keep the rotary position of where they are read. The source's own tokens
        read as before, so this changes what is taken from the features of these positions, not the features.
      frame_tokens: positions of a frame, of all cameras (``Layout.tokens_per_frame``); attention needs them.
      present: of the source, what is given of now alone; the rest counts as something else.
      reader, source: kinds of streams.
    """

    layers: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    attention: bool = dataclasses.field(default=False, metadata={"static": True})
    change: Float[Array, "B n n"] | None = None
    frame_tokens: int = dataclasses.field(default=1, metadata={"static": True})
    present: bool = dataclasses.field(default=False, metadata={"static": True})
    reader: str = dataclasses.field(default="action", metadata={"static": True})
    source: str = dataclasses.field(default="video", metadata={"static": True})

    def reads(self, spec: Spec, group: Group) -> bool:
        """Whether what this group reads is shown or changed."""
        return (self.change is not None and not self.is_source(spec, group)) or self.shows(spec, group)

    def shows(self, spec: Spec, group: Group) -> bool:
        """Whether this group's attention is shown."""
        return self.attention and spec.stream(group.stream).kind == self.reader

    def is_source(self, spec: Spec, group: Group) -> bool:
        return spec.stream(group.stream).kind == self.source

    def looks_at(self, spec: Spec, group: Group) -> bool:
        """Whether this group is what readers' attention and changes are about."""
        return self.is_source(spec, group) and (not self.present or (group.clean and group.block == 0))


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a pass showed.

    Attributes:
      layers: tokens of each group of the source after ``Lens.layers``.
      attention: mean over the reader's tokens of what they attend to at each position of a frame, summed over frames;
        the sum over positions is the share that goes to the source at all. None: not asked for, or nothing is read.
    """

    layers: dict[Group, Float[Array, "l B n D"]]
    attention: Float[Array, "layers B H n"] | None = None


def read_through(
    change: Float[Array, "B n n"] | None,
    frame_tokens: int | None,
    query: Float[Array, "B Nq H Dh"],
    pairs: Sequence[KeysValues],
    source: Sequence[bool],
    positions: Sequence[Float[AnyArray, "N 3"] | None],
    mask: Bool[Array, "B Nk"] | None,
) -> tuple[list[KeysValues], Float[Array, "B H n"] | None]:
    """Keys and values as a group's queries get them, and how much of each position they attend to.

    Args:
      change: see ``Lens``.
      frame_tokens: see ``Lens``; None: attention is not shown.
      query: of the group.
      pairs: keys and values of each group that it sees.
      source: which of them are of the lens's source.
      positions: by which their keys were turned; None: they were not.
      mask: which keys are there; None: all.
    """
    pairs = list(pairs)
    if change is not None:
        for i, (key, value) in enumerate(pairs):
            if source[i]:
                pairs[i] = _change(change, key, positions[i]), _change(change, value, None)
    if frame_tokens is None or not any(source):
        return pairs, None
    weights = _attention(query, [key for key, _ in pairs], mask)
    of_source = [x for x, is_source in zip(weights, source, strict=True) if is_source]
    frames = jnp.concatenate([x.reshape(*x.shape[:2], -1, frame_tokens) for x in of_source], 2)
    return pairs, frames.sum(2)


def mean_attention(seen: Sequence[tuple[int, Float[Array, "B H n"]]]) -> Float[Array, "B H n"] | None:
    """Over the queries of several calls, each with how many they were; None where nothing was read."""
    if not seen:
        return None
    total = sum(count for count, _ in seen)
    return jnp.stack([count / total * x for count, x in seen]).sum(0)


def _change(
    change: Float[Array, "B n n"], x: Float[Array, "B N H Dh"], positions: Float[AnyArray, "N 3"] | None
) -> Float[Array, "B N H Dh"]:
    """Applies ``Lens.change`` to every frame's keys or values; keys are turned back before, and again after."""
    if positions is not None:
        x = rotate(x, rotary_table(-positions, x.shape[-1]))
    frames = x.reshape(len(x), -1, change.shape[-1], *x.shape[2:])
    x = jnp.einsum("bij,bfjhd->bfihd", change.astype(x.dtype), frames).reshape(x.shape)
    return x if positions is None else rotate(x, rotary_table(positions, x.shape[-1]))


def _attention(
    query: Float[Array, "B Nq H Dh"], keys: Sequence[Float[Array, "B N H Dh"]], mask: Bool[Array, "B Nk"] | None
) -> list[Float[Array, "B H N"]]:
    """Softmax weights of each part of the keys, averaged over queries, in float32."""
    joined = jnp.concatenate(keys, 1).astype(jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query.astype(jnp.float32), joined) / np.sqrt(query.shape[-1])
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, -1).mean(2)
    return jnp.split(weights, np.cumsum([key.shape[1] for key in keys])[:-1], -1)
