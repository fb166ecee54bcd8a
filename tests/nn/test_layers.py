"""Layers equal their formulas; every parameter names one logical axis a dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wam_jax.nn.attention import attend
from wam_jax.nn.embeddings import Conditioning
from wam_jax.nn.module import FeedForward, LayerNorm, Linear, RMSNorm, define, stack, standardize
from wam_jax.nn.rotary import rotary_table, rotate


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def scores(query_position, key_position, head_dim: int) -> np.ndarray:
    """Attention logits of one query and one key after rotation."""
    query, key = normal(1, 1, 1, head_dim), normal(1, 1, 1, head_dim, seed=1)
    tables = (rotary_table(np.array([where], np.float32), head_dim) for where in (query_position, key_position))
    q, k = (rotate(x, table) for x, table in zip((query, key), tables, strict=True))
    return np.einsum("bqhd,bkhd->", q, k)


@pytest.mark.parametrize("head_dim", [6, 8, 32])
def test_rotary_scores_depend_on_relative_position_only(head_dim):
    here, there = np.array([3.5, 1.0, 2.0]), np.array([1.0, 4.0, 0.0])
    shift = np.array([2.25, 3.0, 5.0])
    assert scores(here + shift, there + shift, head_dim) == pytest.approx(scores(here, there, head_dim), abs=1e-4)


@pytest.mark.parametrize("axis", range(3))
def test_rotary_tells_every_axis(axis):
    moved = np.zeros(3)
    moved[axis] = 1.0
    assert abs(scores(moved, np.zeros(3), 32) - scores(np.zeros(3), np.zeros(3), 32)) > 1e-2


def test_rotary_keeps_lengths_and_leaves_the_origin():
    x = normal(2, 3, 2, 12)
    table = rotary_table(np.array([[0, 0, 0], [1, 2, 3], [7.5, 0, 1]], np.float32), 12)
    turned = rotate(x, table)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_odd_head_is_refused():
    with pytest.raises(ValueError, match=r"^rotary positions need an even head_dim, got 5$"):
        rotary_table(np.zeros((1, 3), np.float32), 5)


def test_masked_attention_equals_attention_on_the_kept_keys():
    query, key, value = normal(1, 3, 2, 4), normal(1, 5, 2, 4, seed=1), normal(1, 5, 2, 4, seed=2)
    mask = jnp.array([[True, False, True, True, False]])
    kept = np.flatnonzero(mask[0])
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key[:, kept]) / 2.0, -1)
    expected = jnp.einsum("bhqk,bkhd->bqhd", weights, value[:, kept])
    np.testing.assert_allclose(attend(query, key, value, mask), expected, atol=1e-6)
    np.testing.assert_allclose(attend(query, key[:, kept], value[:, kept]), expected, atol=1e-6)


def test_norms_equal_their_formulas():
    x = np.asarray(normal(4, 8)) * 3 + 2
    centred = x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(standardize(jnp.asarray(x)), centred / x.std(-1, keepdims=True), atol=1e-5)
    norm = define(lambda rngs: RMSNorm(8, ("heads",)))
    rms = norm.bind({"scale": 2 * jnp.ones(8)})(jnp.asarray(x))
    np.testing.assert_allclose(rms, 2 * x / np.sqrt((x**2).mean(-1, keepdims=True)), rtol=1e-5)
    layer = define(lambda rngs: LayerNorm(8, ("embed",))).bind({"scale": 2 * jnp.ones(8), "bias": jnp.ones(8)})
    np.testing.assert_allclose(layer(jnp.asarray(x)), 1 + 2 * centred / x.std(-1, keepdims=True), atol=1e-5)


def test_activations_keep_their_dtype_and_parameters_theirs():
    definition = define(lambda rngs: FeedForward(4, 8, rngs))
    params = definition.init(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert definition.bind(params)(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_stacked_layers_are_independent_and_named():
    definition = define(lambda rngs: stack(lambda layer: Linear(64, 64, ("embed", "mlp"), layer), 3, rngs))
    kernel = definition.init(jax.random.key(0))["kernel"]
    assert definition.axes() == {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}
    assert float(kernel.std()) == pytest.approx(1 / 8, rel=0.05)  # 1 / sqrt(fan in)
    layers = np.asarray(kernel).reshape(3, -1)
    assert np.abs(np.corrcoef(layers) - np.eye(3)).max() < 0.1


def test_every_parameter_names_one_axis_a_dimension(tiny):
    definition = tiny.define()
    shapes, axes = definition.shapes(), definition.axes()
    ranks = jax.tree.map(lambda shape, names: (len(shape.shape), len(names)), shapes, axes)
    for path, (rank, names) in jax.tree_util.tree_leaves_with_path(ranks, is_leaf=lambda x: isinstance(x, tuple)):
        assert rank == names, jax.tree_util.keystr(path)


def test_conditioning_depends_on_its_conditions_and_on_no_other():
    module = define(lambda rngs: Conditioning(8, {"text": 3}, rngs))
    conditioning = module.bind(module.init(jax.random.key(0)))
    level = jnp.array([[0.2, 0.7]])
    text, other = jnp.ones((1, 1, 3)), jnp.ones((1, 1, 5))
    base, embedded = conditioning(level, {"text": text, "state": other})
    assert base.shape == (1, 2, 6, 8)
    assert embedded.shape == (1, 2, 8)
    np.testing.assert_array_equal(base, conditioning(level, {"text": text, "state": -other})[0])
    assert np.abs(base - conditioning(level, {"text": -text, "state": other})[0]).max() > 1e-3
    assert np.abs(base[:, 0] - base[:, 1]).max() > 1e-3


def test_a_long_list_keeps_its_order():
    """By name, entry 10 would come before entry 2."""

    class Chain(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([Linear(1, 1, (None, None), rngs) for _ in range(12)])

    definition = define(Chain)
    params = definition.init(jax.random.key(0))
    for number in range(12):
        params["layers"][str(number)]["bias"] = jnp.full(1, float(number))
    bound = definition.bind(params)
    assert [float(layer.bias[...][0]) for layer in bound.layers] == list(range(12))
