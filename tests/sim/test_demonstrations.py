"""Experts succeed, and what they leave behind is consistent."""

import jax
import numpy as np
import pytest
from conftest import NUM_EPISODES
from ml_collections import ConfigDict

from configs import common
from data_pipelines.episodes import CameraError
from data_pipelines.rlds import RldsStore
from data_pipelines.windows import WindowSpec, window_table
from data_pipelines.write_rlds import RldsWriter
from launch import demos
from launch.config import ConfigError, to_plain
from wam_jax.posttraining.skills import GripperCut
from wam_jax.sim.compilation import jit
from wam_jax.sim.control import ACTION_SCALE
from wam_jax.sim.demonstrations import Demonstrations, generate, generate_batches, steps_to_success, wander
from wam_jax.sim.render import depth_from_image
from wam_jax.sim.scene import FINGER_TRAVEL, OBJECT_COLORS
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.tasks import TASKS


def test_reach_expert_succeeds(reach_demonstrations):
    assert reach_demonstrations.success[:, -1].all()
    assert not reach_demonstrations.success[:, 0].any()
    np.testing.assert_array_equal(reach_demonstrations.reward, np.asarray(reach_demonstrations.success, np.float32))


def test_shapes_and_ranges(reach, reach_demonstrations):
    steps = reach.expert_steps
    assert reach_demonstrations.images.shape == (NUM_EPISODES, steps, 2, 64, 64, 3)
    assert reach_demonstrations.images.dtype == np.uint8
    assert np.isfinite(reach_demonstrations.proprio).all()
    opening = np.asarray(reach_demonstrations.proprio)[..., 6]
    assert opening.min() >= 0
    assert opening.max() <= 1
    assert np.abs(reach_demonstrations.action).max() <= 1


def test_actions_add_up_to_the_commanded_motion(reach_demonstrations):
    command = np.asarray(reach_demonstrations.proprio)[..., 3:6]
    action = np.asarray(reach_demonstrations.action)[..., :3]
    expected = command[:, :1] + ACTION_SCALE * np.cumsum(action, axis=1)
    np.testing.assert_allclose(command[:, 1:], expected[:, :-1], atol=1e-5)


def test_a_key_gives_the_same_episodes_however_many_are_asked_for(reach, reach_demonstrations):
    first, second = generate_batches(reach, jax.random.key(0), NUM_EPISODES + 4, batch_size=NUM_EPISODES)
    for one, two in zip(jax.tree.leaves(reach_demonstrations), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(one, two)
    assert second.action.shape == (4, reach.expert_steps, 4)
    assert (np.asarray(second.proprio[:, 0]) != np.asarray(first.proprio[:4, 0])).any(-1).all()


@pytest.fixture(scope="module")
def with_depth(reach):
    """The episodes of ``reach_demonstrations``, with depth."""
    key = jax.random.fold_in(jax.random.key(0), 0)
    return generate(reach, key, NUM_EPISODES, reach.expert_steps, depth=True)


@pytest.mark.slow
def test_depth_is_an_addition(reach, reach_demonstrations, with_depth):
    assert reach_demonstrations.depth is None
    assert with_depth.depth.shape == (NUM_EPISODES, reach.expert_steps, 2, 64, 64)
    np.testing.assert_array_equal(with_depth.instruction, reach_demonstrations.instruction)
    # Compiled on its own, physics rounds otherwise, and the expert corrects what grows of that.
    np.testing.assert_allclose(with_depth.proprio, reach_demonstrations.proprio, atol=1e-3)
    same = np.abs(np.asarray(with_depth.images, int) - np.asarray(reach_demonstrations.images)) <= 2
    assert same.mean() > 0.99


@pytest.fixture(scope="module")
def written(reach, reach_demonstrations, with_depth, tmp_path_factory):
    """The first two episodes on disk, without depth and with it."""
    stores = []
    for name, batch in (("plain", reach_demonstrations), ("depth", with_depth)):
        episodes = jax.tree.map(lambda x: x[:2], batch)
        folder = tmp_path_factory.mktemp(name) / "reach"
        sizes = dict.fromkeys(demos.dataset_cameras(reach, depth=batch.depth is not None), (64, 64))
        with RldsWriter(folder, "reach", sizes, reach.action_size, reach.proprio_size) as writer:
            demos.write_episodes(writer, reach, episodes, "train", hold_steps=8)
        stores.append(RldsStore.open(folder, "train", build=True))
    return stores


@pytest.mark.slow
def test_depth_on_disk_is_grey_and_close_to_what_was_drawn(written, with_depth):
    assert written[0].cameras == ("front", "wrist")
    assert sorted(written[1].cameras) == ["front", "front_depth", "wrist", "wrist_depth"]
    steps = range(written[1].num_steps(1))
    for view, camera in enumerate(("front_depth", "wrist_depth")):
        frames = written[1].read_frames(1, camera, steps)
        assert (frames == frames[..., :1]).all()
        drawn = np.asarray(with_depth.depth[1, : len(steps), view])
        error = np.abs(depth_from_image(frames[..., 0]) - depth_from_image(drawn))  # metres that JPEG adds
        assert error.mean() < 0.004
        assert np.quantile(error, 0.99) < 0.03


@pytest.mark.slow
def test_depth_of_demonstrations_without_any_is_refused(written):
    with pytest.raises(CameraError, match=r"^camera 'front_depth' is not in reach \(has: front, wrist\)"):
        window_table(written[:1], WindowSpec(cameras=("front",), depth_cameras=("front_depth",)))


def test_shapes_are_not_taken_for_granted_where_demonstrations_exist(tmp_path):
    folder = tmp_path / "tabletop_reach" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "object_shapes.json").write_text('{"red": ["cube"]}')  # as before all settings were kept
    config = common.get_config()
    config.demos.update({"tasks": ("reach",), "episodes": (1,)})
    message = (
        r"was made with object_shapes {'red': \['cube'\]}, config.demos.object_shapes is {}; choose another folder"
    )
    with pytest.raises(ConfigError, match=message):
        demos.make_demos(config, tmp_path)


def standing_still(env, key, count, **options):
    """Demonstrations as ``generate_batches`` makes them, in no time."""
    zeros = np.zeros((count, 1, 7), np.float32)
    yield Demonstrations(
        images=np.zeros((count, 1, 2, 16, 16, 3), np.uint8), depth=None, proprio=zeros, action=zeros[..., :4],
        success=np.ones((count, 1), bool), instruction=np.zeros(count, int),
    )  # fmt: skip


def test_demonstrations_that_exist_are_those_that_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "generate_batches", standing_still)
    config = common.get_config()
    config.data.image_size = (16, 16)
    config.demos.update({"tasks": ("reach",), "episodes": (2,), "validation_episodes": 1})
    (folder,) = demos.make_demos(config, tmp_path)
    config.seed = 1  # trainings with several seeds share them
    assert demos.make_demos(config, tmp_path) == [folder]
    other = {
        "validation_episodes": 2, "action_noise": 0.0, "wander_steps": 3, "hold_steps": 9, "episodes": (3,),
        "object_shapes": ConfigDict(dict.fromkeys(OBJECT_COLORS, ("cube",))),
    }  # fmt: skip
    for name, value in other.items():
        asked = config.copy_and_resolve_references()
        asked.demos[name] = value
        made, value = (x[0] if name == "episodes" else to_plain(x) for x in (config.demos[name], value))
        with pytest.raises(ConfigError) as error:
            demos.make_demos(asked, tmp_path)
        message = f"{folder} was made with {name} {made}, config.demos.{name} is {value}; choose another folder"
        assert str(error.value).startswith(message)


def test_settings_of_demonstrations_that_do_not_say_are_unknown(tmp_path, capsys):
    folder = tmp_path / "tabletop_reach" / "1.0.0"
    folder.mkdir(parents=True)
    config = common.get_config()
    config.demos.update({"tasks": ("reach",), "episodes": (2,)})
    assert demos.make_demos(config, tmp_path) == [folder]
    assert "its settings are unknown" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"red": ("cone",)}, r"has red: \('cone',\); colours are red, green, blue and shapes cube, cylinder, sphere"),
        ({"red": ("cube",)}, r"names no shape of green objects"),
    ],
)
def test_shapes_that_are_not_there_are_refused(named, message):
    with pytest.raises(ConfigError, match=message):
        demos.object_shapes(named)
    colors = {"red": ("cube", "sphere"), "green": ("cylinder",), "blue": ("cube",)}
    assert demos.object_shapes(colors) == ((0, 2), (1,), (0,))


def test_depth_is_not_taken_for_granted_where_demonstrations_exist(tmp_path):
    folder = tmp_path / "tabletop_reach" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text('{"front": {}}')
    config = common.get_config()
    config.demos.update({"tasks": ("reach",), "episodes": (1,)})
    assert demos.make_demos(config, tmp_path) == [folder]
    config.demos.depth = True
    with pytest.raises(ConfigError, match=r"1.0.0 was made without depth; choose another folder with config.demos"):
        demos.make_demos(config, tmp_path)


@pytest.mark.slow
def test_a_batch_of_episodes_is_each_of_them(reach, reach_demonstrations):
    def episode(key, action):
        return reach.proprio(reach.step(reach.reset(key), action))

    alone = jit(episode)
    reset_keys = jax.random.split(jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[0], NUM_EPISODES)
    for index in (0, 5):
        proprio = alone(reset_keys[index], reach_demonstrations.action[index, 0])
        np.testing.assert_allclose(proprio, reach_demonstrations.proprio[index, 1], atol=1e-5)


@pytest.mark.slow
def test_wandering_ends_between_home_and_anywhere_in_the_box(reach):
    keys = jax.random.split(jax.random.key(5), 16)
    home = jit(jax.vmap(reach.reset))(keys)
    away = jit(lambda states: wander(reach, states, jax.random.key(6), 10))(home)
    low, high = np.array(reach.wander_box)
    command, start = np.asarray(away.command), np.asarray(home.command)
    assert (command >= np.minimum(start, low) - 1e-4).all()
    assert (command <= np.maximum(start, high) + 1e-4).all()
    moved = np.linalg.norm(command - start, axis=-1)
    assert np.ptp(moved) > 0.1
    np.testing.assert_allclose(away.physics.site_xpos[:, reach.model.site("tcp").id], command, atol=0.05)


def test_steps_to_success_counts_to_the_last_time_that_it_did_not_hold():
    held = ["0000", "0101", "0111", "1111", "1110"]
    success = np.array([[step == "1" for step in episode] for episode in held])
    np.testing.assert_array_equal(steps_to_success(success), [4, 3, 1, 0, 4])


@pytest.mark.slow
@pytest.mark.parametrize(("task", "least"), [("pick_lift", 0.98), ("push", 0.9), ("place", 0.95)])
def test_contact_experts_succeed(task, least):
    env = Tabletop(task, image_size=8)
    demonstrations = generate(env, jax.random.key(0), 128, env.expert_steps)
    assert np.mean(demonstrations.success[:, -1]) >= least
    assert np.isfinite(demonstrations.proprio).all()


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.skills])
def test_long_tasks_are_done_skill_by_skill_and_cut_into_them(task):
    env, count = Tabletop(task, image_size=8), 32

    def run(key):
        states = wander(env, jax.vmap(env.reset)(jax.random.split(key, count)), jax.random.fold_in(key, 1), 10)

        def step(states, key):
            action = jax.vmap(env.expert)(states)
            states = jax.vmap(env.step)(states, action.at[:, :3].add(0.15 * jax.random.normal(key, (count, 3))))
            return states, (jax.vmap(env.outcome)(states), jax.vmap(env.facts)(states).opening)

        return jax.lax.scan(step, states, jax.random.split(key, env.expert_steps))[1]

    outcome, opening = jax.tree.map(np.asarray, jit(run)(jax.random.key(3)))
    assert outcome.success[-1].mean() >= 0.95
    steps = np.diff(outcome.skills, axis=0, prepend=0)
    assert set(np.unique(steps)) == {0, 1}
    number = len(TASKS[task].skills)
    cut = GripperCut(closed_by=0.02, tail=16)
    for episode in np.flatnonzero(outcome.success[-1]):
        assert outcome.skills[-1, episode] == number
        last = steps_to_success(outcome.success.T)[episode] + 8
        bounds = cut(opening[: last + 1, episode] * 2 * FINGER_TRAVEL)
        assert len(bounds) == number + 1
