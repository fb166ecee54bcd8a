"""One mesh or another, the numbers stay; what does not fit a mesh is refused by name."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from wam_jax.sharding import RULES, batch_sharding, make_mesh, param_shardings, partition_spec
from wam_jax.tokenizers.visual import FrozenTokenizer
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig, make_optimizer
from wam_jax.training.state import init_state, state_shardings
from wam_jax.training.step import make_step

MESHES = [{"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]


def two_steps(tiny, batch, sizes, devices):
    """Parameters before, the state after two train steps, and the last metrics."""
    mesh = make_mesh(sizes, devices)
    definition = tiny.define()
    # Adam with its usual epsilon turns gradients that are mere rounding into whole steps of either sign.
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, b2=0.98, eps=1e-3))
    shardings = state_shardings(definition, optimizer, mesh)
    state = init_state(definition, optimizer, 0, mesh)
    params = jax.device_put(tiny.params(definition), shardings.params)
    state = type(state)(state.step, params, state.ema, state.optimizer)
    before = jax.tree.map(np.asarray, params)
    step = make_step(wam_loss(definition), optimizer, ema=0.9, seed=0, mesh=mesh, shardings=shardings)
    data = jax.device_put(batch, batch_sharding(mesh))
    frozen: FrozenTokenizer | None = None  # the batch has latents
    state, _ = step(state, frozen, data)
    after, metrics = step(state, frozen, data)
    return before, after, jax.tree.map(float, metrics)


@pytest.fixture(scope="module")
def alone(tiny, batch):
    return two_steps(tiny, batch, {}, jax.devices()[:1])


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_training_on_eight_devices_equals_one_device(tiny, batch, alone, sizes):
    _, expected, expected_metrics = alone
    _, state, metrics = two_steps(tiny, batch, sizes, jax.devices())
    assert metrics == pytest.approx(expected_metrics, rel=1e-4)  # loss, gradient norm, loss of each stream
    # The first moments are averages of the gradients, so gradients are compared here too.
    ours, reference = (jax.tree_util.tree_leaves_with_path((s.params, s.ema, s.optimizer)) for s in (state, expected))
    for (path, a), (_, b) in zip(ours, reference, strict=True):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=2e-5, err_msg=where)


def test_the_two_steps_move_every_parameter(alone):
    before, after, _ = alone
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after.params), strict=True):
        assert np.any(a != np.asarray(b)), jax.tree_util.keystr(path)


def test_parameters_and_moments_are_cut_over_fsdp_and_tensor(tiny):
    mesh = make_mesh({"fsdp": 4, "tensor": 2}, jax.devices())
    optimizer = make_optimizer(OptimizerConfig(steps=10))
    state = init_state(tiny.define(), optimizer, 0, mesh)
    adam = next(s for s in jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu"))
    for tree in (state.params, state.ema, adam.mu, adam.nu):
        kernel = tree["trunk"]["blocks"]["video"]["ffn"]["up"]["kernel"]  # (layers, embed, mlp)
        assert kernel.shape == (2, 24, 48)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 6, 24)}
    held = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(state.params))
    assert held < 0.25 * sum(x.size for x in jax.tree.leaves(state.params))


def test_every_parameter_has_a_rule(tiny):
    axes = jax.tree.leaves(tiny.define().axes(), is_leaf=lambda x: isinstance(x, tuple))
    assert {name for names in axes for name in names if name is not None} <= set(RULES)


def test_remaining_devices_fill_the_free_axis():
    assert make_mesh({"data": -1, "tensor": 2}, jax.devices()).shape == {
        "data": 4, "fsdp": 1, "context": 1, "tensor": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"data": 3},
            "mesh data=3 x fsdp=1 x context=1 x tensor=1 does not fit 8 devices; set one axis of mesh to -1",
        ),
        (
            {"data": -1, "fsdp": 3},
            "mesh data=-1 x fsdp=3 x context=1 x tensor=1 does not fit 8 devices; set one axis of mesh to -1",
        ),
        ({"model": 2}, "mesh axis 'model' is unknown (has: data, fsdp, context, tensor)"),
        ({"data": -1, "fsdp": -1}, "only one mesh axis may be -1, got {'data': -1, 'fsdp': -1}"),
    ],
    ids=["too few", "does not divide", "unknown", "two free"],
)
def test_mesh_that_cannot_be_is_refused(sizes, message):
    with pytest.raises(ValueError, match="mesh") as error:
        make_mesh(sizes, jax.devices())
    assert str(error.value) == message


def test_logical_axes_become_mesh_axes():
    assert partition_spec(("layers", "embed", None, "mlp")) == PartitionSpec(None, "fsdp", None, "tensor")
    assert partition_spec(("batch",)) == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("embed", "vocab"), "no sharding rule for logical axis 'vocab' of ('embed', 'vocab'); add it to RULES"),
        (("heads", "mlp"), "logical axes ('heads', 'mlp') use mesh axis 'tensor' twice"),
        (("batch", "embed"), "logical axes ('batch', 'embed') use mesh axis 'fsdp' twice"),
    ],
)
def test_axes_that_cannot_be_placed_are_refused(axes, message):
    with pytest.raises(ValueError, match="logical ax") as error:
        partition_spec(axes)
    assert str(error.value) == message


def test_dimension_that_does_not_divide_names_the_parameter():
    mesh = make_mesh({"fsdp": 8}, jax.devices())
    shapes = {"up": {"kernel": jax.ShapeDtypeStruct((12, 4), "float32")}}
    with pytest.raises(ValueError, match="does not divide") as error:
        param_shardings(mesh, {"up": {"kernel": ("embed", "mlp")}}, shapes)
    assert str(error.value) == "parameter ['up']['kernel'] of shape (12, 4) does not divide by mesh axis fsdp=8"
