"""Metrics of predicted futures equal their definitions, count what the mask keeps, and name what they are."""

import itertools

import jax
import numpy as np
import pytest
from parity.golden import load_golden

from wam_jax.encoders import dinov3, vjepa2
from wam_jax.encoders.frozen import FrozenEncoder, Preprocessing
from wam_jax.encoders.lpips import Lpips, definition
from wam_jax.encoders.vit import LayersConfig
from wam_jax.evaluation import video

RNG = np.random.default_rng
SMALL = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    """A smooth picture that differs from one to the next, and noise."""
    rows, columns = np.mgrid[: shape[-2], : shape[-1]]
    phase = RNG(seed).uniform(0, 6, (*shape[:-2], 1, 1, 3))
    smooth = 110 + 60 * np.sin(rows[..., None] / 3 + phase) + 40 * np.cos(columns[..., None] / 5 - phase)
    return (smooth + RNG(seed + 1).uniform(0, 40, smooth.shape)).astype(np.uint8)


def disturbed(images: np.ndarray, amount: int) -> np.ndarray:
    noise = RNG(7).integers(-amount, amount + 1, images.shape)
    return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def ssim_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """Equations 13 to 15 of Wang et al. 2004, a window at a time, of one colour in [0, 1]."""
    weights = np.array([[np.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    weights /= weights.sum()
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x, y = a[row : row + 11, column : column + 11], b[row : row + 11, column : column + 11]
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            cov = (weights * (x - mean_x) * (y - mean_y)).sum()
            light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            values.append(light * (2 * cov + c2) / (var_x + var_y + c2))
    return float(np.mean(values))


def test_ssim_is_that_of_its_definition():
    a = pictures(3, 17, 14)
    flat = np.full((17, 14, 3), 250, np.uint8)  # little variance, much light: where float32 loses most
    b = np.stack([disturbed(a[0], 30), a[1, ::-1], flat])
    a[2] = disturbed(flat, 2)
    by_loops = [np.mean([ssim_by_loops(a[i, ..., c] / 255, b[i, ..., c] / 255) for c in range(3)]) for i in range(3)]
    assert by_loops[1] < 0.5 < by_loops[0] < 0.99
    np.testing.assert_allclose(video._ssim(a, b), by_loops, atol=2e-4)
    np.testing.assert_allclose(video._ssim(a, b), video._ssim(b, a), atol=1e-6)
    np.testing.assert_array_equal(video._ssim(a, a), 1)


def test_psnr_is_that_of_its_definition_and_stays_finite():
    a = pictures(2, 12, 16)
    b = disturbed(a, 20)
    squared = ((a / 255 - b / 255) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(video._psnr(a, b), 10 * np.log10(1 / squared), rtol=1e-5)
    np.testing.assert_allclose(video._psnr(a, a), 10 * np.log10(12 * 255**2), rtol=1e-6)  # 58.9 dB
    black = np.zeros((1, 12, 16, 3), np.uint8)
    np.testing.assert_allclose(video._psnr(black, black + 255), 0, atol=1e-5)


def test_pictures_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match=r"^pictures of 10 x 32 are smaller than SSIM's window of 11 x 11$"):
        video.ssim(pictures(1, 10, 32), pictures(1, 10, 32))


@pytest.fixture(scope="module")
def future() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted, true [N, F, V, H, W, 3] and mask: worse with time, and the end of one window is not there."""
    true = pictures(17, 2, 1, 16, 12)
    predicted = np.stack([disturbed(true[:, i], 10 * (i + 1)) for i in range(2)], 1)
    mask = np.ones((17, 2, 1), bool)
    mask[3, 1] = False
    predicted[3, 1] = 0
    return predicted, true, mask


def test_metrics_are_means_over_the_pictures_that_count(future):
    predicted, true, mask = future
    metrics = video.video_metrics(*future)
    assert set(metrics) == {
        "psnr", "psnr/frame_1", "psnr/frame_2", "ssim", "ssim/frame_1", "ssim/frame_2", "pictures"
    }  # fmt: skip
    assert all(type(value) is float for value in metrics.values())
    assert metrics["pictures"] == 33  # more than a chunk
    for name, one in (("psnr", video._psnr), ("ssim", video._ssim)):
        values = np.asarray(one(predicted.reshape(34, 16, 12, 3), true.reshape(34, 16, 12, 3))).reshape(17, 2)
        kept = mask[..., 0]
        assert metrics[name] == pytest.approx(values[kept].mean(), rel=1e-5)
        assert metrics[f"{name}/frame_1"] == pytest.approx(values[:, 0].mean(), rel=1e-5)
        assert metrics[f"{name}/frame_2"] == pytest.approx(values[kept[:, 1], 1].mean(), rel=1e-5)
        assert metrics[f"{name}/frame_1"] > metrics[f"{name}/frame_2"]


def test_a_frame_that_is_nowhere_has_no_metric(future):
    predicted, true, mask = future
    assert "psnr/frame_2" not in video.video_metrics(predicted, true, mask & [[True], [False]])


def test_what_does_not_fit_is_refused(future):
    predicted, true, mask = future
    with pytest.raises(ValueError, match=r"^predicted \(17, 2, 1, .* and mask \(17, 1\) do not agree; give \[N, F"):
        video.video_metrics(predicted, true, mask[..., 0][:, :1])
    with pytest.raises(ValueError, match=r"^the mask \(17, 2, 1\) keeps no picture; evaluate windows with a future"):
        video.video_metrics(predicted, true, ~mask & mask)


def test_lpips_is_named_by_its_network():
    """With random weights: the published ones are tested beside the distance."""
    rng = RNG(0)
    params = jax.tree.map(
        lambda leaf: rng.uniform(-0.1, 0.2, leaf.shape).astype(np.float32), definition("alex").shapes()
    )
    true = pictures(2, 2, 1, 32, 32)
    metrics = video.video_metrics(disturbed(true, 30), true, np.ones((2, 2, 1), bool), Lpips(params, "alex"))
    assert {name for name in metrics if "lpips" in name} == {
        "lpips_alex", "lpips_alex/frame_1", "lpips_alex/frame_2"
    }  # fmt: skip
    assert metrics["lpips_alex"] > 0


def encoder(clips: bool) -> FrozenEncoder:
    """A tiny encoder of pictures or of clips, 32 wide."""
    if clips:
        frozen = vjepa2.frozen(vjepa2.Config(LayersConfig(32, 2, 2, 48), 16, 4, 2), load_golden("vjepa2").weights)
    else:
        layers = LayersConfig(32, 2, 2, 48, epsilon=1e-5, layer_scale=True, biases=frozenset({"query", "value"}))
        frozen = dinov3.frozen(dinov3.Config(layers, 4, 2), load_golden("dinov3").weights)
    return FrozenEncoder(frozen.params, frozen.definition, SMALL)


def test_the_frechet_distance_is_that_of_the_features_and_named_by_their_network():
    true = pictures(36, 2, 1, 12, 12)
    mask = np.ones((36, 2, 1), bool)
    mask[0, 1] = False
    near, far = (
        video.video_metrics(disturbed(true, amount), true, mask, features={"dinov3_tiny": encoder(clips=False)})
        for amount in (5, 120)
    )
    assert 0 <= near["frechet_dinov3_tiny"] < far["frechet_dinov3_tiny"]
    grid = encoder(clips=False)(true[mask])
    features = video.frechet_features(encoder(clips=False), true, mask)
    assert features.shape == (71, 32)
    np.testing.assert_allclose(features, grid.mean((1, 2)), atol=0.02)  # bfloat16, in chunks or at once


def test_an_encoder_of_clips_sees_whole_clips():
    images = pictures(3, 4, 2, 12, 12)
    mask = np.ones((3, 4, 2), bool)
    mask[1, 3, 0] = False
    features = video.frechet_features(encoder(clips=True), images, mask)
    assert features.shape == (5, 32)
    still = video.frechet_features(encoder(clips=True), np.repeat(images[:, :1], 4, axis=1), mask)
    assert np.abs(features - still).max() > 0.01  # motion matters
    with pytest.raises(ValueError, match=r"^no clip of the mask \(3, 4, 2\) has all its frames; use an encoder of pic"):
        video.frechet_features(encoder(clips=True), images, mask & (np.arange(4) < 3)[:, None])


def test_an_encoder_of_tokens_is_refused():
    tokens = FrozenEncoder({}, encoder(clips=False).definition, None)
    with pytest.raises(ValueError, match="needs an encoder of pictures; this one takes tokens"):
        video.frechet_features(tokens, pictures(1, 1, 1, 12, 12), np.ones((1, 1, 1), bool))


def rotation(size: int) -> np.ndarray:
    return np.linalg.qr(RNG(3).normal(size=(size, size)))[0]


def test_frechet_of_two_gaussians_is_that_in_closed_form():
    """Covariances that share their axes: |difference of means|² + sum (root - root)²."""
    turn, mean = rotation(5), RNG(0).normal(size=(2, 5))
    a, b = np.array([4.0, 1.0, 0.25, 0.0, 9.0]), np.array([1.0, 1.0, 4.0, 2.25, 0.0])  # some of no extent at all
    expected = np.sum((mean[0] - mean[1]) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    found = video.gaussian_frechet(mean[0], turn * a @ turn.T, mean[1], turn * b @ turn.T)
    assert found == pytest.approx(expected, rel=1e-6)
    one = video.gaussian_frechet(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]]))
    assert one == pytest.approx(4 + 1)


def test_frechet_of_covariances_that_do_not_commute_has_the_trace_of_the_root_of_their_product():
    a, b = (rotation(4) * np.array([3.0, 1.0, 0.5, 0.1])) @ rotation(4).T, np.diag([0.2, 2.0, 1.0, 0.7])
    values = np.linalg.eigvals(a @ b)
    expected = np.trace(a + b) - 2 * np.sqrt(values.real).sum()
    assert video.gaussian_frechet(np.zeros(4), a, np.zeros(4), b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_samples_nears_that_of_their_gaussians_and_does_not_depend_on_axes():
    a, b = RNG(0).normal(size=(4000, 3)), RNG(1).normal([1, 0, 0], [1, 2, 1], size=(4000, 3))
    distance = video.frechet_distance(a, b)
    assert distance == pytest.approx(1 + 1, rel=0.1)
    assert video.frechet_distance(b, a) == pytest.approx(distance)
    assert video.frechet_distance(a @ rotation(3), b @ rotation(3)) == pytest.approx(distance)
    assert video.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_covariances_are_unbiased():
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [1.0], [1.0]])
    assert video.frechet_distance(a, b) == pytest.approx(2.0)  # of [0, 2] the variance is 2, not 1


def test_what_a_frechet_distance_cannot_be_told_from_is_refused():
    with pytest.raises(ValueError, match=r"^12 samples cannot tell the covariance of 12 features; give at least 13"):
        video.frechet_distance(np.ones((20, 12)), np.ones((12, 12)))
    with pytest.raises(ValueError, match=r"^a covariance has an eigenvalue of -1 beside 2; it is not one$"):
        video.gaussian_frechet(np.zeros(2), np.diag([2.0, -1.0]), np.zeros(2), np.eye(2))


def test_open_loop_score_counts_steps_that_are_near_in_every_dimension():
    actions = RNG(0).normal(size=(2, 3, 2))
    error = np.array([[[0.0, 0.029], [0.0, 0.031], [-0.02, 0.02]], [[9.0, 0.0], [9.0, 9.0], [-0.04, 0.0]]])
    mask = np.ones((2, 3, 2), bool)
    score = lambda **more: video.open_loop_score(actions, actions + error, mask, **more)  # noqa: E731
    assert score() == pytest.approx(2 / 6)
    assert score(threshold=0.05) == pytest.approx(4 / 6)
    mask[1, 0, 0] = False  # a dimension that does not count
    mask[1, 1] = False  # a step that does not
    assert score() == pytest.approx(3 / 5)
    error[0, 0] = np.nan  # not near
    assert score() == pytest.approx(2 / 5)
    assert video.open_loop_score(actions, actions, mask, threshold=0.0) == 1


def test_an_open_loop_score_of_nothing_is_refused():
    actions = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match=r"^the mask \(2, 3, 4\) keeps no action; evaluate windows with actions$"):
        video.open_loop_score(actions, actions, np.zeros((2, 3, 4), bool))
    with pytest.raises(ValueError, match=r"predicted \(2, 3, 1\) and mask \(2, 3, 4\) do not agree; give \[N, K, A\]"):
        video.open_loop_score(actions, actions[..., :1], np.ones((2, 3, 4), bool))


def test_scores_fall_as_noise_grows():
    true = pictures(1, 1, 1, 24, 24)
    rows = [video.video_metrics(disturbed(true, amount), true, np.ones((1, 1, 1), bool)) for amount in (2, 8, 32, 128)]
    for name in ("psnr", "ssim"):
        assert all(near[name] > far[name] for near, far in itertools.pairwise(rows))
