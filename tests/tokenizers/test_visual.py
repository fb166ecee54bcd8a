"""Pixels survive the round trips, patches keep their places, and frozen latents are normalised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.tokenizers.visual import TokenizerConfig, define_tokenizer, latent_statistics, to_float, to_uint8

CONFIG = TokenizerConfig(
    image_size=(8, 12), patch_size=4, channels=3, width=16, num_heads=2, encoder_layers=1, decoder_layers=1
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), np.uint8)


@pytest.fixture(scope="module")
def params():
    return define_tokenizer(CONFIG).init(jax.random.key(0))


def test_every_pixel_value_survives_the_round_trip():
    values = jnp.arange(256, dtype=jnp.uint8)
    floats = to_float(values)
    assert (float(floats[0]), float(floats[-1])) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(floats), values)


def test_values_outside_the_range_are_clipped():
    np.testing.assert_array_equal(to_uint8(jnp.array([-3.0, 3.0])), [0, 255])


@pytest.fixture(scope="module")
def pass_through():
    """A tokenizer without layers whose projections are slices of the identity: patches go in, and out, as they are."""
    config = TokenizerConfig(
        image_size=(8, 12), patch_size=2, channels=12, width=12, num_heads=2, encoder_layers=0, decoder_layers=0
    )
    definition = define_tokenizer(config)
    params = jax.tree.map(lambda shape: jnp.zeros(shape.shape), definition.shapes())
    for name in ("patch_in", "latent_out", "latent_in", "patch_out"):
        params[name]["kernel"] = jnp.eye(12)
    for name in ("encoder_norm", "decoder_norm"):
        params[name]["scale"] = jnp.ones(12)
    return definition.bind(params)


def standardized_patches(images: np.ndarray) -> np.ndarray:
    """Each 2 x 2 patch with mean 0 and variance 1, what two layer norms leave of it; by loops."""
    out = np.empty_like(images)
    for row in range(0, images.shape[1], 2):
        for column in range(0, images.shape[2], 2):
            patch = images[:, row : row + 2, column : column + 2]
            mean, std = patch.mean((1, 2, 3), keepdims=True), patch.std((1, 2, 3), keepdims=True)
            out[:, row : row + 2, column : column + 2] = (patch - mean) / std
    return out


def test_patches_come_back_in_their_places(pass_through, images):
    pixels = np.asarray(to_float(images))
    decoded = pass_through.decode(pass_through.encode(jnp.asarray(pixels)))
    np.testing.assert_allclose(decoded, standardized_patches(pixels), atol=1e-3)


def test_frozen_latents_have_mean_0_and_variance_1(params, images):
    frozen = latent_statistics(CONFIG, params, images)
    latents = np.asarray(frozen.encode(jnp.asarray(images)))
    assert latents.shape == (6, *CONFIG.latent_shape) == (6, 2, 3, 3)
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-3)


def test_leading_dimensions_are_batch_dimensions(params, images):
    frozen = latent_statistics(CONFIG, params, images)
    flat = frozen.encode(jnp.asarray(images))
    nested = frozen.encode(jnp.asarray(images.reshape(3, 2, *images.shape[1:])))
    np.testing.assert_allclose(nested.reshape(flat.shape), flat, atol=1e-5)
    assert frozen.decode(nested).shape == (3, 2, 8, 12, 3)


def test_image_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"^image of 8 x 10 does not divide by tokenizer.patch_size=4$"):
        TokenizerConfig(image_size=(8, 10), patch_size=4)
