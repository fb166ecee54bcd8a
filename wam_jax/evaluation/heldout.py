"""What a model says on recorded windows that it was not trained on: actions, and the imagined future."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from wam_jax.policy import Policy, PolicyParams, decode_future, imagining_mode, present
from wam_jax.training.losses import Tokenizers, encode_batch
from wam_jax.types import Batch
from wam_jax.wam.history import generate

_CHUNK = 64  # windows a compiled call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heldout:
    """Predictions beside the truth, for ``N`` windows.

    Attributes:
      present, future, imagined, reconstructed: pixels; ``reconstructed`` is the true future through the tokenizer, the
        best that any prediction in its latents can be.
      future_mask: which of the future images are of frames within the episode.
      actions, predicted_actions: raw chunks, in the dataset's units; a model that does not act predicts none.
      action_mask: which actions are within the episode.
      tubelet: images that the tokenizer merges into one frame.
    """

    present: UInt8[np.ndarray, "N V H W 3"]
    future: UInt8[np.ndarray, "N F V H W 3"]
    imagined: UInt8[np.ndarray, "N F V H W 3"]
    reconstructed: UInt8[np.ndarray, "N F V H W 3"]
    future_mask: Bool[np.ndarray, "N F V"]
    actions: Float[np.ndarray, "N K A"]
    predicted_actions: Float[np.ndarray, "N K A"] | None
    action_mask: Bool[np.ndarray, "N K A"]
    tubelet: int = 1

    def closing(self, images: Shaped[np.ndarray, "N F ..."]) -> Shaped[np.ndarray, "N f ..."]:
        """Of the future images, those that frames end in: the same moments whatever the tokenizer merges."""
        return images[:, self.tubelet - 1 :: self.tubelet]

    def image_errors(self) -> dict[str, float]:
        """Mean squared error of pixels in [0, 1] against the real future, for each guess of it."""
        guesses = {
            "imagined": self.imagined,
            "repeat_present": np.broadcast_to(self.present[:, None], self.future.shape),
            "tokenizer": self.reconstructed,
        }
        return {name: float(np.mean(self._squared(guess))) for name, guess in guesses.items()}

    def action_errors(self) -> dict[str, float]:
        """``action_errors`` of the predictions; nothing of a model that does not act."""
        if self.predicted_actions is None:
            return {}
        return action_errors(self.actions, self.predicted_actions, self.action_mask)

    def summary(self) -> dict[str, Any]:
        """For ``summary.json``."""
        actions = {("action_error" if k == "chunk" else f"{k}_error"): v for k, v in self.action_errors().items()}
        return {"n": len(self.actions), **actions, "image_error": self.image_errors()}

    def _squared(self, guess: UInt8[np.ndarray, "N F V H W 3"]) -> Float[np.ndarray, "M"]:
        difference = (guess.astype(np.float32) - self.future.astype(np.float32)) / 255
        return (difference**2).mean((-1, -2, -3))[self.future_mask]


def evaluate_heldout(policy: Policy, params: PolicyParams, batch: Batch, seed: int) -> Heldout:
    """Samples actions and futures for the windows of a batch of pixels (numpy), given its latents where it has them."""
    assert batch.images is not None

    @jax.jit
    def predict(params: PolicyParams, part: Batch, key: jax.Array):
        model = policy.definition.bind(params.model)
        latents = encode_batch(Tokenizers(params.tokenizer), part)[1]
        now = latents[:, :1]
        known = present(model, now, part.proprio[:, 0], part, part.image_mask[:, 0])
        action_key, video_key = jax.random.split(key)
        actions = None
        if any(stream.name == "action" for stream in model.spec.streams):
            chunk = generate(model, known, action_key, policy.mode, ("action",), policy.steps)["action"]
            actions = policy.codec.decode(chunk)
        mode = imagining_mode(model)
        # A model without a video stream imagines that nothing moves.
        video = jnp.repeat(now, latents.shape[1] - 1, axis=1)
        if mode is not None:
            video = generate(model, known, video_key, mode, ("video",))["video"]
        imagined, best = (decode_future(params.tokenizer, now, frames) for frames in (video, latents[:, 1:]))
        return actions, imagined, best

    outputs = []
    count = len(batch.actions)
    for start in range(0, count, _CHUNK):
        rows = np.minimum(np.arange(start, start + _CHUNK), count - 1)  # the last call is padded, not compiled anew
        part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        key = jax.random.fold_in(jax.random.key(seed), start)
        outputs.append(jax.tree.map(lambda x, n=count - start: np.asarray(x)[:n], predict(params, part, key)))
    actions, imagined, reconstructed = jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)
    return Heldout(
        present=np.asarray(batch.images[:, 0]),
        future=np.asarray(batch.images[:, 1:]),
        imagined=imagined,
        reconstructed=reconstructed,
        future_mask=np.repeat(batch.image_mask[:, 1:], params.tokenizer.config.tubelet, 1),
        actions=np.asarray(policy.codec.decode(jnp.asarray(batch.actions))),
        predicted_actions=actions,
        action_mask=np.asarray(batch.action_mask),
        tubelet=params.tokenizer.config.tubelet,
    )


def action_errors(
    actions: Float[np.ndarray, "N K A"], predicted: Float[np.ndarray, "N K A"], mask: Bool[np.ndarray, "N K A"]
) -> dict[str, float]:
    """Root mean squared action error, in standard deviations of the actions: 1 is always predicting the mean.

    Of the whole chunk and of its first action. Dimensions that do not vary in these windows do not count.
    """
    scale = _masked_std(actions, mask)
    mask = mask & (scale > 1e-3 * np.abs(actions).max())
    error = ((predicted - actions) / np.maximum(scale, 1e-6)) ** 2
    return {
        "chunk": float(np.sqrt(error[mask].mean())),
        "first_action": float(np.sqrt(error[:, 0][mask[:, 0]].mean())),
    }


def _masked_std(values: Float[np.ndarray, "N K A"], mask: Bool[np.ndarray, "N K A"]) -> Float[np.ndarray, "A"]:
    count = np.maximum(mask.sum((0, 1)), 1)
    mean = np.where(mask, values, 0).sum((0, 1)) / count
    return np.sqrt(np.where(mask, (values - mean) ** 2, 0).sum((0, 1)) / count)
