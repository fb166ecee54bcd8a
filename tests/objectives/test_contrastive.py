"""InfoNCE by hand, its gradient by differences; similarity by chunks knows the order that a mean does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.objectives.contrastive import chunkwise, info_nce, pooled, retrieval_accuracy


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_info_nce_is_the_mean_of_both_cross_entropies():
    similarity, temperature = np.array([[0.9, 0.1, -0.3], [0.2, 0.5, 0.4], [-0.1, 0.0, 0.7]]), 0.1
    p = np.exp(similarity / temperature)
    rows = -np.log(np.diag(p) / p.sum(1)).mean()
    columns = -np.log(np.diag(p) / p.sum(0)).mean()
    assert float(info_nce(jnp.asarray(similarity), temperature)) == pytest.approx((rows + columns) / 2, rel=1e-5)
    # two pairs that cannot be told apart: one bit each way
    assert float(info_nce(jnp.zeros((2, 2)), 0.1)) == pytest.approx(np.log(2), rel=1e-6)


def test_info_nce_is_symmetric_and_knows_no_order():
    similarity = normal(0, 5, 5)
    order = np.array([3, 0, 4, 1, 2])
    loss = float(info_nce(similarity, 0.2))
    assert float(info_nce(similarity.T, 0.2)) == pytest.approx(loss, rel=1e-6)
    assert float(info_nce(similarity[order][:, order], 0.2)) == pytest.approx(loss, rel=1e-6)


def test_gradient_is_that_of_differences():
    similarity, step = np.asarray(normal(1, 4, 4), np.float64), 1e-3
    gradient = np.asarray(jax.grad(info_nce)(jnp.asarray(similarity, jnp.float32), 0.5))
    for i in range(4):
        for j in range(4):
            change = np.zeros((4, 4))
            change[i, j] = step
            up, down = (float(info_nce(jnp.asarray(similarity + sign * change), 0.5)) for sign in (1, -1))
            assert gradient[i, j] == pytest.approx((up - down) / (2 * step), abs=2e-3)
    assert gradient.diagonal().max() < 0


def test_further_negatives_are_of_their_own_row_alone():
    similarity, further = np.array([[0.9, 0.1], [0.3, 0.8]]), np.array([[0.5], [-0.2]])
    rows = [np.log(sum(np.exp(np.array([*row, more[0]]) / 0.5))) for row, more in zip(similarity, further, strict=True)]
    columns = np.log(np.exp(similarity / 0.5).sum(0))
    wanted = (np.mean(rows) + np.mean(columns)) / 2 - np.diagonal(similarity).mean() / 0.5
    assert float(info_nce(jnp.asarray(similarity), 0.5, jnp.asarray(further))) == pytest.approx(wanted, rel=1e-5)


def test_chunks_tell_a_shuffled_sequence_apart_and_a_mean_does_not():
    action = normal(2, 1, 6, 8)
    shuffled = action[:, np.array([2, 5, 0, 4, 1, 3])]
    both = jnp.concatenate([action, shuffled])
    by_chunk, by_mean = chunkwise(action, both)[0], pooled(action, both)[0]
    np.testing.assert_allclose(by_mean, [1, 1], atol=1e-5)
    assert by_chunk[0] == pytest.approx(1, abs=1e-5)
    assert by_chunk[1] < 0.6


@pytest.mark.parametrize("similarity", [chunkwise, pooled])
def test_lengths_do_not_count_and_absent_chunks_neither(similarity):
    video, action = normal(3, 3, 4, 5), normal(4, 3, 4, 5)
    expected = similarity(video, action)
    assert np.abs(expected).max() <= 1 + 1e-6
    np.testing.assert_allclose(similarity(10 * video, 0.1 * action), expected, atol=1e-5)
    mask = jnp.arange(4) < 2
    cut = similarity(video[:, :2], action[:, :2])
    masks = jnp.broadcast_to(mask, (3, 4))
    np.testing.assert_allclose(similarity(video, action.at[:, 2:].set(9.0), masks, masks), cut, atol=1e-5)


def test_sequences_are_compared_where_both_are():
    video, action = normal(5, 2, 3, 4), normal(6, 2, 3, 4)
    short, whole = jnp.array([[True, False, False], [True, True, True]]), jnp.ones((2, 3), bool)
    found = chunkwise(video, action, short, whole)
    np.testing.assert_allclose(found[0], chunkwise(video[:1, :1], action[:, :1])[0], atol=1e-6)
    np.testing.assert_allclose(found[1], chunkwise(video, action)[1], atol=1e-6)
    assert not np.any(chunkwise(video, action, jnp.zeros((2, 3), bool), whole))


def test_retrieval_counts_both_directions():
    assert float(retrieval_accuracy(jnp.eye(3))) == 1
    assert float(retrieval_accuracy(jnp.array([[1.0, 2.0], [0.0, 3.0]]))) == 0.75
