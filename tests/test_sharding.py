"""One mesh or another, the numbers stay; what does not fit a mesh is refused by name."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

from wam_jax.sharding import (
    MESH_AXES,
    RULES,
    ambient_platform,
    batch_sharding,
    constrain,
    make_mesh,
    mesh_axis_size,
    param_shardings,
    partition_spec,
    replicated,
    some_samples,
    use_mesh,
)
from wam_jax.tokenizers.visual import FrozenTokenizer
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig, make_optimizer
from wam_jax.training.state import init_state, state_shardings
from wam_jax.training.step import make_step

MESHES = [
    pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
    {"fsdp": 2, "context": 2, "tensor": 2},
    pytest.param({"data": 2, "context": 4}, marks=pytest.mark.slow),
    pytest.param({"data": 8}, marks=pytest.mark.slow),
    pytest.param({"data": 2, "tensor": 4}, marks=pytest.mark.slow),
]


def two_steps(tiny, batch, sizes, devices):
    """Parameters before, the state after two train steps, and the last metrics."""
    mesh = make_mesh(sizes, devices)
    definition = tiny.define(video_batch_share=1.0, action_draws=1)
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


def test_parameter_that_no_rule_reaches_is_named():
    mesh, shapes = make_mesh({}, jax.devices()[:1]), {"up": {"kernel": jax.ShapeDtypeStruct((12, 4), "float32")}}
    for axes, message in [
        (("embed", "vocab"), "no sharding rule for logical axis 'vocab' of ('embed', 'vocab'); add it to RULES"),
        (("embed",), "of shape (12, 4) has logical axes ('embed',); name one a dimension"),
        (None, "of shape (12, 4) has logical axes None; name one a dimension"),
    ]:
        with pytest.raises(ValueError, match="parameter") as error:
            param_shardings(mesh, {"up": {"kernel": axes}}, shapes)
        assert str(error.value) == f"parameter ['up']['kernel']{':' if 'rule' in message else ''} {message}"


def constrained(mesh, shape, axes):
    """Where an array of this shape lives after ``constrain`` inside a jitted function on this mesh."""

    def place(x):
        with use_mesh(mesh):
            return constrain(x, axes)

    return jax.jit(place, in_shardings=replicated(mesh))(jnp.zeros(shape)).sharding


def test_activations_are_cut_by_their_logical_axes():
    mesh = make_mesh({"data": 2, "context": 2, "tensor": 2}, jax.devices())
    for axes, local in [
        (("batch", "tokens", None), (2, 3, 8)),
        (("batch", "tokens", "mlp"), (2, 3, 4)),
        ((None, "tokens", "heads"), (4, 3, 4)),
    ]:
        assert constrained(mesh, (4, 6, 8), axes).shard_shape((4, 6, 8)) == local


def test_size_of_a_mesh_axis_is_that_of_the_ambient_mesh():
    assert mesh_axis_size("context") == 1
    with use_mesh(make_mesh({"data": 2, "context": 4}, jax.devices())):
        assert mesh_axis_size("context") == 4


def test_one_device_constrains_nothing():
    x = jnp.zeros((3, 5))
    assert constrain(x, ("batch", "tokens")) is x
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        assert constrain(x, ("batch", "tokens")) is x


def test_inside_shard_map_there_is_nothing_left_to_cut():
    mesh = make_mesh({"data": 8}, jax.devices())
    spec = partition_spec(("batch", None))
    run = jax.shard_map(lambda x: constrain(x, ("batch", "tokens")), mesh=mesh, in_specs=spec, out_specs=spec)
    assert jax.jit(run)(jnp.zeros((8, 3))).sharding.shard_shape((8, 3)) == (1, 3)


@pytest.mark.parametrize(
    ("shape", "axes", "problem"),
    [
        ((4, 9, 8), ("batch", "tokens", None), "tokens=9 does not divide by mesh axis context=2"),
        ((6, 8), ("batch", "tokens"), "batch=6 does not divide by mesh axis data x fsdp=4"),
    ],
    ids=["tokens", "batch"],
)
def test_activation_that_does_not_divide_is_refused(shape, axes, problem):
    with pytest.raises(ValueError, match="divide") as error:
        constrained(make_mesh({"data": 2, "fsdp": 2, "context": 2}, jax.devices()), shape, axes)
    assert str(error.value) == f"activation of shape {shape} and logical axes {axes}: {problem}"


def test_activation_needs_a_logical_axis_a_dimension():
    with pytest.raises(ValueError, match="activation") as error:
        constrained(make_mesh({"data": 8}, jax.devices()), (8, 4, 2), ("batch", "tokens"))
    assert str(error.value) == (
        "activation of shape (8, 4, 2) has logical axes ('batch', 'tokens'); name one a dimension"
    )


def test_platform_is_that_of_the_mesh():
    assert ambient_platform() == "cpu"
    chip = AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, 1, 1), MESH_AXES, abstract_device=chip)):
        assert ambient_platform() == "tpu"


def test_slices_of_a_tpu_meet_in_the_data_axis():
    pytest.importorskip("libtpu")
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")  # no metadata server; other processes
    chips = topologies.get_topology_desc("v5p:2x2x1", "tpu", num_slices=2).devices
    mesh = make_mesh({"data": 4, "fsdp": -1}, chips)
    for number, part in enumerate(np.split(mesh.devices, 2)):
        assert {chip.slice_index for chip in part.flat} == {number}
    with pytest.raises(ValueError, match="slices") as error:
        make_mesh({"fsdp": 8}, chips)
    assert str(error.value) == "mesh axis data=1 does not divide by the 2 slices; they meet in that axis"


def test_some_samples_of_a_batch_are_those_that_a_device_has():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    x = jax.device_put(np.arange(32.0).reshape(16, 2), batch_sharding(mesh))

    def cut(x):
        with use_mesh(mesh):
            return some_samples(x, 8), jnp.swapaxes(some_samples(jnp.swapaxes(x, 0, 1), 8, axis=1), 0, 1)

    run = jax.jit(cut, out_shardings=batch_sharding(mesh))
    for found in run(x):
        np.testing.assert_array_equal(found, x[::2])  # two on each of eight devices
    program = run.lower(x).compile().as_text()
    assert not any(name in program for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
    np.testing.assert_array_equal(some_samples(x, 8), x[:8])  # without a mesh
