"""What a visual tokenizer learns from: its clips come back, look real, and its latents mean what a teacher sees.

RepViTok (RepWAM, arXiv 2606.13674): L1 + perceptual + 0.1 adversarial + alignment. Its raw-pixel twin ViTok is the same
without alignment. What has weight 0 is not there at all: no discriminator, no projector, no teacher.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from wam_jax.encoders.frozen import FrozenEncoder
from wam_jax.encoders.lpips import Lpips
from wam_jax.nn.discriminator import Discriminator, DiscriminatorConfig, define_discriminator
from wam_jax.nn.module import Definition, Params, define
from wam_jax.objectives.adversarial import adversarial_loss, with_gradient
from wam_jax.objectives.alignment import Projector, marginal_cosine, marginal_distance, pooled_l2
from wam_jax.objectives.flow_matching import Metrics
from wam_jax.tokenizers.tokenizer import to_float
from wam_jax.tokenizers.visual import TokenizerConfig, VisualTokenizer, define_tokenizer

ALIGNMENTS = ("pooled_l2", "va_vae")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Weights of the loss's parts.

    Attributes:
      l1, l2: mean absolute and squared error of pixels in [-1, 1].
      perceptual: LPIPS.
      adversarial: beside all that pixels alone decide, by the length of its gradient.
      adversarial_start: first step with a discriminator.
      discriminator_width, discriminator_halvings: see ``DiscriminatorConfig``.
      alignment: to the teacher's features.
      alignment_kind: "pooled_l2" (RepWAM), or "va_vae": marginal cosine and distances (arXiv 2501.01423).
      alignment_share: of the clips that the teacher looks at; its features are most of the work.
      projector: from latents to the teacher's width: linear | mlp | conv.
      latent_noise: standard deviation of what is added to latents before decoding, in their own units, so that near
        latents mean near pictures: what is generated later is never exactly on the encoder's manifold.
      latent_scale: of log² of the latents' root mean square, which so stays near 1.

    Raises:
      ValueError: for an unknown kind.
    """

    l1: float = 1.0
    l2: float = 2.0
    perceptual: float = 0.0
    adversarial: float = 0.0
    adversarial_start: int = 0
    discriminator_width: int = 32
    discriminator_halvings: int = 2
    alignment: float = 0.0
    alignment_kind: str = "pooled_l2"
    alignment_share: float = 1.0
    projector: str = "linear"
    latent_noise: float = 0.05
    latent_scale: float = 1e-3

    def __post_init__(self):
        if self.alignment_kind not in ALIGNMENTS:
            kinds = ", ".join(ALIGNMENTS)
            raise ValueError(f"tokenizer.loss.alignment_kind={self.alignment_kind!r} is unknown (has: {kinds})")
        if not 0 < self.alignment_share <= 1:
            raise ValueError(f"tokenizer.loss.alignment_share must be in (0, 1], got {self.alignment_share}")

    @property
    def discriminator(self) -> DiscriminatorConfig:
        width = self.discriminator_width
        return DiscriminatorConfig(width=width, halvings=self.discriminator_halvings, groups=min(32, width))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Judges:
    """The frozen networks that the loss asks; None where their part has no weight."""

    lpips: Lpips | None = None
    teacher: FrozenEncoder | None = None


class TokenizerInTraining(nnx.Module):
    """The tokenizer, and what is trained beside it and dropped afterwards."""

    def __init__(self, config: TokenizerConfig, loss: ReconstructionConfig, teacher_width: int, rngs: nnx.Rngs):
        self.tokenizer = VisualTokenizer(config, rngs)
        if loss.alignment:
            self.projector = Projector(loss.projector, config.channels, teacher_width, rngs)  # type: ignore[arg-type]
        if loss.adversarial:
            self.discriminator = Discriminator(loss.discriminator, rngs)


def define_in_training(
    config: TokenizerConfig, loss: ReconstructionConfig, teacher_width: int = 0
) -> Definition[TokenizerInTraining]:
    """Its definition; parameters under ``tokenizer``, ``projector``, ``discriminator``."""
    return define(lambda rngs: TokenizerInTraining(config, loss, teacher_width, rngs))


def reconstruction_loss(
    config: TokenizerConfig,
    weights: ReconstructionConfig,
    params: Params,
    judges: Judges,
    images: UInt8[Array, "B I H W 3"],
    key: jax.Array,
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum over the parts, for gradients with respect to all ``params``.

    Args:
      config, params: of ``TokenizerInTraining``.
      weights: of the parts.
      judges: what the parts ask.
      images: clips of one camera.
      key: of the noise on latents.
      step: of the training.

    Returns:
      the loss, and each part's own value before its weight, with ``psnr`` in dB.
    """
    target = to_float(images)
    tokenizer = define_tokenizer(config).bind(params["tokenizer"])
    latents = tokenizer.encode(target)
    scale = jnp.sqrt(jnp.mean(latents**2) + 1e-6)
    decoded = tokenizer.decode(latents + weights.latent_noise * jax.random.normal(key, latents.shape))
    flat, real = (x.reshape(-1, *x.shape[2:]) for x in (decoded, target))

    def picture_error(decoded: Float[Array, "N H W 3"]) -> tuple[Float[Array, ""], Metrics]:
        error = decoded - real
        squared = jnp.mean(error**2)
        total = weights.l1 * jnp.mean(jnp.abs(error)) + weights.l2 * squared
        metrics = {"psnr": 10 * jnp.log10(4 / squared)}
        if judges.lpips is not None:
            metrics["lpips"] = jnp.mean(judges.lpips(decoded, real))
            total = total + weights.perceptual * metrics["lpips"]
        return total, metrics

    if weights.adversarial:
        loss, metrics, gradient = with_gradient(picture_error, flat)
        adversarial, more = adversarial_loss(
            define_discriminator(weights.discriminator), params["discriminator"], real, flat, gradient,
            weights.adversarial, step >= weights.adversarial_start,
        )  # fmt: skip
        loss, metrics = loss + adversarial, metrics | more
    else:
        loss, metrics = picture_error(flat)
    if judges.teacher is not None:
        metrics["alignment"] = _alignment(config, weights, params["projector"], judges.teacher, latents, images)
        loss = loss + weights.alignment * metrics["alignment"]
    loss = loss + weights.latent_scale * jnp.log(scale) ** 2
    return loss, {**metrics, "latent_scale": scale}


def _alignment(
    config: TokenizerConfig,
    weights: ReconstructionConfig,
    params: Params,
    teacher: FrozenEncoder,
    latents: Float[Array, "B T h w C"],
    images: UInt8[Array, "B I H W 3"],
) -> Float[Array, ""]:
    """Of some of the clips; the teacher sees the image that closes each latent frame."""
    count = math.ceil(weights.alignment_share * len(images))
    closing = images[:count, :: config.tubelet]
    features = teacher(closing.reshape(-1, *closing.shape[2:]))
    features = features.reshape(*closing.shape[:2], *features.shape[1:])
    width = features.shape[-1]
    projector = define(lambda rngs: Projector(weights.projector, config.channels, width, rngs))  # type: ignore[arg-type]
    projected = projector.bind(params)(latents[:count])
    if weights.alignment_kind == "pooled_l2":
        return pooled_l2(projected, features)
    return marginal_cosine(projected, features) + marginal_distance(projected, features)
