"""Contrastive losses between sequences of chunks: what a video shows, and what actions do (World2Act, 2603.10422)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wam_jax.objectives.alignment import unit
from wam_jax.objectives.masked import masked_mean


def chunkwise(
    video: Float[Array, "A T D"],
    action: Float[Array, "B T D"],
    video_mask: Bool[Array, "A T"] | None = None,
    action_mask: Bool[Array, "B T"] | None = None,
) -> Float[Array, "A B"]:
    """Similarity of every video to every action sequence: the mean over their chunks of cos(z^v_t, z^a_t).

    Chunk t is compared with chunk t, so the order of chunks counts. Masks tell which are there; only chunks that both
    have count, and two sequences without any are 0 alike (leave a sequence without any chunk out: it is no negative).
    """
    together = chunks_there(video, video_mask)[:, None] & chunks_there(action, action_mask)[None]
    return masked_mean(jnp.einsum("atd,btd->abt", unit(video), unit(action)), together, -1)


def pooled(
    video: Float[Array, "A T D"],
    action: Float[Array, "B T D"],
    video_mask: Bool[Array, "A T"] | None = None,
    action_mask: Bool[Array, "B T"] | None = None,
) -> Float[Array, "A B"]:
    """The ablation: the cosine of the two means over chunks, which does not know in what order they come."""
    means = (
        masked_mean(x, chunks_there(x, mask)[..., None], 1) for x, mask in ((video, video_mask), (action, action_mask))
    )
    return jnp.einsum("ad,bd->ab", *map(unit, means))


def info_nce(
    similarity: Float[Array, "N N"],
    temperature: float,
    further: Float[Array, "N K"] | None = None,
) -> Float[Array, ""]:
    """InfoNCE in both directions (van den Oord et al., arXiv 1807.03748; CLIP's form, arXiv 2103.00020).

    Entry (i, j) is how alike sequence i of one kind and j of the other are; pairs are on the diagonal, and all others
    in their row or column are negatives. The mean of both cross-entropies.

    Args:
      further: how alike each sequence of the first kind and further negatives of its own are.
    """
    logits = similarity / temperature
    rows, own = logits, jnp.diagonal(logits)
    if further is not None:
        rows = jnp.concatenate([logits, further / temperature], 1)
    found = jnp.concatenate([own - jax.nn.logsumexp(rows, 1), own - jax.nn.logsumexp(logits, 0)])  # log p
    return -jnp.mean(found)


def retrieval_accuracy(similarity: Float[Array, "N N"]) -> Float[Array, ""]:
    """How often a sequence's pair is the most alike of all, in both directions."""
    own = jnp.arange(len(similarity))
    return (jnp.mean(similarity.argmax(1) == own) + jnp.mean(similarity.argmax(0) == own)) / 2


def chunks_there(chunks: Float[Array, "N T D"], mask: Bool[Array, "N T"] | None) -> Bool[Array, "N T"]:
    """Which chunks count: all, where there is no mask."""
    return jnp.ones(chunks.shape[:2], bool) if mask is None else mask
