"""The environment: pure functions of a state, unbatched; callers ``vmap`` them.

One control step is ten physics steps of 4 ms (25 Hz). An action is a motion of the commanded tcp in units of 2.5 cm
and a gripper command, open above 0.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PRNGKeyArray, UInt8
from mujoco import mjx

from wam_jax.sim import control, layouts, scene, tasks
from wam_jax.sim.expert import EXPERTS
from wam_jax.sim.judges import Facts
from wam_jax.sim.physics import advance, settle
from wam_jax.sim.render import Hits, Stage, View, cast, depth_image, geometry, make_view, shade
from wam_jax.sim.scene import CAMERA_NAMES, NUM_ARM_JOINTS
from wam_jax.sim.tasks import TASK_NAMES, Layout, Outcome
from wam_jax.sim.variation import Variation, move_camera

__all__ = ["PARTS", "TASK_NAMES", "SimState", "Tabletop"]

_START_SPREAD = (0.1, 0.07, 0.07, 0.1, 0.05, 0.07, 0.05)  # radians, standard deviation of each joint at the start
_IMPLEMENTATIONS = ("jax", "warp")
PARTS = ("hand", "object", "goal")  # that masks show: the hand, and what the instruction names


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimState:
    """One moment of an episode.

    Attributes:
      physics: MJX's state, settled: poses and forces are those of its positions, velocities and controls.
      command: commanded tcp position, metres.
      layout: what the episode started from, and which object is named.
      instruction: index into ``Tabletop.instructions``.
      applied_action: what the last step executed, which is what a data set should store as the action: motion of the
        command in units of 2.5 cm, gripper ±1. Zero motion, open, after a reset.
      variation: the conditions of the episode.
      distractors: where they are, as far as there are any.
      done: how many of the task's skills were done so far, in their order.
    """

    physics: mjx.Data
    command: Float32[Array, "3"]
    layout: Layout
    instruction: Int32[Array, ""]
    applied_action: Float32[Array, "4"]
    variation: Variation
    distractors: Float32[Array, "d 3"]
    done: Int32[Array, ""]


class Tabletop:
    """A Franka-like arm at a table with coloured things, one task a scene. Holds only what is fixed."""

    action_size = 4
    proprio_size = 7

    def __init__(
        self,
        task: str,
        image_size: int = 64,
        impl: str = "jax",
        varied: bool = False,
        cameras: Sequence[str] = CAMERA_NAMES,
    ):
        """Builds the scene.

        Args:
          task: one of ``TASK_NAMES``.
          image_size: pixels a side, of every camera.
          impl: MJX implementation, "jax" (any platform) or "warp" (NVIDIA GPUs).
          varied: whether variations may change shapes and show distractors; pictures then take a third longer.
          cameras: which of ``CAMERA_NAMES`` take pictures, in this order.

        Raises:
          ValueError: the task, the implementation or a camera is unknown.
        """
        self._task = tasks.get_task(task)
        if impl not in _IMPLEMENTATIONS:
            raise ValueError(f"impl {impl!r} is unknown (has: {', '.join(_IMPLEMENTATIONS)})")
        if unknown := [name for name in cameras if name not in CAMERA_NAMES]:
            raise ValueError(f"camera {unknown[0]!r} is not in the simulator (has: {', '.join(CAMERA_NAMES)})")
        self.task, self.cameras = task, tuple(cameras)
        self.instructions = tasks.instruction_text(task)
        self.episode_steps = self._task.episode_steps
        self.expert_steps = self._task.expert_steps
        self.wander_box = self._task.wander_box
        self.image_size = image_size
        self.varied = varied
        self.model = tasks.build_model(self._task, varied)
        self.object_geoms = np.array([self.model.geom(f"object{i}").id for i in range(self._task.num_objects)])
        # Of each shape, the geoms that stand for the objects.
        self._looks = {
            index: self.object_geoms
            if shape == self._task.object_shape
            else np.array([self.model.geom(f"{shape}{i}").id for i in range(self._task.num_objects)])
            for index, shape in enumerate(scene.SHAPES)
            if varied or shape == self._task.object_shape
        }
        names = [f"distractor{k}" for k in range(layouts.MOST_DISTRACTORS)] if varied else []
        self._distractors = np.array([self.model.geom(name).id for name in names], int)
        self.goal_geoms = np.array([self.model.geom(f"goal{i}").id for i in range(self._task.num_goals)], int)
        # Of each goal, what is seen of it: a drawer is its walls and handle, too.
        drawer = np.flatnonzero(self.model.geom_bodyid == self.model.body("drawer").id) if self._task.drawer else None
        self._goal_looks = self.goal_geoms[:, None] if drawer is None else drawer[None]
        self.hand_geoms = np.array([self.model.geom(name).id for name in ("hand", "finger_left", "finger_right")])
        self._tcp = self.model.site("tcp").id
        data = mujoco.MjData(self.model)
        data.qpos[: len(scene.HOME_QPOS)] = scene.HOME_QPOS
        mujoco.mj_forward(self.model, data)
        here = jax.local_devices()[0]  # of several processes, each simulates on its own
        self._mjx_model = mjx.put_model(self.model, device=here, impl=impl)
        self._home = mjx.put_data(self.model, data, device=here, impl=impl)
        options: dict[str, dict[str, Any]] = {
            "front": {"geom_groups": (0, 1), "shadow": True},
            "wrist": {"geom_groups": (0,), "shadow": False},
        }
        self._views = tuple(make_view(self.model, name, image_size, **options[name]) for name in self.cameras)

    def reset(self, key: PRNGKeyArray, variation: Variation = Variation()) -> SimState:
        """A new episode: layout, colours, instruction and arm posture drawn from ``key``."""
        layout_key, arm_key = jax.random.split(key)
        distractor_key = jax.random.fold_in(key, 2)
        layout = layouts.sample_layout(self._task, layout_key)
        shift = jnp.asarray(variation.layout_shift)
        layout = dataclasses.replace(layout, object_xy=layout.object_xy + shift, goal_xy=layout.goal_xy + shift)
        jitter = jnp.array(_START_SPREAD) * jax.random.normal(arm_key, (NUM_ARM_JOINTS,)) + variation.arm_joint_shift
        physics = settle(self._mjx_model, self._lay_out(layout, jitter))
        command = physics.site_xpos[self._tcp]
        return SimState(
            physics=physics,
            command=command,
            layout=layout,
            instruction=self._instruction(layout),
            applied_action=jnp.array([0.0, 0.0, 0.0, 1.0]),
            variation=jax.tree.map(jnp.asarray, variation),
            distractors=layouts.place_distractors(self._task, distractor_key, layout),
            done=jnp.asarray(0, jnp.int32),
        )

    def step(self, state: SimState, action: Float[Array, "4"]) -> SimState:
        """One control step of 40 ms."""
        physics = state.physics
        tcp = physics.site_xpos[self._tcp]
        command = control.next_command(state.command, tcp, action[:3])
        with jax.default_matmul_precision("highest"):
            joints = control.inverse_kinematics(
                command,
                tcp,
                physics.site_xmat[self._tcp].reshape(3, 3),
                physics.xanchor[:NUM_ARM_JOINTS],
                physics.xaxis[:NUM_ARM_JOINTS],
                physics.qpos[:NUM_ARM_JOINTS],
            )
        targets = jnp.concatenate([joints, control.finger_target(action[3])])
        physics = advance(self._mjx_model, physics, targets)
        applied = control.effective_action(state.command, command, action[3])
        state = dataclasses.replace(state, physics=physics, command=command, applied_action=applied)
        done = tasks.advance(self._task, self.facts(state), state.layout, state.done)
        return dataclasses.replace(state, done=done)

    def render(self, state: SimState) -> UInt8[Array, "V H W 3"]:
        """Pictures of all ``cameras``."""
        return self.draw(self.stage(state))

    def draw(self, stage: Stage) -> UInt8[Array, "V H W 3"]:
        """Pictures of all ``cameras``, from what a state puts on stage."""
        return jnp.stack([shade(view, stage, hits) for view, hits in self._cast(stage)])

    def render_with_depth(self, state: SimState) -> tuple[UInt8[Array, "V H W 3"], UInt8[Array, "V H W"]]:
        """Pictures and depth pictures (`render.depth_image`) of all ``cameras``; the rays are followed once."""
        stage = self.stage(state)
        seen = self._cast(stage)
        pictures = jnp.stack([shade(view, stage, hits) for view, hits in seen])
        return pictures, jnp.stack([depth_image(view, hits) for view, hits in seen])

    def render_geometry(self, state: SimState) -> tuple[Int32[Array, "V H W"], Float32[Array, "V H W"]]:
        """MuJoCo geom id of each pixel (-1 for sky), and depth along the optical axis in metres (0 for sky)."""
        segmentation, depth = zip(*(geometry(*view) for view in self._cast(self.stage(state))), strict=True)
        return jnp.stack(segmentation), jnp.stack(depth)

    def masks(self, stage: Stage, layout: Layout) -> Bool[Array, "M V H W"]:
        """Where each of ``PARTS`` is seen; tasks without goals have no mask of the last.

        Of a task that names several objects or goals, all of them, whichever skill it is at.
        """
        seen = jnp.stack([geometry(view, hits)[0] for view, hits in self._cast(stage)])
        named = [layout.named_object] + [tasks.other_object(self._task, layout)] * self._task.names_other
        looks = jnp.asarray(list(self._looks.values()))[:, jnp.stack(named)]
        parts = [jnp.isin(seen, self.hand_geoms), jnp.isin(seen, looks)]
        if self._task.num_goals:
            goals = jnp.asarray(self._goal_looks)
            parts.append(jnp.isin(seen, goals if self._task.both else goals[layout.named_goal]))
        return jnp.stack(parts)

    def object_places(self, stage: Stage) -> Float32[Array, "*B n 3"]:
        """Where the objects of a stage are, whatever shape they show (the others are under the table)."""
        places = jnp.stack([stage.geom_position[..., geoms, :] for geoms in self._looks.values()])
        return jnp.take_along_axis(places, places[..., 2:].argmax(0)[None], 0)[0]

    def proprio(self, state: SimState) -> Float32[Array, "7"]:
        """tcp (m), commanded tcp (m), gripper opening in [0, 1]."""
        facts = self.facts(state)
        return jnp.concatenate([facts.tcp, facts.command, facts.opening[None]])

    @staticmethod
    def executed(action: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
        """What of an action is carried out where nothing is in the way."""
        return control.executed(action)

    def expert(self, state: SimState) -> Float32[Array, "4"]:
        """The scripted expert's action, from the truth about the scene."""
        facts, experts = self.facts(state), EXPERTS[self.task]
        named = tasks.named_things(self._task, facts, state.layout)
        return jnp.stack([expert(facts, named) for expert in experts])[jnp.minimum(state.done, len(experts) - 1)]

    def outcome(self, state: SimState) -> Outcome:
        """Whether the instruction holds now."""
        return tasks.judge(self._task, self.facts(state), state.layout, state.done)

    def wrong_instruction(self, state: SimState) -> Int[Array, ""]:
        """Index of an instruction that names another object of this scene first (and the same goal)."""
        other = tasks.other_object(self._task, state.layout)
        return self._instruction(dataclasses.replace(state.layout, named_object=other))

    def _instruction(self, layout: Layout) -> Int32[Array, ""]:
        colors = layout.object_colors
        first, other = colors[layout.named_object], colors[tasks.other_object(self._task, layout)]
        return tasks.instruction_index(self._task, first, other, layout.named_goal).astype(jnp.int32)

    def facts(self, state: SimState) -> Facts:
        """The truth about the scene."""
        physics = state.physics
        fingers = physics.qpos[NUM_ARM_JOINTS : NUM_ARM_JOINTS + 2]
        return Facts(
            tcp=physics.site_xpos[self._tcp],
            command=state.command,
            opening=jnp.clip(fingers.sum() / (2 * scene.FINGER_TRAVEL), 0.0, 1.0),
            objects=physics.geom_xpos[self.object_geoms],
            goals=physics.geom_xpos[self.goal_geoms],
            drawn=physics.qpos[-1] if self._task.drawer else jnp.zeros(()),
        )

    def _lay_out(self, layout: Layout, arm_jitter: Float[Array, "7"]) -> mjx.Data:
        """Puts arm, objects and goals in their places; not settled yet."""
        arm = self._home.qpos[: len(scene.HOME_QPOS)].at[:NUM_ARM_JOINTS].add(arm_jitter)
        height = jnp.full((self._task.num_objects, 1), self._task.rest_height)
        objects = jnp.concatenate([layout.object_xy, height], axis=-1)
        goals = jnp.concatenate([layout.goal_xy, jnp.full((self._task.num_goals, 1), self._task.goal_height)], axis=-1)
        if self._task.object_shape == "sphere":
            return self._home.replace(qpos=arm, ctrl=arm, mocap_pos=jnp.concatenate([objects, goals]))
        half, zero = layout.object_yaw / 2, jnp.zeros_like(layout.object_yaw)
        quaternion = jnp.stack([jnp.cos(half), zero, zero, jnp.sin(half)], axis=-1)
        cubes = jnp.concatenate([objects, quaternion], axis=-1).reshape(-1)
        if self._task.drawer:
            return self._home.replace(qpos=jnp.concatenate([arm, cubes, *layout.goal_xy, jnp.zeros(1)]), ctrl=arm)
        return self._home.replace(qpos=jnp.concatenate([arm, cubes]), ctrl=arm, mocap_pos=goals)

    def _cast(self, stage: Stage) -> list[tuple[View, Hits]]:
        """Every camera's rays into the scene."""
        poses = zip(stage.camera_position, stage.camera_rotation, strict=True)
        return [(view, cast(view, stage, *pose)) for view, pose in zip(self._views, poses, strict=True)]

    def stage(self, state: SimState) -> Stage:
        """What the ray caster needs of a state."""
        physics = state.physics
        color = jnp.asarray(self.model.geom_rgba[:, :3], jnp.float32)
        painted = state.variation.object_colors[state.layout.object_colors]
        for geoms in self._looks.values():
            color = color.at[geoms].set(painted)
        color = color.at[self.model.geom("table").id].set(state.variation.table_color)
        color = color.at[self.model.geom("wall").id].set(state.variation.wall_color)
        position = physics.geom_xpos
        rotation = physics.geom_xmat.reshape(-1, 3, 3)
        if self.varied:
            position, rotation = self._varied_looks(state, position, rotation)
        poses = [self._camera_pose(state, name) for name in self.cameras]
        stage = Stage(
            geom_position=position,
            geom_rotation=rotation,
            geom_color=color,
            light=jnp.asarray(self.model.light_pos[0], jnp.float32) + state.variation.light_shift,
            brightness=state.variation.brightness,
            checker=state.variation.checker,
            camera_position=jnp.stack([position for position, _ in poses]),
            camera_rotation=jnp.stack([rotation for _, rotation in poses]),
        )
        # Without the barrier XLA works these few numbers out again at every pixel.
        return jax.lax.optimization_barrier(stage)

    def _varied_looks(
        self, state: SimState, position: Float[Array, "N 3"], rotation: Float[Array, "N 3 3"]
    ) -> tuple[Float[Array, "N 3"], Float[Array, "N 3 3"]]:
        """Each object in its shape, and distractors; what is not to be seen is under the table."""
        away = jnp.array([0.0, 0.0, scene.HIDDEN_HEIGHT])
        shape = state.variation.object_shapes[state.layout.object_colors]
        shape = jnp.where(shape < 0, scene.SHAPES.index(self._task.object_shape), shape)[:, None]
        places, turned = position[self.object_geoms], rotation[self.object_geoms]
        for index, geoms in self._looks.items():
            position = position.at[geoms].set(jnp.where(shape == index, places, away))
            rotation = rotation.at[geoms].set(turned)
        shown = jnp.arange(layouts.MOST_DISTRACTORS)[:, None] < state.variation.distractors
        return position.at[self._distractors].set(jnp.where(shown, state.distractors, away)), rotation

    def _camera_pose(self, state: SimState, name: str) -> tuple[Float[Array, "3"], Float[Array, "3 3"]]:
        """Position (metres) and axes (columns) of a camera, from the body that carries it."""
        camera, number = self.model.camera(name), CAMERA_NAMES.index(name)
        body = camera.bodyid.item()
        carrier = state.physics.xmat[body].reshape(3, 3)
        own = np.zeros(9)
        mujoco.mju_quat2Mat(own, camera.quat)
        with jax.default_matmul_precision("highest"):
            return move_camera(
                state.physics.xpos[body] + carrier @ jnp.asarray(camera.pos, jnp.float32),
                carrier @ jnp.asarray(own.reshape(3, 3), jnp.float32),
                state.variation.camera_shift[number],
                state.variation.camera_tilt[number],
            )
