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
      perceptual: LPIPS, of one image of each clip, drawn at random: networks cost more than pixels.
      adversarial: of the same images, weighted by the length of their gradient so far.
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
      key: of the noise on latents, and of which images the networks see.
      step: of the training.

    Returns:
      the loss, and each part's own value before its weight, with ``psnr`` in dB.
    """
    target = to_float(images)
    tokenizer = define_tokenizer(config).bind(params["tokenizer"])
    latents = tokenizer.encode(target)
    scale = jnp.sqrt(jnp.mean(latents**2) + 1e-6)
    decoded = tokenizer.decode(latents + weights.latent_noise * jax.random.normal(key, latents.shape))
    error = decoded - target
    squared = jnp.mean(error**2)
    loss = weights.l1 * jnp.mean(jnp.abs(error)) + weights.l2 * squared + weights.latent_scale * jnp.log(scale) ** 2
    metrics = {"psnr": 10 * jnp.log10(4 / squared), "latent_scale": scale}
    if weights.perceptual or weights.adversarial:
        drawn = jax.random.randint(jax.random.fold_in(key, 1), (len(images), 1, 1, 1, 1), 0, images.shape[1])
        fake, real = (jnp.take_along_axis(x, drawn, 1)[:, 0] for x in (decoded, target))
        judged, more = _judged(weights, params, judges, fake, real, step)
        loss, metrics = loss + judged, metrics | more
    if judges.teacher is not None:
        metrics["alignment"] = _alignment(config, weights, params["projector"], judges.teacher, latents, images)
        loss = loss + weights.alignment * metrics["alignment"]
    return loss, metrics


def _judged(
    weights: ReconstructionConfig,
    params: Params,
    judges: Judges,
    fake: Float[Array, "B H W 3"],
    real: Float[Array, "B H W 3"],
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """What networks say of decoded pictures: LPIPS, and the discriminator, as strong as all that pulls without it."""

    def error(fake: Float[Array, "B H W 3"]) -> tuple[Float[Array, ""], Metrics]:
        if judges.lpips is None:
            return jnp.zeros(()), {}
        distance = jnp.mean(judges.lpips(fake, real))
        return weights.perceptual * distance, {"lpips": distance}

    if not weights.adversarial:
        return error(fake)
    loss, metrics, gradient = with_gradient(error, fake)
    # Of the pixels' own error here, so that both gradients are of the same pictures and the same mean.
    pixels = jax.grad(lambda x: weights.l1 * jnp.mean(jnp.abs(x - real)) + weights.l2 * jnp.mean((x - real) ** 2))
    adversarial, more = adversarial_loss(
        define_discriminator(weights.discriminator), params["discriminator"], real, fake,
        gradient + pixels(jax.lax.stop_gradient(fake)), weights.adversarial, step >= weights.adversarial_start,
    )  # fmt: skip
    return loss + adversarial, metrics | more


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
