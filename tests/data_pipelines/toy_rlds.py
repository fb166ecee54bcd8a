"""A small RLDS dataset that the tests write themselves, and what its loader needs."""

import dataclasses
import pathlib

import numpy as np

from data_pipelines.batches import TextTable
from data_pipelines.episodes import EpisodeStore
from data_pipelines.write_rlds import RldsWriter

CAMERAS = {"front": (16, 24), "wrist": (16, 24)}
CUMULATIVE = np.array([True, True, True, False])
INSTRUCTIONS = ("lift the red cube", "open the drawer", "")


@dataclasses.dataclass(frozen=True)
class Episode:
    """What was written, to compare with what is read."""

    images: dict[str, np.ndarray]
    action: np.ndarray
    proprio: np.ndarray
    instruction: str


def make_episode(seed: int, steps: int) -> Episode:
    """Smooth random images (JPEG keeps them), random numbers."""
    rng = np.random.default_rng(seed)
    images = {}
    for camera, (height, width) in CAMERAS.items():
        corners = rng.uniform(0, 255, (steps, 2, 2, 3))
        rows, columns = np.linspace(0, 1, height), np.linspace(0, 1, width)
        mix = np.einsum("hi,wj,sijc->shwc", np.stack([1 - rows, rows], 1), np.stack([1 - columns, columns], 1), corners)
        images[camera] = mix.astype(np.uint8)
    action = rng.normal(size=(steps, 4)).astype(np.float32)
    proprio = rng.normal(size=(steps, 3)).astype(np.float32)
    return Episode(images, action, proprio, INSTRUCTIONS[seed % len(INSTRUCTIONS)])


def write_dataset(directory: pathlib.Path, episodes: list[Episode], **options) -> pathlib.Path:
    """Writes all episodes to the train split of a dataset called toy."""
    with RldsWriter(directory, "toy", CAMERAS, 4, 3, **options) as writer:
        for item in episodes:
            writer.add_episode(item.images, item.action, item.proprio, item.instruction)
    return directory


def text_table(stores: list[EpisodeStore]) -> TextTable:
    """Features that tell the instruction: row i is all i."""
    texts = sorted({store.instruction(e) for store in stores for e in range(store.num_episodes)})
    features = np.broadcast_to(np.arange(len(texts), dtype=np.float32)[:, None, None], (len(texts), 2, 5)).copy()
    return TextTable(features, np.ones((len(texts), 2), bool), tuple(texts))
