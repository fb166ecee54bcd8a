"""What an arm of a study is measured by, beside success: held-out windows and probes."""

from collections.abc import Mapping

import numpy as np

from wam_jax.encoders.lpips import Lpips
from wam_jax.evaluation.heldout import Heldout
from wam_jax.evaluation.video import open_loop_score, video_metrics


def heldout_metrics(results: Mapping[str, Heldout], lpips: Lpips | None) -> dict[str, float]:
    """Means over datasets.

    Returns:
      of futures ``imagined_*`` and of real ones through the tokenizer ``tokenizer_*``: PSNR (dB), SSIM and LPIPS, at
      the same moments whatever the tokenizer merges; of actions ``open_loop_score`` (the share of steps within 0.03 of
      the demonstration) and ``action_error``.
    """
    rows = [_of_one(result, lpips) for result in results.values()]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _of_one(result: Heldout, lpips: Lpips | None) -> dict[str, float]:
    found: dict[str, float] = {}
    true, there = result.closing(result.future), result.closing(result.future_mask)
    for kind, images in (("imagined", result.imagined), ("tokenizer", result.reconstructed)):
        metrics = video_metrics(result.closing(images), true, there, lpips)
        found |= {f"{kind}_{name}": value for name, value in metrics.items() if "/" not in name and name != "pictures"}
    if result.predicted_actions is not None:
        found["open_loop_score"] = open_loop_score(result.actions, result.predicted_actions, result.action_mask)
        found["action_error"] = result.action_errors()["chunk"]
    return found
