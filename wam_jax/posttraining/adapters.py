"""Where a world model's latents and a robot's actions meet: adapters of both to one space (World2Act's first stage).

A chunk is as many actions as lead from one frame of latents to the next. The video adapter sees the latents of the
frames that a chunk begins and ends in (latents of single pictures hold no motion), the action adapter its actions; both
give one vector, and a contrastive loss over whole sequences makes the vectors of what belongs together alike. A decoder
gets the actions back, so that a vector can later be turned into motion.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from wam_jax.nn.convolution import Conv, GroupNorm, what_and_where
from wam_jax.nn.module import Definition, Linear, define
from wam_jax.objectives.contrastive import chunks_there, chunkwise, info_nce, pooled, retrieval_accuracy
from wam_jax.objectives.masked import masked_mean
from wam_jax.sharding import constrain

SIMILARITIES: dict[str, Callable[..., Array]] = {"chunkwise": chunkwise, "pooled": pooled}
_GROUPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Sizes of the adapters; ``PRESETS`` has the two published ones.

    Attributes:
      video: "latents" (convolutions over two frames' latents) or "features" (three convolutions over time on one vector
        a frame, as of a world model's hidden tokens).
      size: channels of the space where both meet.
      temperature: of the contrastive loss.
      similarity: "chunkwise", or "pooled" (the ablation).
      pool: over the grid of latents: "mean", or "where" (also the place where each channel is high: a mean alone hardly
        knows one place from another).
      video_widths, action_widths: of the layers between.

    Raises:
      ValueError: for another kind of video adapter, similarity or pooling.
    """

    video: Literal["latents", "features"] = "latents"
    size: int = 32
    temperature: float = 0.1
    similarity: str = "chunkwise"
    pool: Literal["mean", "where"] = "mean"
    video_widths: tuple[int, ...] = (64, 128)
    action_widths: tuple[int, ...] = (128, 64)

    def __post_init__(self):
        if self.video not in ("latents", "features"):
            raise ValueError(f"adapters.video {self.video!r} is unknown (has: latents, features)")
        if self.similarity not in SIMILARITIES:
            raise ValueError(f"adapters.similarity {self.similarity!r} is unknown (has: {', '.join(SIMILARITIES)})")
        if self.pool not in ("mean", "where"):
            raise ValueError(f"adapters.pool {self.pool!r} is unknown (has: mean, where)")


# The paper's method section, and its project page (which differs, see there).
PRESETS = {
    "latents": AdapterConfig(),
    "features": AdapterConfig(video="features", size=256, temperature=0.07, video_widths=(256, 256)),
}


class LatentAdapter(nnx.Module):
    """Two convolutions of stride 2 with group norm and GELU, what the grid is pooled to, and a linear map."""

    def __init__(self, channels: int, config: AdapterConfig, rngs: nnx.Rngs):
        widths = (2 * channels, *config.video_widths)
        self.convs = nnx.List([Conv(a, b, rngs, stride=2) for a, b in itertools.pairwise(widths)])
        self.norms = nnx.List([GroupNorm(width, _GROUPS) for width in config.video_widths])
        self.where = config.pool == "where"
        self.out = Linear(widths[-1] * (3 if self.where else 1), config.size, (None, None), rngs)

    def __call__(
        self, latents: Float[Array, "B T+1 V h w C"], mask: Bool[Array, "B T"] | None
    ) -> Float[Array, "B T D"]:
        """Of each chunk alone: its last frame and how that differs from its first, all cameras, as channels."""
        batch, chunks = latents.shape[0], latents.shape[1] - 1
        both = jnp.stack([latents[:, 1:], latents[:, 1:] - latents[:, :-1]], -1)
        x = rearrange(both, "b t v h w c e -> (b t) h w (e v c)")
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.gelu(norm(conv(x)))
        return self.out(what_and_where(x) if self.where else x.mean((1, 2))).reshape(batch, chunks, -1)


class FeatureAdapter(nnx.Module):
    """Three convolutions over time, of kernel 3, on one vector a frame."""

    def __init__(self, channels: int, config: AdapterConfig, rngs: nnx.Rngs):
        widths = (2 * channels, *config.video_widths, config.size)
        self.layers = nnx.List([Linear(3 * a, b, (None, None), rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, features: Float[Array, "B T+1 C"], mask: Bool[Array, "B T"] | None) -> Float[Array, "B T D"]:
        """Absent chunks are zeros to their neighbours, as what lies beyond the ends."""
        x = jnp.concatenate([features[:, 1:], features[:, 1:] - features[:, :-1]], -1)
        for number, layer in enumerate(self.layers):
            x = jax.nn.gelu(x) if number else x
            x = x if mask is None else jnp.where(mask[..., None], x, 0.0)
            padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            x = layer(jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], -1))
        return x


class MLP(nnx.Module):
    """Linear maps with GELU between them."""

    def __init__(self, widths: tuple[int, ...], rngs: nnx.Rngs):
        self.layers = nnx.List([Linear(a, b, (None, None), rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        for number, layer in enumerate(self.layers):
            x = layer(jax.nn.gelu(x) if number else x)
        return x


class Adapters(nnx.Module):
    """Both adapters and the decoder of actions.

    Args:
      config: sizes.
      channels: of a frame's latents, all cameras together; or of a frame's features.
      chunk: actions of a chunk.
      action_size: numbers of an action.
    """

    def __init__(self, config: AdapterConfig, channels: int, chunk: int, action_size: int, rngs: nnx.Rngs):
        self.config, self.chunk, self.action_size = config, chunk, action_size
        make = LatentAdapter if config.video == "latents" else FeatureAdapter
        self.video = make(channels, config, rngs)
        widths = (chunk * action_size, *config.action_widths, config.size)
        self.action = MLP(widths, rngs)
        self.decoder = MLP(widths[::-1], rngs)

    def of_video(
        self, latents: Float[Array, "B T+1 ..."], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T D"]:
        """A vector for each chunk, from the frames before and after it; ``mask``: which chunks are there."""
        return self.video(latents, mask)

    def of_actions(self, actions: Float[Array, "B T*M A"]) -> Float[Array, "B T D"]:
        """A vector for each chunk of (normalised) actions.

        Raises:
          ValueError: if they are no whole chunks.
        """
        if actions.shape[1] % self.chunk or actions.shape[2] != self.action_size:
            raise ValueError(
                f"actions of shape {actions.shape} are no chunks of {self.chunk} actions of {self.action_size} numbers"
            )
        return self.action(rearrange(actions, "b (t m) a -> b t (m a)", m=self.chunk))

    def decode(self, vectors: Float[Array, "B T D"]) -> Float[Array, "B T*M A"]:
        """The actions back."""
        return rearrange(self.decoder(vectors), "b t (m a) -> b (t m) a", m=self.chunk)


def define_adapters(config: AdapterConfig, channels: int, chunk: int, action_size: int) -> Definition[Adapters]:
    """The definition of the adapters; no parameter is allocated."""
    return define(lambda rngs: Adapters(config, channels, chunk, action_size, rngs))


def adapter_loss(
    adapters: Adapters,
    latents: Float[Array, "N T+1 ..."],
    actions: Float[Array, "N T*M A"],
    mask: Bool[Array, "N T"] | None = None,
    elsewhere: Float[Array, "K N T*M A"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Reconstruction of the actions plus InfoNCE in both directions; pairs are the batch's rows.

    Args:
      adapters: bound to parameters.
      latents: of the first frame, and of those that the chunks end in.
      actions: the chunks, normalised.
      mask: which chunks are there; None: all.
      elsewhere: further negatives of each row: its own actions, some way off. Other rows are far away, and to tell them
        apart takes no precision.

    Returns:
      the loss, and its parts, the similarity of pairs and of others, and how often a pair is found among all.
    """
    config = adapters.config
    video, action = adapters.of_video(latents, mask), adapters.of_actions(actions)
    there, error = chunks_there(video, mask), _errors(adapters, action, actions)
    moved = [] if elsewhere is None else [jnp.swapaxes(jax.vmap(adapters.of_actions)(elsewhere), 0, 1)]
    video, action, there, error, *moved = gathered(video, action, there, error, *moved)
    similarity = similarities(config, video, action, there)
    further = None
    if moved:
        row = jax.vmap(lambda v, a, m: similarities(config, v[None], a, m[None])[0])
        further = row(video, moved[0], there)
    contrastive, reconstruction = info_nce(similarity, config.temperature, further), masked_mean(error, there)
    return reconstruction + contrastive, {
        "reconstruction": reconstruction,
        "contrastive": contrastive,
        **paired(similarity),
    }


def gathered(*arrays: Shaped[Array, "N ..."]) -> tuple[Shaped[Array, "N ..."], ...]:
    """The same, whole on every device, in one exchange: a batch is cut over devices, and all is compared with all."""
    flat = [x.reshape(len(x), -1).astype(jnp.float32) for x in arrays]
    whole = constrain(jnp.concatenate(flat, 1), (None, None))
    parts = jnp.split(whole, np.cumsum([x.shape[1] for x in flat])[:-1], 1)
    return tuple(part.reshape(x.shape).astype(x.dtype) for part, x in zip(parts, arrays, strict=True))


def similarities(
    config: AdapterConfig,
    video: Float[Array, "A T D"],
    action: Float[Array, "B T D"],
    mask: Bool[Array, "A T"] | None = None,
) -> Float[Array, "A B"]:
    """Of every video to every action sequence; ``gathered`` before, where these are cut over devices.

    ``mask``: which chunks are there, of a video and of its actions, or of the one video and all that is compared.
    """
    there = chunks_there(video, mask)
    return SIMILARITIES[config.similarity](video, action, there, jnp.broadcast_to(there, action.shape[:2]))


def inverse_loss(
    adapters: Adapters,
    latents: Float[Array, "N T+1 ..."],
    actions: Float[Array, "N T*M A"],
    mask: Bool[Array, "N T"] | None = None,
    elsewhere: Float[Array, "K N T*M A"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Inverse dynamics with the same networks: the error of actions that are decoded from the video's vectors.

    Arguments as of ``adapter_loss``, the last of no use; what is compared with it (``pseudo_actions.py``) learns this
    instead.
    """
    vectors = adapters.of_video(latents, mask)
    error = masked_mean(_errors(adapters, vectors, actions), chunks_there(vectors, mask))
    return error, {"reconstruction": error}


def _errors(
    adapters: Adapters, vectors: Float[Array, "N T D"], actions: Float[Array, "N T*M A"]
) -> Float[Array, "N T"]:
    """Mean squared error of the actions that vectors are decoded to, chunk by chunk."""
    squared = jnp.square(adapters.decode(vectors) - actions)
    return jnp.mean(rearrange(squared, "n (t m) a -> n t m a", m=adapters.chunk), (2, 3))


def paired(similarity: Float[Array, "N N"]) -> dict[str, Float[Array, ""]]:
    """The similarity of pairs (the diagonal) and of others, and how often a pair is found among all."""
    count = len(similarity)
    own = jnp.mean(jnp.diagonal(similarity))
    return {
        "similarity": own,
        "similarity_of_others": (jnp.sum(similarity) - count * own) / max(count * (count - 1), 1),
        "retrieval": retrieval_accuracy(similarity),
    }
