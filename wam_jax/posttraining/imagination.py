"""Imagination of any length: window after window, each from the last picture of the one before (World2Act).

Skill by skill, each window is told only what its skill is, as the world model was trained on skills; the whole
instruction throughout is what that is compared with.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from wam_jax.encoders.frozen import FrozenEncoder
from wam_jax.encoders.lpips import Lpips
from wam_jax.evaluation.video import frechet_distance, frechet_features, video_metrics
from wam_jax.policy import Policy, PolicyParams, decode_future
from wam_jax.types import Observation, Text


def imagine_windows(
    policy: Policy, params: PolicyParams, observation: Observation, texts: Text, key: jax.Array
) -> tuple[UInt8[Array, "B F V H W 3"], Float[Array, "B T V h w C"]]:
    """Pictures, and latents, of as many windows as there are ``texts`` [W, B, ...], one after the other.

    The first of the latents is of the present. A window starts from the picture that the one before ended with, through
    the tokenizer anew: a latent that merged several pictures is no first frame. What else is known (proprioception)
    stays as it was at the start.
    """

    def window(image: Array, told: tuple[Text, jax.Array]):
        text, key = told
        seen = dataclasses.replace(observation, images=image[:, None], text=text)
        present, future = policy.imagine_latents(params, seen, key)
        pictures = decode_future(params.tokenizer, present, future)
        return pictures[:, -1], (pictures, present, future)

    keys = jax.random.split(key, texts.mask.shape[0])
    _, (pictures, present, futures) = jax.lax.scan(window, observation.images[:, -1], (texts, keys))
    pictures, latents = (rearrange(x, "n b t ... -> b (n t) ...") for x in (pictures, futures))
    return pictures, jnp.concatenate([present[0], latents], 1)


def skill_of_windows(done: Int[np.ndarray, "T N"], skills: int, steps: int) -> Int[np.ndarray, "W N"]:
    """Which skill an episode is at when each of its windows of ``steps`` control steps begins.

    There are as many windows as the median episode that is finished takes.

    Args:
      done: how many skills were done after each step, in episodes of the expert.
      skills: how many there are.
    """
    (length,) = steps_of_skills((done == skills).astype(int), 1)  # all of them as one
    starts = np.arange(0, length, steps).astype(int)
    before = np.concatenate([np.zeros((1, done.shape[1]), int), done])  # at the start of each step
    return np.minimum(before[starts], skills - 1)


def steps_of_skills(done: Int[np.ndarray, "T N"], skills: int) -> Float[np.ndarray, " K"]:
    """How many control steps each skill takes, in the median of the episodes that are finished; all, if none is.

    Arguments as of ``skill_of_windows``.
    """
    finished = done[:, done[-1] == skills]
    if not finished.size:
        return np.full(skills, float(len(done)))
    ends = np.stack([(finished > skill).argmax(0) + 1 for skill in range(skills)])
    return np.median(np.diff(ends, axis=0, prepend=0), 1)


def drift(
    imagined: UInt8[np.ndarray, "N F V H W 3"],
    true: UInt8[np.ndarray, "N F V H W 3"],
    positions: tuple[Float[np.ndarray, "N F E"], Float[np.ndarray, "N F E"]],
    lpips: Lpips | None,
    features: Mapping[str, tuple[FrozenEncoder, list[np.ndarray]]] | None = None,
) -> dict[str, list[float]]:
    """How far imagination is from what happened, frame by frame.

    Args:
      imagined, true: pictures at the same moments.
      positions: (x, y) of all objects, read off the imagined pictures, and true; metres.
      lpips: adds its distance.
      features: by name, a frozen encoder of pictures and what it sees in the true ones (``features_of_moments``); each
        adds ``frechet_NAME``, of all pictures of a moment.

    Returns:
      ``psnr``, ``ssim``, ``lpips_NET``: means over episodes and cameras; ``position_error``: metres, over objects;
      ``frechet_NAME``.

    Raises:
      ValueError: there are too few pictures of a moment for a Fréchet distance.
    """
    found = video_metrics(imagined, true, np.ones(imagined.shape[:3], bool), lpips)
    names = [name for name in found if "/" not in name and name != "pictures"]
    frames = imagined.shape[1]
    by_time = {name: [found[f"{name}/frame_{frame + 1}"] for frame in range(frames)] for name in names}
    read, there = (x.reshape(*x.shape[:2], -1, 2) for x in positions)
    for name, (encoder, of_true) in (features or {}).items():
        moments = zip(features_of_moments(encoder, imagined), of_true, strict=True)
        by_time[f"frechet_{name}"] = [frechet_distance(*both) for both in moments]
    by_time["position_error"] = np.linalg.norm(read - there, axis=-1).mean((0, 2)).tolist()
    return by_time


def features_of_moments(
    encoder: FrozenEncoder, pictures: UInt8[np.ndarray, "N F V H W 3"]
) -> list[Float[np.ndarray, "M C"]]:
    """Of all pictures of each moment, as a Fréchet distance takes them."""
    there = np.ones((len(pictures), 1, pictures.shape[2]), bool)
    return [frechet_features(encoder, pictures[:, f : f + 1], there) for f in range(pictures.shape[1])]
