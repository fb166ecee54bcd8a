"""Two players in one scalar: each gets its own gradient and none of the other's, scaled as it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.nn.discriminator import DiscriminatorConfig, define_discriminator
from wam_jax.objectives.adversarial import (
    adaptive_weight,
    adversarial_loss,
    discriminator_hinge,
    generator_hinge,
    with_gradient,
)

DEFINITION = define_discriminator(DiscriminatorConfig(width=4, halvings=1, groups=2))
WEIGHT = 0.3


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def judge(params, pictures) -> jax.Array:
    return DEFINITION.bind(params)(pictures)


def decode(tokenizer) -> jax.Array:
    """A decoder in small: pictures that depend on its parameters."""
    return jnp.tanh(tokenizer["gain"] * normal(1, 2, 8, 8, 3) + tokenizer["shift"])


def picture_error(decoded, real):
    squared = jnp.mean((decoded - real) ** 2)
    return squared, {"squared": squared}


@pytest.fixture(scope="module")
def params():
    return {
        "tokenizer": {"gain": jnp.float32(0.7), "shift": normal(2, 3)},
        "discriminator": DEFINITION.init(jax.random.key(0)),
    }


@jax.jit
def gradients(params, real, active, weight):
    """What one step sees of the adversarial part alone: ((value, metrics), gradients of parameters and ``real``)."""

    def loss(params, real):
        fake = decode(params["tokenizer"])
        _, _, others = with_gradient(lambda decoded: picture_error(decoded, real), fake)
        return adversarial_loss(DEFINITION, params["discriminator"], real, fake, others, weight, active)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, real)


def assert_equal_trees(found, expected) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_hinges_by_hand():
    real, fake = jnp.array([[2.0, 0.5], [-1.0, 1.0]]), jnp.array([[-2.0, -0.5], [1.0, 0.0]])
    assert float(discriminator_hinge(real, fake)) == pytest.approx(
        0.5 * ((0 + 0.5 + 2 + 0) / 4 + (0 + 0.5 + 2 + 1) / 4)
    )
    assert float(generator_hinge(fake)) == pytest.approx(1.5 / 4)


def test_each_player_gets_its_own_gradient_and_nothing_else(params):
    real = normal(3, 2, 8, 8, 3)
    (value, metrics), (found, on_real) = gradients(params, real, True, WEIGHT)
    fake = decode(params["tokenizer"])

    @jax.jit
    def reference(params):
        """The two players, each by itself."""
        own = jax.grad(lambda p: discriminator_hinge(judge(p, real), judge(p, fake)))(params["discriminator"])
        others, pulled = (
            jax.grad(loss)(fake)
            for loss in (
                lambda x: picture_error(x, real)[0],
                lambda x: generator_hinge(judge(params["discriminator"], x)),
            )
        )
        scale = WEIGHT * jnp.linalg.norm(others.ravel()) / jnp.linalg.norm(pulled.ravel())
        (decoder,) = jax.vjp(decode, params["tokenizer"])[1](scale * pulled)
        return {"tokenizer": decoder, "discriminator": own}, scale

    expected, scale = reference(params)
    assert_equal_trees(found, expected)
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(expected["tokenizer"]))
    assert not np.any(on_real)
    assert float(metrics["adversarial/weight"]) == pytest.approx(float(scale), rel=1e-4)
    parts = metrics["adversarial/weight"] * metrics["adversarial/generator"] + metrics["adversarial/discriminator"]
    assert float(value) == pytest.approx(float(parts), rel=1e-5)


def test_without_weight_the_decoder_gets_exactly_nothing_and_the_discriminator_the_same(params):
    real = normal(3, 2, 8, 8, 3)
    _, (weighted, _) = gradients(params, real, True, WEIGHT)
    _, (weightless, _) = gradients(params, real, True, 0.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(weightless["tokenizer"]))
    assert_equal_trees(weightless["discriminator"], weighted["discriminator"])


def test_before_the_start_all_is_exactly_zero(params):
    (value, metrics), found = gradients(params, normal(3, 2, 8, 8, 3), False, WEIGHT)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((value, metrics, found)))


def test_adaptive_weight_is_the_ratio_of_norms_within_its_limit():
    others, adversarial = 1e-4 * normal(4, 2, 5, 5, 3), 1e-6 * normal(5, 2, 5, 5, 3)
    ratio = np.linalg.norm(np.asarray(others).ravel()) / np.linalg.norm(np.asarray(adversarial).ravel())
    assert float(adaptive_weight(others, adversarial)) == pytest.approx(ratio, rel=1e-5)
    assert float(adaptive_weight(others, jnp.zeros_like(others))) == pytest.approx(1e4)
    assert float(adaptive_weight(jnp.zeros_like(others), jnp.zeros_like(others))) == 0
    assert not np.any(jax.grad(adaptive_weight)(others, adversarial))


def test_a_gradient_that_is_known_is_passed_on():
    real = normal(3, 2, 8, 8, 3)
    tokenizer = {"gain": jnp.float32(0.7), "shift": normal(2, 3)}

    def handed_on(tokenizer):
        value, metrics, gradient = with_gradient(lambda x: picture_error(x, real), decode(tokenizer))
        return value, (metrics["squared"], gradient)

    (value, (squared, gradient)), found = jax.value_and_grad(handed_on, has_aux=True)(tokenizer)
    expected = jax.grad(lambda tokenizer: picture_error(decode(tokenizer), real)[0])(tokenizer)
    assert_equal_trees(found, expected)
    assert float(value) == float(squared) == float(picture_error(decode(tokenizer), real)[0])
    np.testing.assert_allclose(gradient, 2 * (decode(tokenizer) - real) / real.size, rtol=1e-5, atol=1e-8)


def test_the_discriminator_learns_to_tell_two_grey_pictures_apart(params):
    real, fake = (jnp.full((1, 8, 8, 3), grey) for grey in (0.5, -0.5))
    optimizer = optax.adam(1e-2)

    def step(carry, _):
        trained, state = carry
        loss = lambda p: adversarial_loss(DEFINITION, p, real, fake, jnp.ones_like(fake), 1.0, jnp.array(True))  # noqa: E731
        grads, metrics = jax.grad(loss, has_aux=True)(trained)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(trained, updates), state), metrics

    start = params["discriminator"]
    _, metrics = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=100))()
    assert metrics["adversarial/discriminator"][0] > 0.5
    assert metrics["adversarial/discriminator"][-1] < 0.05
    assert metrics["adversarial/accuracy"][-1] == 1
    assert metrics["adversarial/generator"][-1] > 0.9  # decoded pictures are called that
