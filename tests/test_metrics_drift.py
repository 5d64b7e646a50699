"""Colour drift: closed forms, still colours, graded drifts, and what is not drift."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from xdyna.metrics.colour import delta_e_76, to_lab
from xdyna.metrics.drift import drift, seconds_of

Clip = NDArray[np.uint8]
FPS = 6.0


def scene(seconds: int = 8, *, seed: int = 0) -> Clip:
    """A smooth coloured picture that stands still, values 60..190."""
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.random((24, 32, 3)), (0, 0), 2.0)
    picture = 60 + 130 * (picture - picture.min()) / np.ptp(picture)
    return np.repeat(np.round(picture)[None].astype(np.uint8), int(seconds * FPS), 0)


def drifting(clip: Clip, kind: str, strength: float) -> Clip:
    """A clip whose colours go off steadily, by `strength` grey levels or percent at its end."""
    far = np.linspace(0, 1, len(clip))[:, None, None, None] * strength
    values = clip.astype(np.float64)
    grey = values.mean(-1, keepdims=True)
    if kind == "brightness":
        values = values + far
    elif kind == "contrast":
        values = 128 + (values - 128) * (1 + far / 100)
    elif kind == "saturation":
        values = grey + (values - grey) * (1 + far / 100)
    elif kind == "tint":
        values = values + far * np.asarray([1.0, 0.0, -1.0])
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def test_still_colours_have_no_drift() -> None:
    found = drift(scene(), FPS)
    assert found.lab.shape == (8, 3)
    assert (found.de == 0).all()
    assert (found.histogram == 0).all()
    assert found.de_per_minute == pytest.approx(0, abs=1e-9)
    assert found.row()["worst dE"] == found.row()["worst histogram"] == 0


def test_what_moves_about_without_changing_colour_is_no_drift() -> None:
    clip = scene()
    moving = np.stack([np.roll(frame, 3 * number, axis=1) for number, frame in enumerate(clip)])
    found = drift(moving, FPS)
    assert found.row()["worst dE"] == pytest.approx(0, abs=1e-9)
    assert found.row()["worst histogram"] == pytest.approx(0, abs=1e-9)


def test_a_step_of_one_colour_has_its_closed_form() -> None:
    first, second = np.asarray([90, 120, 40], np.uint8), np.asarray([100, 105, 40], np.uint8)
    clip = np.empty((24, 8, 8, 3), np.uint8)
    clip[:12], clip[12:] = first, second
    found = drift(clip, FPS)
    np.testing.assert_allclose(found.de, [0, 0, *[delta_e_76(to_lab(second), to_lab(first))] * 2], atol=1e-9)
    np.testing.assert_allclose(found.histogram, [0, 0, *[(10 + 15 + 0) / 3] * 2], atol=1e-9)


@pytest.mark.parametrize("levels", [1, 7, 30])
def test_the_histogram_distance_of_a_shift_is_the_shift(levels: int) -> None:
    clip = scene(2)
    clip[6:] += np.uint8(levels)
    assert drift(clip, FPS).histogram[1] == pytest.approx(levels)


def test_the_histogram_distance_of_a_stretch_is_the_mean_way_from_the_middle() -> None:
    """The mean colour stays, the histogram does not."""
    clip = np.empty((12, 2, 101, 3), np.uint8)
    clip[:6] = np.arange(78, 179)[:, None]
    clip[6:] = np.arange(28, 229, 2)[:, None]  # twice as far from 128
    found = drift(clip, FPS)
    assert found.histogram[1] == pytest.approx(np.abs(np.arange(-50, 51)).mean())
    theirs = [np.abs(np.sort(clip[0, ..., c].ravel()) - np.sort(clip[6, ..., c].ravel()).astype(float)) for c in (0, 1)]
    assert found.histogram[1] == pytest.approx(np.mean(theirs))


def test_the_slope_of_a_steady_change_is_its_speed() -> None:
    clip = np.empty((60, 4, 4, 3), np.uint8)
    for second in range(10):
        clip[6 * second : 6 * second + 6] = 100 + 2 * second
    ends = [to_lab(np.full((1, 3), level, np.uint8))[0, 0] for level in (100, 118)]
    found = drift(clip, FPS)
    assert found.de_per_minute == pytest.approx((ends[1] - ends[0]) / 9 * 60, rel=0.01)
    np.testing.assert_allclose(found.histogram, 2.0 * np.arange(10))


def test_what_goes_and_comes_back_has_distance_but_little_slope() -> None:
    swing = np.round(20 * np.sin(np.arange(120) / 120 * 16 * np.pi)).astype(int)
    clip = (np.full((120, 4, 4, 3), 120) + swing[:, None, None, None]).astype(np.uint8)
    there = drift(clip, FPS)
    away = drift(drifting(np.full((120, 4, 4, 3), 120, np.uint8), "brightness", 20), FPS)
    assert there.row()["worst dE"] > 2
    assert there.de_per_minute < 0.5 * away.de_per_minute


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "tint"])
def test_every_figure_grows_with_the_drift(kind: str) -> None:
    rows = [drift(drifting(scene(), kind, strength), FPS).row() for strength in (0, 3, 6, 12, 24)]
    for name in ("dE at the end", "dE per minute", "histogram at the end", "worst histogram"):
        values = [row[name] for row in rows]
        assert values[0] == pytest.approx(0, abs=1e-9)
        if kind == "contrast" and "dE" in name:
            continue  # the mean hardly moves: that is what the histogram is for
        assert values == sorted(values)
        assert values[1] > 0.05
        assert values[-1] > 4 * values[1]


def test_a_small_drift_stands_out_of_flicker() -> None:
    """Four grey levels in eight seconds, under noise of ten."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 10, scene().shape)

    def noisy(clip: Clip) -> Clip:
        return np.clip(np.round(clip + noise), 0, 255).astype(np.uint8)

    still, moved = drift(noisy(scene()), FPS), drift(noisy(drifting(scene(), "brightness", 4)), FPS)
    assert moved.row()["dE at the end"] > 4 * still.row()["dE at the end"]
    assert moved.row()["histogram at the end"] > 4 * still.row()["histogram at the end"]


def test_a_mask_leaves_out_who_walks_through() -> None:
    clip = scene()
    mask = np.zeros((24, 32), bool)
    mask[:, :16] = True
    clip[20:, :, 16:] = 255
    assert drift(clip, FPS).row()["worst dE"] > 1
    assert drift(clip, FPS, mask).row()["worst dE"] == 0
    mask = np.broadcast_to(mask, clip.shape[:3]).copy()
    mask[12:18] = False  # the third second
    found = drift(clip, FPS, mask)
    assert np.isnan(found.de[2])
    assert np.isnan(found.histogram[2])
    assert found.row()["worst dE"] == found.row()["dE at the end"] == 0
    assert found.de_per_minute == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("num_frames", "fps", "wanted"),
    [
        (24, 12, [(0, 12), (12, 24)]),
        (29, 12, [(0, 12), (12, 24)]),
        (30, 12, [(0, 12), (12, 24), (24, 30)]),
        (8, 2.5, [(0, 3), (3, 5), (5, 8)]),
    ],
)
def test_seconds(num_frames: int, fps: float, wanted: list[tuple[int, int]]) -> None:
    assert [(span.start, span.stop) for span in seconds_of(num_frames, fps)] == wanted


def test_wrong_clips_are_named() -> None:
    clip = scene(2)
    with pytest.raises(ValueError, match="wanted uint8"):
        drift(clip.astype(float), FPS)
    with pytest.raises(ValueError, match="8 frames at 6 fps, wanted at least a second and a half"):
        drift(clip[:8], FPS)
    with pytest.raises(ValueError, match="fps is 0, wanted at least 1"):
        drift(clip, 0)
    with pytest.raises(ValueError, match=r"masks are \[3, 4\]"):
        drift(clip, FPS, np.ones((3, 4), bool))
