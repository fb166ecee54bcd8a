"""Optimizers: schedules, rates by layer and by name, and each method on a problem with a known answer."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule, rate_factor

METHODS = [
    {"method": "adamw"}, {"method": "adamw", "moments": "bfloat16"}, {"method": "adamw", "moments": "float8"},
    {"method": "muon"}, {"method": "adafactor"},
]  # fmt: skip


def params():
    """A stack of two layers, a head, and an input map."""
    return {
        "trunk": {"blocks": {"video": {"up": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}}}},
        "maps": {"video": {"head": {"kernel": jnp.ones((4, 2))}, "project": {"kernel": jnp.ones((2, 4))}}},
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(m.values()))
def test_every_method_minimises_a_quadratic(method):
    target = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params())
    # Muon's updates have an RMS of 0.2 rates, AdamW's of about 1.
    rate = 0.25 if method["method"] == "muon" else 0.05
    optimizer = make_optimizer(OptimizerConfig(steps=300, learning_rate=rate, **method))

    def loss(p):
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(target), strict=True))

    @jax.jit
    def step(p, state):
        updates, state = optimizer.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    p, state = params(), optimizer.init(params())
    before = loss(p)
    for _ in range(300):
        p, state = step(p, state)
    assert loss(p) < 1e-3 * before


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_schedule_warms_up_then_decays(decay):
    config = OptimizerConfig(steps=100, learning_rate=1.0, warmup=10, decay=decay, final_share=0.1)
    rates = [float(make_schedule(config)(step)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(1.0 if decay == "constant" else 0.1)
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(rates[10:]))


def test_rate_falls_from_layer_to_layer_and_heads_keep_theirs():
    config = OptimizerConfig(steps=1, layer_decay=0.5, rates=((r"maps/.*", 3.0),))
    layers = rate_factor(config, "trunk/blocks/video/up/kernel", (3, 4, 4), 3)
    np.testing.assert_allclose(layers[:, 0, 0], [0.25, 0.5, 1.0])
    for after in ("maps/video/head/kernel", "maps/action/diffusion/blocks/up/kernel"):
        assert rate_factor(config, after, (4, 2), 3) == 3.0
    assert rate_factor(config, "projectors/0/up/kernel", (4, 2), 3) == 1.0
    assert rate_factor(config, "maps/video/project/kernel", (2, 4), 3) == pytest.approx(3.0 / 8)


def test_scaled_updates_are_those_of_the_scaled_rate():
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params())
    plain, scaled = (
        make_optimizer(OptimizerConfig(steps=10, **more)) for more in ({}, {"layer_decay": 0.5, "weight_decay": 0.0})
    )
    a, b = (o.update(grads, o.init(params()), params())[0] for o in (plain, scaled))
    kernel = ("trunk", "blocks", "video", "up", "kernel")
    for key in kernel:
        a, b = a[key], b[key]
    np.testing.assert_allclose(b[0], 0.5 * a[0], rtol=1e-6)
    np.testing.assert_allclose(b[1], a[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "sgd"}, "optimizer.method 'sgd' is unknown (has: adamw, muon, adafactor)"),
        ({"moments": "int8"}, "optimizer.moments 'int8' is unknown (has: float32, bfloat16, float8)"),
        (
            {"method": "muon", "moments": "float8"},
            "optimizer.moments 'float8' is AdamW's; muon has float32 moments only",
        ),
    ],
)
def test_unknown_choices_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        OptimizerConfig(steps=1, **fields)


def test_a_rate_for_nothing_is_refused():
    optimizer = make_optimizer(OptimizerConfig(steps=1, rates=(("trunk/blocks/vidoe/.*", 2.0),)))
    with pytest.raises(ValueError, match=r"optimizer.rates 'trunk/blocks/vidoe/\.\*' matches no parameter"):
        optimizer.update(params(), optimizer.init(params()), params())


def test_weight_decay_is_scaled_by_the_rate_in_every_method():
    """Without a gradient, a step shrinks weights by rate times decay."""
    zeros = jax.tree.map(jnp.zeros_like, params())
    for method in METHODS:
        config = OptimizerConfig(steps=10, learning_rate=1e-2, warmup=1, decay="constant", weight_decay=0.5, **method)
        optimizer = make_optimizer(config)
        updates, _ = optimizer.update(zeros, optimizer.init(params()), params())
        kernel = updates["trunk"]["blocks"]["video"]["up"]["kernel"]
        np.testing.assert_allclose(kernel, -0.005, rtol=1e-3, err_msg=str(method))
