"""Films, pictures and charts hold what was put into them."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from wam_jax.evaluation import media
from wam_jax.evaluation.statistics import Rate


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def ramp(count: int, size: int = 32) -> np.ndarray:
    """Frames of one grey each, dark to bright."""
    return np.linspace(20, 230, count).astype(np.uint8)[:, None, None, None] * np.ones((1, size, size, 3), np.uint8)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_enlarge_repeats_pixels_by_a_whole_factor():
    frames = noise(2, 5, 7)
    large = media.enlarge(frames, min_height=12)
    assert large.shape == (2, 15, 21, 3)
    for row in range(3):
        for column in range(3):
            np.testing.assert_array_equal(large[:, row::3, column::3], frames)


def test_enlarge_leaves_large_frames_alone():
    frames = noise(1, 12, 4)
    np.testing.assert_array_equal(media.enlarge(frames, min_height=12), frames)


def test_tile_places_images_row_by_row_on_white():
    images = noise(5, 4, 6)
    grid = media.tile(images, columns=3, gap=2)
    assert grid.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, 3)
    np.testing.assert_array_equal(grid[:4, 8:14], images[1])
    np.testing.assert_array_equal(grid[6:, :6], images[3])
    assert (grid[4:6] == 255).all()
    assert (grid[6:, 16:] == 255).all()


def test_tile_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^no image to tile; give at least one$"):
        media.tile(noise(0, 4, 4))


def test_tile_is_nearly_square_by_default():
    assert media.tile(noise(9, 4, 4), gap=0).shape == (12, 12, 3)


@pytest.mark.parametrize("shape", [(40, 96), (3, 40, 96)])
def test_caption_stands_above_untouched_frames(shape):
    frames = noise(*shape)
    captioned = media.caption(frames, "lift the red cube")
    np.testing.assert_array_equal(captioned[..., -40:, :, :], frames)
    band = captioned[..., :-40, :, :]
    assert band.shape[-2] == 96
    assert (band.max(axis=(-1, -2, -3)) > 200).all()  # bright letters
    assert not np.array_equal(captioned, media.caption(frames, "lift the blue cube"))


def test_caption_wraps_to_the_width():
    frames = noise(20, 96)
    text = "push the red cube to the left edge of the table"
    one_line, wrapped = media.caption(frames, "push"), media.caption(frames, text)
    assert wrapped.shape[0] - 20 > 2 * (one_line.shape[0] - 20) - 8
    words = [word for line in media._wrap(text, media.ImageFont.load_default(11), 80) for word in line.split()]
    assert words == text.split()


def test_side_by_side_shows_each_panel_below_its_label_and_holds_short_films():
    camera, imagined = noise(4, 8, 8), noise(2, 4, 8)
    film = media.side_by_side({"camera": camera, "imagined": imagined}, min_height=16)
    assert film.shape[0] == 4
    assert film.shape[2] == 16 + 32  # both 16 high, aspect ratios kept
    np.testing.assert_array_equal(film[:, -16:, :16], media.enlarge(camera, 16))
    np.testing.assert_array_equal(film[:2, -16:, 16:], media.enlarge(imagined, 16))
    np.testing.assert_array_equal(film[3], np.concatenate([film[3, :, :16], film[1, :, 16:]], axis=1))


def test_side_by_side_refuses_an_empty_panel():
    with pytest.raises(ValueError, match=r"^nothing to show side by side in \['real'\]; give every panel"):
        media.side_by_side({"real": noise(0, 8, 8)})


def test_border_surrounds_the_frames_with_the_colour():
    frames = noise(2, 6, 8)
    framed = media.border(frames, media.FAILURE, width=3)
    assert framed.shape == (2, 12, 14, 3)
    np.testing.assert_array_equal(framed[:, 3:-3, 3:-3], frames)
    edge = np.ones(framed.shape[:3], bool)
    edge[:, 3:-3, 3:-3] = False
    assert (framed[edge] == media.FAILURE).all()


def test_picture_is_lossless():
    image = noise(9, 11)
    data = media.picture(image)
    assert opened(data).format == "PNG"
    np.testing.assert_array_equal(np.asarray(opened(data)), image)


def test_film_is_an_animated_webp_that_shows_the_frames_in_order():
    frames = ramp(6)
    film = opened(media.film(frames, fps=8))
    assert (film.format, film.n_frames, film.info["loop"]) == ("WEBP", 6, 0)
    for index in range(6):
        film.seek(index)
        assert abs(np.asarray(film.convert("RGB")).mean() - frames[index].mean()) < 3
        assert film.info["duration"] == (125 if index < 5 else 1000)


def test_film_of_one_frame_is_a_still_and_of_none_is_refused():
    assert not opened(media.film(ramp(1), fps=8)).is_animated
    with pytest.raises(ValueError, match=r"^a film of no frames; give at least one$"):
        media.film(ramp(0), fps=8)


def visible_colours(data: bytes) -> set[tuple[int, int, int]]:
    """Colours of the opaque pixels of a chart."""
    pixels = np.asarray(opened(data).convert("RGBA")).reshape(-1, 4)
    return set(map(tuple, pixels[pixels[:, 3] == 255][:, :3].tolist()))


def test_curve_draws_every_series_in_its_colour_on_a_transparent_page():
    chart = media.curve({"joint": [(0, 0.0), (1, 0.5)], "action": [(0, 0.0), (1, 0.9)]}, "success", "step", "rate")
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= visible_colours(chart)
    assert np.asarray(opened(chart))[0, 0, 3] == 0


def test_bars_grow_with_their_rate():
    def ink(successes: int) -> int:
        alpha = np.asarray(opened(media.bars({"arm": Rate(successes, 100)}, "success")))[..., 3]
        return int((alpha > 0).sum())

    assert ink(95) > ink(50) > ink(5)


def test_bars_take_more_room_for_more_arms():
    few, many = (opened(media.bars({str(arm): Rate(1, 2) for arm in range(n)}, "success")).height for n in (2, 6))
    assert many > few


def test_charts_leave_no_global_figure_and_no_changed_setting():
    before = dict(matplotlib.rcParams)
    media.curve({"loss": []}, "empty", "step", "loss")
    assert dict(matplotlib.rcParams) == before
    assert matplotlib._pylab_helpers.Gcf.get_all_fig_managers() == []
