"""Scripted experts: from the truth about a scene to the next action.

They keep no memory: what to do follows from where things are, so an expert recovers from noise, and can label any
state that a learned policy gets into.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from wam_jax.sim.control import ACTION_SCALE
from wam_jax.sim.judges import CUBE_HALF_SIZE, Facts, Named
from wam_jax.sim.scene import DRAWER_FLOOR, DRAWER_HALF_SIZE, DRAWER_HANDLE, DRAWER_HANDLE_HALF

_OPEN, _CLOSE = 1.0, -1.0
_HOVER = 0.09  # metres above a cube before going down to it
_HOLDING_OPENING = 0.7  # below it the fingers have met a cube
_LIFT_TO = 0.25  # metres
_CARRY_HEIGHT = 0.10  # metres above rest
_RETREAT_HEIGHT = 0.128  # metres above where a cube was put down
_PUSH_HEIGHT = 0.03  # metres
_APPROACH_HEIGHT = 0.12  # metres
_BEHIND = 0.065  # metres between a block's centre and the place from which it is pushed
_HOOK_HEIGHT = 0.03  # metres of the tcp at a drawer's handle
_FINGERS_SPREAD = 0.052  # metres from the tcp to the outer side of an open finger


def reach(facts: Facts, named: Named) -> Float[Array, "4"]:
    """Straight to the sphere's centre."""
    return _towards(facts, named.object, _OPEN)


def pick_lift(facts: Facts, named: Named) -> Float[Array, "4"]:
    """Over the cube, down, close, and up."""
    target = named.object
    around, held = _grasp_state(facts, target)
    # Straight up from where the fingers are: following the cube would follow its slip.
    lift = _with_height(facts.command, _LIFT_TO)
    return _towards(facts, jnp.where(held, lift, _grasp_approach(facts, target)), jnp.where(around, _CLOSE, _OPEN))


def place(facts: Facts, named: Named) -> Float[Array, "4"]:
    """Picks the cube, carries it on a funnel-shaped path that ends on the plate, opens, and goes up."""
    return _put(facts, named.object, named.goal, CUBE_HALF_SIZE)


def place_other(facts: Facts, named: Named) -> Float[Array, "4"]:
    """The same with the other cube and plate."""
    return place(facts, named.others_first())


def stack(facts: Facts, named: Named) -> Float[Array, "4"]:
    """The same onto the other cube."""
    return _put(facts, named.object, named.other, 3 * CUBE_HALF_SIZE)


def press(facts: Facts, named: Named) -> Float[Array, "4"]:
    """Over the button, and down on it."""
    over = jnp.linalg.norm(facts.tcp[:2] - named.goal[:2]) < 0.015
    height = jnp.where(over, named.goal[2] + 0.015, _APPROACH_HEIGHT)
    # Up first: what was just put down is beside the fingers.
    up = _with_height(facts.command, jnp.maximum(facts.command[2], _APPROACH_HEIGHT))
    clear = over | (facts.tcp[2] > 0.9 * _APPROACH_HEIGHT)
    return _towards(facts, jnp.where(clear, jnp.append(named.goal[:2], height), up), _OPEN)


def open_drawer(facts: Facts, named: Named) -> Float[Array, "4"]:
    """Closed fingers go down behind the handle, and pull."""
    # Midway between the drawer's front and its handle.
    hook = named.goal[:2] - jnp.array([0.0, (DRAWER_HALF_SIZE[1] + DRAWER_HANDLE - DRAWER_HANDLE_HALF) / 2])
    away = jnp.linalg.norm(facts.tcp[:2] - hook)
    behind = (away < 0.025) & (facts.tcp[2] < _HOOK_HEIGHT + 0.015)
    down = (away < 0.008) & (facts.opening < 0.1)
    above = jnp.append(hook, jnp.where(down, _HOOK_HEIGHT, _APPROACH_HEIGHT))
    pulled = facts.command - jnp.array([0.0, 0.6 * ACTION_SCALE, 0.0])
    return _towards(facts, jnp.where(behind, pulled, above), _CLOSE)


def put_in_drawer(facts: Facts, named: Named) -> Float[Array, "4"]:
    """Leaves the handle upwards, then picks the cube and puts it down in the drawer."""
    put = _put(facts, named.object, named.goal, DRAWER_FLOOR + CUBE_HALF_SIZE)
    at_handle = jnp.abs(facts.tcp[:2] - named.goal[:2] + jnp.array([0.0, DRAWER_HANDLE])) < 0.04
    hooked = at_handle.all() & (facts.tcp[2] < 0.09) & (facts.opening < 0.3)
    return jnp.where(hooked, _towards(facts, _with_height(facts.command, _APPROACH_HEIGHT), _CLOSE), put)


def shut_drawer(facts: Facts, named: Named) -> Float[Array, "4"]:
    """Goes before the handle, and pushes; fingers stay open, for what they close on counts as held."""
    handle = named.goal[:2] - jnp.array([0.0, DRAWER_HANDLE + DRAWER_HANDLE_HALF])
    start = handle - jnp.array([0.0, _FINGERS_SPREAD + 0.015])
    across, before = facts.tcp[0] - handle[0], handle[1] - facts.tcp[1]
    low = facts.tcp[2] < _HOOK_HEIGHT + 0.015
    pushing = low & (jnp.abs(across) < 0.02) & (before > _FINGERS_SPREAD - 0.01)
    over = jnp.linalg.norm(facts.tcp[:2] - start) < 0.012
    high = facts.tcp[2] > 0.8 * _APPROACH_HEIGHT
    height = jnp.where(over, _HOOK_HEIGHT, _APPROACH_HEIGHT)
    destination = jnp.where(high | over, jnp.append(start, height), _with_height(facts.command, _APPROACH_HEIGHT))
    pushed = facts.command + jnp.array([0.0, 0.6 * ACTION_SCALE, 0.0])
    destination = jnp.where(pushing, pushed, destination)
    done = facts.drawn < 0.005
    return _towards(facts, jnp.where(done, jnp.append(start, facts.command[2]), destination), _OPEN)


def _put(facts: Facts, target: Float[Array, "3"], goal: Float[Array, "3"], rest: float) -> Float[Array, "4"]:
    """Picks a cube and puts it down at the goal's (x, y), where its centre then is ``rest`` metres high."""
    around, held = _grasp_state(facts, target)
    to_goal = goal[:2] - target[:2]
    away = jnp.linalg.norm(to_goal)
    height = target[2] - rest
    # The farther from the plate the higher; sideways only once clear of the table and of the other cube.
    funnel = jnp.clip(4.0 * (away - 0.01), 0.0, _CARRY_HEIGHT)
    sideways = jnp.where((away < 0.03) | (height > 0.5 * _CARRY_HEIGHT), 1.0, 0.0)
    grip = facts.tcp - target
    carry = jnp.append(target[:2] + sideways * to_goal, rest + funnel) + grip
    placed = (away < 0.02) & (height < 0.006)
    destination = jnp.where(held, carry, _grasp_approach(facts, target))
    destination = jnp.where(placed, _with_height(facts.command, rest + _RETREAT_HEIGHT), destination)
    # Fingers first open, then leave.
    destination = jnp.where(placed & (facts.opening < 0.8) & around, facts.command, destination)
    return _towards(facts, destination, jnp.where(around & ~placed, _CLOSE, _OPEN))


def push(facts: Facts, named: Named) -> Float[Array, "4"]:
    """Closed fingers go behind the block, as seen from the disc, then push it there; if it slips aside, again."""
    target, goal = named.object, named.goal
    to_goal = goal[:2] - target[:2]
    remaining = jnp.linalg.norm(to_goal)
    forward = to_goal / (remaining + 1e-6)
    offset = facts.tcp[:2] - target[:2]
    along, across = jnp.sum(offset * forward), offset[0] * forward[1] - offset[1] * forward[0]
    start = target[:2] - _BEHIND * forward
    low = facts.tcp[2] < 0.06
    behind = (along < -0.03) & (jnp.abs(across) < 0.025)
    pushing = low & behind
    above_start = jnp.linalg.norm(facts.tcp[:2] - start) < 0.02
    ahead = target[:2] + forward * (jnp.minimum(remaining, 0.05) - 0.03)

    destination = jnp.append(start, jnp.where(above_start, _PUSH_HEIGHT, _APPROACH_HEIGHT))
    destination = jnp.where(low & ~behind, _with_height(facts.tcp, _APPROACH_HEIGHT + 0.02), destination)
    destination = jnp.where(pushing, jnp.append(ahead, _PUSH_HEIGHT), destination)
    done = remaining < 0.012
    back_off = target[:2] + 0.07 * offset / (jnp.linalg.norm(offset) + 1e-6)
    destination = jnp.where(done, jnp.append(back_off, facts.command[2]), destination)
    action = _towards(facts, destination, _CLOSE)
    return action.at[:3].multiply(jnp.where(pushing, 0.6, 1.0))


# Of each task, one for each of its skills.
EXPERTS = {
    "reach": (reach,),
    "pick_lift": (pick_lift,),
    "push": (push,),
    "place": (place,),
    "pick_place": (place, place),
    "place_both": (place, place, place_other, place_other),
    "stack_press": (stack, stack, press),
    "drawer": (open_drawer, put_in_drawer, shut_drawer),
}


def _towards(facts: Facts, destination: Float[Array, "3"], gripper) -> Float[Array, "4"]:
    delta = jnp.clip((destination - facts.command) / ACTION_SCALE, -1, 1)
    return jnp.append(delta, gripper)


def _with_height(position, height):
    return jnp.append(position[:2], height)


def _grasp_state(facts: Facts, target: Float[Array, "3"]):
    """Whether the gripper should be closed on the cube, and whether the fingers hold it."""
    stopped_by_it = (facts.opening > 0.45) & (facts.opening < _HOLDING_OPENING)
    held = stopped_by_it & (jnp.linalg.norm(facts.tcp - target) < 0.03)
    return held | (_over(facts, target) & (facts.tcp[2] < target[2] + 0.012)), held


def _over(facts: Facts, target):
    """Whether the tcp is over the cube: precisely before going down, less so once the fingers are beside it."""
    tolerance = jnp.where(facts.tcp[2] < 0.07, 0.02, 0.012)
    return jnp.linalg.norm(facts.tcp[:2] - target[:2]) < tolerance


def _grasp_approach(facts: Facts, target):
    """Where to go while the cube is not held: above it, down to it, and still while the fingers close."""
    around, _ = _grasp_state(facts, target)
    down = jnp.where(_over(facts, target), target, target + jnp.array([0.0, 0.0, _HOVER]))
    return jnp.where(around, facts.command, down)
