"""One table reads a checkpoint, writes it back, and says exactly what does not fit; devices get their own part only."""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import NamedSharding, PartitionSpec
from parity.golden import Arrays

from wam_jax.sharding import make_mesh
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights, write_safetensors
from wam_jax.weights.mapping import Source, WeightsMismatch, check, export, layer_norm, linear, load

LAYERS = 3


def projection(part):
    return {
        "kernel": Source("blocks.{}.qkv.weight", "o i -> i o", part=(part, 3)),
        "bias": Source("blocks.{}.qkv.bias", part=(part, 3)),
    }


MAP = {
    "embed": Source("embed.weight"),
    "scale": Source("logit_scale"),
    "patch": Source("patch.weight", "o c h w -> (h w c) o", {"h": 2, "w": 2}),
    "norm": layer_norm("norm"),
    "blocks": {"q": projection(0), "k": projection(1), "v": projection(2), "out": linear("blocks.{}.out", bias=False)},
}
THEIRS = {
    "embed.weight": (5, 4),
    "logit_scale": (),
    "patch.weight": (4, 3, 2, 2),
    "norm.weight": (4,),
    "norm.bias": (4,),
    **{f"blocks.{i}.qkv.weight": (12, 4) for i in range(LAYERS)},
    **{f"blocks.{i}.qkv.bias": (12,) for i in range(LAYERS)},
    **{f"blocks.{i}.out.weight": (4, 4) for i in range(LAYERS)},
}


def abstract(shape, dtype=jnp.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def ours(dtype=jnp.float32):
    projection = {"kernel": abstract((LAYERS, 4, 4), dtype), "bias": abstract((LAYERS, 4), dtype)}
    return {
        "embed": abstract((5, 4), dtype),
        "scale": abstract((), dtype),
        "patch": abstract((12, 4), dtype),
        "norm": {"scale": abstract((4,), dtype), "bias": abstract((4,), dtype)},
        "blocks": {
            "q": projection, "k": projection, "v": projection, "out": {"kernel": abstract((LAYERS, 4, 4), dtype)}
        },
    }  # fmt: skip


def random_tensors(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in THEIRS.items()}


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
def test_export_is_the_inverse_of_load(seed, dtype):
    tensors = random_tensors(seed, dtype)
    exported = dict(export(MAP, load(MAP, ours(jnp.dtype(dtype)), Arrays(tensors))))
    assert exported.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(exported[name], tensor, strict=True)


def test_every_array_is_where_the_table_says():
    tensors = random_tensors(0)
    params = load(MAP, ours(), Arrays(tensors))
    np.testing.assert_array_equal(params["scale"], tensors["logit_scale"], strict=True)  # stays without axes
    qkv = tensors["blocks.1.qkv.weight"]
    for i, name in enumerate("qkv"):
        np.testing.assert_array_equal(params["blocks"][name]["kernel"][1], qkv[4 * i : 4 * i + 4].T)
    patch = np.random.default_rng(1).normal(size=(2, 2, 3)).astype(np.float32)  # rows, columns, colours
    wanted = np.einsum("ochw,hwc->o", tensors["patch.weight"], patch)
    np.testing.assert_allclose(patch.reshape(-1) @ params["patch"], wanted, rtol=1e-5)


def test_stored_in_the_type_that_is_asked_for():
    params = load(MAP, ours(jnp.bfloat16), Arrays(random_tensors(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_loaded_arrays_pass_through_files(tmp_path):
    params = load(MAP, ours(), Arrays(random_tensors(3)))
    write_safetensors(tmp_path, export(MAP, params), max_shard_bytes=300)
    again = load(MAP, ours(), open_weights(tmp_path))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), params, again)


def without(tree, name):
    return {key: value for key, value in tree.items() if key != name}


HINT = ". Is this the checkpoint of this model, at this size?"


@pytest.mark.parametrize(
    ("weight_map", "shapes", "theirs", "message"),
    [
        (without(MAP, "embed"), None, without(THEIRS, "embed.weight"), "1 parameters without a source: embed"),
        (None, without(ours(), "embed"), None,
         "1 sources without a parameter: embed; 1 tensors left over in the checkpoint: embed.weight"),
        (None, None, without(THEIRS, "norm.bias"), "1 tensors missing from the checkpoint: norm.bias"),
        (None, None, {**without(THEIRS, "norm.bias"), "norm.beta": (4,)},
         "1 tensors missing from the checkpoint: norm.bias; 1 tensors left over in the checkpoint: norm.beta"),
        (None, None, {**THEIRS, "embed.weight": (4, 5)},
         "1 tensors of another shape: embed.weight (4, 5) gives (4, 5), the model has (5, 4)"),
        (None, None, {**THEIRS, "patch.weight": (4, 3, 4)},
         "1 tensors of another shape: patch.weight (4, 3, 4) does not follow 'o c h w -> (h w c) o'"),
        (None, None, {**THEIRS, "blocks.2.qkv.bias": (13,)},
         "3 tensors of another shape: " + ", ".join(["blocks.2.qkv.bias (13,) does not cut into 3"] * 3)),
        (None, None, {**THEIRS, **{f"extra.{i}": (1,) for i in range(7)}},
         "7 tensors left over in the checkpoint: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more"),
        ({**MAP, "again": Source("embed.weight")},
         {**ours(), "again": abstract((5, 4))}, None, "1 tensors not used in full, once: embed.weight"),
        ({**MAP, "norm": {**layer_norm("norm"), "scale": Source("norm.weight", part=(1, 2))}},
         {**ours(), "norm": {"scale": abstract((2,)), "bias": abstract((4,))}}, None,
         "1 tensors not used in full, once: norm.weight"),
    ],
)  # fmt: skip
def test_each_kind_of_mismatch_is_named(weight_map, shapes, theirs, message):
    with pytest.raises(WeightsMismatch, match=f"^{re.escape(message + HINT)}$"):
        check(weight_map or MAP, shapes or ours(), theirs or THEIRS)


def test_a_missing_layer_is_named_and_a_further_one_too():
    shorter = {name: shape for name, shape in THEIRS.items() if not name.startswith("blocks.2")}
    with pytest.raises(WeightsMismatch, match=r"missing from the checkpoint: blocks\.2\.out\.weight, blocks\.2\.qkv"):
        check(MAP, ours(), shorter)
    longer = THEIRS | {"blocks.3.out.weight": (4, 4)}
    with pytest.raises(WeightsMismatch, match=r"^1 tensors left over in the checkpoint: blocks\.3\.out\.weight\."):
        check(MAP, ours(), longer)


def test_unused_tensors_are_named_by_whole_patterns():
    theirs = THEIRS | {"pooler.weight": (1,), "pooler.weight_scale": (1,)}
    with pytest.raises(WeightsMismatch, match=r"^1 tensors left over in the checkpoint: pooler\.weight_scale\."):
        check(MAP, ours(), theirs, unused=(r"pooler\.weight",))
    check(MAP, ours(), theirs, unused=(r"pooler\..*",))


def test_nothing_is_read_before_everything_fits():
    class Unreadable(Arrays):
        def read(self, name):
            raise AssertionError(f"{name} was read")

    with pytest.raises(WeightsMismatch, match="left over"):
        load(MAP, ours(), Unreadable(random_tensors(0) | {"extra": np.ones(1)}))


def test_quantised_tensors_are_not_taken_for_numbers():
    tensors = random_tensors(0) | {"embed.weight": np.ones((5, 4), np.int8)}
    with pytest.raises(
        WeightsMismatch, match=r"^embed\.weight is int8, the model has float32; get weights that are not"
    ):
        load(MAP, ours(), Arrays(tensors))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"fsdp": 8})


def test_each_device_holds_its_eighth(mesh):
    axes = {"kernel": PartitionSpec(None, "fsdp"), "table": PartitionSpec("fsdp"), "bias": PartitionSpec()}
    weight_map = {
        "kernel": Source("layers.{}.weight", "o i -> i o"),
        "table": Source("table"),
        "bias": Source("layers.{}.bias"),
    }
    like = {
        name: abstract(shape, jnp.bfloat16, NamedSharding(mesh, axes[name]))
        for name, shape in {"kernel": (4, 16, 8), "table": (24, 3), "bias": (4, 8)}.items()
    }
    rng = np.random.default_rng(0)
    shapes = {"table": (24, 3)} | {f"layers.{i}.weight": (8, 16) for i in range(4)}
    shapes |= {f"layers.{i}.bias": (8,) for i in range(4)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params = load(weight_map, like, Arrays(tensors))
    for name, share in {"kernel": 8, "table": 8, "bias": 1}.items():
        assert params[name].sharding == like[name].sharding
        assert {shard.data.nbytes for shard in params[name].addressable_shards} == {params[name].nbytes // share}
    kernel = np.stack([tensors[f"layers.{i}.weight"].T for i in range(4)]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(params["kernel"], kernel)
    exported = dict(export(weight_map, params))
    np.testing.assert_array_equal(exported["layers.3.weight"], tensors["layers.3.weight"].astype(ml_dtypes.bfloat16))


def test_no_device_is_handed_more_than_its_part(mesh, monkeypatch):
    handed = []
    real = jax.make_array_from_callback

    def watched(shape, sharding, part):
        return real(shape, sharding, lambda index: handed.append(part(index)) or handed[-1])

    monkeypatch.setattr(mapping.jax, "make_array_from_callback", watched)
    like = {"w": abstract((2, 16, 4), jnp.float32, NamedSharding(mesh, PartitionSpec(None, "fsdp")))}
    load({"w": Source("{}")}, like, Arrays({str(i): np.ones((16, 4), np.float32) for i in range(2)}))
    assert [part.shape for part in handed] == [(2, 4)] * 16  # two layers, eight devices
