"""Alignment losses by hand, on equal features, and at the moments and positions that belong together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.nn.module import define
from wam_jax.objectives.alignment import (
    Projector,
    cosine,
    marginal_cosine,
    marginal_distance,
    on_grid,
    pooled_l2,
    resize,
)

LOSSES = [pooled_l2, cosine, marginal_cosine, marginal_distance]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def positions(*vectors: tuple[float, ...]) -> jax.Array:
    """One frame with a row of positions."""
    return jnp.array(vectors, jnp.float32)[None, None, None]


@pytest.mark.parametrize(("loss", "least"), zip(LOSSES, (0, -1, 0, 0), strict=True))
def test_equal_features_have_the_least_loss(loss, least):
    features = normal(0, 2, 3, 2, 4, 5)
    assert float(loss(features, features)) == pytest.approx(least, abs=1e-6)
    assert float(loss(-features[:, :, ::-1], features)) > least + 0.1


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_lengths_of_features_do_not_count(loss):
    student, teacher = normal(0, 2, 3, 2, 4, 5), normal(1, 2, 5, 2, 4, 5)
    scales = 10 ** normal(2, 2, 3, 2, 4, 1)
    assert float(loss(scales * student, 0.01 * teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_reaches_the_teacher(loss):
    student, teacher = jax.jit(jax.grad(loss, (0, 1)))(normal(0, 1, 3, 2, 2, 4), normal(1, 1, 5, 4, 3, 4))
    assert not np.any(teacher)
    assert np.abs(student).max() > 1e-3


def test_pooled_l2_compares_means_over_time_however_long():
    student, teacher = normal(0, 2, 3, 2, 4, 5), normal(1, 2, 6, 2, 4, 5)
    expected = float(np.mean((np.mean(student, 1) - np.mean(teacher, 1)) ** 2))
    assert float(pooled_l2(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert float(pooled_l2(student[:, ::-1], teacher)) == pytest.approx(expected, rel=1e-5)
    finer = jnp.broadcast_to(jnp.arange(5.0), (2, 6, 7, 9, 5))
    assert float(pooled_l2(finer[:, :3, :2, :4], finer)) == pytest.approx(0, abs=1e-9)


def test_marginal_cosine_by_hand():
    student = positions((1, 0), (1, 0), (0, 2))
    teacher = positions((2, 0), (1, np.sqrt(3)), (3, 0))  # 0, 60 and 90 degrees apart
    assert float(cosine(student, teacher)) == pytest.approx(-(1 + 0.5 + 0) / 3)
    assert float(marginal_cosine(student, teacher, margin=0.0)) == pytest.approx((0 + 0.5 + 1) / 3)
    assert float(marginal_cosine(student, teacher, margin=0.2)) == pytest.approx((0 + 0.3 + 0.8) / 3)
    assert float(marginal_cosine(student, teacher)) == pytest.approx((0 + 0 + 0.5) / 3)


def test_marginal_distance_by_hand():
    student = positions((1,), (3,), (-1,))  # of another width than the teacher
    teacher = positions((1, 0, 0), (1, np.sqrt(3), 0), (0, 0, 1))
    differences = {(0, 1): 0.5, (0, 2): 1.0, (1, 2): 1.0}  # of cosines: 1, -1, -1 and 0.5, 0, 0
    for margin in (0.0, 0.25, 0.6):
        expected = 2 * sum(max(0.0, difference - margin) for difference in differences.values()) / 9
        assert float(marginal_distance(student, teacher, margin)) == pytest.approx(expected, abs=1e-6)


def test_marginal_distance_compares_positions_of_a_picture_only():
    student, teacher = normal(0, 2, 3, 1, 4, 5), normal(1, 2, 3, 1, 4, 6)
    apart = [
        marginal_distance(student[b : b + 1, t : t + 1], teacher[b : b + 1, t : t + 1])
        for b in range(2)
        for t in range(3)
    ]
    assert float(marginal_distance(student, teacher)) == pytest.approx(float(np.mean(apart)), rel=1e-5)


@pytest.mark.parametrize(
    ("frames", "pictures", "closing"), [(3, 5, [0, 2, 4]), (3, 9, [0, 4, 8]), (3, 3, [0, 1, 2]), (1, 1, [0])]
)
def test_a_latent_frame_is_aligned_to_the_picture_that_closes_it(frames, pictures, closing):
    numbered = jnp.broadcast_to(jnp.arange(float(pictures))[None, :, None, None, None], (2, pictures, 2, 3, 4))
    np.testing.assert_array_equal(on_grid(numbered, frames, 2, 3)[0, :, 0, 0, 0], closing)


@pytest.mark.parametrize(("frames", "pictures"), [(3, 4), (3, 2), (1, 5)])
def test_pictures_that_do_not_divide_into_latent_frames_are_refused(frames, pictures):
    message = (
        rf"^the teacher has features of {pictures} pictures, which are not those of {frames} latent frames; "
        rf"give it {frames}, or 1 \+ {frames - 1} n of them$"
    )
    with pytest.raises(ValueError, match=message):
        cosine(normal(0, 1, frames, 2, 2, 3), normal(1, 1, pictures, 2, 2, 3))


@pytest.mark.parametrize("size", [(2, 3), (5, 4), (13, 8)])
def test_a_constant_grid_stays_constant(size):
    np.testing.assert_allclose(resize(jnp.full((1, 2, 5, 6, 3), 0.7), *size), np.full((1, 2, *size, 3), 0.7), rtol=1e-6)


def test_a_smaller_grid_averages_all_positions():
    """Antialiased: a pixel between the sample points is not lost."""
    for row in range(8):
        assert np.sum(resize(jnp.zeros((1, 8, 8, 1)).at[0, row].set(1.0), 2, 2)) > 0.2


def test_widths_that_differ_are_refused():
    for loss in LOSSES[:3]:
        with pytest.raises(
            ValueError, match=r"^student features are 1 wide and the teacher's 4; put a Projector between"
        ):
            loss(normal(0, 1, 1, 2, 2, 1), normal(1, 1, 1, 2, 2, 4))


def seen_by(kind: str) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape of what a projector gives, and by how much each position and frame changes with the middle one."""
    definition = define(lambda rngs: Projector(kind, 3, 7, rngs))
    projector = definition.bind(definition.init(jax.random.key(0)))
    x = normal(0, 1, 3, 5, 5, 3)
    before, after = projector(x), projector(x.at[0, 1, 2, 2].add(1.0))
    return before.shape, np.abs(after - before).max((0, -1)) > 0


@pytest.mark.parametrize(("kind", "reach"), [("linear", 0), ("mlp", 0), ("conv", 1)])
def test_projectors_give_the_teachers_width_and_see_their_neighbourhood(kind, reach):
    shape, changed = seen_by(kind)
    assert shape == (1, 3, 5, 5, 7)
    expected = np.zeros((3, 5, 5), bool)
    expected[1, 2 - reach : 3 + reach, 2 - reach : 3 + reach] = True
    np.testing.assert_array_equal(changed, expected)


def test_the_mlp_is_not_linear():
    definition = define(lambda rngs: Projector("mlp", 3, 7, rngs))
    projector, x = definition.bind(definition.init(jax.random.key(0))), normal(0, 1, 1, 1, 1, 3)
    assert np.abs(projector(2 * x) - 2 * projector(x)).max() > 1e-2


def test_unknown_projector_is_refused():
    with pytest.raises(ValueError, match=r"^projector 'attention' is unknown \(has: linear, mlp, conv\)"):
        define(lambda rngs: Projector("attention", 3, 7, rngs))
