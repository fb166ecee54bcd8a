"""The adversarial loss of a tokenizer: a discriminator tells decoded pictures from real ones, the decoder misleads it.

Hinge losses and adaptive weight of VQGAN (Esser et al. 2021, arXiv 2012.09841, equation 7; CompVis/taming-transformers,
``taming/modules/losses/vqperceptual.py``). There the players take turns, each with an optimizer of its own; here both
are in one scalar whose gradient holds each player's own, so that one backward pass and one optimizer train them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wam_jax.nn.discriminator import Discriminator
from wam_jax.nn.module import Definition, Params
from wam_jax.objectives.flow_matching import Metrics

_LARGEST_WEIGHT = 1e4  # VQGAN's, too
_METRICS = ("generator", "discriminator", "weight", "accuracy")

Pictures = Float[Array, "B H W 3"]
PictureLoss = Callable[[Pictures], tuple[Float[Array, ""], Metrics]]


def discriminator_hinge(real: Float[Array, "*S"], fake: Float[Array, "*S"]) -> Float[Array, ""]:
    """Half the mean of max(0, 1 - logit) of real pictures, and of max(0, 1 + logit) of decoded ones."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def generator_hinge(fake: Float[Array, "*S"]) -> Float[Array, ""]:
    """Minus the mean logit of decoded pictures."""
    return -jnp.mean(fake)


def adaptive_weight(others: Pictures, adversarial: Pictures) -> Float[Array, ""]:
    """Ratio of two gradients' norms: what makes the second as long as the first; at most 10⁴, and a constant.

    Args:
      others: gradient of the other losses with respect to the decoded pictures.
      adversarial: gradient of ``generator_hinge`` with respect to them.

    VQGAN takes both with respect to the kernel of the decoder's last layer, which costs a backward pass through what
    comes after it for each; there, what pulls one pixel up and another down can cancel out, here every pixel counts.
    It also adds 10⁻⁴ to the divisor. With respect to pixels, norms are themselves of that size (the losses are means
    over a million of them), so here the limit alone guards against division by zero.
    """
    lengths = [jnp.linalg.norm(gradient.astype(jnp.float32)) for gradient in (others, adversarial)]
    ratio = lengths[0] / jnp.maximum(lengths[1], jnp.finfo(jnp.float32).tiny)
    return jax.lax.stop_gradient(jnp.minimum(ratio, _LARGEST_WEIGHT))


def with_gradient(loss: PictureLoss, pictures: Pictures) -> tuple[Float[Array, ""], Metrics, Pictures]:
    """A loss of pictures, its metrics, and its gradient with respect to them.

    The loss can be part of a sum that is differentiated: it passes the gradient that is already known on to whatever
    the pictures came from, and the way back through ``loss`` is gone only once.
    """
    fixed = jax.lax.stop_gradient(pictures)
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(fixed)
    gradient = jax.lax.stop_gradient(gradient)
    return value + jnp.sum(gradient * (pictures - fixed)), metrics, gradient


def adversarial_loss(
    definition: Definition[Discriminator],
    params: Params,
    real: Pictures,
    fake: Pictures,
    others: Pictures,
    weight: float,
    active: Bool[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """Both players' losses in one scalar, for ``jax.grad`` with respect to the parameters of both.

    ``params`` get the gradient of ``discriminator_hinge`` and nothing else; what ``fake`` was made from gets that of
    ``generator_hinge``, scaled to ``weight`` times the length of ``others``, and nothing else; ``real`` gets none. The
    scalar itself says little: its two parts are in the metrics.

    Example, of a loss of ``params = {"tokenizer": …, "discriminator": …}``::

        error, metrics, gradient = with_gradient(lambda decoded: picture_error(decoded, real), fake)
        adversarial, more = adversarial_loss(
            definition, params["discriminator"], real, fake, gradient, weight=0.1, active=step >= start
        )
        return error + adversarial, metrics | more

    Args:
      definition, params: of the discriminator.
      real: in [-1, 1]; the frames of a video are pictures of the batch.
      fake: the same pictures, decoded.
      others: gradient of the other losses with respect to ``fake`` (``with_gradient``).
      weight: of the adversarial loss beside the others (RepWAM: 0.1).
      active: whether it has started; before, the discriminator does not run, and all gradients and metrics are zero.

    Returns:
      the scalar, and as ``adversarial/…``: the ``generator``'s and the ``discriminator``'s hinge loss, the ``weight``
      with the adaptive factor, and the discriminator's ``accuracy``: the share of logits on the right side of zero,
      half for real and half for decoded pictures.
    """

    def play() -> tuple[Float[Array, ""], Metrics]:
        generator, _, gradient = with_gradient(mislead, fake)
        scale = weight * adaptive_weight(others, gradient)
        # The decoded pictures are judged twice, once for each player; compiled, the two forward passes are one.
        judge = definition.bind(params)
        on_real, on_fake = judge(jax.lax.stop_gradient(real)), judge(jax.lax.stop_gradient(fake))
        discriminator = discriminator_hinge(on_real, on_fake)
        accuracy = 0.5 * (jnp.mean(on_real > 0) + jnp.mean(on_fake < 0))
        found = (generator, discriminator, scale, accuracy)
        return scale * generator + discriminator, _named(jax.lax.stop_gradient(found))

    def mislead(pictures: Pictures) -> tuple[Float[Array, ""], Metrics]:
        return generator_hinge(definition.bind(jax.lax.stop_gradient(params))(pictures)), {}

    def wait() -> tuple[Float[Array, ""], Metrics]:
        zero = jnp.zeros(())
        return zero, _named((zero,) * len(_METRICS))

    return jax.lax.cond(active, play, wait)


def _named(values: tuple[Float[Array, ""], ...]) -> Metrics:
    return {f"adversarial/{name}": value for name, value in zip(_METRICS, values, strict=True)}
