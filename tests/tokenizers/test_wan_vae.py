"""Wan autoencoders equal the originals, whole and step by step, and take the published checkpoints whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.golden import load_golden, load_structure, relative_error

from wam_jax.tokenizers import wan_vae
from wam_jax.tokenizers.tokenizer import to_uint8
from wam_jax.tokenizers.wan_tokenizer import FrozenWanVAE, WanTokenizerConfig, frozen
from wam_jax.tokenizers.wan_vae import SIZES, START, WanVAE
from wam_jax.tokenizers.wan_vae_weights import weight_map
from wam_jax.weights import mapping

both = pytest.mark.parametrize("version", ["wan21", "wan22"])
NAMES = {"wan21": "wan21_vae", "wan22": "wan22_vae"}


@functools.cache
def golden(version):
    return load_golden(f"{version}_vae_golden")


@functools.cache
def tokenizer(version) -> FrozenWanVAE:
    size = golden(version).inputs["clip"].shape[2:4]
    return frozen(WanTokenizerConfig(f"{NAMES[version]}_debug", size), golden(version).weights)


@functools.cache
def method(version, name):
    """A method of the bound autoencoder, compiled (once for each structure of its arguments)."""
    definition = wan_vae.definition(tokenizer(version).config.vae)
    compiled = jax.jit(lambda params, *arguments: getattr(definition.bind(params), name)(*arguments))
    return functools.partial(compiled, tokenizer(version).params)


def normalized(version, latents):
    config = tokenizer(version).config.vae
    return (latents - np.float32(config.mean)) / np.float32(config.std)


@both
def test_whole_clips_equal_the_original(version):
    inputs, outputs = golden(version).inputs, golden(version).outputs
    posterior = method(version, "posterior")(inputs["clip"])
    assert relative_error(posterior.mean, outputs["mean"]) < 1e-4
    assert relative_error(posterior.log_variance, outputs["log_variance"]) < 1e-4
    decoded = method(version, "decode")(normalized(version, inputs["latents"]))
    assert relative_error(decoded, outputs["decoded"]) < 1e-4


@both
def test_streamed_equals_whole(version):
    inputs, outputs = golden(version).inputs, golden(version).outputs
    clip, latents = inputs["clip"], normalized(version, inputs["latents"])
    encode, decode = method(version, "encode_step"), method(version, "decode_step")
    encoded, decoded, encoder, decoder = [], [], START, START
    for step, frames in enumerate(np.split(clip, [1, 5], axis=1)):
        latent, encoder = encode(encoder, frames)
        pictures, decoder = decode(decoder, latents[:, step : step + 1])
        encoded.append(latent)
        decoded.append(pictures)
    assert relative_error(encoded[0], normalized(version, outputs["picture_mean"])) < 1e-4
    assert relative_error(decoded[0], outputs["decoded_picture"]) < 1e-4
    whole = normalized(version, np.asarray(method(version, "posterior")(clip).mean))
    assert relative_error(np.concatenate(encoded, 1), whole) < 1e-5
    assert relative_error(np.concatenate(decoded, 1), method(version, "decode")(latents)) < 1e-5


@pytest.mark.slow
def test_clips_of_several_cameras_are_tokenised_apart():
    inputs, outputs = golden("wan21").inputs, golden("wan21").outputs
    frozen, clip = tokenizer("wan21"), to_uint8(inputs["clip"])
    images = np.stack([clip, clip[:, ::-1]], 2)  # the second camera sees it backwards
    latents = np.asarray(jax.jit(lambda frozen, images: frozen.encode(images))(frozen, images))
    assert latents.shape == (1, 1 + (images.shape[1] - 1) // 4, 2, *frozen.config.latent_shape)
    assert relative_error(latents[:, :, 0], normalized("wan21", outputs["mean"])) < 0.05  # pixels are rounded
    first, state = frozen.start(images[:, 0])
    second, _ = frozen.step(state, images[:, 1:5])
    np.testing.assert_allclose(np.stack([first, second], 1), latents[:, :2], atol=1e-4)
    decoded = jax.jit(lambda frozen, latents: frozen.decode(latents))(
        frozen, normalized("wan21", inputs["latents"])[:, :, None]
    )
    wanted = (outputs["decoded"] + 1) * 127.5
    np.testing.assert_allclose(np.asarray(decoded, np.float32)[:, :, 0], wanted, atol=0.51)  # rounded


@both
def test_published_checkpoint_is_mapped_whole(version):
    config = SIZES[NAMES[version]]
    mapping.check(weight_map(config), wan_vae.definition(config).shapes(), load_structure(f"{version}_vae"))


@both
def test_weights_survive_the_round_trip(version):
    exported = dict(mapping.export(weight_map(tokenizer(version).config.vae), tokenizer(version).params))
    wanted = golden(version).weights.arrays
    assert exported.keys() == wanted.keys()
    assert all(np.array_equal(exported[name], wanted[name]) for name in wanted)


def test_published_statistics():
    np.testing.assert_array_equal(SIZES["wan21_vae"].mean, golden("wan21").inputs["latents_mean"])
    np.testing.assert_array_equal(SIZES["wan21_vae"].std, golden("wan21").inputs["latents_std"])
    assert len(SIZES["wan22_vae"].mean) == len(SIZES["wan22_vae"].std) == 48


@both
def test_memory_outside_of_a_step_is_the_clip_and_its_latents(version):
    vae = abstract(version)
    clip = jax.ShapeDtypeStruct((1, 41, 32, 32, 3), jnp.float32)
    largest = [
        max_elements(jax.make_jaxpr(vae.encode)(clip)),
        max_elements(jax.make_jaxpr(vae.decode)(vae_latents(vae))),
    ]
    assert max(largest) <= np.prod(clip.shape)


def max_elements(jaxpr) -> int:
    return max(np.prod(value.aval.shape, dtype=int) for equation in jaxpr.eqns for value in equation.outvars)


def vae_latents(vae: WanVAE):
    return jax.ShapeDtypeStruct(
        (1, 11, 32 // vae.config.stride, 32 // vae.config.stride, vae.config.channels), "float32"
    )


def abstract(version, dtype=jnp.float32) -> WanVAE:
    """The autoencoder with zeros for weights, for what depends on shapes alone."""
    definition = wan_vae.definition(SIZES[f"{NAMES[version]}_debug"])
    return definition.bind(jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), definition.shapes()))


def test_state_has_the_dtype_of_the_parameters_and_latents_are_float32():
    vae = abstract("wan22", jnp.bfloat16)
    latent, state = jax.eval_shape(functools.partial(vae.encode_step, START), np.zeros((1, 1, 32, 16, 3)))
    assert latent.dtype == jnp.float32
    assert {leaf.dtype for leaf in state} == {jnp.dtype(jnp.bfloat16)}
    clip = jax.eval_shape(lambda clip: vae.decode(vae.encode(clip)), np.zeros((1, 9, 32, 16, 3)))
    assert (clip.shape, clip.dtype) == ((1, 9, 32, 16, 3), jnp.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.encode(np.zeros((1, 6, 16, 16, 3))), "clip of 6 frames; the first frame and groups of 4"),
        (lambda vae: vae.encode(np.zeros((1, 1, 16, 20, 3))), "frames of 16 x 20 do not divide by 8; resize"),
        (lambda vae: vae.encode_step(START, np.zeros((1, 4, 16, 16, 3))), "a step of 4 frames; the first step takes 1"),
        (lambda vae: vae.decode(np.zeros((1, 1, 2, 2, 48))), "latents of 48 channels; this autoencoder has 4"),
        (lambda vae: vae.decode_step(START, np.zeros((1, 2, 2, 2, 4))), "a step of 2 latent frames; give it one"),
        (lambda _: WanTokenizerConfig("wan22_vae", (64, 72)), "image of 64 x 72 does not divide by 16, as wan22_vae"),
        (
            lambda _: WanTokenizerConfig("wan3_vae", (64, 64)),
            "video autoencoder 'wan3_vae' is unknown .has: wan21_vae",
        ),
    ],
)
def test_errors_name_the_way_out(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(abstract("wan21"))
