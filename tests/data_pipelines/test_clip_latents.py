"""Latents of clips: every step as a first frame, and as a later one that has seen its episode from the start."""

import pathlib

import numpy as np
import pytest
from toy_rlds import make_episode, text_table, write_dataset

from data_pipelines.clip_latents import ClipLatents, encode_clips
from data_pipelines.episodes import DecodeError
from data_pipelines.loader import fixed_windows
from data_pipelines.rlds import RldsStore
from data_pipelines.transforms import ActionCodec, Affine
from data_pipelines.windows import WindowSpec

CAMERAS = ("front", "wrist")
SPACING = 4


class Encoder:
    """A frame is (its last image's mean, the sum over all images of the clip so far, their number); may break."""

    tubelet = 2

    def __init__(self, fail_after: int | None = None):
        self.shapes: set[tuple[int, ...]] = set()
        self.steps_left = fail_after

    def start(self, images):
        self.shapes.add(images.shape)
        mean = images.mean((2, 3, 4)) / 255
        state = np.stack([mean, np.ones_like(mean)])
        return self._frame(mean, state), state

    def step(self, state, images):
        if self.steps_left == 0:
            raise KeyboardInterrupt
        self.steps_left = None if self.steps_left is None else self.steps_left - 1
        self.shapes.add(images.shape)
        mean = images.mean((3, 4, 5)) / 255
        state = state + np.stack([mean.sum(1), np.full_like(mean[:, 0], self.tubelet)])
        return self._frame(mean[:, -1], state), state

    def _frame(self, mean, state):
        return np.stack([mean, *state], -1)[:, :, None, None]


def build(store, directory, encoder=None, **options):
    options = {"spacing": SPACING, "batch_size": 8, "remembers": False, **options}
    return encode_clips(store, CAMERAS, encoder or Encoder(), directory, "sums", **options)


@pytest.fixture(scope="module")
def cache(store: RldsStore, tmp_path_factory: pytest.TempPathFactory) -> ClipLatents:
    return build(store, tmp_path_factory.mktemp("latents"))


def expected_later(store: RldsStore, episode: int, step: int) -> np.ndarray:
    """By going through the episode two steps at a time from the first step of the same phase."""
    clip = list(range(step % SPACING, step + 1, SPACING // Encoder.tubelet))
    images = np.stack([store.read_frames(episode, camera, clip) for camera in CAMERAS], 1)
    means = images.mean((2, 3, 4)) / 255
    return np.stack([means[-1], means.sum(0), np.full(len(CAMERAS), len(clip))], -1)


def test_a_later_frame_has_seen_its_episode_from_the_start(store, cache):
    for episode in range(store.num_episodes):
        steps = list(range(store.num_steps(episode)))
        wanted = np.stack([expected_later(store, episode, step) for step in steps])
        np.testing.assert_allclose(cache.later.read(episode, steps)[:, :, 0, 0], wanted, rtol=2e-3)


def test_windows_of_a_model_that_remembers_go_on_where_their_episode_began(store, cache, tmp_path):
    encoder = Encoder()
    found = build(store, tmp_path, encoder, remembers=True)
    assert encoder.shapes == {(8, 2, 16, 24, 3), (8, 2, 2, 16, 24, 3)}  # no image by itself, but an episode's first
    for episode in range(store.num_episodes):
        steps = list(range(store.num_steps(episode)))
        np.testing.assert_array_equal(found.read(episode, steps), cache.later.read(episode, steps))
    long = int(np.argmax([store.num_steps(episode) for episode in range(store.num_episodes)]))
    wanted = [expected_later(store, long, step) for step in (6, 10)]
    np.testing.assert_allclose(found.read(long, [6, 10])[:, :, 0, 0], wanted, rtol=2e-3)


def test_a_window_of_any_other_begins_with_a_first_frame(store, cache):
    long = int(np.argmax([store.num_steps(episode) for episode in range(store.num_episodes)]))
    found = cache.read(long, [2, 6])[:, :, 0, 0]
    image = np.stack([store.read_frames(long, camera, [2])[0] for camera in CAMERAS]).mean((1, 2, 3)) / 255
    np.testing.assert_allclose(found[0], np.stack([image, image, np.ones(2)], -1), rtol=2e-3)
    np.testing.assert_allclose(found[1], expected_later(store, long, 6), rtol=2e-3)


def test_the_encoder_sees_few_shapes(store, tmp_path):
    encoder = Encoder()
    build(store, tmp_path, encoder)
    # Images by themselves, four at a time; two episodes at once, in four clips each.
    assert encoder.shapes == {(16, 1, 16, 24, 3), (8, 2, 16, 24, 3), (8, 2, 2, 16, 24, 3)}


def test_an_interrupted_build_goes_on(store, cache, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(store, tmp_path, Encoder(fail_after=3))
    again = build(store, tmp_path)
    np.testing.assert_array_equal(again.later._array, cache.later._array)


def test_windows_of_latents_are_those_of_images(store, cache):
    spec = WindowSpec(cameras=CAMERAS, frame_offsets=(0, 4, 8), tubelet=2, starts=1)
    codec, table = ActionCodec(np.zeros(4, bool), Affine.identity(4)), text_table([store])
    arguments = ([store], spec, codec, Affine.identity(3), table, store.num_episodes, 1)
    pixels, latents = fixed_windows(*arguments), fixed_windows(*arguments, latents=[cache])
    assert pixels.images.shape[1] == 5
    assert latents.latents.shape[1] == pixels.image_mask.shape[1] == 3
    encoder, images = Encoder(), pixels.images
    first, state = encoder.start(images[:, 0])
    second, state = encoder.step(state, images[:, 1:3])
    inside = pixels.image_mask[:, 1, 0]  # past an episode's end, the last image is held
    np.testing.assert_allclose(latents.latents[:, 0], first, rtol=2e-3)
    np.testing.assert_allclose(latents.latents[inside, 1], second[inside], rtol=2e-3)


def test_windows_may_have_both(store, cache):
    spec = WindowSpec(cameras=CAMERAS, frame_offsets=(0, 4), tubelet=2)
    codec, table = ActionCodec(np.zeros(4, bool), Affine.identity(4)), text_table([store])
    arguments = ([store], spec, codec, Affine.identity(3), table, 12, 1)
    both = fixed_windows(*arguments, latents=[cache.later], images=True)
    np.testing.assert_array_equal(both.images, fixed_windows(*arguments).images)
    np.testing.assert_array_equal(both.latents, fixed_windows(*arguments, latents=[cache.later]).latents)
    means = both.images[:, 0].mean((2, 3, 4)) / 255  # a frame's first number is its last image's mean
    np.testing.assert_allclose(both.latents[:, 0, :, 0, 0, 0], means, rtol=2e-3)


def test_a_window_with_an_unreadable_past_is_neither_seen_nor_shown(tmp_path: pathlib.Path):
    store, latents = damaged(tmp_path)
    spec = WindowSpec(cameras=CAMERAS, frame_offsets=(0, 2), tubelet=2)
    codec, table = ActionCodec(np.zeros(4, bool), Affine.identity(4)), text_table([store])
    arguments = ([store], spec, codec, Affine.identity(3), table)
    both = fixed_windows(*arguments, 12, 1, latents=[latents.later], images=True)  # 6 of each episode, but the damaged
    means = both.images[:, 0].mean((2, 3, 4)) / 255
    np.testing.assert_allclose(both.latents[:, 0, :, 0, 0, 0], means, rtol=2e-3)
    with pytest.raises(ValueError, match="18 validation windows were asked for; 12 can be read"):
        fixed_windows(*arguments, 18, 1, latents=[latents.later], images=True)


def damaged(tmp_path: pathlib.Path):
    """Three episodes of six steps; the wrist's picture of step 2 of the second cannot be read."""
    directory = write_dataset(tmp_path / "d", [make_episode(seed, 6) for seed in range(3)])
    store = RldsStore.open(directory, "train", build=True)
    with next(directory.glob("*tfrecord*")).open("r+b") as file:
        file.seek(int(store._index.image_offsets["wrist"][8]))
        file.write(b"\0" * 40)
    return store, build(store, tmp_path / "latents", spacing=2)


def test_what_depends_on_an_unreadable_frame_is_not_given(tmp_path: pathlib.Path):
    _, cache = damaged(tmp_path)
    assert cache.first.unreadable == {8}
    assert cache.later.unreadable == {8, 9, 10, 11}  # to the end of its episode
    cache.read(1, [0])
    with pytest.raises(DecodeError, match=r"episode 1 steps \[4\] hold an unreadable frame"):
        cache.read(1, [3, 4])


def test_frames_that_do_not_divide_into_images_are_refused(store, tmp_path):
    with pytest.raises(ValueError, match=r"frames 3 steps apart do not divide into tubelet=2 images; change data.fr"):
        build(store, tmp_path, spacing=3)
