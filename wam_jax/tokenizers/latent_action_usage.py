"""What a trained tokenizer makes of its latent actions: are they used at all, how many codes, how many dimensions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wam_jax.nn.module import Params
from wam_jax.objectives.dynamics import squared_error
from wam_jax.tokenizers.latent_action import LatentActionConfig, consecutive_pairs, define_latent_actions
from wam_jax.tokenizers.latent_action_bottlenecks import ACTIVE_VARIANCE, Codes, Gaussian, kl

COLLAPSED_SHARE = 0.1  # of the codes that could be in use: a lower perplexity is a collapse, and so is one below 2
IGNORED_RATIO = 1.05  # error with another pair's latent action over that with its own: below, it hardly matters


@dataclasses.dataclass(frozen=True)
class Usage:
    """Attributes:

    collapsed: latent actions tell (nearly) nothing apart, or predictions do not depend on them.
    summary: in words, with the thresholds and what to do.
    numbers: for a JSON file.
    """

    collapsed: bool
    summary: str
    numbers: dict[str, float | list[float]]


def of_one_kind(
    tubelet: int, latents: Float[Array, "M T V h w C"], mask: Bool[Array, "M T V"]
) -> tuple[Float[Array, "M t V h w C"], Bool[Array, "M t V"]]:
    """Windows without their first frame, where that is one picture and each further one merges ``tubelet``.

    From one kind to the other no latent action is needed to know that much changes. Of windows of two frames, nothing
    would be left: they stay.
    """
    first = int(tubelet > 1 and latents.shape[1] > 2)
    return latents[:, first:], mask[:, first:]


def usage(
    config: LatentActionConfig,
    params: Params,
    latents: Float[Array, "M T V h w C"],
    mask: Bool[Array, "M T V"] | None = None,
) -> Usage:
    """Of all consecutive pairs of some windows (best held out) that are there.

    Its numbers: ``pairs``; ``forward_error``, mean squared, with latent actions as they are used; ``error_ratio``, over
    that of predicting no change; ``shuffled_ratio``, the error with the latent actions of other pairs over it; ``std``
    of each dimension; and those of ``codebook_report`` or ``gaussian_report``.

    Raises:
      ValueError: if the latents are not those of ``config``, or no pair is there.
    """
    pairs = (x.reshape(-1, *x.shape[2:]) for x in consecutive_pairs(config, latents, mask))
    before, after, there = (np.asarray(x) for x in pairs)
    before, after, there = (x[there.any(-1)] for x in (before, after, there))
    if not len(before):
        raise ValueError(
            f"no pair of consecutive frames is there in latents of shape {latents.shape}; look at the mask"
        )
    definition = define_latent_actions(config)

    def errors(p: Params, b: Array, a: Array, v: Array, latent_action: Array) -> tuple[Array, Array]:
        predicted = definition.bind(p).predict(b[None], latent_action[None])
        return squared_error(predicted, a[None], v[None]), squared_error(b[None], a[None], v[None])

    inferred = _over_pairs(lambda p, b, a: definition.bind(p).inverse(b[None], a[None])[0])(params, before, after)
    bottleneck, measure = definition.bind(params).bottleneck, _over_pairs(errors)
    latent_actions = bottleneck(inferred)
    others = np.random.default_rng(0).permutation(len(before))
    error, repeat = (float(x.mean()) for x in measure(params, before, after, there, latent_actions))
    shuffled = float(measure(params, before, after, there, latent_actions[others])[0].mean())
    numbers = {
        "pairs": len(before),
        "forward_error": error,
        "error_ratio": error / max(repeat, 1e-12),
        "shuffled_ratio": shuffled / max(error, 1e-12),
        "std": np.std(latent_actions, 0).tolist(),
    }
    found = [_ignored(numbers["shuffled_ratio"])]
    if isinstance(bottleneck, Codes):
        found.append(codebook_report(np.asarray(bottleneck.quantizer(inferred).codes), config.codebook))
    if isinstance(bottleneck, Gaussian):
        mean, log_variance = np.split(np.asarray(inferred), 2, -1)
        found.append(gaussian_report(mean, log_variance, config.beta))
    summary = f"error {error:.4f}, {numbers['error_ratio']:.2f} × that of predicting no change"
    for report in found:
        numbers |= report.numbers
    return Usage(any(x.collapsed for x in found), "; ".join([summary, *(x.summary for x in found)]), numbers)


def codebook_report(codes: Int[np.ndarray, "M"], count: int) -> Usage:
    """How many of ``count`` codes are in use, from the codes of M pairs.

    Its numbers: ``codebook_perplexity``, so many codes used equally often would be as hard to guess; ``codes_used``,
    the share that occurs; ``code_counts``. It is collapsed below a perplexity of 2, or of ``COLLAPSED_SHARE`` of the
    codes that M pairs could use.
    """
    counts = np.bincount(codes, minlength=count)
    share = counts[counts > 0] / counts.sum()
    perplexity, used = float(np.exp(-np.sum(share * np.log(share)))), int((counts > 0).sum())
    least = max(2.0, COLLAPSED_SHARE * min(count, len(codes)))
    collapsed = perplexity < least
    summary = f"codebook: {used} of {count} codes occur, perplexity {perplexity:.1f}"
    if collapsed:
        summary += f", COLLAPSED (below {least:.1f}); set latent_action.codebook lower, or take another kind"
    numbers = {"codebook_perplexity": perplexity, "codes_used": used / count, "code_counts": counts.tolist()}
    return Usage(collapsed, summary, numbers)


def gaussian_report(mean: Float[np.ndarray, "M A"], log_variance: Float[np.ndarray, "M A"], beta: float) -> Usage:
    """How many dimensions are in use, from the distributions of M pairs.

    Its numbers: ``kl`` of each dimension, in nats; ``active_units``, the dimensions whose mean has a variance above
    ``ACTIVE_VARIANCE`` over the pairs. It is collapsed where there is none.
    """
    divergence = np.asarray(kl(jnp.asarray(mean), jnp.asarray(log_variance))).mean(0)
    active, size = int((mean.var(0) > ACTIVE_VARIANCE).sum()), mean.shape[1]
    summary = f"{active} of {size} means vary (variance above {ACTIVE_VARIANCE}), KL {divergence.sum():.2f} nats"
    if not active:
        summary += f", COLLAPSED; set latent_action.beta lower than {beta:g}"
    return Usage(not active, summary, {"kl": divergence.tolist(), "active_units": active})


def _ignored(shuffled_ratio: float) -> Usage:
    summary = f"with another pair's latent action {shuffled_ratio:.2f} × that"
    ignored = shuffled_ratio < IGNORED_RATIO
    if ignored:
        summary += f", so it is IGNORED (below {IGNORED_RATIO}); train longer, or on pairs further apart"
    return Usage(ignored, summary, {})


def _over_pairs(function):
    """``function(params, *a pair's arrays)`` over all pairs, a few hundred at a time: all at once would not fit."""
    return jax.jit(lambda params, *x: jax.lax.map(lambda one: function(params, *one), x, batch_size=256))
