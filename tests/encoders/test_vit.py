"""The parts that the vision encoders share."""

import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.encoders import vit

METHODS = ("bilinear", "bicubic", "bicubic_antialias")


@pytest.mark.parametrize("method", METHODS)
def test_constant_positions_stay_constant_on_any_grid(method) -> None:
    table = jnp.full((25, 2), 3.0)
    for grid in ((5, 5), (8, 8), (3, 11), (1, 1)):
        resized = vit.resize_positions(table, *grid, method)
        assert resized.shape == (*grid, 2)
        np.testing.assert_allclose(resized, 3.0, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_positions_of_a_finer_grid_lie_between(method) -> None:
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 1)).reshape(64, 1)
    finer = vit.resize_positions(ramp, 16, 8, method)[:, 0, 0]
    # PyTorch's bicubic kernel bends straight lines a little.
    tolerance = 0.1 if method == "bicubic" else 1e-5
    np.testing.assert_allclose(finer[4:12], np.arange(16)[4:12] / 2 - 0.25, atol=tolerance)  # away from the edges
    assert np.all(np.diff(finer) > -1e-6)


def test_rotary_positions_are_relative() -> None:
    """The product of a turned query and a turned key depends on their distance alone, and lengths stay."""
    frequencies = np.tile(vit.frequencies(4, 100.0), 2)
    query, key = np.random.default_rng(0).normal(size=(2, 1, 6, 1, 8)).astype(np.float32)
    query[:], key[:] = query[:, :1], key[:, :1]
    rotary = vit.Rotary.of(np.arange(6)[:, None] * frequencies, "halves")
    products = np.einsum("bqhd,bkhd->qk", rotary(query), rotary(key))
    for distance in range(-3, 4):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rotary(query), axis=-1), np.linalg.norm(query, axis=-1), rtol=1e-5)
    assert not np.allclose(products[0, 0], products[0, 3])


def test_patches_are_squares_in_reading_order() -> None:
    image = jnp.arange(4 * 6).reshape(1, 4, 6, 1)
    cut = vit.patches(image, 2)
    assert cut.shape == (1, 2, 3, 4)
    assert cut[0, 0, 1].tolist() == [2, 3, 8, 9]
    assert (vit.patches(jnp.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0))), 2) == cut).all()
