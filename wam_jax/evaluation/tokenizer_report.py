"""What tokenizers make of held-out clips: reconstructions, maps of latents, and futures by latent actions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from wam_jax.encoders.frozen import FrozenEncoder
from wam_jax.encoders.lpips import Lpips
from wam_jax.evaluation import media
from wam_jax.evaluation.report import Report
from wam_jax.evaluation.video import video_metrics
from wam_jax.tokenizers.latent_action import FrozenLatentActions, define_latent_actions
from wam_jax.tokenizers.latent_action_usage import Usage, of_one_kind, usage
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.types import Batch

COLUMNS = ("dataset", "images", "PSNR (dB)", "SSIM", "LPIPS")
_CHUNK = 32  # windows a compiled call
_SHOWN = 6  # windows drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenised:
    """Held-out windows and what tokenizers make of them.

    Attributes:
      images, reconstructed: of N windows.
      image_mask: which images are within the episode.
      latents, frame_mask: of their frames.
      predicted: images by latent actions, each frame from the true one before it; None without latent actions.
      change: how much of each latent the latent action after it changes; None without.
      usage: of the latent actions; None without.
    """

    images: UInt8[np.ndarray, "N I V H W 3"]
    reconstructed: UInt8[np.ndarray, "N I V H W 3"]
    image_mask: Bool[np.ndarray, "N I V"]
    latents: Float[np.ndarray, "N T V h w C"]
    frame_mask: Bool[np.ndarray, "N T V"]
    predicted: UInt8[np.ndarray, "N I V H W 3"] | None
    change: Float[np.ndarray, "N T-1 V h w"] | None
    usage: Usage | None

    @property
    def last_frame(self) -> Int[np.ndarray, "N"]:
        """Of each window, the last that is within its episode."""
        return self.frame_mask.all(-1).sum(1) - 1

    def metrics(self, lpips: Lpips | None) -> dict[str, float]:
        """Of the reconstruction, over all images within an episode."""
        found = video_metrics(self.reconstructed, self.images, self.image_mask, lpips)
        return {name: value for name, value in found.items() if "/" not in name}


def tokenise(batch: Batch, tokenizer: Tokenizer, latent_actions: FrozenLatentActions | None) -> Tokenised:
    """Runs held-out windows of images through the tokenizers."""
    assert batch.images is not None
    tubelet = tokenizer.config.tubelet

    @jax.jit
    def run(tokenizer: Tokenizer, actions: FrozenLatentActions | None, images: jax.Array):
        latents = tokenizer.encode(images)
        predicted = change = None
        if actions is not None:
            frames = _predict(actions, latents)
            predicted, change = tokenizer.decode(frames), jnp.linalg.norm(frames[:, 1:] - latents[:, :-1], axis=-1)
        return latents, tokenizer.decode(latents), predicted, change

    parts, count = [], len(batch.images)
    for start in range(0, count, _CHUNK):
        rows = np.minimum(np.arange(start, start + _CHUNK), count - 1)  # the last call is padded, not compiled anew
        found = run(tokenizer, latent_actions, batch.images[rows])
        parts.append(jax.tree.map(lambda x, n=count - start: np.asarray(x)[:n], found))
    latents, reconstructed, predicted, change = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    frame_mask = np.asarray(batch.image_mask)
    image_mask = np.concatenate([frame_mask[:, :1], np.repeat(frame_mask[:, 1:], tubelet, 1)], 1)
    used = None
    if latent_actions is not None:
        pairs = of_one_kind(tubelet, jnp.asarray(latents), jnp.asarray(frame_mask))
        used = usage(latent_actions.config, latent_actions.params, *pairs)
    return Tokenised(
        images=np.asarray(batch.images),
        reconstructed=reconstructed,
        image_mask=image_mask,
        latents=latents,
        frame_mask=frame_mask,
        predicted=predicted,
        change=change,
        usage=used,
    )


def _predict(actions: FrozenLatentActions, latents: Float[jax.Array, "N T V h w C"]) -> Float[jax.Array, "N T V h w C"]:
    """Every frame from the true one before it and the latent action between; the first as it is."""
    model = define_latent_actions(actions.config).bind(actions.params)
    flat = latents.reshape(*latents.shape[:2], -1, latents.shape[-1])
    before, after = (x.reshape(-1, *x.shape[2:]) for x in (flat[:, :-1], flat[:, 1:]))
    found = model.predict(before, model.infer(before, after)).reshape(flat[:, 1:].shape)
    return jnp.concatenate([flat[:, :1], found], 1).reshape(latents.shape)


def add_tokenised(
    report: Report,
    results: Mapping[str, Tokenised],
    cameras: Sequence[str],
    lpips: Lpips | None = None,
    teacher: FrozenEncoder | None = None,
) -> dict[str, Any]:
    """Tables and pictures of every dataset; returns the numbers for ``summary.json``."""
    metrics = {name: result.metrics(lpips) for name, result in results.items()}
    report.add_table("Held-out reconstructions", COLUMNS, metric_rows(metrics))
    for name, result in results.items():
        shown = np.flatnonzero(result.last_frame > 0)[:_SHOWN]
        if not len(shown):
            continue  # every window ends with its first frame
        for view, camera in enumerate(cameras):
            grid, rows = _grid(result, view, shown, teacher)
            report.add_image(f"{name}: {camera}", media.picture(grid), f"Columns: windows. Rows: {', '.join(rows)}.")
        if result.usage is not None:
            report.add_text(f"{name}: latent actions", result.usage.summary)
    used = {name: result.usage.numbers for name, result in results.items() if result.usage is not None}
    return {"reconstruction": metrics, **({"latent_actions": used} if used else {})}


def metric_rows(metrics: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """One row a dataset."""
    rows: list[tuple[str, ...]] = []
    for name, found in metrics.items():
        lpips = next((f"{value:.3f}" for key, value in found.items() if key.startswith("lpips")), "–")
        rows.append((name, f"{found['pictures']:.0f}", f"{found['psnr']:.2f}", f"{found['ssim']:.3f}", lpips))
    return rows


def _grid(
    result: Tokenised, view: int, shown: np.ndarray, teacher: FrozenEncoder | None
) -> tuple[UInt8[np.ndarray, "H W 3"], list[str]]:
    tubelet = (result.images.shape[1] - 1) // max(1, result.latents.shape[1] - 1)
    frame = result.last_frame[shown]
    image = frame * tubelet
    images = result.images[shown, image, view]
    rows = {
        "the last image": images,
        "reconstructed": result.reconstructed[shown, image, view],
        "latents (first three principal components)": _stretched(pca_map(result.latents[shown, frame, view]), images),
    }
    if teacher is not None:
        rows["the teacher's features, likewise"] = _stretched(pca_map(np.asarray(teacher(images))), images)
    if result.predicted is not None:
        rows["from the frame before and the latent action"] = result.predicted[shown, image, view]
    if result.change is not None:
        heat = result.change[shown, frame - 1, view]
        heat = heat / np.maximum(heat.max((1, 2), keepdims=True), 1e-9)
        rows["the image before, and where the latent action changes it"] = media.overlay(
            result.images[shown, image - tubelet, view], heat
        )
    frames = np.concatenate(list(rows.values()))
    return media.tile(media.enlarge(frames, 128), columns=len(shown)), list(rows)


def pca_map(features: Float[np.ndarray, "N h w C"]) -> UInt8[np.ndarray, "N h w 3"]:
    """The three directions along which features vary most, over all pictures together, as red, green and blue.

    Each is cut at its 2nd and 98th percentile. With fewer than three channels, the rest is grey.
    """
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    directions = np.linalg.svd(flat, full_matrices=False)[2][:3]
    # A direction's sign is arbitrary; the larger end is bright.
    directions = directions * np.where(np.abs(directions.min(1)) > directions.max(1), -1, 1)[:, None]
    found = flat @ directions.T
    low, high = np.percentile(found, [2, 98], axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-9), 0, 1)
    scaled = np.pad(scaled, ((0, 0), (0, 3 - scaled.shape[1])), constant_values=0.5)
    return np.round(255 * scaled).astype(np.uint8).reshape(*features.shape[:-1], 3)


def _stretched(maps: UInt8[np.ndarray, "N h w 3"], like: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
    """Each position as a block of pixels of the picture's size."""
    rows, columns = (-(-size // small) for size, small in zip(like.shape[1:3], maps.shape[1:3], strict=True))
    return np.repeat(np.repeat(maps, rows, 1), columns, 2)[:, : like.shape[1], : like.shape[2]]
