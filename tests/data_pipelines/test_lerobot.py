"""A LeRobot folder gives what was written into it, whichever version wrote it, and says what is not there."""

import json
import pathlib
import pickle

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from toy_rlds import Episode, make_episode

from data_pipelines.episodes import CameraError, DatasetError, DecodeError
from data_pipelines.lerobot import LeRobotStore
from data_pipelines.subset import open_split
from data_pipelines.windows import WindowSpec, window_table

FPS = 12
LENGTHS = (9, 40, 23)
SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"


def write_video(path: pathlib.Path, frames: np.ndarray) -> None:
    """Without loss, in groups of eight pictures that lean on each other both ways."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=FPS, options={"qp": "0", "g": "8", "bf": "2"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_table(path: pathlib.Path, episodes: list[Episode]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "action": [row for e in episodes for row in e.action.tolist()],
        "observation.state": [row for e in episodes for row in e.proprio.tolist()],
        "timestamp": [step / FPS for e in episodes for step in range(len(e.action))],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write_info(folder: pathlib.Path, version: str, count: int) -> None:
    features = {f"observation.images.{c}": {"dtype": "video", "shape": [16, 24, 3]} for c in ("front", "wrist")}
    info = {"codebase_version": version, "fps": FPS, "features": features, "splits": {"train": f"0:{count}"}}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def write_v2(folder: pathlib.Path, episodes: list[Episode], version: str = "v2.1") -> pathlib.Path:
    write_info(folder, version, len(episodes))
    lines = []
    for number, e in enumerate(episodes):
        lines.append(json.dumps({"episode_index": number, "tasks": [e.instruction, "valid"], "length": len(e.action)}))
        write_table(folder / f"data/chunk-000/episode_{number:06d}.parquet", [e])
        for camera, frames in e.images.items():
            write_video(folder / f"videos/chunk-000/observation.images.{camera}/episode_{number:06d}.mp4", frames)
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_v3(folder: pathlib.Path, episodes: list[Episode]) -> pathlib.Path:
    """The first two episodes share files, the third has its own."""
    write_info(folder, "v3.0", len(episodes))
    rows, first = [], 0
    for file, members in enumerate((episodes[:2], episodes[2:])):
        write_table(folder / f"data/chunk-000/file-{file:03d}.parquet", members)
        for camera in ("front", "wrist"):
            frames = np.concatenate([e.images[camera] for e in members])
            write_video(folder / f"videos/observation.images.{camera}/chunk-000/file-{file:03d}.mp4", frames)
        seconds = 0.0
        for e in members:
            row = {"episode_index": len(rows), "tasks": [e.instruction], "length": len(e.action)}
            row |= {"dataset_from_index": first, "data/chunk_index": 0, "data/file_index": file, "stats/x": 0.0}
            for kind in ("videos/observation.images.front", "videos/observation.images.wrist"):
                row |= {f"{kind}/chunk_index": 0, f"{kind}/file_index": file, f"{kind}/from_timestamp": seconds}
            rows.append(row)
            seconds += len(e.action) / FPS
            first += len(e.action)
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    return folder


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [make_episode(seed, steps) for seed, steps in enumerate(LENGTHS)]


@pytest.fixture
def v2(tmp_path, episodes) -> pathlib.Path:
    return write_v2(tmp_path / "toy", episodes)


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_every_column_and_frame_is_as_written(tmp_path, episodes, write):
    store = LeRobotStore(write(tmp_path / "toy", episodes))
    assert (store.name, store.cameras, store.absent) == ("toy", ("front", "wrist"), ())
    np.testing.assert_array_equal(store.episode_starts, np.cumsum([0, *LENGTHS]))
    np.testing.assert_array_equal(store.lowdim("action"), np.concatenate([e.action for e in episodes]))
    np.testing.assert_array_equal(store.lowdim("observation.state"), np.concatenate([e.proprio for e in episodes]))
    assert store.lowdim("timestamp").shape == (sum(LENGTHS),)
    rng = np.random.default_rng(0)
    for number, episode in enumerate(episodes):
        assert store.instruction(number) == episode.instruction
        steps = [*rng.integers(0, len(episode.action), 12), 0, len(episode.action) - 1]
        for camera in store.cameras:
            np.testing.assert_array_equal(store.read_frames(number, camera, steps), episode.images[camera][steps])


def test_it_opens_by_its_folder_and_by_slices(v2, episodes):
    store = open_split(v2, "train[1:]")
    assert store.num_episodes == 2
    np.testing.assert_array_equal(store.lowdim("action")[:40], episodes[1].action)
    table = window_table([store], WindowSpec(("front",), frame_offsets=(0, 4), action_horizon=4))
    assert len(table) == 40 + 23
    again = pickle.loads(pickle.dumps(store))  # as the loader's processes get it
    np.testing.assert_array_equal(again.lowdim("action"), store.lowdim("action"))
    with pytest.raises(DatasetError, match=r"split 'val' is not in toy \(has: train\); set data.split"):
        open_split(v2, "val")


def test_what_was_not_downloaded_is_left_out_and_listed(v2, episodes):
    (v2 / "videos/chunk-000/observation.images.front/episode_000001.mp4").unlink()
    for path in (v2 / "videos/chunk-000/observation.images.wrist").iterdir():
        path.unlink()
    store = LeRobotStore(v2)
    assert (store.absent, store.skipped) == ((1,), 1)
    assert store.absent_cameras == ("observation.images.wrist",)
    np.testing.assert_array_equal(store.lowdim("action"), np.concatenate([episodes[0].action, episodes[2].action]))
    np.testing.assert_array_equal(store.read_frames(1, "front", [22]), episodes[2].images["front"][[22]])
    with pytest.raises(CameraError, match=r"'wrist' is not in toy \(has: front\)"):
        store.read_frames(0, "wrist", [0])
    for path in (v2 / "data/chunk-000").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="lists 3 episodes in 'train', but has the files of none"):
        LeRobotStore(v2)


def test_fingerprint_changes_with_the_data(v2, episodes):
    before = LeRobotStore(v2).fingerprint
    assert LeRobotStore(v2).fingerprint == before
    write_video(v2 / "videos/chunk-000/observation.images.front/episode_000001.mp4", episodes[1].images["front"][::-1])
    assert LeRobotStore(v2).fingerprint != before


def test_damaged_files_are_named(v2, episodes):
    video = v2 / "videos/chunk-000/observation.images.front/episode_000001.mp4"
    write_video(video, episodes[1].images["front"][:20])
    store = LeRobotStore(v2)
    store.read_frames(1, "front", [19])
    with pytest.raises(DecodeError, match=r"episode_000001.mp4 episode 1 camera 'front': it has no frame 20"):
        store.read_frames(1, "front", [20])
    video.write_bytes(video.read_bytes()[:300])
    with pytest.raises(DecodeError, match="it cannot be decoded"):
        store.read_frames(1, "front", [0])
    write_table(v2 / "data/chunk-000/episode_000002.parquet", episodes[:1])
    with pytest.raises(DatasetError, match=r"has 9 of the 23 rows of episode 2; get it anew"):
        LeRobotStore(v2).lowdim("action")


def test_other_folders_and_versions_are_refused(tmp_path, v2):
    with pytest.raises(DatasetError, match="is not a LeRobot dataset"):
        LeRobotStore(tmp_path)
    info = v2 / "meta" / "info.json"
    info.write_text(info.read_text().replace("v2.1", "v1.6"))
    with pytest.raises(DatasetError, match=r"is LeRobot v1\.6; can be read: v2\.0, v2\.1, v3\.0"):
        LeRobotStore(v2)


@pytest.mark.parametrize(
    ("folder", "episodes", "absent", "cameras", "action"),
    [
        ("g1_lerobot_v21", 8, 92, ("cam_high",), ("action", (26,))),
        ("gr1_sim_lerobot_v20", 5, 0, ("ego_view",), ("action", (44,))),
        ("droid_lerobot_v3", 1, 0, ("observation.image.exterior_image_2_left",), ("action.gripper_position", ())),
    ],
)
def test_real_datasets_of_every_version(folder, episodes, absent, cameras, action):
    if not (SHARED / folder).exists():
        pytest.skip(f"{folder} is not at ../shared/data")
    store = LeRobotStore(SHARED / folder)
    assert (store.num_episodes, len(store.absent), store.cameras) == (episodes, absent, cameras)
    key, shape = action
    values = store.lowdim(key)
    assert values.shape == (int(store.episode_starts[-1]), *shape)
    assert np.isfinite(values).all()
    steps = [70, 3, 4, 70, 0]
    with av.open(str(min((SHARED / folder).rglob("*.mp4")))) as container:  # every picture from the first on, counted
        pictures = [p.to_ndarray(format="rgb24") for p, _ in zip(container.decode(video=0), range(71), strict=False)]
    np.testing.assert_array_equal(store.read_frames(0, cameras[0], steps), np.stack([pictures[s] for s in steps]))
