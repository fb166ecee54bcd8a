"""Encoders by name: found as assets or at a path, refused where they do not fit."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from parity.golden import load_golden, relative_error

from wam_jax import assets
from wam_jax.encoders import registry, siglip2
from wam_jax.encoders.vit import LayersConfig
from wam_jax.weights.mapping import WeightsMismatch

NAME = "siglip2_base_patch16_224"
LAYERS = LayersConfig(24, 2, 2, 40, activation="gelu_tanh")

run = jax.jit(lambda encoder, inputs: encoder(inputs))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Golden weights in the place of the published ones; the registry and the module think their sizes published."""
    (tmp_path / NAME).mkdir()
    safetensors.numpy.save_file(load_golden("siglip2").weights.arrays, tmp_path / NAME / "model.safetensors")
    words = {"<pad>": 0, "<eos>": 1, "push": 2, "the": 3, "button": 4, "?": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / NAME / "tokenizer.json"))
    vision = siglip2.VisionConfig(LAYERS, 4, 18)
    text = siglip2.TextConfig(dataclasses.replace(LAYERS, width=32), 30, 64)
    for name, config in ((NAME, vision), (f"{NAME}_text", text)):
        monkeypatch.setitem(registry.ENCODERS, name, dataclasses.replace(registry.ENCODERS[name], config=config))
    monkeypatch.setitem(siglip2.TEXT_SIZES, "base_patch16_224", text)
    monkeypatch.setenv("WAM_ASSETS", str(tmp_path))
    assets.find.cache_clear()
    yield tmp_path / NAME
    assets.find.cache_clear()


def test_an_encoder_is_found_as_an_asset_or_at_a_path(folder) -> None:
    found, given = registry.load(NAME), registry.load(NAME, np.float32, folder / "model.safetensors")
    assert (found.dtype, given.dtype) == (jax.numpy.bfloat16, np.float32)
    assert found.preprocessing.size == (18, 18)
    images = np.random.default_rng(0).integers(0, 256, (1, 18, 18, 3), np.uint8)
    assert relative_error(run(found, images), run(given, images)) < 3e-2


def test_both_towers_come_from_one_file(folder) -> None:
    golden = load_golden("siglip2")
    text = registry.load(f"{NAME}_text", np.float32)
    assert relative_error(run(text, golden.inputs["text"]), golden.outputs["text"]) < 1e-5


def test_sentences_are_lowercase_ended_and_padded_as_in_training(folder) -> None:
    encode = siglip2.text_encoder.__wrapped__("base_patch16_224", np.float32).encode
    features, mask = encode(["Push the BUTTON", "the"])
    assert mask.sum(1).tolist() == [4, 2]
    ids = np.zeros((1, 64), np.int32)
    ids[0, :4] = (2, 3, 4, 1)
    wanted = run(registry.load(f"{NAME}_text", np.float32), ids)[0, :4]
    assert relative_error(features[0, :4], wanted) < 1e-5
    assert not features[0, 4:].any()


def test_another_size_is_refused(folder) -> None:
    with pytest.raises(WeightsMismatch, match="Is this the checkpoint of this model, at this size"):
        registry.load("siglip2_large_patch16_256", path=folder / "model.safetensors")


def test_an_unknown_name_and_an_unregistered_asset_are_said_to_be_so(monkeypatch) -> None:
    with pytest.raises(KeyError, match="encoder 'dinov4' is unknown"):
        registry.load("dinov4")
    monkeypatch.setattr(assets, "ASSETS", {})
    with pytest.raises(KeyError, match="no registered asset; give their path"):
        registry.load("dinov2_base")
