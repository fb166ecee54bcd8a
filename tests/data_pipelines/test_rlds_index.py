"""The byte index equals a full parse of the records, and says what it had to skip."""

import concurrent.futures
import contextlib
import io
import json
import os
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2
from toy_rlds import make_episode, write_dataset

from data_pipelines import protowire
from data_pipelines.episodes import CameraError, DatasetError
from data_pipelines.features import short_names
from data_pipelines.images import decode_image, encode_jpeg
from data_pipelines.index import MissingIndexError, MissingShardError, StaleIndexError, build_index, open_index
from data_pipelines.rlds import RldsStore
from data_pipelines.tfrecord import Record, read_records, write_record


def full_parse(path: pathlib.Path) -> list[tf_example_pb2.Example]:
    return [tf_example_pb2.Example.FromString(item.payload) for item in read_records(path) if isinstance(item, Record)]


def rewrite(path: pathlib.Path, change) -> None:
    """Applies ``change`` to the features of the first record of a file."""
    examples = full_parse(path)
    change(examples[0].features.feature)
    with path.open("wb") as file:
        for example in examples:
            write_record(file, example.SerializeToString())


@pytest.fixture
def damaged(tmp_path: pathlib.Path) -> pathlib.Path:
    """One shard of three episodes, for a test to break."""
    return write_dataset(tmp_path / "d", [make_episode(seed, 4) for seed in range(3)])


def shard(directory: pathlib.Path) -> pathlib.Path:
    return next(directory.glob("*tfrecord*"))


def starts(path: pathlib.Path) -> list[int]:
    """The byte at which each record (its header) starts."""
    return [item.start for item in read_records(path)]


def assert_reads_equal_full_parse(store: RldsStore, paths: list[pathlib.Path], cameras, columns) -> None:
    examples = [example for path in paths for example in full_parse(path)]
    assert store.num_episodes == len(examples)
    for episode, example in enumerate(examples):
        feature = example.features.feature
        rows = slice(store.episode_starts[episode], store.episode_starts[episode + 1])
        for camera in cameras:
            jpegs = feature[f"steps/observation/{camera}"].bytes_list.value
            decoded = np.stack([simplejpeg.decode_jpeg(jpeg, "RGB") for jpeg in jpegs])
            np.testing.assert_array_equal(store.read_frames(episode, camera, range(len(jpegs))), decoded)
        for column, key in columns.items():
            value = feature[key].float_list.value or feature[key].int64_list.value
            np.testing.assert_array_equal(store.lowdim(column)[rows].ravel(), value)
        text = feature["steps/language_instruction"].bytes_list.value[0]
        assert store.instruction(episode) == text.decode()


def test_toy_reads_equal_full_parse(store: RldsStore, dataset: pathlib.Path) -> None:
    columns = {"action": "steps/action", "proprio": "steps/observation/proprio", "is_last": "steps/is_last"}
    assert_reads_equal_full_parse(store, sorted(dataset.glob("*tfrecord*")), ("front", "wrist"), columns)


def test_bridge_reads_equal_full_parse(bridge_directory: pathlib.Path, tmp_path: pathlib.Path) -> None:
    stores = {split: RldsStore.open(bridge_directory, split, tmp_path, build=True) for split in ("train", "val")}
    columns = {"action": "steps/action", "state": "steps/observation/state", "is_first": "steps/is_first"}
    for split, store in stores.items():
        assert store.report.skipped == ()
        assert [store.num_steps(e) for e in range(store.num_episodes)] == [10] * 25
        path = bridge_directory / f"bridge_dataset-{split}.tfrecord-00000-of-00001"
        assert_reads_equal_full_parse(store, [path], ("image_0", "image_1", "image_2", "image_3"), columns)
        assert all(store.read_frames(e, "image_3", range(10)).max() == 0 for e in range(25))
    assert "language_embedding" not in stores["train"].columns
    actions = {split: store.lowdim("action").reshape(25, -1) for split, store in stores.items()}
    assert {row.tobytes() for row in actions["train"]} == {row.tobytes() for row in actions["val"]}
    assert not (bridge_directory / ".wam_index").exists()


def test_read_only_dataset_is_indexed_in_the_cache(
    damaged: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAM_CACHE", str(tmp_path / "cache"))
    damaged.chmod(0o555)
    try:
        build_index(damaged, "train")
        assert not (damaged / ".wam_index").exists()
        assert open_index(damaged, "train").report.episodes == 3
    finally:
        damaged.chmod(0o755)


def test_missing_and_stale_index_name_the_way_out(damaged: pathlib.Path) -> None:
    with pytest.raises(MissingIndexError, match=rf"toy train has no index; run: wam index {damaged}$"):
        RldsStore.open(damaged, "train")
    build_index(damaged, "train")
    path = shard(damaged)
    os.utime(path, ns=(0, 0))
    message = rf"the index of toy train is stale: {path.name} changed; run: wam index {damaged}$"
    with pytest.raises(StaleIndexError, match=message):
        RldsStore.open(damaged, "train")
    assert RldsStore.open(damaged, "train", build=True).num_episodes == 3
    assert RldsStore.open(damaged, "train").num_episodes == 3


def test_index_of_another_format_version_is_stale(damaged: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(damaged, "train")
    monkeypatch.setattr("data_pipelines.index.FORMAT_VERSION", 2)
    with pytest.raises(StaleIndexError, match="it has format version 1, this program writes 2; run: wam index"):
        open_index(damaged, "train")


def test_torn_index_is_stale(damaged: pathlib.Path) -> None:
    build_index(damaged, "train")
    npz = damaged / ".wam_index" / "train.npz"
    npz.write_bytes(npz.read_bytes()[:100])
    with pytest.raises(StaleIndexError, match=r"train.npz is unreadable .*; run: wam index"):
        open_index(damaged, "train")


@pytest.mark.parametrize("at", [20, 200])
def test_wrong_payload_is_counted_and_skipped(damaged: pathlib.Path, at: int) -> None:
    path = shard(damaged)
    second = starts(path)[1]
    data = bytearray(path.read_bytes())
    data[second + at] ^= 1
    path.write_bytes(data)
    index = build_index(damaged, "train")
    assert [str(item) for item in index.report.skipped] == [
        f"{path.name} record 1 at byte {second}: wrong checksum of the payload"
    ]
    assert (index.report.records, index.report.episodes, index.report.steps) == (3, 2, 8)
    assert index.report == open_index(damaged, "train").report  # it is stored, too
    np.testing.assert_array_equal(index.columns["action"][4:], make_episode(2, 4).action)


def test_wrong_length_loses_the_rest_and_says_so(damaged: pathlib.Path) -> None:
    path = shard(damaged)
    second = starts(path)[1]
    data = bytearray(path.read_bytes())
    data[second] ^= 1
    path.write_bytes(data)
    report = build_index(damaged, "train").report
    assert [str(item) for item in report.skipped] == [
        f"{path.name} record 1 at byte {second}: wrong checksum of the length; the rest of the file is unreadable",
        f"{path.name} record 2 at byte {len(data)}: missing: dataset_info.json promises 3 records",
    ]
    assert (report.records, report.episodes) == (3, 1)


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (5, "file ends inside the record's header; the rest is lost"),
        (100, "file ends inside the record's payload; the rest is lost"),
        (0, "missing: dataset_info.json promises 3 records"),
    ],
)
def test_truncated_file_is_counted(damaged: pathlib.Path, cut: int, reason: str) -> None:
    path = shard(damaged)
    third = starts(path)[2]
    os.truncate(path, third + cut)
    report = build_index(damaged, "train").report
    assert [str(item) for item in report.skipped] == [f"{path.name} record 2 at byte {third}: {reason}"]
    assert (report.records, report.episodes) == (3, 2)


def _nan(feature) -> None:
    feature["steps/observation/proprio"].float_list.value[4] = np.nan


def _inf(feature) -> None:
    feature["steps/action"].float_list.value[15] = np.inf


def _short(feature) -> None:
    del feature["steps/action"].float_list.value[12:]


def _no_image(feature) -> None:
    del feature["steps/observation/wrist"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_nan, "steps/observation/proprio is not finite at step 1"),
        (_inf, "steps/action is not finite at step 3"),
        (_short, "steps/action has 12 values; features.json says 4 a step, and there are 4 steps"),
        (_no_image, "steps/observation/wrist has 0 images for 4 steps"),
        (lambda feature: feature.clear(), "the episode has no steps"),
    ],
)
def test_unusable_episode_is_counted_and_skipped(damaged: pathlib.Path, change, reason: str) -> None:
    path = shard(damaged)
    rewrite(path, change)
    report = build_index(damaged, "train").report
    assert [str(item) for item in report.skipped] == [f"{path.name} record 0 at byte 0: {reason}"]
    assert report.episodes == 2


def test_garbage_that_checksums_is_skipped(damaged: pathlib.Path) -> None:
    path = shard(damaged)
    examples = full_parse(path)
    with path.open("wb") as file:
        write_record(file, b"\x0a\xff\xff\xff\x0f not an example")
        for example in examples[1:]:
            write_record(file, example.SerializeToString())
    report = build_index(damaged, "train").report
    assert report.episodes == 2
    assert "record 0 at byte 0: not a tf.train.Example: field 1 ends at byte" in str(report.skipped[0])


def test_absent_shard_split_and_description_are_named(damaged: pathlib.Path) -> None:
    with pytest.raises(DatasetError, match=r"split 'test' is not in toy \(has: train\)"):
        build_index(damaged, "test")
    with pytest.raises(DatasetError, match=r"has no features.json; give one of its versions: d"):
        build_index(damaged.parent, "train")
    with pytest.raises(DatasetError, match=r"instruction key 'steps/words' is not in toy \(has: steps/language_ins"):
        build_index(damaged, "train", instruction_key="steps/words")
    path = shard(damaged)
    path.rename(damaged / "elsewhere")
    with pytest.raises(MissingShardError, match=rf"shard {path.name} is missing in {damaged}"):
        build_index(damaged, "train")


def test_dataset_without_a_readable_episode_is_an_error(damaged: pathlib.Path) -> None:
    os.truncate(shard(damaged), 100)
    with pytest.raises(DatasetError, match=r"(?s)toy train has no readable episode:.*record 0 at byte 0"):
        build_index(damaged, "train")


def test_moved_dataset_keeps_working(damaged: pathlib.Path, tmp_path: pathlib.Path) -> None:
    build_index(damaged, "train")
    shutil.move(damaged, tmp_path / "moved")
    assert RldsStore.open(tmp_path / "moved", "train").read_frames(0, "front", [0]).shape == (1, 16, 24, 3)


def test_fingerprint_follows_the_bytes_not_the_copy(damaged: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = build_index(damaged, "train").fingerprint
    shutil.copytree(damaged, tmp_path / "copy")
    assert build_index(tmp_path / "copy", "train").fingerprint == first
    rewrite(shard(damaged), lambda feature: feature["steps/reward"].float_list.value.__setitem__(0, 0.5))
    assert build_index(damaged, "train").fingerprint != first


def test_instruction_key_is_part_of_the_index(damaged: pathlib.Path) -> None:
    path = damaged / "features.json"
    features = json.loads(path.read_text())
    step = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    step["paraphrase"] = step["language_instruction"]
    path.write_text(json.dumps(features))
    rewrite(shard(damaged), lambda feature: feature["steps/paraphrase"].bytes_list.value.extend([b"hoist it"] * 4))
    assert build_index(damaged, "train").instructions[0] == "lift the red cube"
    message = "it has the instructions of steps/language_instruction, not of steps/paraphrase; run: wam index"
    with pytest.raises(StaleIndexError, match=message):
        RldsStore.open(damaged, "train", instruction_key="steps/paraphrase")
    store = RldsStore.open(damaged, "train", build=True, instruction_key="steps/paraphrase")
    assert [store.instruction(episode) for episode in range(3)] == ["hoist it", "", ""]


def test_renamed_cameras_and_columns(store: RldsStore, dataset: pathlib.Path) -> None:
    renamed = RldsStore.open(dataset, "train", rename={"left": "front", "state": "proprio"})
    assert renamed.cameras == ("left", "wrist")
    np.testing.assert_array_equal(renamed.lowdim("state"), store.lowdim("proprio"))
    np.testing.assert_array_equal(renamed.read_frames(1, "left", [2]), store.read_frames(1, "front", [2]))
    with pytest.raises(CameraError, match=r"camera 'front' is not in toy \(has: left, wrist\); set data.cameras"):
        renamed.read_frames(1, "front", [2])
    with pytest.raises(KeyError, match="'image_0' is not in toy"):
        RldsStore.open(dataset, "train", rename={"front": "image_0"})


@pytest.mark.parametrize("limit", [1, 256])
def test_threads_read_the_same(store: RldsStore, dataset: pathlib.Path, monkeypatch, limit: int) -> None:
    monkeypatch.setattr("data_pipelines.rlds._MAX_OPEN_FILES", limit)
    fresh = RldsStore.open(dataset, "train")
    wanted = [(episode, camera) for episode in range(5) for camera in fresh.cameras] * 8
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(lambda item: fresh.read_frames(*item, [0]), wanted))
    for item, frame in zip(wanted, frames, strict=True):
        np.testing.assert_array_equal(frame, store.read_frames(*item, [0]))
    assert len(fresh._files) <= min(limit, 3)


def test_png_is_read_exactly_and_damage_is_an_error() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "png")
    png, jpeg = buffer.getvalue(), encode_jpeg(image)
    np.testing.assert_array_equal(decode_image(png), image)
    for damaged in (png[:-40], jpeg[:-40]):
        with pytest.raises(ValueError, match=r"(?i)truncated|premature"):
            decode_image(damaged)
    for other, start in ((b"", "nothing"), (b"GIF89a", "47494638")):
        with pytest.raises(ValueError, match=rf"neither JPEG nor PNG \(starts with {start}\)"):
            decode_image(other)


def test_short_names_keep_a_prefix_where_they_clash() -> None:
    keys = ["steps/action", "steps/state", "steps/observation/state", "steps/observation/arm/pose"]
    assert short_names(keys) == {
        "action": "steps/action",
        "state": "steps/state",
        "observation/state": "steps/observation/state",
        "arm/pose": "steps/observation/arm/pose",
    }


_NAMES = st.text(min_size=1, max_size=5)
_BYTES = st.lists(st.binary(max_size=200), max_size=4)
_INTS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6)
_FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=6)


@given(
    byte_lists=st.dictionaries(_NAMES, _BYTES),
    ints=st.dictionaries(_NAMES, _INTS),
    floats=st.dictionaries(_NAMES, _FLOATS),
)
def test_wire_parser_agrees_with_protobuf(byte_lists, ints, floats) -> None:
    example = tf_example_pb2.Example()
    feature = example.features.feature
    for name, values in byte_lists.items():
        feature["b" + name].bytes_list.value.extend(values)
    for name, numbers in ints.items():
        feature["i" + name].int64_list.value.extend(numbers)
    for name, reals in floats.items():
        feature["f" + name].float_list.value.extend(reals)
    message = example.SerializeToString()
    parsed = protowire.parse_example(message)
    assert set(parsed) == set(feature)
    for name, value in parsed.items():
        if isinstance(value, protowire.ByteStrings):
            found = [message[o : o + n] for o, n in zip(value.offsets, value.lengths, strict=True)]
            assert found == list(feature[name].bytes_list.value)
        else:
            assert value.tolist() == list(feature[name].float_list.value or feature[name].int64_list.value)


@given(st.binary(max_size=60))
def test_wire_parser_refuses_garbage_in_one_way(message: bytes) -> None:
    """Any other exception than WireError would end the scan."""
    with contextlib.suppress(protowire.WireError):
        assert isinstance(protowire.parse_example(message), dict)
