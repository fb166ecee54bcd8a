"""Encoding and decoding are inverses, in numpy and in jax, and survive JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipelines.transforms import ActionCodec, Affine

_CUMULATIVE = np.array([True, False, True])
_CODEC = ActionCodec(_CUMULATIVE, Affine(np.array([0.5, -1, 0], np.float32), np.array([2, 0.25, 1], np.float32)))
_CHUNKS = hnp.arrays(np.float32, (2, 5, 3), elements=st.floats(-10, 10, width=32))


@given(_CHUNKS)
def test_decode_inverts_encode(chunk: np.ndarray) -> None:
    np.testing.assert_allclose(_CODEC.decode(_CODEC.encode(chunk)), chunk, atol=2e-5)


def test_encode_is_displacement_since_the_start_then_affine() -> None:
    chunk = np.arange(15, dtype=np.float32).reshape(5, 3)
    expected = chunk.copy()
    for k in range(5):
        for dim in (0, 2):
            expected[k, dim] = sum(chunk[: k + 1, dim])
    expected = (expected - _CODEC.affine.offset) / _CODEC.affine.scale
    np.testing.assert_array_equal(_CODEC.encode(chunk), expected)


def test_displacements_start_anew_with_every_block() -> None:
    codec = ActionCodec(_CUMULATIVE, _CODEC.affine, block=2)
    chunk = np.random.default_rng(1).normal(size=(3, 6, 3)).astype(np.float32)
    encoded = codec.encode(chunk)
    for start in (0, 2, 4):
        np.testing.assert_allclose(encoded[:, start : start + 2], _CODEC.encode(chunk[:, start : start + 2]), atol=1e-6)
    np.testing.assert_allclose(codec.decode(encoded), chunk, atol=1e-5)
    np.testing.assert_array_equal(codec.decode(encoded[:, :2]), codec.decode(encoded)[:, :2])  # one block by itself
    assert ActionCodec.from_dict(codec.to_dict()).block == 2
    with pytest.raises(ValueError, match="a chunk of 5 actions does not divide into blocks of 2"):
        codec.encode(chunk[:, :5])


def test_what_exceeds_the_largest_action_is_made_up_later() -> None:
    codec = ActionCodec(np.array([True, False]), Affine.identity(2), limit=np.array([1, 1], np.float32))
    displacement = np.array([[2, 5], [2.5, 5], [2.5, 5], [2.5, 5]], np.float32)
    np.testing.assert_array_equal(codec.decode(displacement), [[1, 5], [1, 5], [0.5, 5], [0, 5]])


def test_jax_agrees_with_numpy_and_jits() -> None:
    chunk = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    encoded = _CODEC.encode(chunk)
    assert isinstance(encoded, np.ndarray)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(jax.jit(_CODEC.encode)(jnp.asarray(chunk)), encoded, atol=1e-6)
    np.testing.assert_allclose(jax.jit(_CODEC.decode)(jnp.asarray(encoded)), _CODEC.decode(encoded), atol=1e-6)


def test_json_round_trip_is_exact() -> None:
    odd = Affine(np.array([0.1, 1 / 3, 1e-7], np.float32), np.array([np.pi, 1e5, 1], np.float32))
    again = ActionCodec.from_dict(json.loads(json.dumps(ActionCodec(_CUMULATIVE, odd).to_dict())))
    np.testing.assert_array_equal(again.affine.offset, odd.offset)
    np.testing.assert_array_equal(again.affine.scale, odd.scale)
    np.testing.assert_array_equal(again.cumulative, _CUMULATIVE)
    assert again.limit is None
    limited = ActionCodec(_CUMULATIVE, odd, limit=np.array([0.1, 1, 1 / 3], np.float32))
    np.testing.assert_array_equal(ActionCodec.from_dict(json.loads(json.dumps(limited.to_dict()))).limit, limited.limit)


def test_what_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match="an Affine needs as many positive scales as offsets"):
        Affine(np.zeros(2, np.float32), np.array([1, 0], np.float32))
    with pytest.raises(ValueError, match="3 cumulative flags for an action of 2 dimensions"):
        ActionCodec(_CUMULATIVE, Affine.identity(2))
