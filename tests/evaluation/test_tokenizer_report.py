"""Reports of tokenizers: maps of what varies, the last frame that is there, metrics of what is within episodes."""

import dataclasses

import numpy as np
import pytest

from wam_jax.evaluation.report import Report
from wam_jax.evaluation.tokenizer_report import Tokenised, add_tokenised, pca_map


@pytest.fixture(scope="module")
def result() -> Tokenised:
    """Four windows of three frames (two images each after the first); the second ends with its second frame."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 5, 1, 16, 16, 3), np.uint8)
    frame_mask = np.ones((4, 3, 1), bool)
    frame_mask[1, 2] = False
    image_mask = np.ones((4, 5, 1), bool)
    image_mask[1, 3:] = False
    wrong_where_masked = np.where(image_mask[..., None, None, None], images, 0)
    return Tokenised(
        images=images,
        reconstructed=wrong_where_masked,
        image_mask=image_mask,
        latents=rng.normal(size=(4, 3, 1, 2, 2, 5)).astype(np.float32),
        frame_mask=frame_mask,
        predicted=images,
        change=rng.uniform(size=(4, 2, 1, 2, 2)),
        usage=None,
    )


def test_only_images_within_an_episode_count(result):
    metrics = result.metrics(None)
    assert metrics["pictures"] == result.image_mask.sum() == 18
    assert metrics["psnr"] > 58  # equal wherever it counts
    np.testing.assert_array_equal(result.last_frame, [2, 1, 2, 2])


def test_the_report_has_a_picture_a_camera_and_the_numbers(result, tmp_path):
    report = Report("tokenizer")
    summary = add_tokenised(report, {"toy": result}, ("front",))
    assert summary["reconstruction"]["toy"]["ssim"] == pytest.approx(1, abs=1e-4)
    page = report.write(tmp_path).read_text()
    assert page.count("data:image/png") == 1
    assert "from the frame before and the latent action" in page
    assert "where the latent action changes it" in page


def test_a_window_without_a_future_is_not_drawn(result, tmp_path):
    mask = result.frame_mask.copy()
    mask[:, 1:] = False
    report = Report("tokenizer")
    add_tokenised(report, {"toy": dataclasses.replace(result, frame_mask=mask)}, ("front",))
    assert "data:image" not in report.write(tmp_path).read_text()


def test_the_direction_of_most_variance_is_red():
    rng = np.random.default_rng(1)
    strong, weak = rng.normal(size=(2, 3, 8, 8))
    features = np.stack([0.1 * weak, 5 * strong, np.zeros_like(weak)], -1)
    red = pca_map(features)[..., 0].astype(float)
    assert abs(np.corrcoef(red.ravel(), strong.ravel())[0, 1]) > 0.97
    assert (red.min(), red.max()) == (0, 255)


def test_fewer_channels_than_colours_leave_grey():
    maps = pca_map(np.random.default_rng(2).normal(size=(1, 4, 4, 2)))
    assert maps.shape == (1, 4, 4, 3)
    assert (maps[..., 2] == 128).all()
