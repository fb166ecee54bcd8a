"""A trainer that trains a part: what is frozen stays, what is kept is small, parts of a batch make the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.nn.lora import FACTORS, Lora, with_lora
from wam_jax.nn.module import FeedForward, define, paths
from wam_jax.sharding import batch_sharding, make_mesh
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.partition import matching
from wam_jax.training.trainer import Trainer

PLAIN = define(lambda rngs: FeedForward(8, 16, rngs))
CONFIG = OptimizerConfig(steps=10, learning_rate=0.01, ema=0.9)


def loss(definition):
    def of(params, frozen, batch, key, step):
        error = jnp.mean((definition.bind(params)(batch["x"]) - batch["y"]) ** 2)
        return error, {"error": error}

    return of


def make_trainer(definition=PLAIN, sizes=None, **fields) -> Trainer:
    devices = jax.devices() if sizes else jax.devices()[:1]
    mesh = make_mesh(sizes or {}, devices)
    return Trainer(definition=definition, loss=loss(definition), config=CONFIG, mesh=mesh, seed=0, **fields)


def data(trainer):
    rng = np.random.default_rng(0)
    batch = {name: rng.normal(size=(16, 8)).astype(np.float32) for name in ("x", "y")}
    return jax.device_put(batch, batch_sharding(trainer.mesh))


def lora_trainer(sizes=None, **fields) -> Trainer:
    adapted = with_lora(PLAIN, Lora(rank=2, alpha=2.0, targets="up|down"))
    return make_trainer(adapted, sizes, trained=matching([FACTORS]), **fields)


@pytest.mark.parametrize("sizes", [None, {"fsdp": 4, "tensor": 2}], ids=str)
def test_lora_trains_its_factors_alone(sizes):
    trainer = lora_trainer(sizes)
    params = trainer.init_params()
    state, rest = trainer.start_state(params), trainer.frozen_part(params)
    assert all("lora_" in path for path in paths(state.params))
    assert not any("lora_" in path for path in paths(rest))
    before = jax.tree.map(np.asarray, rest)
    first = None
    for _ in range(10):
        state, metrics = trainer.step(state, (rest, None), data(trainer))
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < first
    jax.tree.map(np.testing.assert_array_equal, rest, before)
    moments = sum(x.size for x in jax.tree.leaves(state.optimizer))
    assert moments < 2 * sum(x.size for x in jax.tree.leaves(state.params)) + 10  # none of what is frozen


def test_eight_devices_equal_one_for_lora():
    results = []
    for sizes in (None, {"fsdp": 4, "tensor": 2}):
        trainer = lora_trainer(sizes)
        drawn = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), trainer.definition.shapes())
        params = jax.device_put(drawn, trainer.param_shardings)
        state, _ = trainer.step(trainer.start_state(params), (trainer.frozen_part(params), None), data(trainer))
        results.append(jax.tree.map(np.asarray, state.optimizer))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(parts):
    whole, cut = make_trainer(), make_trainer(accumulate=parts)
    (a, first), (b, second) = (trainer.step(trainer.init_state(), None, data(trainer)) for trainer in (whole, cut))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a.params, b.params)
    assert float(second["loss"]) == pytest.approx(float(first["loss"]), rel=1e-5)
    assert float(second["gradient_norm"]) == pytest.approx(float(first["gradient_norm"]), rel=1e-4)


def test_without_a_moving_average_none_is_held():
    trainer = dataclasses.replace(make_trainer(), config=dataclasses.replace(CONFIG, ema=0.0))
    state, _ = trainer.step(trainer.init_state(), None, data(trainer))
    assert state.ema == {}
    assert state.acting is state.params


@pytest.mark.parametrize("method", [{"moments": "float8"}, {"method": "adafactor"}, {"method": "muon"}], ids=str)
def test_moments_live_where_their_parameters_live(method):
    config = OptimizerConfig(steps=10, **method)
    trainer = dataclasses.replace(make_trainer(sizes={"fsdp": 4, "tensor": 2}), config=config)
    state, metrics = trainer.step(trainer.init_state(), None, data(trainer))
    assert np.isfinite(float(metrics["loss"]))
    for leaf in jax.tree.leaves(state.optimizer):
        if leaf.shape == (8, 16):
            assert leaf.sharding == state.params["up"]["kernel"].sharding
    abstract = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), trainer.abstract_state())
    assert abstract == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)


def test_patterns_match_whole_paths_and_broken_ones_are_refused():
    assert matching(["a/.*"])("a/b")
    assert not matching(["a"])("a/b")
    with pytest.raises(ValueError, match="holds no regular expression"):
        matching(["("])
