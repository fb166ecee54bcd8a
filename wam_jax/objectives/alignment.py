"""Alignment of latents, or of a model's hidden states, to what a frozen vision encoder makes of the same pictures.

The teacher's features [B, P, r, c, D] are of P pictures, the student's [B, T, h, w, D] of T latent frames, where P is T
(one picture a frame) or 1 + (T - 1) n: the first latent frame is the first picture, each further one closes n more. The
teacher's grid is resized to the student's. No gradient reaches the teacher, and all is computed in float32.
"""

import itertools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from wam_jax.nn.module import Linear
from wam_jax.objectives.masked import masked_mean
from wam_jax.tokenizers.wan_vae_blocks import Conv

ProjectorKind = Literal["linear", "mlp", "conv"]


class Projector(nnx.Module):
    """From the student's width to the teacher's; trained with the student and dropped afterwards.

    Args:
      kind: "linear" (RepWAM, VA-VAE); "mlp": three linear layers with SiLU between them (REPA, arXiv 2410.06940, which
        makes the hidden ones 2048 wide; here they are as wide as the teacher); "conv": 3 x 3 positions of a frame
        (iREPA, arXiv 2512.10794).
      inputs, outputs: the student's width and the teacher's.

    Raises:
      ValueError: for another kind.
    """

    def __init__(self, kind: ProjectorKind, inputs: int, outputs: int, rngs: nnx.Rngs):
        if kind not in get_args(ProjectorKind):
            raise ValueError(f"projector {kind!r} is unknown (has: {', '.join(get_args(ProjectorKind))})")
        widths = {"linear": (inputs, outputs), "mlp": (inputs, outputs, outputs, outputs), "conv": ()}[kind]
        self.linears = nnx.List([Linear(*sizes, (None, None), rngs) for sizes in itertools.pairwise(widths)])
        self.conv = Conv(inputs, outputs, (1, 3, 3), rngs) if kind == "conv" else None

    def __call__(self, x: Float[Array, "B T h w I"]) -> Float[Array, "B T h w D"]:
        if self.conv is not None:
            return self.conv(x, (1, 1, 1), (1, 1))
        for index, linear in enumerate(self.linears):
            x = linear(jax.nn.silu(x) if index else x)
        return x


def pooled_l2(projected: Float[Array, "B T h w D"], teacher: Float[Array, "B P r c D"]) -> Float[Array, ""]:
    """RepWAM's ‖avg_t(W z) - avg_t(G(o))‖² (arXiv 2606.13674): both averaged over time, then the squared difference.

    The mean over batch, positions and channels, where the paper has a norm: its scale is that of one feature squared,
    whatever the teacher's width. P may be any number here.

    Raises:
      ValueError: if the widths differ.
    """
    _check_widths(projected, teacher)
    target = jax.lax.stop_gradient(teacher).astype(jnp.float32).mean(1)
    error = projected.astype(jnp.float32).mean(1) - resize(target, *projected.shape[2:4])
    return jnp.mean(error**2)


def cosine(
    projected: Float[Array, "B T h w D"], teacher: Float[Array, "B P r c D"], mask: Bool[Array, "B T"] | None = None
) -> Float[Array, ""]:
    """Minus the mean cosine similarity of a position's two features: -1 where they are equal but for their length.

    REPA (arXiv 2410.06940); AGRA's for one tapped layer (arXiv 2606.12217). ``mask``: the frames that count.

    Raises:
      ValueError: if the widths differ, or see ``on_grid``.
    """
    alike = _similarity(projected, teacher)
    return -jnp.mean(alike) if mask is None else -masked_mean(alike, mask[..., None, None])


def marginal_cosine(
    projected: Float[Array, "B T h w D"], teacher: Float[Array, "B P r c D"], margin: float = 0.5
) -> Float[Array, ""]:
    """Mean of max(0, 1 - margin - cosine similarity) over positions: what is similar enough is left alone.

    VA-VAE's marginal cosine similarity loss (arXiv 2501.01423), with the margin of its code.

    Raises:
      ValueError: if the widths differ, or see ``on_grid``.
    """
    return jnp.mean(jax.nn.relu(1 - margin - _similarity(projected, teacher)))


def marginal_distance(
    latents: Float[Array, "B T h w C"], teacher: Float[Array, "B P r c D"], margin: float = 0.25
) -> Float[Array, ""]:
    """Mean of max(0, |cos(z_i, z_j) - cos(f_i, f_j)| - margin) over all pairs of positions of a picture.

    VA-VAE's marginal distance matrix similarity loss (arXiv 2501.01423), with the margin of its code, which compares
    projected latents. Similarities within each side are all that counts, so latents of any width will do.

    Raises:
      ValueError: see ``on_grid``.
    """
    pairs = [_pairs(latents), _pairs(on_grid(teacher, *latents.shape[1:4]))]
    return jnp.mean(jax.nn.relu(jnp.abs(pairs[0] - pairs[1]) - margin))


def on_grid(
    teacher: Float[Array, "B P r c D"], frames: int, rows: int, columns: int
) -> Float[Array, "B frames rows columns D"]:
    """The teacher's features at the positions of so many latent frames, as constants.

    Of a latent frame's pictures, it is the last one's features that are taken: by then, all of them have been seen. A
    caller saves time by giving the encoder those pictures only (``pictures[:, ::n]``).

    Raises:
      ValueError: if the pictures do not divide into the latent frames.
    """
    pictures = teacher.shape[1]
    further = max(frames - 1, 1)  # latent frames after the first
    if pictures < frames or (pictures - 1) % further or (frames == 1 < pictures):
        raise ValueError(
            f"the teacher has features of {pictures} pictures, which are not those of {frames} latent frames; give it "
            f"{frames}, or 1 + {frames - 1} n of them"
        )
    closing = jax.lax.stop_gradient(teacher)[:, :: max((pictures - 1) // further, 1)]
    return resize(closing, rows, columns)


def resize(features: Float[Array, "*B r c D"], rows: int, columns: int) -> Float[Array, "*B h w D"]:
    """Another grid, bilinear and antialiased, in float32."""
    shape = (*features.shape[:-3], rows, columns, features.shape[-1])
    features = features.astype(jnp.float32)
    return features if features.shape == shape else jax.image.resize(features, shape, "linear", antialias=True)


def _similarity(projected: Float[Array, "B T h w D"], teacher: Float[Array, "B P r c D"]) -> Float[Array, "B T h w"]:
    """Cosine of the angle between the two features of each position, see ``on_grid``."""
    _check_widths(projected, teacher)
    return jnp.sum(unit(projected) * unit(on_grid(teacher, *projected.shape[1:4])), -1)


def _pairs(features: Float[Array, "B T h w D"]) -> Float[Array, "B T N N"]:
    """Cosine of the angle between the features of every two positions of a frame."""
    flat = rearrange(unit(features), "b t h w d -> b t (h w) d")
    return jnp.einsum("btid,btjd->btij", flat, flat)


def unit(features: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Features of length 1; those shorter than 10⁻⁶ stay shorter."""
    features = features.astype(jnp.float32)
    return features * jax.lax.rsqrt(jnp.maximum(jnp.sum(features**2, -1, keepdims=True), 1e-12))


def _check_widths(projected: Float[Array, "*B D"], teacher: Float[Array, "*B D"]) -> None:
    if projected.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student features are {projected.shape[-1]} wide and the teacher's {teacher.shape[-1]}; put a Projector "
            "between them"
        )
