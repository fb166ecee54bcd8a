"""The latent cache holds what the encoder says, goes on after a kill, and refuses to be mistaken for another."""

import json
import pathlib
import pickle

import numpy as np
import pytest
from toy_rlds import make_episode, text_table, write_dataset

from data_pipelines.batches import TaughtLatents
from data_pipelines.latents import Identity, LatentCache, LatentCacheError
from data_pipelines.loader import fixed_windows, make_loader
from data_pipelines.rlds import RldsStore
from data_pipelines.transforms import ActionCodec, Affine
from data_pipelines.windows import WindowSpec
from wam_jax.types import TEACHER

CAMERAS = ("front", "wrist")


class Encoder:
    """Block means of 8×8 pixels, in [0, 1]; remembers the batch shapes and may break."""

    def __init__(self, fail_after: int | None = None):
        self.calls: list[tuple[int, ...]] = []
        self.fail_after = fail_after

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(images.shape)
        batch, height, width, _ = images.shape
        return images.reshape(batch, height // 8, 8, width // 8, 8, 3).mean((2, 4)) / 255


def expected(store: RldsStore, episode: int, steps: list[int]) -> np.ndarray:
    frames = np.stack([store.read_frames(episode, camera, steps) for camera in CAMERAS], 1)
    flat = Encoder()(frames.reshape(-1, *frames.shape[2:]))
    return flat.reshape(len(steps), len(CAMERAS), *flat.shape[1:]).astype(np.float16)


def identity(store: RldsStore, cameras=CAMERAS, key="means", image_size=None) -> Identity:
    return Identity(key, store.fingerprint, cameras, image_size)


@pytest.fixture(scope="module")
def cache(store: RldsStore, tmp_path_factory: pytest.TempPathFactory) -> LatentCache:
    return LatentCache.build(store, CAMERAS, Encoder(), tmp_path_factory.mktemp("latents"), "means", batch_size=11)


def test_every_latent_is_the_encoders(store: RldsStore, cache: LatentCache) -> None:
    assert cache.latent_shape == (2, 3, 3)
    for episode in range(store.num_episodes):
        steps = list(range(store.num_steps(episode)))
        np.testing.assert_array_equal(cache.read(episode, steps), expected(store, episode, steps))


def test_encoder_sees_one_shape(store: RldsStore, tmp_path: pathlib.Path) -> None:
    encoder = Encoder()
    LatentCache.build(store, CAMERAS, encoder, tmp_path, "means", batch_size=11)
    assert set(encoder.calls) == {(10, 16, 24, 3)}
    assert len(encoder.calls) == 7  # 34 steps, five at a time


def test_interrupted_build_goes_on(store: RldsStore, cache: LatentCache, tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        LatentCache.build(store, CAMERAS, Encoder(fail_after=3), tmp_path, "means", batch_size=10)
    with pytest.raises(LatentCacheError, match="has no complete latents of toy; build them first"):
        LatentCache.open(store, identity(store), tmp_path)
    with pytest.raises(LatentCacheError, match="are of key 'means', not 'other'"):
        LatentCache.build(store, CAMERAS, Encoder(), tmp_path, "other")
    encoder = Encoder()
    resumed = LatentCache.build(store, CAMERAS, encoder, tmp_path, "means", batch_size=10)
    assert len(encoder.calls) == 4
    np.testing.assert_array_equal(resumed._array, cache._array)
    assert {path.name for path in tmp_path.iterdir()} == {"latents.npy", "latents.json", "lock"}


def test_complete_cache_is_not_encoded_again(store: RldsStore, cache: LatentCache) -> None:
    encoder = Encoder()
    LatentCache.build(store, CAMERAS, encoder, cache._directory, "means")
    assert encoder.calls == []


@pytest.mark.parametrize(
    ("cameras", "key", "image_size", "message"),
    [
        (CAMERAS, "vae", None, "are of key 'means', not 'vae'; use another folder, or delete this one"),
        (("wrist", "front"), "means", None, r"are of cameras \['front', 'wrist'\], not \['wrist', 'front'\]"),
        (CAMERAS, "means", (8, 8), r"are of image_size None, not \[8, 8\]"),
    ],
)
def test_other_latents_are_refused(store, cache, cameras, key, image_size, message) -> None:
    with pytest.raises(LatentCacheError, match=message):
        LatentCache.open(store, identity(store, cameras, key, image_size), cache._directory)


def test_latents_of_changed_data_are_refused(tmp_path: pathlib.Path) -> None:
    stores = []
    for seed in (0, 3):
        directory = write_dataset(tmp_path / str(seed), [make_episode(seed, 3)])
        stores.append(RldsStore.open(directory, "train", build=True))
    LatentCache.build(stores[0], CAMERAS, Encoder(), tmp_path / "latents", "means")
    with pytest.raises(LatentCacheError, match="are of fingerprint "):
        LatentCache.open(stores[1], identity(stores[1]), tmp_path / "latents")


def test_overflow_is_refused(store: RldsStore, tmp_path: pathlib.Path) -> None:
    with pytest.raises(LatentCacheError, match=r"latents up to 1e\+06 do not fit float16; normalise them first"):
        LatentCache.build(store, CAMERAS, lambda images: np.full((len(images), 1, 1, 1), 1e6), tmp_path, "means")


def test_loader_yields_latents_of_the_same_windows(store: RldsStore, cache: LatentCache, spec: WindowSpec) -> None:
    codec, affine, table = ActionCodec(np.zeros(4, bool), Affine.identity(4)), Affine.identity(3), text_table([store])
    pixels = fixed_windows([store], spec, codec, affine, table, 20, seed=1)
    latents = fixed_windows([store], spec, codec, affine, table, 20, seed=1, latents=[cache])
    assert latents.images is None
    assert latents.latents.dtype == np.float32
    np.testing.assert_array_equal(latents.actions, pixels.actions)
    encoded = Encoder()(pixels.images.reshape(-1, 16, 24, 3)).reshape(latents.latents.shape)
    np.testing.assert_array_equal(latents.latents, encoded.astype(np.float16))


def test_depth_comes_as_latents_of_the_same_windows(store: RldsStore, cache: LatentCache) -> None:
    spec = WindowSpec(cameras=("front",), depth_cameras=("wrist",), frame_offsets=(0, 3))
    codec, affine, table = ActionCodec(np.zeros(4, bool), Affine.identity(4)), Affine.identity(3), text_table([store])
    pixels = fixed_windows([store], spec, codec, affine, table, 20, seed=1).streams["depth"]
    batch = fixed_windows([store], spec, codec, affine, table, 20, seed=1, latents=[cache])
    latents = batch.streams["depth"]
    encoded = Encoder()(pixels.values.reshape(-1, 16, 24, 3)).reshape(latents.values.shape)
    np.testing.assert_array_equal(latents.values, encoded.astype(np.float16))
    np.testing.assert_array_equal(latents.mask, pixels.mask)
    assert batch.latents.shape == latents.values.shape == (20, 2, 1, *cache.latent_shape)
    assert latents.values.dtype == np.float32


def test_latents_of_other_cameras_than_the_windows_are_refused(store: RldsStore, cache: LatentCache) -> None:
    spec = WindowSpec(cameras=CAMERAS, depth_cameras=("wrist",))
    codec, table = ActionCodec(np.zeros(4, bool), Affine.identity(4)), text_table([store])
    message = r"latents of 0:toy are of 2 cameras, windows ask for 3 \(front, wrist, wrist\); encode them anew"
    with pytest.raises(ValueError, match=message):
        make_loader([store], spec, codec, Affine.identity(3), table, 4, 0, latents=[cache])


def test_unreadable_frame_drops_its_windows(tmp_path: pathlib.Path) -> None:
    directory = write_dataset(tmp_path / "d", [make_episode(seed, 6) for seed in range(3)])
    store = RldsStore.open(directory, "train", build=True)
    with next(directory.glob("*tfrecord*")).open("r+b") as file:
        file.seek(int(store._index.image_offsets["wrist"][8]))
        file.write(b"\0" * 40)
    cache = LatentCache.build(store, CAMERAS, Encoder(), tmp_path / "latents", "means", batch_size=8)
    assert cache.unreadable == {8}
    assert json.loads((tmp_path / "latents" / "latents.json").read_text())["unreadable"] == [8]
    spec = WindowSpec(cameras=CAMERAS, frame_offsets=(0, 1))
    codec, table = ActionCodec(np.zeros(4, bool), Affine.identity(4)), text_table([store])
    loader = make_loader([store], spec, codec, Affine.identity(3), table, 16, 0, latents=[cache])
    next(iter(loader))
    assert loader.assembler.dropped == {7, 8}


def test_cache_survives_pickling(store: RldsStore, cache: LatentCache) -> None:
    blob = pickle.dumps(cache)
    assert len(blob) < 2_000  # the array stays on disk
    np.testing.assert_array_equal(pickle.loads(blob).read(1, [0, 3]), cache.read(1, [0, 3]))


def test_features_lie_beside_latents_of_the_same_frames(store: RldsStore, cache: LatentCache, tmp_path) -> None:
    """A teacher whose feature is ten times the mean colour of a picture."""

    def encode(images: np.ndarray) -> np.ndarray:
        return images.mean((1, 2), keepdims=True) / 25.5

    features = LatentCache.build(store, CAMERAS, encode, tmp_path, "teacher", batch_size=10)
    spec = WindowSpec(CAMERAS, frame_offsets=(0, 3), action_horizon=4)
    codec, affine, table = ActionCodec(np.zeros(4, bool), Affine.identity(4)), Affine.identity(3), text_table([store])
    batch = fixed_windows([store], spec, codec, affine, table, 20, seed=1, latents=[TaughtLatents(cache, features)])
    plain = fixed_windows([store], spec, codec, affine, table, 20, seed=1, latents=[cache])
    np.testing.assert_array_equal(batch.latents, plain.latents)
    taught = batch.streams[TEACHER]
    assert taught.values.shape == (20, 2, 2, 1, 1, 3)
    means = 10 * batch.latents.mean((3, 4))  # the encoder's are block means in [0, 1]
    np.testing.assert_allclose(np.asarray(taught.values, np.float32)[..., 0, 0, :], means, atol=0.02)
    np.testing.assert_array_equal(taught.mask, batch.image_mask)
    assert TEACHER not in plain.streams
