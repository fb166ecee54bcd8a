"""T5 and UMT5 encoders equal the originals, and take the published checkpoints whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from parity.golden import Arrays, load_golden, load_structure, relative_error

from wam_jax import assets, sharding
from wam_jax.encoders import t5
from wam_jax.weights import mapping

TINY = t5.Config(width=24, ffn_width=40, num_layers=2, num_heads=2, vocabulary=50, bias_per_layer=False, head_dim=8)
TINY_UMT5 = dataclasses.replace(TINY, bias_per_layer=True)
CONFIGS = {"t5": TINY, "umt5": TINY_UMT5, "wan_umt5": TINY_UMT5}
PUBLISHED = {f"t5_v1_1_{size}": config for size, config in t5.T5_SIZES.items()}
PUBLISHED |= {f"umt5_{size}": config for size, config in t5.UMT5_SIZES.items()}


@functools.cache
def golden(name):
    return load_golden(f"{name}_golden")


@functools.cache
def encoder(name):
    return t5.frozen(CONFIGS[name], golden(name).weights, jnp.float32)


features = jax.jit(lambda encoder, ids, mask: encoder(ids, mask))


@pytest.mark.parametrize("name", ["t5", "umt5", "wan_umt5"])
def test_features_equal_the_original(name):
    inputs, outputs = golden(name).inputs, golden(name).outputs
    hidden = np.asarray(features(encoder(name), inputs["ids"], inputs["mask"]))
    kept = inputs["mask"][:, ::10]
    assert relative_error(hidden[:, ::10][kept], outputs["hidden"][kept]) < 1e-4


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_position_buckets_equal_the_original(name):
    np.testing.assert_array_equal(t5.position_buckets(600)[[0, -1]], golden(name).outputs["buckets"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_mapped_whole(name):
    config = PUBLISHED[name]
    mapping.check(t5.weight_map(config), t5.definition(config).shapes(), load_structure(name), t5.UNUSED)


def test_wans_own_checkpoint_is_mapped_whole():
    config = t5.UMT5_SIZES["xxl"]
    mapping.check(t5.wan_weight_map(config), t5.definition(config).shapes(), load_structure("wan_umt5_xxl"))


def test_sharding_has_a_rule_for_every_parameter():
    model = t5.definition(TINY_UMT5)
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    specs = sharding.param_shardings(mesh, model.axes(), model.shapes())
    assert specs["layers"]["ffn"]["down"]["kernel"].spec == jax.P(None, "tensor", "fsdp")


def test_weights_of_another_size_are_refused():
    with pytest.raises(mapping.WeightsMismatch, match=r"missing from the checkpoint: encoder\.block\.1\."):
        t5.frozen(TINY_UMT5, golden("t5").weights)


def test_bfloat16_weights_stay_bfloat16_and_features_stay_near():
    halved = {name: array.astype(ml_dtypes.bfloat16) for name, array in golden("umt5").weights.arrays.items()}
    half = t5.frozen(TINY_UMT5, Arrays(halved))
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    inputs = golden("umt5").inputs
    exact = features(encoder("umt5"), inputs["ids"], inputs["mask"])
    near = features(half, inputs["ids"], inputs["mask"])
    assert near.dtype == jnp.float32
    assert np.linalg.norm(near - exact) < 0.05 * np.linalg.norm(exact)


def test_padding_changes_nothing_and_comes_out_as_zero():
    ids, mask = golden("umt5").inputs["ids"], golden("umt5").inputs["mask"]
    hidden = features(encoder("umt5"), ids, mask)
    other = features(encoder("umt5"), np.where(mask, ids, 7), mask)
    np.testing.assert_array_equal(hidden, other)
    assert not np.asarray(hidden)[~mask].any()


def test_a_published_encoder_is_found_by_its_name(tmp_path, monkeypatch):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"lift": 3, "open": 9}, unk_token="open"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    safetensors.numpy.save_file(dict(golden("umt5").weights.arrays), tmp_path / "model.safetensors")
    files = {"weights": tmp_path / "model.safetensors", "tokenizer": tmp_path / "tokenizer.json"}
    monkeypatch.setattr(t5, "UMT5_SIZES", {"xxl": TINY_UMT5})
    monkeypatch.setattr(assets, "find", {"umt5_xxl": files}.__getitem__)
    encoded = t5.text_encoder.__wrapped__("umt5_xxl", jnp.float32).encode(["lift", "open"], max_tokens=512)
    assert encoded.features.shape == (2, 512, 24)
    expected = features(encoder("umt5"), np.array([[3], [9]]), np.ones((2, 1), bool))
    np.testing.assert_allclose(encoded.features[:, :1], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyError, match=r"text encoder 'umt5_xxxl' is unknown \(has: t5_v1_1_base, "):
        t5.text_encoder("umt5_xxxl")
