"""Rectangles that keep a ratio, and pictures fitted into a frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdyna.preprocess.crop import CENTRE, UPPER, Crop, fit, grow_box, ratio_crop

sides = st.integers(1, 5000)


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from([CENTRE, UPPER]))
def test_the_crop_is_the_largest_of_its_ratio_inside_the_picture(
    image_wh: tuple[int, int], size_wh: tuple[int, int], above: int
) -> None:
    crop = ratio_crop(image_wh, size_wh, above)
    assert crop.left >= 0
    assert crop.top >= 0
    assert 1 <= crop.width <= image_wh[0] - crop.left
    assert 1 <= crop.height <= image_wh[1] - crop.top
    assert crop.width == image_wh[0] or crop.height == image_wh[1]
    # Rounded down by less than a pixel.
    wanted = min(image_wh[0] / size_wh[0], image_wh[1] / size_wh[1])
    assert crop.width == max(1, int(crop.width)) <= wanted * size_wh[0] + 1e-6 or crop.width == 1
    assert abs(crop.width - wanted * size_wh[0]) < 1 + 1e-6
    assert abs(crop.height - wanted * size_wh[1]) < 1 + 1e-6


def test_surplus_is_cut_alike_or_rather_below() -> None:
    assert ratio_crop((100, 300), (100, 100), CENTRE) == Crop(0, 100, 100, 100)
    assert ratio_crop((100, 300), (100, 100), UPPER) == Crop(0, 50, 100, 100)
    assert ratio_crop((300, 100), (100, 100), UPPER) == Crop(100, 0, 100, 100)
    with pytest.raises(ValueError, match="at least one pixel"):
        ratio_crop((0, 10), (1, 1))


def test_points_follow_the_pixels() -> None:
    """A bright spot of the picture lies, after fitting, where its point is mapped to."""
    image = np.zeros((300, 200, 3), np.uint8)
    image[140:150, 90:100] = 255
    crop = ratio_crop((200, 300), (64, 64))
    fitted = fit(image, crop, (64, 64))
    rows, columns = np.nonzero(fitted[..., 0] > 127)
    centre = crop.points(np.array([[95.0, 145.0]], np.float32), (64, 64))[0]
    assert abs(columns.mean() + 0.5 - centre[0]) < 0.6
    assert abs(rows.mean() + 0.5 - centre[1]) < 0.6


def test_big_pictures_are_averaged_unless_official() -> None:
    checks = np.indices((400, 400)).sum(0) % 2 * 255
    image = np.repeat(checks[..., None], 3, -1).astype(np.uint8)
    crop = ratio_crop((400, 400), (40, 40))
    assert np.abs(fit(image, crop, (40, 40)).astype(int) - 127).max() <= 1
    sparse = np.zeros((400, 400, 3), np.uint8)
    sparse[::10] = 255
    assert fit(sparse, crop, (40, 40)).mean() == pytest.approx(25.5, abs=1)
    assert fit(sparse, crop, (40, 40), official=True).mean() < 5
    small = ratio_crop((60, 60), (40, 40))
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype(np.uint8)
    np.testing.assert_array_equal(fit(noise, small, (40, 40)), fit(noise, small, (40, 40), official=True))


def test_a_fitted_picture_is_no_view() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    fitted = fit(image, Crop(0, 0, 20, 20), (20, 20))
    fitted[:] = 9
    assert not image.any()


def test_a_grown_box_is_measured_by_its_longer_side() -> None:
    assert grow_box((0, 0, 10, 20), (1, 1, 2, 2)) == (-15, -10, 45, 50)
