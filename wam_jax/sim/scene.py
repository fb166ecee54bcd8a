"""The tabletop as MuJoCo XML: a Franka-like arm of primitives, a parallel gripper, objects, goals, two cameras.

Joint frames are those of the Franka Emika Panda (MuJoCo Menagerie, ``franka_emika_panda/panda.xml``); its meshes are
replaced by capsules and cylinders, which collide with nothing. Only what a task needs may touch: objects the table,
the fingers, each other and a drawer's floor; fingers a drawer's handle. Positions are metres, angles radians; z points
up, x away from the robot's base.

Geom group 0 is what the wrist camera can see; group 1 (the arm between base and fingers) it never does.
"""

import mujoco
import numpy as np

HOME_QPOS = np.array([0.0, 0.0, 0.0, -2.2, 0.0, 2.2, np.pi / 4, 0.04, 0.04])  # seven joints, two fingers
NUM_ARM_JOINTS = 7
FINGER_TRAVEL = 0.04  # metres from closed to open, each finger
PHYSICS_TIMESTEP = 0.004  # seconds
TABLE_COLOR = (0.55, 0.45, 0.35)
WALL_COLOR = (0.6, 0.7, 0.8)
CHECKER_DARK = 0.88  # brightness of the table's dark squares over that of the others
OBJECT_COLORS = {"red": (0.95, 0.12, 0.1), "green": (0.1, 0.8, 0.15), "blue": (0.12, 0.25, 1.0)}
SHAPES = ("cube", "cylinder", "sphere")  # that objects may look like
HIDDEN_HEIGHT = -5.0  # metres
CAMERA_NAMES = ("front", "wrist")
DRAWER_TRAVEL = 0.1  # metres from shut to open, towards -y
DRAWER_FLOOR = 0.003  # metres, half of its thickness
DRAWER_HALF_SIZE = (0.045, 0.04)  # metres, in x and y
DRAWER_HANDLE = 0.075  # metres from the drawer's middle to that of its handle, towards -y
DRAWER_HANDLE_HALF = 0.006  # metres, in y

_ARM_COLOR = ".9 .9 .9 1"
_POSITION_GAINS = (2000, 2000, 1500, 1500, 800, 800, 500)

# Of each link, from base to flange: pose in its parent, mass, centre of mass, principal inertia, joint range, geom.
_LINKS = (
    ('pos="0 0 .333"', 4.0, "0 -.03 -.07", ".05 .05 .02", "-2.9 2.9", 'type="capsule" size=".06 .1" pos="0 0 -.1"'),
    (
        'quat="1 -1 0 0"',
        *(2.0, "0 -.07 .02", ".02 .02 .02", "-1.76 1.76"),
        'type="capsule" size=".06" fromto="0 0 0 0 -.2 0"',
    ),
    (
        'pos="0 -.316 0" quat="1 1 0 0"',
        *(3.0, ".03 .03 -.05", ".03 .03 .02", "-2.9 2.9"),
        'type="capsule" size=".055" fromto="0 0 -.05 .08 0 0"',
    ),
    (
        'pos=".0825 0 0" quat="1 1 0 0"',
        *(3.0, "-.05 .1 .02", ".03 .02 .03", "-3.07 -.07"),
        'type="capsule" size=".055" fromto="0 0 0 -.08 .15 0"',
    ),
    (
        'pos="-.0825 .384 0" quat="1 -1 0 0"',
        *(2.0, "0 .04 -.1", ".03 .03 .01", "-2.9 2.9"),
        'type="capsule" size=".05" fromto="0 .05 -.2 0 0 0"',
    ),
    (
        'quat="1 1 0 0"',
        *(1.6, ".06 -.04 -.01", ".01 .01 .01", "-.02 3.75"),
        'type="capsule" size=".05" fromto="0 0 0 .08 0 0"',
    ),
    (
        'pos=".088 0 0" quat="1 1 0 0"',
        *(0.7, "0 0 .06", ".01 .01 .01", "-2.9 2.9"),
        'type="cylinder" size=".045 .03" pos="0 0 .06"',
    ),
)

_DEFAULTS = f"""
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{PHYSICS_TIMESTEP}" iterations="8" ls_iterations="8" solver="Newton" cone="pyramidal"
          integrator="implicitfast"><flag eulerdamp="disable"/></option>
  <visual><global offwidth="256" offheight="256"/></visual>
  <default>
    <geom solref=".01 1" condim="3" contype="0" conaffinity="0"/>
    <default class="arm"><joint armature=".1" damping="1"/><geom rgba="{_ARM_COLOR}" group="1"/></default>
    <default class="finger">
      <joint type="slide" range="0 {FINGER_TRAVEL}" damping="10" armature=".1"/>
      <geom type="box" size=".01 .006 .025" rgba=".2 .2 .2 1" friction="1.5 .02 .001" contype="1" conaffinity="2"/>
      <position ctrlrange="0 {FINGER_TRAVEL}" forcerange="-30 30" kp="400" kv="20"/>
    </default>
    <default class="cube">
      <geom type="box" mass=".05" friction="1 .01 .001" contype="2" conaffinity="3"/>
    </default>
  </default>"""

# The camera sits beside the hand's box and looks past it at the fingertips, so the hand is never in its view.
_HAND = """
  <body name="hand" pos="0 0 .107" quat=".9238795 0 0 -.3826834" gravcomp="1">
    <inertial mass=".7" pos="0 0 .04" diaginertia=".005 .003 .003"/>
    <geom name="hand" type="box" size=".025 .07 .03" pos="0 0 .03"/>
    <site name="tcp" pos="0 0 .103"/>
    <camera name="wrist" pos=".1 0 .03" xyaxes="0 1 0 .891 0 .454" fovy="80"/>
    {left}{right}
  </body>"""


def _finger(side: str, sign: int) -> str:
    return f"""
    <body name="finger_{side}" pos="0 0 .0584" gravcomp="1" childclass="finger">
      <joint name="finger_{side}" axis="0 {sign} 0"/>
      <inertial mass=".05" pos="0 0 .02" diaginertia="1e-4 1e-4 1e-4"/>
      <geom name="finger_{side}" pos="0 {sign * 0.006} .03"/>
    </body>"""


def _arm() -> str:
    """The chain of links, built from the hand back to the base. Gravity is compensated: its sag spoils grasps."""
    chain = _HAND.format(left=_finger("left", 1), right=_finger("right", -1))
    for index, (pose, mass, center, inertia, joint_range, geom) in reversed(list(enumerate(_LINKS, start=1))):
        chain = f"""<body name="link{index}" {pose} gravcomp="1">
          <inertial mass="{mass}" pos="{center}" diaginertia="{inertia}"/>
          <joint name="joint{index}" axis="0 0 1" range="{joint_range}"/>
          <geom name="link{index}" {geom}/>{chain}</body>"""
    base = '<geom name="base" type="cylinder" size=".08 .07" pos="0 0 .07" group="0"/>'
    return f'<body name="base" childclass="arm">{base}{chain}</body>'


def _actuators() -> str:
    arm = [f'<position joint="joint{i}" kp="{kp}" kv="{kp / 15:.0f}"/>' for i, kp in enumerate(_POSITION_GAINS, 1)]
    fingers = [f'<position class="finger" joint="finger_{side}"/>' for side in ("left", "right")]
    return f"<actuator>{''.join(arm + fingers)}</actuator>"


def cube(index: int, half_size: float) -> str:
    """A loose cube ``object{index}``; its colour is given at render time."""
    return f"""<body name="object{index}" pos="{0.45 + 0.1 * index} 0 {half_size}"><freejoint/>
      <geom class="cube" name="object{index}" size="{half_size} {half_size} {half_size}"/></body>"""


def marker(name: str, geom: str) -> str:
    """A body that is seen but touches nothing; its position is data (mocap), not dynamics."""
    return f'<body name="{name}" mocap="true"><geom name="{name}" {geom}/></body>'


def drawer(name: str, rgb: str) -> str:
    """A drawer in a low cabinet, open above where it is drawn out; ``name`` is the geom of its floor.

    The origin is the middle of that floor when the drawer is shut. Its handle is a bar that fingers go behind. The
    cabinet stands wherever its two joints put it, too heavy to move (MJX moves no child of a mocap body).
    """
    (x, y), walls, post = DRAWER_HALF_SIZE, 0.008, 'size=".005 .018 .004"'
    painted = f'type="box" rgba="{rgb} 1"'
    shell = 'type="box" rgba=".8 .75 .65 1"'
    out = -(y + DRAWER_HANDLE) / 2
    heavy = 'type="slide" damping="1e5" armature="1e3"'
    return f"""<body name="cabinet" gravcomp="1">
      <joint name="cabinet_x" {heavy} axis="1 0 0"/><joint name="cabinet_y" {heavy} axis="0 1 0"/>
      <inertial mass="5" pos="0 0 0" diaginertia=".1 .1 .1"/>
      <geom {shell} size=".004 {y + 0.005} .031" pos="{-x - 0.007} 0 .028"/>
      <geom {shell} size=".004 {y + 0.005} .031" pos="{x + 0.007} 0 .028"/>
      <geom {shell} size="{x + 0.011} .004 .031" pos="0 {y + 0.009} .028"/>
      <geom {shell} size="{x + 0.011} {y + 0.009} .003" pos="0 .004 .062"/>
      <body name="drawer" pos="0 0 {DRAWER_FLOOR}" gravcomp="1">
        <joint name="drawer" type="slide" axis="0 -1 0" range="0 {DRAWER_TRAVEL}" damping="4" armature=".1"/>
        <inertial mass=".3" pos="0 0 0" diaginertia="1e-3 1e-3 1e-3"/>
        <geom name="{name}" {painted} size="{x} {y} {DRAWER_FLOOR}" contype="1" friction="1 .01 .001"/>
        <geom {painted} size="{x} .003 {walls}" pos="0 {-y} {walls}"/>
        <geom {painted} size="{x} .003 {walls}" pos="0 {y} {walls}"/>
        <geom {painted} size=".003 {y} {walls}" pos="{-x} 0 {walls}"/>
        <geom {painted} size=".003 {y} {walls}" pos="{x} 0 {walls}"/>
        <geom {painted} {post} pos="-.028 {out} .012"/>
        <geom {painted} {post} pos=".028 {out} .012"/>
        <geom name="handle" {painted} size=".033 {DRAWER_HANDLE_HALF} .018" pos="0 {-DRAWER_HANDLE} .022"
              conaffinity="1"/>
      </body></body>"""


def hidden(name: str, geom: str) -> str:
    """A geom that is seen only where a picture's stage puts it; till then it is under the table."""
    return f'<geom name="{name}" {geom} pos="0 0 {HIDDEN_HEIGHT}"/>'


def build_model(bodies: list[str]) -> mujoco.MjModel:
    """The robot at its table, with a task's ``bodies`` (XML of :func:`cube`, :func:`marker`, :func:`drawer`).

    ``qpos`` is seven arm joints, two fingers, position and quaternion of each cube, then (x, y) of a
    cabinet and how far its drawer is open.
    """
    return mujoco.MjModel.from_xml_string(f"""<mujoco model="tabletop">{_DEFAULTS}
    <worldbody>
      <light pos="1 -.4 1.6" dir="-.3 .25 -1"/>
      <camera name="front" pos="1.15 0 .75" xyaxes="0 1 0 -.72 0 .69" fovy="30"/>
      <geom name="table" type="plane" size="0 0 .1" rgba="{" ".join(map(str, TABLE_COLOR))} 1"
            contype="1" conaffinity="2"/>
      <geom name="wall" type="box" size=".02 .6 .3" pos="-.3 0 .3" rgba="{" ".join(map(str, WALL_COLOR))} 1"/>
      {_arm()}
      {"".join(bodies)}
    </worldbody>{_actuators()}</mujoco>""")
