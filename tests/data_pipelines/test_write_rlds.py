"""What the writer makes is RLDS to tensorflow_datasets and to us; what it does not finish is nothing."""

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from toy_rlds import CAMERAS, Episode, make_episode, write_dataset

from data_pipelines.rlds import RldsStore
from data_pipelines.tfrecord import Record, read_records
from data_pipelines.write_rlds import RldsWriter


def test_tensorflow_datasets_reads_the_description(dataset: pathlib.Path) -> None:
    info = tfds.builder_from_directory(str(dataset)).info
    assert info.splits["train"].num_examples == 5
    assert info.splits["train"].shard_lengths == [2, 2, 1]
    assert set(info.splits) == {"train"}  # val got no episode
    step = info.features["steps"].feature
    assert step["action"].shape == (4,)
    assert step["observation"]["proprio"].shape == (3,)
    assert step["observation"]["front"].shape == (16, 24, 3)
    assert step["is_first"].np_dtype == np.bool_
    assert isinstance(step["language_instruction"], tfds.features.Text)
    assert set(step) == {
        "observation",
        "action",
        "language_instruction",
        "reward",
        "discount",
        "is_first",
        "is_last",
        "is_terminal",
    }


def test_files_have_the_names_tensorflow_datasets_expects(dataset: pathlib.Path) -> None:
    expected = tfds.builder_from_directory(str(dataset)).info.splits["train"].filepaths
    assert sorted(path.name for path in expected) == sorted(path.name for path in dataset.glob("*tfrecord*"))


def test_reads_back_what_was_written(store: RldsStore, episodes: list[Episode]) -> None:
    assert store.num_episodes == len(episodes)
    np.testing.assert_array_equal(store.lowdim("action"), np.concatenate([e.action for e in episodes]))
    np.testing.assert_array_equal(store.lowdim("proprio"), np.concatenate([e.proprio for e in episodes]))
    for number, episode in enumerate(episodes):
        steps = len(episode.action)
        assert store.num_steps(number) == steps
        assert store.instruction(number) == episode.instruction
        rows = slice(store.episode_starts[number], store.episode_starts[number + 1])
        np.testing.assert_array_equal(store.lowdim("is_first")[rows], np.arange(steps) == 0)
        np.testing.assert_array_equal(store.lowdim("reward")[rows], np.arange(steps) == steps - 1)
        for camera in CAMERAS:
            frames = store.read_frames(number, camera, range(steps))
            assert np.abs(frames.astype(int) - episode.images[camera]).max() <= 8  # JPEG at quality 95


def test_the_bytes_of_a_record_depend_on_the_episode_alone(dataset: pathlib.Path) -> None:
    records = [record for path in dataset.glob("*tfrecord*") for record in read_records(path)]
    assert len(records) == 5
    for record in records:
        assert isinstance(record, Record)
        example = tf_example_pb2.Example.FromString(record.payload)
        assert example.SerializeToString(deterministic=True) == record.payload


def test_splits_and_extra_columns(tmp_path: pathlib.Path) -> None:
    episode = make_episode(0, 3)
    target = np.arange(6, dtype=np.float32).reshape(3, 2)
    with RldsWriter(tmp_path / "d", "toy", CAMERAS, 4, 3, extra={"observation/target": 2}) as writer:
        for split in ("train", "val", "val"):
            writer.add_episode(
                episode.images,
                episode.action,
                episode.proprio,
                "go",
                np.array([0.5, 0, 2]),
                split=split,
                extra={"observation/target": target},
            )
    val = RldsStore.open(tmp_path / "d", "val", build=True)
    assert val.num_episodes == 2
    np.testing.assert_array_equal(val.lowdim("target"), np.concatenate([target, target]))
    np.testing.assert_array_equal(val.lowdim("reward"), [0.5, 0, 2, 0.5, 0, 2])
    assert tfds.builder_from_directory(str(tmp_path / "d")).info.splits["val"].num_examples == 2


def test_wrong_shape_and_split_are_named(tmp_path: pathlib.Path) -> None:
    episode = make_episode(0, 3)
    with RldsWriter(tmp_path / "d", "toy", CAMERAS, 4, 3) as writer:
        with pytest.raises(ValueError, match=r"column 'action' has shape \(3, 3\); toy was declared with \(3, 4\)"):
            writer.add_episode(episode.images, episode.action[:, :3], episode.proprio, "go")
        with pytest.raises(ValueError, match=r"camera 'wrist' has shape None; toy was declared with \(3, 16, 24, 3\)"):
            writer.add_episode({"front": episode.images["front"]}, episode.action, episode.proprio, "go")
        with pytest.raises(ValueError, match=r"split 'test' is not in toy \(has: train, val\)"):
            writer.add_episode(episode.images, episode.action, episode.proprio, "go", split="test")


def test_failed_writer_leaves_nothing(tmp_path: pathlib.Path) -> None:
    broken = dataclasses.replace(make_episode(1, 3), action=np.zeros((2, 4), np.float32))
    with pytest.raises(
        ValueError, match=r"camera 'front' has shape \(3, 16, 24, 3\); toy was declared with \(2, 16, 24, 3\)"
    ):
        write_dataset(tmp_path / "d", [make_episode(0, 3), broken])
    assert list(tmp_path.iterdir()) == []


_WRITE_AND_DIE = """
import os, sys
import numpy as np
from data_pipelines.write_rlds import RldsWriter
with RldsWriter(sys.argv[1], "toy", {"front": (8, 8)}, 1, 1) as writer:
    writer.add_episode({"front": np.zeros((2, 8, 8, 3), np.uint8)}, np.zeros((2, 1)), np.zeros((2, 1)), "go")
    os._exit(9)
"""


def test_killed_writer_leaves_no_dataset_and_does_not_hinder_the_next(tmp_path: pathlib.Path) -> None:
    assert subprocess.run([sys.executable, "-c", _WRITE_AND_DIE, tmp_path / "d"], check=False).returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".d.incomplete"]
    assert not list(tmp_path.rglob("dataset_info.json"))
    write_dataset(tmp_path / "d", [make_episode(0, 3)])
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_existing_folder_is_refused(dataset: pathlib.Path) -> None:
    with pytest.raises(FileExistsError, match=r"toy exists; choose another folder, or delete it first"):
        RldsWriter(dataset, "toy", CAMERAS, 4, 3)
