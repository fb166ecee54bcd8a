"""Pixels survive the round trips, patches keep their places, and frozen latents are normalised."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.tokenizers.tokenizer import to_float, to_uint8
from wam_jax.tokenizers.visual import (
    FrozenTokenizer,
    TokenizerConfig,
    define_tokenizer,
    encode_in_parts,
    latent_statistics,
)

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
    decoded = pass_through.decode(pass_through.encode(jnp.asarray(pixels)[:, None]))
    np.testing.assert_allclose(decoded[:, 0], standardized_patches(pixels), atol=1e-3)


def test_frozen_latents_have_mean_0_and_variance_1(params, images):
    frozen = latent_statistics(CONFIG, params, images[:, None, None])
    latents = np.asarray(frozen.encode(jnp.asarray(images)[:, None, None]))
    assert latents.shape == (6, 1, 1, *CONFIG.latent_shape) == (6, 1, 1, 2, 3, 3)
    np.testing.assert_allclose(latents.mean((0, 1, 2, 3, 4)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2, 3, 4)), 1, atol=1e-3)


def test_many_windows_are_encoded_a_few_at_a_time(params, images, monkeypatch):
    """What that holds in memory does not grow with them, and their latents are those of one call."""
    frozen = FrozenTokenizer(params, jnp.zeros(3), jnp.ones(3), CONFIG)
    many = np.tile(images, (3, 1, 1, 1))[:, None, None]
    expected, encode, sizes = jax.jit(frozen.encode)(many), FrozenTokenizer.encode, []
    monkeypatch.setattr(FrozenTokenizer, "encode", lambda self, x: sizes.append(len(x)) or encode(self, x))
    np.testing.assert_allclose(encode_in_parts(frozen, many), expected, atol=1e-5)
    assert sizes == [8, 2]  # of 18; traced once each


def test_without_a_window_frames_and_cameras_are_tokenised_apart(params, images):
    frozen = latent_statistics(CONFIG, params, images[:, None, None])
    apart = frozen.encode(jnp.asarray(images)[:, None, None])
    together = frozen.encode(jnp.asarray(images).reshape(1, 3, 2, *images.shape[1:]))
    np.testing.assert_allclose(together.reshape(apart.shape), apart, atol=1e-5)
    assert frozen.decode(together).shape == (1, 3, 2, 8, 12, 3)


# -- clips ------------------------------------------------------------------------------------------------------------

CLIPS = TokenizerConfig(
    image_size=(8, 12), patch_size=4, tubelet=2, window=2, channels=3, width=16, num_heads=2,
    encoder_layers=2, decoder_layers=1, projection="attention", head="convolution",
)  # fmt: skip


@pytest.fixture(scope="module")
def clip_tokenizer() -> FrozenTokenizer:
    params = define_tokenizer(CLIPS).init(jax.random.key(0))
    return FrozenTokenizer(params, jnp.zeros(3), jnp.ones(3), CLIPS)


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """[B, I, V, H, W, 3]: the first image and three tubelets."""
    return np.random.default_rng(1).integers(0, 256, (2, 7, 2, 8, 12, 3), np.uint8)


@pytest.fixture(scope="module")
def encode(clip_tokenizer):
    return jax.jit(lambda images: clip_tokenizer.encode(images))


def test_a_tubelet_is_one_frame(clip_tokenizer, encode, clips):
    latents = encode(clips)
    assert latents.shape == (2, 4, 2, 2, 3, 3)
    assert clip_tokenizer.decode(latents).shape == clips.shape


@pytest.mark.parametrize("image", [1, 3, 6])
def test_a_later_image_never_changes_an_earlier_latent(encode, clips, image):
    changed = clips.copy()
    changed[:, image] = 255 - changed[:, image]
    before, after = np.asarray(encode(clips)), np.asarray(encode(changed))
    frame = (image + 1) // 2  # the frame that holds it
    np.testing.assert_array_equal(after[:, :frame], before[:, :frame])  # bit for bit
    assert (np.abs(after[:, frame] - before[:, frame]).max((1, 2, 3, 4)) > 1e-3).all()


def test_an_image_before_the_window_reaches_a_latent_through_the_layers_alone(clips):
    config = dataclasses.replace(CLIPS, encoder_layers=1)  # a window of 2 in one layer: one frame back
    frozen = FrozenTokenizer(define_tokenizer(config).init(jax.random.key(0)), jnp.zeros(3), jnp.ones(3), config)
    encode, changed = jax.jit(lambda images: frozen.encode(images)), clips.copy()
    changed[:, 0] = 255 - changed[:, 0]
    difference = np.abs(np.asarray(encode(changed)) - np.asarray(encode(clips))).max((0, 2, 3, 4, 5))
    assert (difference[:2] > 1e-3).all()
    np.testing.assert_array_equal(difference[2:], 0)


def test_a_clip_that_comes_frame_by_frame_has_the_latents_of_the_whole(clip_tokenizer, encode, clips):
    step = jax.jit(lambda state, images: clip_tokenizer.step(state, images))
    first, state = clip_tokenizer.start(jnp.asarray(clips[:, 0]))
    latents = [first]
    for begin in (1, 3, 5):
        frame, state = step(state, clips[:, begin : begin + 2])
        latents.append(frame)
    np.testing.assert_allclose(jnp.stack(latents, 1), encode(clips), atol=1e-5)


def test_a_later_latent_never_changes_an_earlier_image(clip_tokenizer, encode, clips):
    decode = jax.jit(lambda latents: clip_tokenizer.decode(latents))
    latents = np.array(encode(clips))
    before = np.asarray(decode(latents))
    latents[:, 2] += 1.0
    after = np.asarray(decode(latents))
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert np.abs(after[:, 3:5].astype(int) - before[:, 3:5]).max() > 0


def test_latents_of_the_attention_projection_are_normalised(encode, clips):
    latents = np.asarray(encode(clips))
    np.testing.assert_allclose(latents.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(latents.std(-1), 1, atol=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tubelet": 0}, "tokenizer.tubelet must be 1 or more, got 0"),
        ({"projection": "pool"}, r"tokenizer.projection='pool' is unknown \(has: linear, attention\)"),
        ({"head": "pixel"}, r"tokenizer.head='pixel' is unknown \(has: linear, convolution\)"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        dataclasses.replace(CLIPS, **fields)


def test_a_clip_of_another_length_is_refused(clip_tokenizer, clips):
    with pytest.raises(ValueError, match=r"^clip of 6 pictures; with tubelet=2 it takes 1 \+ 2 n$"):
        clip_tokenizer.encode(jnp.asarray(clips[:, :6]))


def test_image_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"^image of 8 x 10 does not divide by tokenizer.patch_size=4$"):
        TokenizerConfig(image_size=(8, 10), patch_size=4)
