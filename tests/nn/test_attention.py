"""Every backend computes the same attention, forward and backward, and a mesh does not change it."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from wam_jax.nn import backends
from wam_jax.nn.attention import attend
from wam_jax.sharding import ambient_platform, make_mesh, use_mesh

SPLASH = functools.partial(backends.splash, interpret=True)
PREPARED_FOR_CUDNN = functools.partial(backends.cudnn, implementation="xla")


def problem(size=2, queries=5, keys=7, heads=2, head_dim=4, masked=False):
    """Queries, keys, values and a mask that keeps a random half of the keys, and always one."""
    rng = np.random.default_rng(0)
    shapes = [(size, queries, heads, head_dim), *[(size, keys, heads, head_dim)] * 2]
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    mask = rng.random((size, keys)) < 0.5
    mask[:, keys // 2] = True
    return *arrays, jnp.asarray(mask) if masked else None


def softmax_attention(query, key, value, key_mask=None):
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), value)


def output_and_gradients(attention, query, key, value, key_mask=None):
    """What ``attention`` gives, and the gradients of a scalar that weighs every output differently."""
    weights = jnp.cos(jnp.arange(query.size, dtype=jnp.float32)).reshape(query.shape)

    def scalar(query, key, value):
        attended = attention(query, key, value, key_mask)
        return jnp.sum(weights * attended), attended

    gradients, attended = jax.jit(jax.grad(scalar, (0, 1, 2), has_aux=True))(query, key, value)
    return {"output": attended, **dict(zip(("query", "key", "value"), gradients, strict=True))}


def assert_same(ours, reference, tolerance=2e-5):
    for name, expected in reference.items():
        np.testing.assert_allclose(ours[name], expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_attention(masked):
    arrays = problem(masked=masked)
    assert_same(output_and_gradients(attend, *arrays), output_and_gradients(softmax_attention, *arrays))


def test_softmax_is_in_float32():
    """Equal logits over 4,096 keys: in bfloat16 the sum of so many weights would stop growing."""
    query, key, value, _ = problem(1, 4, 4096, 1, 8)
    arrays = [x.astype(jnp.bfloat16) for x in (jnp.zeros_like(query), key, jnp.ones_like(value))]
    np.testing.assert_allclose(np.asarray(attend(*arrays), np.float32), 1.0, rtol=2**-8)


@pytest.mark.parametrize("attention", [attend, SPLASH], ids=["xla", "splash"])
def test_masked_keys_and_their_order_do_not_matter(attention):
    query, key, value, mask = problem(1, masked=True)
    order = np.random.default_rng(1).permutation(key.shape[1])
    junk = jnp.where(mask[..., None, None], 0, 1e3)
    expected = attention(query, key, value, mask)
    moved = attention(query, (key + junk)[:, order], (value + junk)[:, order], mask[:, order])
    np.testing.assert_allclose(moved, expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [backends.xla, SPLASH, PREPARED_FOR_CUDNN], ids=["xla", "splash", "cudnn"])
def test_sample_without_keys_gets_zeros_and_no_gradient(monkeypatch, kernel):
    monkeypatch.setitem(backends.BACKENDS, "xla", kernel)
    query, key, value, mask = problem(masked=True)
    result = output_and_gradients(attend, query, key, value, mask.at[1].set(False))
    reference = output_and_gradients(softmax_attention, query[:1], key[:1], value[:1], mask[:1])
    for name, array in result.items():
        np.testing.assert_array_equal(array[1], 0, err_msg=name)
    np.testing.assert_allclose(result["output"][:1], reference["output"], atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [{"queries": 128, "keys": 256, "head_dim": 128}, {"queries": 9, "keys": 130}, {"queries": 600, "keys": 1100}],
    ids=["whole blocks", "padded", "several blocks, padded"],
)
def test_splash_is_softmax_attention(sizes, masked):
    arrays = problem(**sizes, masked=masked)
    assert_same(output_and_gradients(SPLASH, *arrays), output_and_gradients(softmax_attention, *arrays), 1e-4)


def test_splash_in_bfloat16_stays_within_its_rounding():
    arrays = [x.astype(jnp.bfloat16) for x in problem(queries=64, keys=200, head_dim=64)[:3]]
    expected = softmax_attention(*(x.astype(jnp.float32) for x in arrays))
    np.testing.assert_allclose(np.asarray(SPLASH(*arrays), np.float32), expected, atol=2e-2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("lengths", [(5, 7), (6, 8)], ids=["odd", "even"])
def test_what_cudnn_is_given_is_softmax_attention(lengths, masked):
    """Even lengths, the keys that the mask keeps first, and their number instead of the mask."""
    arrays = problem(2, *lengths, masked=masked)
    assert_same(output_and_gradients(PREPARED_FOR_CUDNN, *arrays), output_and_gradients(softmax_attention, *arrays))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", [attend, functools.partial(backends.per_shard, SPLASH)], ids=["xla", "splash"])
def test_eight_devices_attend_like_one(attention, masked):
    """Seven queries over two context shards too: they are padded."""
    arrays = problem(4, 7, 10, heads=4, head_dim=8, masked=masked)
    mesh = make_mesh({"data": 2, "context": 2, "tensor": 2}, jax.devices())
    arrays = [None if x is None else jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in arrays]

    def on_mesh(*arrays):
        with use_mesh(mesh):
            return attention(*arrays)

    assert_same(output_and_gradients(on_mesh, *arrays), output_and_gradients(softmax_attention, *arrays), 1e-4)


def test_kernels_refuse_what_a_mesh_cannot_cut():
    mesh = make_mesh({"data": 4, "tensor": 2}, jax.devices())
    with use_mesh(mesh), pytest.raises(ValueError, match="does not divide") as error:
        backends.per_shard(SPLASH, *problem(6))
    assert str(error.value) == (
        "activation of shape (6, 5, 2, 4) and logical axes ('batch', 'tokens', 'heads', None): batch=6 does not divide "
        "by mesh axis data x fsdp=4"
    )


def test_splash_trains_under_scan_and_checkpoint():
    arrays = problem(1, 8, 8, heads=1)

    def deep(attention, policy, query, key, value, key_mask):
        def layer(x, _):
            return x + attention(x, key, value, key_mask), None

        return jax.lax.scan(jax.checkpoint(layer, policy=policy), query, None, length=3)[0]

    saved = jax.checkpoint_policies.save_only_these_names(backends.RESIDUALS)
    reference = output_and_gradients(functools.partial(deep, softmax_attention, None), *arrays)
    for policy in (None, saved):
        assert_same(output_and_gradients(functools.partial(deep, SPLASH, policy), *arrays), reference, 1e-4)


@pytest.mark.parametrize(
    ("length", "limit", "block"),
    [(1, 512, 128), (512, 512, 512), (513, 512, 384), (1000, 512, 512), (4097, 1024, 896), (4096, 1024, 1024)],
)
def test_blocks_cover_a_length_with_little_padding(length, limit, block):
    assert backends.block_size(length, limit) == block


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "queries", "keys", "backend"),
    [
        ("cpu", jnp.bfloat16, 128, 8192, 8192, "xla"),
        ("gpu", jnp.bfloat16, 128, 8192, 77, "cudnn"),
        ("gpu", jnp.float16, 64, 300, 300, "cudnn"),
        ("gpu", jnp.float32, 128, 8192, 8192, "xla"),  # no such kernel
        ("gpu", jnp.bfloat16, 100, 8192, 8192, "xla"),  # not a multiple of 8
        ("gpu", jnp.bfloat16, 128, 16, 8192, "xla"),  # small
        ("tpu", jnp.bfloat16, 128, 8192, 8192, "splash"),
        ("tpu", jnp.float32, 64, 8192, 512, "splash"),
        ("tpu", jnp.float16, 128, 8192, 8192, "xla"),  # no such kernel
        ("tpu", jnp.bfloat16, 512, 8192, 8192, "xla"),  # blocks would not fit
        ("tpu", jnp.bfloat16, 128, 256, 512, "xla"),  # small
    ],
)
def test_choice_of_backend(platform, dtype, head_dim, queries, keys, backend):
    assert backends.choose(platform, dtype, head_dim, queries, keys) == backend


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [None, {"data": 2, "context": 2, "tensor": 2}], ids=["one GPU", "eight"])
def test_gpu_program_calls_cudnn_both_ways(monkeypatch, sizes, masked):
    """Lowered for CUDA, not compiled: JAX is told of a cuDNN that is not here."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91100)
    monkeypatch.setattr("wam_jax.nn.attention.ambient_platform", lambda: "gpu")
    mesh = make_mesh(sizes or {}, jax.devices() if sizes else jax.devices()[:1])

    def loss(query, key, value, key_mask):
        with use_mesh(mesh):
            layer = jax.checkpoint(lambda x, _: (x + attend(x, key, value, key_mask if masked else None), None))
            return jnp.sum(jax.lax.scan(layer, query, None, length=2)[0].astype(jnp.float32))

    arrays = problem(4, 101, 77, heads=4, head_dim=64, masked=True)  # JAX refuses odd lengths
    arrays = [*(x.astype(jnp.bfloat16) for x in arrays[:3]), arrays[3]]
    program = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert {"__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("} == set(re.findall(r"__cudnn\$\w+\(", program))
    assert "4x4x102x78" not in program.replace("tensor<", "")  # neither logits nor a dense mask


def test_without_a_mesh_several_devices_get_what_xla_can_cut(monkeypatch):
    monkeypatch.setattr("wam_jax.nn.attention.ambient_platform", lambda: "tpu")
    chosen = []
    for name, backend in backends.BACKENDS.items():
        monkeypatch.setitem(backends.BACKENDS, name, lambda *a, n=name, run=backend: chosen.append(n) or run(*a))
    x = jnp.zeros((1, 1024, 1, 128))
    jax.eval_shape(attend, x, x, x)
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        jax.eval_shape(attend, x, x, x)
    assert chosen == ["xla", "splash"]


@pytest.fixture(scope="module")
def tpu():
    """Four chips that are not here: libtpu compiles for them all the same."""
    pytest.importorskip("libtpu")
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")  # no metadata server; other processes
    threshold = jax.config.jax_persistent_cache_min_compile_time_secs
    # Nothing here could run a program for these chips, so none may enter the cache: reading it back would fail.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    yield topologies.get_topology_desc("v5p:2x2x1", "tpu").devices
    jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)


@pytest.mark.parametrize(("sizes", "masked"), [({"fsdp": 2, "context": 2}, True), ({"data": 2, "tensor": 2}, False)])
def test_tpu_program_never_holds_the_logits(tpu, sizes, masked):
    """Forward and backward of 4,097 queries and keys in a scanned, rematerialised layer."""
    mesh = make_mesh(sizes, tpu)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    shape, length = (4, 4097, 2, 128), 4097
    logits = 4 * 2 * length * length * 4 // 4  # float32 bytes on each of the four chips

    def loss(query, key, value, key_mask):
        with use_mesh(mesh):
            assert ambient_platform() == "tpu"

            def layer(x, _):
                return x + attend(x, key, value, key_mask if masked else None), None

            return jnp.sum(jax.lax.scan(jax.checkpoint(layer), query, None, length=2)[0].astype(jnp.float32))

    tokens = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    mask = jax.ShapeDtypeStruct(shape[:2], jnp.bool_, sharding=sharding)
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(tokens, tokens, tokens, mask).compile()
    assert "splash_mha_fwd" in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < logits / 2
