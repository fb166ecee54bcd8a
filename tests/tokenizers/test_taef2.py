"""TAEF2 equals the original, with random weights and the published ones, and tokenises clips picture by picture."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from parity.golden import Arrays, load_golden, load_structure, relative_error

from data_pipelines.rlds import RldsStore
from wam_jax import assets
from wam_jax.tokenizers import taef2_autoencoder
from wam_jax.tokenizers.published import load_published
from wam_jax.tokenizers.taef2 import FrozenTAEF2, TAEF2Config, load_params, load_taef2
from wam_jax.tokenizers.tokenizer import to_float
from wam_jax.weights import mapping

SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "taef2"
BRIDGE = SHARED / "data" / "bridge_rlds" / "bridge_dataset" / "1.0.0"
PARTS = ("encoder", "decoder")

published = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the published weights are not at ../shared/weights/taef2")
golden = functools.cache(lambda: load_golden("taef2_golden"))


def of_part(tensors, part):
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


@functools.cache
def method(channels, width, name):
    definition = taef2_autoencoder.definition(channels, width)
    return jax.jit(lambda params, x: getattr(definition.bind(params), name)(x))


@functools.cache
def small():
    """Of the random weights."""
    encoder, decoder = (Arrays(of_part(golden().weights.arrays, part)) for part in PARTS)
    return load_params(encoder, decoder, taef2_autoencoder.definition(4, 8).shapes())


def test_random_weights_give_what_the_original_gives():
    inputs, outputs = golden().inputs, golden().outputs
    latents = method(4, 8, "encode")(small(), 2 * inputs["random/pictures"] - 1)
    assert relative_error(latents, outputs["random/latents"]) < 1e-4
    pictures = method(4, 8, "decode")(small(), inputs["random/latents"])
    assert relative_error((pictures + 1) / 2, outputs["random/pictures"]) < 1e-4


@pytest.mark.parametrize("part", PARTS)
def test_published_checkpoints_are_mapped_whole(part):
    ours, theirs = taef2_autoencoder.definition().shapes()[part], of_part(load_structure("taef2"), part)
    mapping.check(taef2_autoencoder.weight_map()[part], ours, theirs)


@pytest.mark.parametrize("part", PARTS)
def test_weights_survive_the_round_trip(part):
    exported = dict(mapping.export(taef2_autoencoder.weight_map()[part], small()[part]))
    wanted = of_part(golden().weights.arrays, part)
    assert exported.keys() == wanted.keys()
    assert all(np.array_equal(exported[name], wanted[name]) for name in wanted)


@functools.cache
def encode():
    return jax.jit(lambda frozen, images: frozen.encode(images))


@functools.cache
def decode():
    return jax.jit(lambda frozen, latents: frozen.decode(latents))


@functools.cache
def random() -> FrozenTAEF2:
    rng = np.random.default_rng(0)
    shapes = taef2_autoencoder.definition().shapes()
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.06, leaf.shape).astype(np.float32), shapes)
    return FrozenTAEF2(params, TAEF2Config((16, 24)))


def test_every_picture_of_a_clip_is_tokenised_apart_from_the_others():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 16, 24, 3), np.uint8)
    latents = np.asarray(encode()(random(), images))
    assert latents.shape == (2, 3, 2, *random().config.latent_shape)
    assert latents.dtype == np.float32
    other = images.copy()
    other[1, 2, 0] = 255 - other[1, 2, 0]
    changed = np.any(np.asarray(encode()(random(), other)) != latents, (-1, -2, -3))
    np.testing.assert_array_equal(np.argwhere(changed), [(1, 2, 0)])
    pictures = np.asarray(decode()(random(), latents))
    assert (pictures.shape, pictures.dtype) == (images.shape, np.uint8)
    again = np.asarray(decode()(random(), np.where(changed[..., None, None, None], -latents, latents)))
    np.testing.assert_array_equal(np.argwhere(np.any(again != pictures, (-1, -2, -3))), [(1, 2, 0)])


def test_a_clip_that_goes_on_has_the_latents_of_the_whole():
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 2, 16, 24, 3), np.uint8)
    step = jax.jit(lambda frozen, state, images: frozen.step(state, images))
    latent, state = jax.jit(lambda frozen, images: frozen.start(images))(random(), images[:, 0])
    streamed = [latent]
    for index in (1, 2):
        assert jax.tree.leaves(state) == []
        latent, state = step(random(), state, images[:, index : index + 1])
        streamed.append(latent)
    np.testing.assert_allclose(np.stack(streamed, 1), encode()(random(), images), atol=1e-5)


def test_what_is_saved_of_it_finds_it_again():
    config = TAEF2Config((64, 96))
    assert (config.latent_shape, config.tubelet, config.temporal) == ((8, 12, 32), 1, False)
    assert json.loads(json.dumps(dataclasses.asdict(config))) == {"image_size": [64, 96], "name": "taef2"}
    assert not FrozenTAEF2.saved


@pytest.fixture
def own_assets(monkeypatch):
    """Sets the user's own folder of assets."""
    assets.find.cache_clear()
    yield lambda folder: monkeypatch.setenv("WAM_ASSETS", str(folder))
    assets.find.cache_clear()


@published
def test_it_is_found_by_name_in_the_users_folder_and_verified(own_assets):
    own_assets(WEIGHTS.parent)
    found = load_published("taef2", (64, 64))
    assert found.config == TAEF2Config((64, 64))
    jax.tree.map(np.testing.assert_array_equal, found.params, load_taef2((64, 64), WEIGHTS).params)


def test_where_it_is_missing_the_command_that_gets_it_is_named(own_assets, tmp_path):
    own_assets(tmp_path)
    message = (
        r"^asset 'taef2' is not on this machine; get it with: git clone \S+/madebyollin/taesd; "
        r"git -C taesd checkout 5cccb12\w+ && python -m wam_jax\.weights\.convert taesd/taef2_encoder\.pth "
        r'taesd/taef2_decoder\.pth "\$WAM_ASSETS/taef2"$'
    )
    with pytest.raises(assets.AssetMissing, match=message):
        load_published("taef2", (64, 64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TAEF2Config((64, 60)), "image of 64 x 60 does not divide by 8, as taef2 needs$"),
        (
            lambda: random().encode(np.zeros((1, 1, 1, 16, 16, 3), np.uint8)),
            "images of 16 x 16; this tokenizer is for 16 x 24: resize them, or load it for theirs$",
        ),
        (
            lambda: load_published("taef1", (64, 64)),
            r"tokenizer 'taef1' is not a published one \(has: wan21_vae, wan22_vae, taef2\); set tokenizer\.name$",
        ),
    ],
)
def test_errors_name_the_way_out(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@published
def test_published_weights_give_what_the_original_gives():
    params = load_taef2((48, 64), WEIGHTS).params
    outputs = golden().outputs
    latents = method(32, 64, "encode")(params, to_float(golden().inputs["published/pictures"]))
    assert relative_error(latents, outputs["published/latents"]) < 1e-4
    pictures = method(32, 64, "decode")(params, outputs["published/latents"])
    assert relative_error((pictures + 1) / 2, outputs["published/pictures"]) < 1e-3  # kept in float16


@published
@pytest.mark.skipif(not BRIDGE.is_dir(), reason="the Bridge sample is not at ../shared/data")
def test_bridge_frames_come_back_and_their_latents_have_about_unit_variance(tmp_path):
    """All 750 frames: 24.1 dB on average, and the statistics exactly."""
    store = RldsStore.open(BRIDGE, "train", tmp_path, build=True)
    cameras = ("image_0", "image_1", "image_2")
    frames = [[store.read_frames(episode, camera, [5])[0] for camera in cameras] for episode in range(0, 25, 6)]
    images = np.stack(frames)[None]
    tokenizer = load_taef2(images.shape[-3:-1], WEIGHTS)
    latents = np.asarray(encode()(tokenizer, images))
    assert 0.9 < latents.std() < 1.1
    assert np.abs(latents.mean((0, 1, 2, 3, 4))).max() < 0.3
    error = (np.asarray(decode()(tokenizer, latents), np.float64) - images) / 255
    assert (-10 * np.log10((error**2).mean((-1, -2, -3)))).mean() > 23.5
