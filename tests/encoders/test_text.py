"""Sentences in, features and a mask out: independent of neighbours, remembered, neither cut nor overlong."""

import numpy as np
import pytest
import tokenizers

from wam_jax.encoders import text

WORDS = ["<pad>", "</s>", "<unk>", "lift", "the", "red", "blue", "cube", "drawer", "open"]
WIDTH = 3


@pytest.fixture
def tokenizer_file(tmp_path):
    """Ten words, sentences that end with </s>; asks for a cut and for padding, as published files do."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


@pytest.fixture
def encoder(tokenizer_file):
    """An encoder whose features are the ids, and the shapes that it ran at."""
    runs = []

    def compute(ids, mask):
        runs.append(ids.shape)
        assert mask.any(1).all()  # a row without any token would attend to nothing
        return np.repeat(np.where(mask, ids, 0)[..., None], WIDTH, axis=-1)

    tokenize = text.open_tokenizer(tokenizer_file)
    return text.TextEncoder(tokenize, compute, WIDTH, lengths=(4, 8), batch_size=2, remembered=3), runs


def test_the_tokenizer_neither_pads_nor_cuts(tokenizer_file):
    assert text.open_tokenizer(tokenizer_file)(["open", "lift the red cube"]) == [[9, 1], [3, 4, 5, 7, 1]]


def test_rows_are_in_the_order_of_the_sentences_and_padding_is_zero(encoder):
    features, mask = encoder[0].encode(["lift the red cube", "open", "open the drawer", "open"], max_tokens=8)
    assert features.shape == (4, 8, WIDTH)
    assert features.dtype == np.float32
    assert mask.sum(1).tolist() == [5, 2, 4, 2]
    assert features[..., 0].astype(int).tolist() == [
        [3, 4, 5, 7, 1, 0, 0, 0],
        [9, 1, 0, 0, 0, 0, 0, 0],
        [9, 4, 8, 1, 0, 0, 0, 0],
        [9, 1, 0, 0, 0, 0, 0, 0],
    ]


def test_it_runs_at_few_shapes(encoder):
    encoder[0].encode(["open", "lift", "cube", "lift the red cube"], max_tokens=8)
    assert encoder[1] == [(2, 4), (2, 4), (2, 8)]


def test_what_was_encoded_is_remembered_until_it_is_the_oldest(encoder):
    encode, runs = encoder[0].encode, encoder[1]
    encode(["open", "drawer"]).features[:] = 0  # the caller's copy
    assert encode(["drawer", "open", "drawer"]).features.any()
    assert len(runs) == 1
    encode(["red", "blue", "drawer"])
    encode(["drawer"])
    assert len(runs) == 2
    encode(["open"])
    assert len(runs) == 3


def test_long_sentences_grow_the_padding_and_it_is_said_once(encoder, capsys):
    text._log_growth.cache_clear()
    for _ in range(2):
        assert encoder[0].encode(["lift the red cube", "open"], max_tokens=4).features.shape == (2, 8, WIDTH)
    said = "text: an instruction exceeds 4 tokens; padding to 8 (max_tokens=8 keeps one length)"
    assert capsys.readouterr().err.count(said) == 1


def test_sentences_beyond_the_longest_are_refused(encoder):
    with pytest.raises(ValueError, match=r"^instruction 'red red .*'… has 9 tokens, at most 8 fit; shorten it$"):
        encoder[0].encode(["red " * 8])


def test_nothing_to_encode_gives_no_rows(encoder):
    features, mask = encoder[0].encode([], max_tokens=5)
    assert features.shape == (0, 5, WIDTH)
    assert mask.shape == (0, 5)
