"""Batches hold what the dataset holds; their order is deterministic, resumable, complete and well mixed."""

import collections
import dataclasses
import itertools
import pathlib
import pickle

import jax
import numpy as np
import pytest
from toy_rlds import Episode, make_episode, text_table, write_dataset

from data_pipelines.batches import TextTable
from data_pipelines.episodes import DecodeError
from data_pipelines.loader import fixed_windows, make_loader
from data_pipelines.mixture import window_order
from data_pipelines.rlds import RldsStore
from data_pipelines.statistics import Statistics
from data_pipelines.tfrecord import masked_crc32c
from data_pipelines.transforms import ActionCodec, Affine
from data_pipelines.windows import WindowSpec
from wam_jax.types import Batch

_RAW = ActionCodec(np.zeros(4, bool), Affine.identity(4))


def fingerprint(batch: Batch) -> int:
    """A hash of every array of a batch."""
    return masked_crc32c(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(batch)))


def loader(stores, spec, batch_size=4, seed=0, **options):
    return make_loader(stores, spec, _RAW, Affine.identity(3), text_table(stores), batch_size, seed, **options)


def take(iterable, count: int) -> list:
    return list(itertools.islice(iterable, count))


def windows_of(batches: list[Batch]) -> list[bytes]:
    """What tells windows apart: their proprioception is random."""
    return [row.tobytes() for batch in batches for row in np.asarray(batch.proprio[:, 0])]


def test_batch_holds_the_window(
    store: RldsStore, spec: WindowSpec, statistics: Statistics, episodes: list[Episode]
) -> None:
    codec, affine, table = (
        statistics.action_codec("mean_std"),
        statistics.proprio_affine("quantile"),
        text_table([store]),
    )
    total = int(store.episode_starts[-1])
    batch = fixed_windows([store], spec, codec, affine, table, total, 0, embodiments=[7])
    found = {row.tobytes(): i for i, row in enumerate(np.asarray(batch.proprio[:, 0]))}
    for number, episode in enumerate(episodes):
        length = len(episode.action)
        for step in range(length):
            i = found[affine.normalise(episode.proprio[step]).tobytes()]
            frames = [min(step, length - 1), min(step + 3, length - 1)]
            for v, camera in enumerate(spec.cameras):
                np.testing.assert_array_equal(batch.images[i, :, v], store.read_frames(number, camera, frames))
            assert batch.image_mask[i].tolist() == [[True, True], [step + 3 < length] * 2]
            np.testing.assert_array_equal(batch.proprio[i], affine.normalise(episode.proprio[frames]))
            assert batch.proprio_mask[i].tolist() == [[True] * 3, [step + 3 < length] * 3]
            chunk = episode.action[step : step + 4]
            np.testing.assert_allclose(batch.actions[i, : len(chunk)], codec.encode(chunk), atol=1e-5)
            held = np.where(codec.cumulative, 0, chunk[-1:])  # past the end the robot holds still
            filled = np.concatenate([chunk, np.repeat(held, batch.actions.shape[1] - len(chunk), axis=0)])
            np.testing.assert_allclose(batch.actions[i], codec.encode(filled), atol=1e-5)
            assert batch.action_mask[i].tolist() == [[step + k < length] * 4 for k in range(4)]
            assert batch.text.features[i, 0, 0] == table.instructions.index(episode.instruction)
            assert batch.embodiment[i] == 7
    assert batch.latents is None
    assert batch.streams == {}
    dtypes = {name: getattr(batch, name).dtype for name in ("images", "actions", "proprio", "embodiment")}
    assert dtypes == {"images": np.uint8, "actions": np.float32, "proprio": np.float32, "embodiment": np.int32}


def test_value_is_the_discount_to_the_power_of_the_steps_left(tmp_path: pathlib.Path) -> None:
    store = RldsStore.open(write_dataset(tmp_path / "d", [make_episode(0, 3)]), "train", build=True)
    spec = WindowSpec(cameras=("front",), frame_offsets=(0, 1, 4), value_discount=0.5)
    batch = fixed_windows([store], spec, _RAW, Affine.identity(3), text_table([store]), 3, 0)
    order = [store.lowdim("proprio").tolist().index(row.tolist()) for row in batch.proprio[:, 0]]
    by_start = np.argsort(order)
    value = batch.streams["value"]
    assert value.values.dtype == np.float32
    assert value.values[by_start].tolist() == [[[0.25], [0.5], [1]], [[0.5], [1], [1]], [[1], [1], [1]]]
    assert value.mask[by_start].tolist() == [[True, True, False], [True, True, False], [True, False, False]]


@pytest.mark.parametrize("image_size", [None, (8, 8)])
def test_depth_cameras_are_read_as_cameras_are(store: RldsStore, image_size: tuple[int, int] | None) -> None:
    options = {"frame_offsets": (0, 3, 5), "image_size": image_size}
    table, total = text_table([store]), int(store.episode_starts[-1])
    both, split = (
        fixed_windows([store], spec, _RAW, Affine.identity(3), table, total, 0)
        for spec in (
            WindowSpec(cameras=("front", "wrist"), **options),
            WindowSpec(cameras=("front",), depth_cameras=("wrist",), **options),
        )
    )
    depth = split.streams["depth"]
    np.testing.assert_array_equal(split.images, both.images[:, :, :1])
    np.testing.assert_array_equal(depth.values, both.images[:, :, 1:])
    np.testing.assert_array_equal(split.image_mask, both.image_mask[:, :, :1])
    np.testing.assert_array_equal(depth.mask, both.image_mask[:, :, 1:])
    assert not depth.mask.all()
    assert depth.values.dtype == np.uint8


def test_further_streams_leave_the_rest_of_a_batch_as_it_was(store: RldsStore, spec: WindowSpec) -> None:
    asked = dataclasses.replace(spec, depth_cameras=("wrist", "front"), value_discount=0.9)
    for plain, more in zip(take(loader([store], spec), 12), take(loader([store], asked), 12), strict=True):
        assert set(more.streams) == {"depth", "value"}
        assert fingerprint(dataclasses.replace(more, streams={})) == fingerprint(plain)


@pytest.mark.parametrize("num_threads", [0, 3])
def test_order_depends_on_the_seed_alone(store: RldsStore, spec: WindowSpec, num_threads: int) -> None:
    reference = [fingerprint(batch) for batch in take(loader([store], spec, num_threads=2), 12)]
    again = [fingerprint(batch) for batch in take(loader([store], spec, num_threads=num_threads), 12)]
    other = [fingerprint(batch) for batch in take(loader([store], spec, seed=1, num_threads=num_threads), 12)]
    assert again == reference
    assert not set(other) & set(reference)


@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
@pytest.mark.parametrize("stop", [0, 1, 11])
def test_restored_iterator_goes_on_bitwise(store: RldsStore, spec: WindowSpec, weights, stop: int) -> None:
    source = loader([store, store], spec, weights=weights)
    straight = [fingerprint(batch) for batch in take(source, 20)]
    first = iter(source)
    take(first, stop)
    state = first.get_state()
    take(first, 2)  # what was read after the state was taken must not matter
    second = iter(loader([store, store], spec, weights=weights, num_threads=0))
    second.set_state(state)
    assert [fingerprint(batch) for batch in take(second, 20 - stop)] == straight[stop:]


def test_an_epoch_has_every_window_once_and_the_next_another_order(store: RldsStore, spec: WindowSpec) -> None:
    total = int(store.episode_starts[-1])
    batches = windows_of(take(loader([store], spec, batch_size=total), 2))
    expected = {row.tobytes() for row in store.lowdim("proprio")}
    assert set(batches[:total]) == set(batches[total:]) == expected
    assert batches[:total] != batches[total:]


@pytest.mark.parametrize("weights", [None, (2.0, 1.0)])
def test_shards_split_every_epoch(weights) -> None:
    groups = [np.arange(60), np.arange(100, 130)]
    shards = [window_order(groups, weights, seed=3, shard_index=i, shard_count=3) for i in range(3)]
    for epoch in range(2):
        parts = [{int(shard[epoch * 30 + i]) for i in range(30)} for shard in shards]
        assert [len(part) for part in parts] == [30] * 3
        assert set.union(*parts) == {*range(60), *range(100, 130)}


def test_mixture_has_its_proportions_on_every_shard() -> None:
    groups = [np.arange(500), np.arange(500, 510), np.arange(510, 1000)]
    for shard in range(2):
        order = window_order(groups, (0.5, 0.3, 0.2), seed=0, shard_index=shard, shard_count=2)
        drawn = np.searchsorted([500, 510], [int(order[i]) for i in range(1000)], side="right")
        np.testing.assert_allclose(np.bincount(drawn) / 1000, (0.5, 0.3, 0.2), atol=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1.0,)}, r"mixture weights must be positive and one a dataset \(2\); got \(1.0,\)"),
        ({"weights": (1.0, 0.0)}, r"mixture weights must be positive and one a dataset \(2\); got \(1.0, 0.0\)"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index 2 is not below shard_count 2"),
        ({"shard_count": 99}, "dataset 0 has 68 windows, too few for 99 shards"),
        ({"latents": []}, "0 latent caches for 2 datasets; give one each"),
        ({"embodiments": [1]}, "1 embodiments for 2 datasets; give one each"),
    ],
)
def test_nonsense_is_refused(store: RldsStore, spec: WindowSpec, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader([store, store], spec, **options)


def test_what_does_not_fit_is_named_before_training(store: RldsStore, spec: WindowSpec) -> None:
    table = TextTable(np.zeros((1, 2, 5), np.float32), np.ones((1, 2), bool), ("open the drawer",))
    with pytest.raises(KeyError, match=r"instruction '' of toy has no text features \(2 have none, the table has 1\)"):
        make_loader([store], spec, _RAW, Affine.identity(3), table, 4, 0)
    with pytest.raises(ValueError, match="column 'proprio' has 3 dimensions, its normalisation 2; compute it anew"):
        make_loader([store], spec, _RAW, Affine.identity(2), text_table([store]), 4, 0)
    with pytest.raises(ValueError, match="35 validation windows were asked for; 34 can be read"):
        fixed_windows([store], spec, _RAW, Affine.identity(3), text_table([store]), 35, 0)


def test_cameras_are_resized_to_one_size(store: RldsStore) -> None:
    spec = WindowSpec(cameras=("wrist",), frame_offsets=(0,), image_size=(8, 8))
    images = next(iter(loader([store], spec, batch_size=2))).images
    assert images.shape == (2, 1, 1, 8, 8, 3)
    full = next(iter(loader([store], WindowSpec(cameras=("wrist",), frame_offsets=(0,)), batch_size=2))).images
    block_means = full.reshape(2, 8, 2, 8, 3, 3).mean((2, 4))
    assert np.abs(images[:, 0, 0] - block_means).max() < 12  # smooth images: an antialiased resize is close to means


@pytest.fixture
def damaged(tmp_path: pathlib.Path) -> RldsStore:
    """A dataset whose index is older than the damage to one image: episode 1, camera wrist, step 2."""
    directory = write_dataset(tmp_path / "d", [make_episode(seed, 6) for seed in range(4)])
    store = RldsStore.open(directory, "train", build=True)
    row = int(store.episode_starts[1]) + 2
    with next(directory.glob("*tfrecord*")).open("r+b") as file:
        file.seek(int(store._index.image_offsets["wrist"][row]))
        file.write(b"\0" * 40)
    return store


def test_damaged_image_is_named(damaged: RldsStore) -> None:
    assert damaged.read_frames(1, "wrist", [1, 3]).shape == (2, 16, 24, 3)
    where = r"toy-train.tfrecord-00000-of-00001 episode 1 camera 'wrist' step 2: neither JPEG nor PNG"
    with pytest.raises(DecodeError, match=where):
        damaged.read_frames(1, "wrist", [1, 2])


def test_damaged_windows_are_dropped_and_counted(damaged: RldsStore) -> None:
    spec = WindowSpec(cameras=("front", "wrist"), frame_offsets=(0, 1), action_horizon=2)
    source = loader([damaged], spec, batch_size=22)
    counts = collections.Counter(windows_of(take(source, 2)))  # two epochs of what can be read
    proprio = damaged.lowdim("proprio")
    bad = {proprio[6 + step].tobytes() for step in (1, 2)}  # the windows that touch step 2 of episode 1
    assert set(counts) == {row.tobytes() for row in proprio} - bad
    assert set(counts.values()) == {2}
    assert source.num_dropped == 2


def test_mostly_unreadable_dataset_stops(damaged: RldsStore, spec: WindowSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    source = loader([damaged], spec, num_threads=0)
    monkeypatch.setattr("data_pipelines.rlds.decode_image", _fail)
    with pytest.raises(DecodeError, match=r"13 of 24 windows cannot be read, the last: .*; check the dataset's files"):
        take(source, 20)


def _fail(data: bytes) -> np.ndarray:
    raise ValueError("damaged")


def test_store_survives_pickling_with_open_files(store: RldsStore) -> None:
    before = store.read_frames(1, "front", [0, 2])
    again = pickle.loads(pickle.dumps(store))
    assert again._files == {}
    np.testing.assert_array_equal(again.read_frames(1, "front", [0, 2]), before)
