"""MiniLM-L6 equals the original, and encodes an instruction the same whatever stands beside it."""

import pathlib

import jax
import numpy as np
import pytest

from wam_jax import assets
from wam_jax.encoders import minilm

GOLDEN = (
    pathlib.Path(__file__).parents[1] / "parity" / "minilm_golden.npz"
)  # written by make_minilm_golden.py beside it


@pytest.fixture(scope="module", autouse=True)
def weights():
    try:
        assets.find(minilm.ASSET)
    except assets.AssetMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def relative_error(ours, reference) -> float:
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def cosine(a, b) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_token_ids_equal_the_original(golden):
    ids = minilm.text_encoder().tokenize(golden["sentences"].tolist())
    assert [len(tokens) for tokens in ids] == golden["lengths"].tolist()
    assert np.concatenate(ids).tolist() == golden["ids"].tolist()


def test_hidden_states_equal_the_original(golden):
    features, mask = minilm.text_encoder().encode(golden["sentences"].tolist(), max_tokens=20)
    for sentence, reference in enumerate(np.split(golden["hidden"], np.cumsum(golden["lengths"])[:-1])):
        assert relative_error(features[sentence][mask[sentence]], reference) < 1e-4


def test_weights_fill_the_module_exactly():
    shapes = jax.tree.map(lambda array: (array.shape, str(array.dtype)), minilm.load())
    assert shapes == jax.tree.map(lambda array: (array.shape, str(array.dtype)), minilm.definition().shapes())


def test_features_depend_neither_on_neighbours_nor_on_padding():
    instructions = ["lift the red cube", "open the drawer", "put the small green block on the blue plate"] * 4
    instructions = [f"{instruction} {index}" for index, instruction in enumerate(instructions)]
    together, mask = minilm.text_encoder().encode(instructions, max_tokens=24)
    for row, instruction in enumerate(instructions):
        minilm.text_encoder()._memory.clear()
        alone, alone_mask = minilm.text_encoder().encode([instruction])
        np.testing.assert_allclose(together[row][mask[row]], alone[0][alone_mask[0]], atol=1e-5)


def test_padding_of_the_model_itself_changes_nothing():
    tokens = np.asarray(minilm.text_encoder().tokenize(["lift the red cube"]), np.int32)
    count = tokens.shape[1]
    short = minilm.apply(minilm.load(), tokens, np.ones((1, count), bool))
    padded = np.pad(tokens, ((0, 0), (0, 9)), constant_values=2345)
    long = minilm.apply(minilm.load(), padded, np.arange(count + 9)[None] < count)
    np.testing.assert_allclose(long[:, :count], short, atol=1e-5)
    assert not np.asarray(long[:, count:]).any()


def test_padding_is_zero_and_masked_out():
    features, mask = minilm.text_encoder().encode(["lift the red cube", "go"])
    assert features.shape == (2, 16, 384)
    assert mask.sum(1).tolist() == [6, 3]
    assert not features[~mask].any()


def test_repeated_calls_and_repeated_instructions_are_bitwise_equal():
    first = minilm.text_encoder().encode(["lift the red cube", "go", "lift the red cube"]).features
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(
        first, minilm.text_encoder().encode(["lift the red cube", "go", "lift the red cube"]).features
    )


def test_colour_words_change_token_features():
    features, mask = minilm.text_encoder().encode(
        ["pick up the red cube", "pick up the blue cube", "Pick up the RED cube"]
    )
    tokens = minilm.text_encoder().tokenize(["pick up the red cube"])[0]
    colour = 4
    assert mask[0].sum() == len(tokens)
    red, blue = features[0, colour], features[1, colour]
    same_word = features[0, 1], features[1, 1]
    assert cosine(red, blue) < 0.9
    assert cosine(red, blue) < cosine(*same_word)
    np.testing.assert_array_equal(features[0], features[2])  # letters' case is not meaning


def test_paraphrases_are_nearer_than_unrelated_instructions():
    sentences = ["lift the red cube", "raise the red block", "close the drawer", "shut the drawer", "stir the soup"]
    embedding = minilm.pooled(sentences)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, atol=1e-6)
    similarity = embedding @ embedding.T
    for one, two in ((0, 1), (2, 3)):
        others = [column for column in range(len(sentences)) if column not in (one, two)]
        assert similarity[one, two] > similarity[one, others].max() + 0.2


def test_pooled_opposites_are_nearly_parallel_but_their_tokens_are_not():
    sentences = ["open the top drawer", "close the top drawer"]
    embedding = minilm.pooled(sentences)
    features = minilm.text_encoder().encode(sentences).features
    assert embedding[0] @ embedding[1] > 0.85
    assert cosine(features[0, 1], features[1, 1]) < embedding[0] @ embedding[1] - 0.1
