"""LoRA: an adapted model starts as the one it adapts, trains its factors alone, and merges into plain kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wam_jax.nn.block import DiTBlock
from wam_jax.nn.lora import FACTORS, Lora, merge, unmerge, with_lora
from wam_jax.nn.module import FeedForward, define, layer_slice, paths, stack
from wam_jax.training.partition import matching

LORA = Lora(rank=2, alpha=6.0, targets=r"up$")
PLAIN = define(lambda rngs: FeedForward(4, 8, rngs))
ADAPTED = with_lora(PLAIN, LORA)


def drawn_params():
    """Adapted parameters whose factors are not zero."""
    params = ADAPTED.init(jax.random.key(0))
    params["up"]["lora_b"] = jax.random.normal(jax.random.key(1), params["up"]["lora_b"].shape)
    return params


def test_an_adapted_model_starts_as_the_one_it_adapts_bit_for_bit():
    x = jax.random.normal(jax.random.key(2), (3, 4))
    plain, adapted = PLAIN.init(jax.random.key(0)), ADAPTED.init(jax.random.key(0))
    np.testing.assert_array_equal(ADAPTED.bind(adapted)(x), PLAIN.bind(plain)(x))


def test_update_is_alpha_over_rank_times_a_b():
    params, x = drawn_params(), jax.random.normal(jax.random.key(2), (3, 4))
    layer = params["up"]
    kernel = layer["kernel"] + 3.0 * layer["lora_a"] @ layer["lora_b"]
    expected = PLAIN.bind({**params, "up": {"kernel": kernel, "bias": layer["bias"]}})(x)
    np.testing.assert_allclose(ADAPTED.bind(params)(x), expected, rtol=1e-5, atol=1e-6)


def test_merged_parameters_compute_the_same_and_unmerge_gives_them_back():
    params, x = drawn_params(), jax.random.normal(jax.random.key(2), (3, 4))
    merged = merge(params, LORA.scale)
    assert jax.tree.structure(merged) == jax.tree.structure(PLAIN.shapes())
    np.testing.assert_allclose(PLAIN.bind(merged)(x), ADAPTED.bind(params)(x), rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), unmerge(merged, params, LORA.scale), params)


def test_stacked_layers_have_factors_a_layer_and_run_under_scan():
    single = define(lambda rngs: FeedForward(4, 8, rngs))
    stacked = with_lora(define(lambda rngs: stack(single.make, 3, rngs)), LORA)
    params = stacked.init(jax.random.key(0))
    assert params["up"]["lora_a"].shape == (3, 4, 2)
    assert stacked.axes()["up"]["lora_a"] == ("layers", "embed", None)
    assert stacked.axes()["up"]["lora_b"] == ("layers", None, "mlp")
    params["up"]["lora_b"] = jax.random.normal(jax.random.key(1), params["up"]["lora_b"].shape)
    graph, arrays = layer_slice(stacked.bind(params))
    x = jax.random.normal(jax.random.key(2), (5, 4))
    y, _ = jax.lax.scan(lambda x, p: (nnx.merge(graph, p)(x), None), x, arrays)
    merged = merge(params, LORA.scale)
    for layer in range(3):
        x = single.bind(jax.tree.map(lambda a, i=layer: a[i], merged))(x)
    np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)


def test_only_named_layers_are_adapted():
    definition = with_lora(define(lambda rngs: DiTBlock(8, 16, 2, 4, rngs)), Lora(rank=1, alpha=1, targets=r"query$"))
    adapted = {path.rsplit("/", 1)[0] for path in paths(definition.shapes()) if matching([FACTORS])(path)}
    assert adapted == {
        "attention/self_attention/query", "attention/text_attention/projections/query",
    }  # fmt: skip


def test_targets_that_name_nothing_are_refused():
    with pytest.raises(ValueError, match=r"lora.targets 'gate' names no linear layer \(has: down, up, ...\)"):
        with_lora(PLAIN, Lora(rank=2, alpha=1.0, targets="gate"))
    with pytest.raises(ValueError, match=r"lora.rank is 0; it must be 1 or more"):
        Lora(rank=0, alpha=1.0)


def test_factors_compute_in_the_dtype_of_their_input():
    assert ADAPTED.bind(drawn_params())(jnp.ones((1, 4), jnp.bfloat16)).dtype == jnp.bfloat16
