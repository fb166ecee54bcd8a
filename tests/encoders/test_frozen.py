"""A frozen encoder: no gradient, a dtype of its own, pictures prepared as the original's were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.golden import load_golden, relative_error
from PIL import Image

from wam_jax.encoders import dinov3, vjepa2
from wam_jax.encoders.frozen import FrozenEncoder, Preprocessing
from wam_jax.encoders.vit import LayersConfig

BIASES = frozenset({"query", "value"})
CONFIG = dinov3.Config(LayersConfig(32, 2, 2, 48, epsilon=1e-5, layer_scale=True, biases=BIASES), 4, 2)
IMAGES = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), np.uint8)
SMALL = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)


def encoder(dtype=jnp.float32) -> FrozenEncoder:
    frozen = dinov3.frozen(CONFIG, load_golden("dinov3").weights, dtype)
    return FrozenEncoder(frozen.params, frozen.definition, SMALL)


def test_no_gradient_reaches_its_arrays_or_what_is_before_it() -> None:
    def loss(frozen: FrozenEncoder, shift: jax.Array) -> jax.Array:
        return (frozen(IMAGES + shift) ** 2).sum() * shift

    arrays, shift = jax.jit(jax.grad(loss, (0, 1)))(encoder(), jnp.float32(1.0))
    assert all(not leaf.any() for leaf in jax.tree.leaves(arrays))
    energy = jax.jit(loss)(encoder(), jnp.float32(1.0))
    assert energy > 1
    np.testing.assert_allclose(shift, energy, rtol=1e-5)  # by the last factor alone


def test_bfloat16_is_what_it_computes_in_and_features_are_float32() -> None:
    exact, rough = encoder(), encoder(jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough.params)} == {jnp.dtype(jnp.bfloat16)}
    run = jax.jit(lambda frozen, images: frozen(images))
    assert run(rough, IMAGES).dtype == jnp.float32
    assert 1e-4 < relative_error(run(rough, IMAGES), run(exact, IMAGES)) < 3e-2


@pytest.mark.parametrize(("resampling", "filter"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("size", [(5, 7), (20, 9)])
def test_pictures_are_resized_as_pillow_does(resampling: str, filter: int, size: tuple[int, int]) -> None:
    prepared = Preprocessing(size, (0.0,) * 3, (1.0,) * 3, resampling)(IMAGES)
    pillow = np.asarray(Image.fromarray(IMAGES[0]).resize(size[::-1], filter)) / 255
    np.testing.assert_allclose(prepared[0], pillow, atol=1.01 / 255)  # Pillow rounds, after each axis


def test_colours_are_normalised_and_clips_are_prepared_frame_by_frame() -> None:
    prepare = Preprocessing((8, 12), (0.5, 0.25, 0.0), (0.5, 0.25, 0.1), "bilinear")
    black_and_white = np.stack([np.zeros((8, 12, 3), np.uint8), np.full((8, 12, 3), 255, np.uint8)])
    assert np.allclose(prepare(black_and_white)[:, 0, 0], [[-1, -1, 0], [1, 3, 10]])
    clip = np.stack([IMAGES, IMAGES[:, ::-1]], axis=1)
    prepare = vjepa2.preprocessing(vjepa2.SIZES["vitl_256"])
    assert prepare(clip).shape == (1, 2, 256, 256, 3)
    np.testing.assert_allclose(prepare(clip)[:, 0], prepare(IMAGES), atol=1e-6)
