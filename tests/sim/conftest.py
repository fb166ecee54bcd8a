"""Environments and compiled results that the simulation's tests share: compiling is what they cost."""

import jax
import pytest

from wam_jax.sim.compilation import jit
from wam_jax.sim.demonstrations import generate
from wam_jax.sim.tabletop import Tabletop

NUM_EPISODES = 16


@pytest.fixture(scope="session")
def reach():
    return Tabletop("reach")


@pytest.fixture(scope="session")
def place():
    return Tabletop("place")


@pytest.fixture(scope="session")
def place_states(place):
    """Eight episodes of ``place`` at their start."""
    return jit(jax.vmap(place.reset))(jax.random.split(jax.random.key(7), 8))


@pytest.fixture(scope="session")
def reach_demonstrations(reach):
    """The first batch that ``generate_batches`` makes of key 0."""
    return generate(reach, jax.random.fold_in(jax.random.key(0), 0), NUM_EPISODES, reach.expert_steps)
