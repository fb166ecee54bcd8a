"""Imagined videos as demonstrations (DreamGen, arXiv 2505.12705): inverse dynamics reads actions off them.

What post-training from latents is compared with: supervision goes through pixels and guessed actions, which the policy
imitates beside its demonstrations.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.transforms import ActionCodec
from wam_jax.types import Batch, Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class PseudoDemonstrations:
    """Imagined episodes with guessed actions, as the windows that a policy learns from.

    Attributes:
      latents: of the start and of each imagined frame, in the policy's tokenizer.
      actions: raw, those that lead from frame to frame, guessed.
      text: features of each episode's instruction.
      embodiment: number of the robot.
      proprio: normalised, of each start; later, nobody imagines it, and it is absent.
    """

    latents: Float[np.ndarray, "K T+1 V h w C"]
    actions: Float[np.ndarray, "K T*M A"]
    text: Text
    embodiment: int
    proprio: Float[np.ndarray, "K P"]

    def __len__(self) -> int:
        """Windows: one from each frame but the last, of each episode."""
        return self.latents.shape[0] * (self.latents.shape[1] - 1)

    def batch(self, windows: Sequence[int] | Int[np.ndarray, "B"], codec: ActionCodec, horizon: int) -> Batch:
        """Some windows: two frames, and the actions after the first, encoded by the policy's ``codec``."""
        rows = np.asarray(windows)
        frames = self.latents.shape[1] - 1
        episode, start = rows // frames, rows % frames
        length = self.actions.shape[1]
        wanted = (start * (length // frames))[:, None] + np.arange(horizon)
        there = wanted < length
        raw = self.actions[episode[:, None], np.minimum(wanted, length - 1)]
        # Past the end the robot holds still, as in `data_pipelines.batches`.
        raw = np.where(there[..., None] | ~codec.cumulative, raw, 0.0)
        latents = self.latents[episode[:, None], start[:, None] + np.arange(2)]
        proprio = np.zeros((len(rows), 2, self.proprio.shape[1]), np.float32)
        known = np.zeros(proprio.shape, bool)
        known[:, 0] = (start == 0)[:, None]
        proprio[:, 0] = np.where(known[:, 0], self.proprio[episode], 0.0)
        arrays: dict[str, Any] = {
            "latents": latents,
            "image_mask": np.ones(latents.shape[:3], bool),
            "actions": np.asarray(codec.encode(raw), np.float32),
            "action_mask": np.repeat(there[..., None], raw.shape[-1], -1),
            "proprio": proprio,
            "proprio_mask": known,
            "embodiment": np.full(len(rows), self.embodiment, np.int32),
        }
        text = Text(features=self.text.features[episode], mask=self.text.mask[episode])
        return Batch(images=None, text=text, **arrays)
