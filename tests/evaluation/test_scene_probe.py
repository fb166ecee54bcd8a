"""Probes of the simulator's scenes: what the images are made of can be read off latents that hold it, and only then."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.evaluation.scene_probe import probe_tokenizer
from wam_jax.evaluation.scenes import Scenes, draw_scenes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pixels:
    """A tokenizer whose latents are the images, or nothing of them."""

    blind: bool = dataclasses.field(default=False, metadata={"static": True})
    config = types.SimpleNamespace(tubelet=1)

    def start(self, images):
        return jnp.asarray(images, jnp.float32) * (0 if self.blind else 1), ()


def scenes(seed: int) -> Scenes:
    """A bright dot whose place is the position; held where it is to the right."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, 8, (256, 2))
    images = np.zeros((256, 1, 8, 8, 3), np.uint8)
    images[np.arange(256), 0, place[:, 0], place[:, 1]] = 255
    nothing = np.zeros((256, 0))
    return Scenes(images, nothing, nothing, place / 8.0, place[:, 1] >= 4, nothing)


def test_what_latents_hold_is_read_and_what_they_do_not_is_not():
    fit, test = scenes(0), scenes(1)
    seeing, blind = (probe_tokenizer(Pixels(blind), fit, test) for blind in (False, True))
    assert seeing["position_r2"] > 0.9
    assert seeing["held_accuracy"] > 0.95
    assert blind["position_r2"] < 0.05
    assert blind["position_error"] == pytest.approx(blind["position_error_of_mean"], rel=0.05)


@pytest.mark.slow
def test_scenes_are_moments_of_the_experts_episodes():
    found = draw_scenes("pick_lift", 16, 24, seed=3)
    assert found.images.shape == (24, 2, 16, 16, 3)
    assert found.positions.shape == (24, 4)  # two cubes
    assert (found.positions[:, 1] <= found.positions[:, 3]).all()  # from left to right
    assert 0 < found.held.sum() < 24
    assert found.masks.shape == (24, 2, 2, 16, 16)  # hand and object, by two cameras
    assert found.masks[:, 1].any((1, 2, 3)).mean() > 0.9  # the object is seen, but for behind the hand
    again = draw_scenes("pick_lift", 16, 24, seed=3)
    np.testing.assert_array_equal(found.images, again.images)
    other = draw_scenes("pick_lift", 16, 24, seed=3, axis="color")  # the same moments, in other colours
    np.testing.assert_array_equal(other.masks, found.masks)
    np.testing.assert_array_equal(other.positions, found.positions)
    assert (other.images != found.images).any((1, 2, 3, 4)).all()
    seen = ((0,), (0, 1), (1,))  # green objects had every shape that any had
    unseen = draw_scenes("pick_lift", 16, 24, seed=3, shapes=seen, axis="combination")
    assert 0 < len(unseen.images) < 24


@pytest.mark.parametrize("axis", ["wording", "noise"])
def test_scenes_that_would_look_as_ever_are_refused(axis):
    with pytest.raises(ValueError, match=f"axis '{axis}' changes nothing that is seen"):
        draw_scenes("pick_lift", 16, 24, seed=3, axis=axis)
