"""Words, layouts and judgement: nothing here steps physics."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.posttraining.instructions import GrammarSplitter
from wam_jax.sim import layouts, tasks
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.tasks import Facts, Layout

REST = 0.022


def facts(objects, goals=(), tcp=(0.5, 0.0, 0.2), opening=1.0, drawn=0.0):
    return Facts(
        tcp=jnp.array(tcp),
        command=jnp.array(tcp),
        opening=jnp.array(opening),
        objects=jnp.array(objects, jnp.float32),
        goals=jnp.array(goals, jnp.float32).reshape(-1, 3),
        drawn=jnp.array(drawn),
    )


def layout(named_object=0, named_goal=0, num_objects=2):
    zeros = jnp.zeros((num_objects, 2))
    return Layout(
        object_xy=zeros,
        object_yaw=zeros[:, 0],
        object_colors=jnp.arange(num_objects),
        goal_xy=zeros,
        named_object=jnp.array(named_object),
        named_goal=jnp.array(named_goal),
    )


def judged(task, facts, layout, done=0):
    outcome = tasks.judge(tasks.TASKS[task], facts, layout, jnp.asarray(done))
    return bool(outcome.success), bool(outcome.wrong), float(outcome.error)


def test_unknown_task_is_refused_with_the_names_there_are():
    with pytest.raises(
        ValueError,
        match=r"^task 'stack' is unknown "
        r"\(has: reach, pick_lift, push, place, pick_place, place_both, stack_press, drawer\)$",
    ):
        Tabletop("stack")


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"^impl 'cuda' is unknown \(has: jax, warp\)$"):
        Tabletop("reach", impl="cuda")


def test_a_camera_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"^camera 'image_0' is not in the simulator \(has: front, wrist\)$"):
        Tabletop("reach", cameras=("image_0",))


def test_instructions():
    assert tasks.instruction_text("reach") == (
        "reach the red sphere",
        "reach the green sphere",
        "reach the blue sphere",
    )
    assert tasks.instruction_text("push")[2] == "push the blue block to the yellow disc"
    assert len(tasks.instruction_text("place")) == 6
    assert tasks.instruction_text("place")[3] == "place the green cube on the purple plate"


@pytest.mark.parametrize("name", [name for name, task in tasks.TASKS.items() if task.skills])
def test_the_grammar_splits_an_instruction_into_the_words_of_its_skills(name):
    instructions, skills = tasks.instruction_text(name), tasks.skill_text(name)
    assert len(set(instructions)) == len(instructions)
    for number, instruction in enumerate(instructions):
        assert GrammarSplitter().split(instruction, []) == tuple(words[number] for words in skills)


@pytest.mark.parametrize("name", tasks.TASK_NAMES)
def test_layouts_keep_their_distances_and_colours(name):
    task = tasks.TASKS[name]
    draws = jax.vmap(lambda key: layouts.sample_layout(task, key))(jax.random.split(jax.random.key(0), 256))
    things = np.concatenate([draws.object_xy, draws.goal_xy], axis=1)
    distances = np.linalg.norm(things[:, :, None] - things[:, None], axis=-1) + 9 * np.eye(things.shape[1])
    assert distances.min() >= task.separation - 1e-6
    colors = np.sort(np.asarray(draws.object_colors), axis=1)
    assert (np.diff(colors, axis=1) > 0).all()  # never the same colour twice
    named = np.asarray(draws.object_colors)[np.arange(256), draws.named_object]
    assert set(named) == {0, 1, 2}
    if task.goal_colors:
        assert set(np.asarray(draws.named_goal)) == set(range(task.num_goals))


def test_push_layouts_leave_the_way_free():
    task = tasks.TASKS["push"]
    draws = jax.vmap(lambda key: layouts.sample_layout(task, key))(jax.random.split(jax.random.key(1), 128))
    objects, named = np.asarray(draws.object_xy), np.asarray(draws.named_object)
    start, other = objects[np.arange(128), named], objects[np.arange(128), 1 - named]
    points = start[:, None] + np.linspace(0, 1, 50)[:, None] * (np.asarray(draws.goal_xy)[:, :1] - start[:, None])
    assert np.linalg.norm(points - other[:, None], axis=-1).min() >= task.path_clearance - 1e-6


def test_reach_counts_the_named_sphere_only():
    spheres = [[0.5, 0.0, 0.03], [0.5, 0.2, 0.03], [0.6, -0.1, 0.03]]
    at_second = facts(spheres, tcp=(0.5, 0.18, 0.03))
    success, wrong, error = judged("reach", at_second, layout(1, num_objects=3))
    assert (success, wrong) == (True, False)
    assert error == pytest.approx(0.02, abs=1e-6)
    assert judged("reach", at_second, layout(0, num_objects=3))[:2] == (False, True)


def test_pick_lift_measures_height_above_rest():
    success, wrong, error = judged("pick_lift", facts([[0.5, 0, REST + 0.09], [0.5, 0.2, REST]]), layout(0))
    assert (success, wrong) == (False, False)
    assert error == pytest.approx(0.01, abs=1e-6)
    lifted = facts([[0.5, 0, REST + 0.101], [0.5, 0.2, REST]])
    assert judged("pick_lift", lifted, layout(0))[:2] == (True, False)
    assert judged("pick_lift", lifted, layout(1))[:2] == (False, True)


def test_push_fails_when_the_other_block_is_on_the_disc_too():
    disc = [[0.55, 0.1, 0.001]]
    assert judged("push", facts([[0.56, 0.1, REST], [0.5, -0.1, REST]], disc), layout(0))[:2] == (True, False)
    assert judged("push", facts([[0.56, 0.1, REST], [0.54, 0.1, REST]], disc), layout(0))[:2] == (False, True)


def test_place_asks_for_the_named_plate_at_rest_and_released():
    plates = [[0.5, 0.1, 0.001], [0.5, -0.1, 0.001]]
    on_second = [[0.51, -0.1, REST], [0.6, 0.0, REST]]
    assert judged("place", facts(on_second, plates), layout(0, 1))[:2] == (True, False)
    assert judged("place", facts(on_second, plates), layout(0, 0))[:2] == (False, True)  # wrong plate
    assert judged("place", facts(on_second, plates), layout(1, 1))[:2] == (False, True)  # wrong cube
    assert judged("place", facts(on_second, plates, opening=0.55), layout(0, 1))[:2] == (False, False)  # still held
    hovering = [[0.51, -0.1, REST + 0.02], [0.6, 0.0, REST]]
    assert judged("place", facts(hovering, plates), layout(0, 1))[:2] == (False, False)


PLATES = [[0.5, 0.1, 0.001], [0.5, -0.1, 0.001]]
APART = [[0.5, 0.0, REST], [0.6, 0.0, REST]]


def test_place_both_asks_for_every_cube_on_its_own_plate_after_all_skills():
    right, swapped = [[0.5, 0.1, REST], [0.5, -0.1, REST]], [[0.5, -0.1, REST], [0.5, 0.1, REST]]
    assert judged("place_both", facts(right, PLATES), layout(0, 0), done=4)[:2] == (True, False)
    assert judged("place_both", facts(right, PLATES), layout(1, 1), done=4)[:2] == (True, False)
    assert judged("place_both", facts(right, PLATES), layout(0, 0), done=3)[:2] == (False, False)
    assert judged("place_both", facts(swapped, PLATES), layout(0, 0), done=4)[:2] == (False, True)
    one = [[0.5, 0.1, REST], [0.6, 0.0, REST]]
    assert judged("place_both", facts(one, PLATES), layout(0, 0), done=2)[:2] == (False, False)


def test_stack_press_asks_for_the_first_cube_on_the_other():
    button, stacked = [[0.45, -0.1, 0.012]], [[0.6, 0.005, 3 * REST], [0.6, 0.0, REST]]
    assert judged("stack_press", facts(stacked, button), layout(0), done=3)[:2] == (True, False)
    assert judged("stack_press", facts(stacked, button), layout(0), done=2)[:2] == (False, False)
    assert judged("stack_press", facts(stacked, button), layout(1), done=3)[:2] == (False, True)  # the other way up
    assert judged("stack_press", facts(APART, button), layout(0), done=3)[:2] == (False, False)
    _, _, error = judged("stack_press", facts(stacked, button), layout(0))
    assert error == pytest.approx(0.005, abs=1e-6)


def test_drawer_asks_for_the_named_cube_in_it_and_for_it_to_be_shut():
    drawer, on_floor = [[0.5, 0.18, 0.003]], REST + 0.006
    inside = [[0.51, 0.17, on_floor], [0.6, -0.1, REST]]
    assert judged("drawer", facts(inside, drawer), layout(0), done=3)[:2] == (True, False)
    assert judged("drawer", facts(inside, drawer), layout(0), done=2)[:2] == (False, False)
    assert judged("drawer", facts(inside, drawer), layout(1), done=3)[:2] == (False, True)  # the wrong cube
    success, _, error = judged("drawer", facts(inside, drawer, drawn=0.02), layout(0), done=3)
    assert not success
    assert error == pytest.approx(0.02 + np.hypot(0.01, 0.01), abs=1e-6)
    for outside in ([0.53, 0.18, on_floor], [0.5, 0.2, on_floor], [0.5, 0.18, on_floor + 0.006], [0.5, 0.18, REST]):
        assert not judged("drawer", facts([outside, inside[1]], drawer), layout(0), done=3)[0]


def test_skills_count_in_their_order_and_one_at_a_time():
    task, button = tasks.TASKS["stack_press"], [[0.45, -0.1, 0.012]]
    held = facts([[0.5, 0.0, 0.12], APART[1]], button, tcp=(0.5, 0.0, 0.12), opening=0.55)
    stacked = facts([[0.6, 0.0, 3 * REST], APART[1]], button, tcp=(0.6, 0.0, 0.2))
    pressed = facts([[0.6, 0.0, 3 * REST], APART[1]], button, tcp=(0.45, -0.1, 0.03))

    def advance(done, *moments, named=0):
        for moment in moments:
            done = int(tasks.advance(task, moment, layout(named), jnp.asarray(done)))
        return done

    assert advance(0, held, stacked, pressed) == 3
    assert advance(0, held, stacked, pressed, pressed) == 3
    assert advance(0, facts(APART, button, tcp=(0.45, -0.1, 0.03)), facts(APART, button)) == 0  # pressed too early
    assert advance(0, held, held, held) == 1
    assert advance(1, facts(APART, button)) == 1  # what was done stays done
    assert advance(0, held, stacked, pressed, named=1) == 0  # the wrong cube
    single = tasks.TASKS["reach"]
    assert int(tasks.advance(single, held, layout(), jnp.asarray(0))) == 0


def test_reset_says_what_it_shows(place, place_states):
    """The instruction names the colour of the named cube and the plate that is named, where they lie."""
    colors, goals = list(tasks.OBJECT_COLORS), tasks.TASKS["place"].goal_colors
    start = jax.vmap(place.facts)(place_states)
    for episode in range(8):
        this = jax.tree.map(lambda x, i=episode: x[i], place_states.layout)
        color = colors[int(this.object_colors[this.named_object])]
        wanted = f"place the {color} cube on the {goals[int(this.named_goal)]} plate"
        assert place.instructions[int(place_states.instruction[episode])] == wanted
        np.testing.assert_allclose(start.objects[episode, :, :2], this.object_xy, atol=1e-6)
        np.testing.assert_allclose(start.goals[episode, :, :2], this.goal_xy, atol=1e-6)
    outcome = jax.vmap(place.outcome)(place_states)
    assert not outcome.success.any()
    assert not outcome.wrong.any()


def test_wrong_instruction_names_another_object_that_is_there(place, place_states):
    wrong = np.asarray(jax.vmap(place.wrong_instruction)(place_states))
    layout = place_states.layout
    for episode in range(8):
        color, goal = divmod(int(wrong[episode]), 2)
        other = 1 - int(layout.named_object[episode])
        assert color == int(layout.object_colors[episode, other])
        assert goal == int(layout.named_goal[episode])


@pytest.mark.parametrize("name", ["place_both", "stack_press"])
def test_of_two_named_objects_the_wrong_instruction_names_the_other_first(name):
    task, said = tasks.TASKS[name], tasks.instruction_text(name)
    for named, goal in itertools.product(range(2), range(task.num_goals)):
        here = dataclasses.replace(layout(named, goal), object_colors=jnp.array([2, 0]))
        colors = [("blue", "red"), ("red", "blue")][named]
        index = tasks.instruction_index(task, here.object_colors[named], here.object_colors[1 - named], goal)
        swapped = tasks.instruction_index(task, here.object_colors[1 - named], here.object_colors[named], goal)
        places = [said[int(index)].index(color) for color in colors]
        assert places == sorted(places)
        places = [said[int(swapped)].index(color) for color in colors]
        assert places == sorted(places, reverse=True)
        assert said[int(index)].index(task.goal_colors[goal]) > 0
