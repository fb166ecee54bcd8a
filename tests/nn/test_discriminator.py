"""The patch discriminator has the published sizes, sees patches, and judges each picture by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.nn.convolution import Conv, GroupNorm
from wam_jax.nn.discriminator import DiscriminatorConfig, define_discriminator
from wam_jax.nn.module import define

SMALL = DiscriminatorConfig(width=4, halvings=2, groups=2)


def pictures(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def grid(config: DiscriminatorConfig, *size: int) -> tuple[int, ...]:
    """The shape of the logits of two pictures; nothing is computed."""
    definition = define_discriminator(config)
    run = lambda params, x: definition.bind(params)(x)  # noqa: E731
    return jax.eval_shape(run, definition.shapes(), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)).shape


def test_sizes_are_those_of_vqgan():
    config = DiscriminatorConfig()
    assert config.channels() == [3, 64, 128, 256, 512]
    assert grid(config, 256, 256) == (2, 30, 30)
    count = sum(leaf.size for leaf in jax.tree.leaves(define_discriminator(config).shapes()))
    without_biases = 2_765_633  # before normalisation, VQGAN's convolutions have none
    assert count == without_biases + 128 + 256 + 512


@pytest.mark.parametrize(
    ("halvings", "size", "logits"), [(2, (64, 64), (14, 14)), (3, (64, 51), (6, 4)), (2, (12, 15), (1, 1))]
)
def test_small_pictures_have_logits_too(halvings, size, logits):
    assert grid(DiscriminatorConfig(width=8, halvings=halvings, groups=4), *size) == (2, *logits)


def test_every_parameter_names_one_axis_a_dimension():
    definition = define_discriminator(SMALL)
    ranks = jax.tree.map(lambda shape, names: len(shape.shape) - len(names), definition.shapes(), definition.axes())
    assert set(jax.tree.leaves(ranks)) == {0}


@pytest.mark.parametrize(("halvings", "patch"), [(1, 16), (2, 34)])
def test_a_logit_sees_a_patch(halvings, patch, monkeypatch):
    """But for the statistics of normalisation, which are the whole picture's."""
    monkeypatch.setattr(GroupNorm, "__call__", lambda self, x: x)
    definition = define_discriminator(DiscriminatorConfig(width=2, halvings=halvings, groups=2))
    judge = definition.bind(definition.init(jax.random.key(0)))
    middle = 48 // 2**halvings // 2 - 1
    seen = jax.jit(jax.grad(lambda x: judge(x)[0, middle, middle]))(pictures(1, 48, 48, 3))
    for axis in (1, 2):
        found = np.flatnonzero(np.abs(seen).sum(tuple({0, 1, 2, 3} - {axis})))
        assert found[-1] + 1 - found[0] == patch


def test_a_picture_is_judged_by_itself():
    definition = define_discriminator(SMALL)
    params, batch = definition.init(jax.random.key(0)), pictures(3, 16, 16, 3)
    judge = jax.jit(lambda x: definition.bind(params)(x))
    np.testing.assert_allclose(judge(batch)[1:2], judge(jnp.broadcast_to(batch[1:2], batch.shape))[:1], atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_a_convolution_is_the_same_on_every_platform(stride, size, monkeypatch):
    definition = define(lambda rngs: Conv(3, 5, rngs, size=4, stride=stride, product=True))
    conv, x = definition.bind(definition.init(jax.random.key(0))), pictures(2, *size, 3)
    here = conv(x)
    monkeypatch.setattr("wam_jax.nn.convolution.ambient_platform", lambda: "tpu")
    np.testing.assert_allclose(here, conv(x), atol=1e-5)


def test_group_norm_equals_its_formula():
    x = np.asarray(pictures(2, 3, 4, 6)) * 3 + 1
    expected = np.empty_like(x)
    for picture in range(2):
        for group in range(0, 6, 3):
            values = x[picture, :, :, group : group + 3]
            expected[picture, :, :, group : group + 3] = (values - values.mean()) / values.std()
    norm = define(lambda rngs: GroupNorm(6, 2)).bind({"scale": jnp.arange(6.0), "bias": jnp.ones(6)})
    np.testing.assert_allclose(norm(jnp.asarray(x)), np.arange(6) * expected + 1, atol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"^discriminator.halvings=0 is too few; the least is 1$"):
        DiscriminatorConfig(halvings=0)
    with pytest.raises(
        ValueError, match=r"^discriminator.groups=32 does not divide the 16 channels of the second conv"
    ):
        DiscriminatorConfig(width=8)
    with pytest.raises(
        ValueError, match=r"^picture of 16 x 11 is too small .*halvings=2, which needs 12 pixels a side"
    ):
        grid(SMALL, 16, 11)
