"""Checkpoints refuse another run's configuration, the loop refuses a broken loss, the log forgets what is redone."""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.sharding import make_mesh
from wam_jax.training.checkpoint import CheckpointError, Checkpoints, first_difference
from wam_jax.training.loop import LoopConfig, batch_checksum, fit
from wam_jax.training.metrics import MetricsLog, read_metrics
from wam_jax.training.optimizer import OptimizerConfig, make_schedule
from wam_jax.training.restore import load_trained
from wam_jax.training.state import TrainState
from wam_jax.training.step import update_ema

META = {"identity": {"optimizer": {"steps": 4, "b2": 0.98}, "seed": 0}}


@pytest.fixture
def mesh():
    return make_mesh({}, jax.devices()[:1])


def start() -> TrainState:
    weight = {"weight": jnp.zeros(2)}
    return TrainState(jnp.zeros((), jnp.int32), weight, jax.tree.map(jnp.copy, weight), {})


def add_batch(state: TrainState, frozen, batch):
    """A step that is sensitive to the order of batches, and whose loss breaks once it saw a negative number."""
    params = {"weight": 0.5 * state.params["weight"] + batch.sum()}
    loss = jnp.where(batch.min() < 0, jnp.nan, batch.sum())
    return TrainState(state.step + 1, params, params, state.optimizer), {"loss": loss}


def numbers(values) -> grain.DatasetIterator:
    return iter(grain.MapDataset.source(np.asarray(values, np.float32)).repeat().batch(2).to_iter_dataset())


def train(directory, mesh, steps: int, meta=META, values=range(1, 8)) -> TrainState:
    config = LoopConfig(steps=steps, save_every=2, log_batches=True)
    return fit(start(), add_batch, None, numbers(values), mesh, directory, config, meta)


def test_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, mesh):
    straight = train(tmp_path / "straight", mesh, 6)
    train(tmp_path / "resumed", mesh, 4)
    resumed = train(tmp_path / "resumed", mesh, 6)
    np.testing.assert_array_equal(resumed.params["weight"], straight.params["weight"])
    assert int(resumed.step) == 6


def test_other_configuration_is_refused_naming_the_field(tmp_path, mesh):
    train(tmp_path, mesh, 2)
    other = {"identity": {"optimizer": {"steps": 4, "b2": 0.9}, "seed": 0}}
    with pytest.raises(CheckpointError) as error:
        train(tmp_path, mesh, 4, other)
    assert str(error.value) == (
        f"checkpoint {tmp_path.resolve() / 'checkpoints'} was made with optimizer.b2=0.98, this run has 0.9; "
        "set it back or choose another --workdir"
    )


def test_saved_meta_is_what_was_given(tmp_path, mesh):
    train(tmp_path, mesh, 2)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.meta() == META
    checkpoints.close()


def test_absent_checkpoint_is_told_with_the_command_that_makes_one(tmp_path, mesh):
    with pytest.raises(CheckpointError) as error:
        load_trained(tmp_path, mesh)
    assert str(error.value) == f"no checkpoint in {tmp_path}; train one with: wam train --config CONFIG"
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest is None
    with pytest.raises(CheckpointError, match="train one with: wam train --config CONFIG"):
        checkpoints.meta()
    checkpoints.close()


def test_loss_that_is_not_finite_stops_the_run_naming_the_step(tmp_path, mesh):
    with pytest.raises(
        FloatingPointError, match=r"training: loss is nan at step 3; lower train.optimizer.learning_rate"
    ):
        train(tmp_path, mesh, 6, values=[1, 2, 3, 4, 5, -6])


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, mesh):
    """Though no loss of that step is logged."""
    config = LoopConfig(steps=6, save_every=2, log_every=5)

    def explode(state, frozen, batch):
        state, metrics = add_batch(state, frozen, batch)
        return state, {**metrics, "gradient_norm": np.nan if state.step == 4 else 1.0}

    with pytest.raises(FloatingPointError, match="gradient_norm is nan at step 4"):
        fit(start(), explode, None, numbers(range(1, 8)), mesh, tmp_path, config, META)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest == 2
    checkpoints.close()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ("a.b", 1, 2)),
        ({"a": 1}, {"a": 1, "b": 2}, ("b", None, 2)),
        ({"a": [1, 2]}, {"a": (1, 2)}, None),  # JSON knows no tuples
        ({"a": [1, 2]}, {"a": [1, 3]}, ("a[1]", 2, 3)),
        ({"a": [1]}, {"a": [1, 3]}, ("a", [1], [1, 3])),
    ],
)
def test_first_difference_of_two_trees(old, new, expected):
    assert first_difference(old, new) == expected


def test_log_forgets_rows_after_the_restored_step_and_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.append(step, {"loss": step / 10})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    resumed = MetricsLog(path, resume_step=2)
    resumed.append(3, {"loss": 0.5})
    assert read_metrics(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": 0.5}]


def test_checksum_tells_batches_apart():
    batch = {"a": np.arange(4), "b": np.zeros((2, 2))}
    assert batch_checksum(batch) == batch_checksum(jax.tree.map(np.copy, batch))
    assert batch_checksum(batch) != batch_checksum({**batch, "a": np.array([0, 1, 3, 2])})


def test_moving_average_forgets_its_start_and_then_decays_as_asked():
    first = update_ema({"w": jnp.ones(())}, {"w": jnp.zeros(())}, jnp.array(0), 0.99)
    late = update_ema({"w": jnp.ones(())}, {"w": jnp.zeros(())}, jnp.array(100_000), 0.99)
    assert float(first["w"]) == pytest.approx(0.1)
    assert float(late["w"]) == pytest.approx(0.99)


def test_learning_rate_warms_up_within_a_tenth_and_ends_at_its_final_share():
    schedule = make_schedule(OptimizerConfig(steps=200, learning_rate=1.0, warmup=100, final_share=0.02))
    rates = np.array([float(schedule(step)) for step in range(201)])
    assert rates.argmax() == 20
    assert rates[20] == pytest.approx(1.0)
    assert rates[200] == pytest.approx(0.02)
    assert (np.diff(rates[20:]) <= 0).all()
