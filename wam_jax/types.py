"""The arrays that travel between data, model, policy and simulation.

Letters: ``B`` batch, ``T`` frames (latent ones, where a tokenizer merges pictures in time), ``I`` images in time, ``V``
cameras, ``H W`` pixels, ``h w`` latent grid, ``C`` channels, ``N`` tokens, ``D`` width, ``K`` actions in a chunk, ``A``
action size, ``P`` proprioception size, ``L`` text tokens.
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

TEACHER = "teacher"  # stream of a vision encoder's features of the frames: [B, T, V, h, w, D]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """Token features of an instruction from a frozen text encoder; padding is masked out."""

    features: Float[Array, "*B L C"]
    mask: Bool[Array, "*B L"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamData:
    """What a further stream holds, as depth frames, value, optical flow or latent actions; mask True where present.

    The mask's axes are the first axes of the values:

      stream      values                                                                   mask
      ``value``   f32[*B, T, 1]                                                            [*B, T]
      ``depth``   uint8[*B, I, V, H, W, 3], grey; or f32[*B, T, V, h, w, C] as latents     [*B, T, V]

    Further streams may have a time grid of their own.
    """

    values: Shaped[Array, "*values"]
    mask: Bool[Array, "*mask"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What the loader yields and the trainer eats.

    Frame 0 is now, the rest are the future. A batch holds pixels (``images``) or, where a dataset was tokenised ahead
    of training, ``latents``; the other is None, but in held-out windows of clips. There is one image a frame, unless
    the tokenizer makes each future frame of ``tubelet`` images: then I = 1 + (T - 1) tubelet. Proprioception is that at
    the control steps of the frames. Past an episode's end, images and proprioception repeat its last step, and are
    masked out. Actions and proprioception are normalised, the way the dataset's statistics say. Action-free video is a
    batch whose ``action_mask`` is all false. ``streams`` holds what else was asked for, by stream name.

    A packed row holds several episodes' windows one after the other: ``episode`` numbers them frame by frame, from 0
    on, and ``text`` has an axis of them before its tokens. Actions that would lead from one to the next are masked out.
    """

    images: UInt8[Array, "*B I V H W 3"] | None
    latents: Float[Array, "*B T V h w C"] | None
    image_mask: Bool[Array, "*B T V"]
    actions: Float[Array, "*B K A"]
    action_mask: Bool[Array, "*B K A"]
    proprio: Float[Array, "*B T P"]
    proprio_mask: Bool[Array, "*B T P"]
    text: Text
    embodiment: Int[Array, "*B"]
    streams: dict[str, StreamData] = dataclasses.field(default_factory=dict)
    episode: Int[Array, "*B T"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What a policy sees at one control step: raw pixels and proprioception, the instruction, which robot.

    ``images`` are those since the last observation that the policy asks for (``Policy.images``), the newest last.
    """

    images: UInt8[Array, "*B I V H W 3"]
    proprio: Float[Array, "*B P"]
    text: Text
    embodiment: Int[Array, "*B"]
