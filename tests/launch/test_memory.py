"""A training says what it holds before it holds it; one that does not fit is told what would help, in bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import memory
from launch.memory import DoesNotFit, Remedy, check_memory, state_remedies
from wam_jax.nn.module import FeedForward, define
from wam_jax.sharding import batch_sharding, make_mesh
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.trainer import Trainer

MODEL = define(lambda rngs: FeedForward(256, 1024, rngs))
PARAMS = sum(x.size for x in jax.tree.leaves(MODEL.shapes()))


@pytest.fixture
def trainer():
    def loss(params, frozen, batch, key, step):
        return jnp.mean(MODEL.bind(params)(batch) ** 2), {}

    mesh = make_mesh({}, jax.devices()[:1])
    return Trainer(definition=MODEL, loss=loss, config=OptimizerConfig(steps=10), mesh=mesh, seed=0)


def batch(trainer):
    return jax.ShapeDtypeStruct((8, 256), jnp.float32, sharding=batch_sharding(trainer.mesh))


def test_the_compiled_step_is_the_step(trainer):
    compiled = check_memory(trainer, None, batch(trainer), list)
    x = jax.device_put(np.ones((8, 256), np.float32), batch_sharding(trainer.mesh))
    ours, theirs = (step(trainer.init_state(), None, x)[0].params for step in (compiled, trainer.step))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_what_is_held_is_printed(trainer, capsys):
    check_memory(trainer, None, batch(trainer), list)
    out = capsys.readouterr()
    mib = PARAMS * 4 / 2**20
    assert f"memory: parameters {mib:.1f} MiB, moving average {mib:.1f} MiB, optimizer {2 * mib:.1f} MiB" in (
        out.out + out.err
    )


def test_too_little_memory_stops_with_what_each_remedy_saves(trainer, monkeypatch):
    monkeypatch.setattr(memory, "_available", lambda device, count: 17 * PARAMS)
    with pytest.raises(DoesNotFit) as error:
        check_memory(trainer, None, batch(trainer), lambda: state_remedies(trainer, 8))
    text = str(error.value)
    assert text.startswith("does not fit: needs ")
    saved = {line.split()[0]: int(line.split("(")[1].split()[0].replace(",", "")) for line in text.splitlines()[1:-1]}
    # What is saved is measured at the peak: of so few arrays, rounding moments needs more than shorter ones save.
    assert saved["--config.train.optimizer.ema=0.0"] == pytest.approx(4 * PARAMS, rel=0.05)
    assert all(size > 0 for size in saved.values())
    assert "config.mesh.fsdp cuts parameters" in text.splitlines()[-1]


def test_the_limit_can_be_waived(trainer, monkeypatch):
    monkeypatch.setattr(memory, "_available", lambda device, count: 1)
    assert check_memory(trainer, None, batch(trainer), list, enforce=False) is not None


def test_a_remedy_that_saves_nothing_is_not_offered(trainer, monkeypatch):
    monkeypatch.setattr(memory, "_available", lambda device, count: 1)
    same = Remedy(text="--nothing", trainer=dataclasses.replace(trainer))
    with pytest.raises(DoesNotFit) as error:
        check_memory(trainer, None, batch(trainer), lambda: [same])
    assert "--nothing" not in str(error.value)
