"""Gap filling and smoothing on tracks whose truth is known."""

import numpy as np
import pytest
from test_pose_draw import standing

from xdyna.preprocess.smooth import FILLED_CONF, fill_gaps, smooth_tracks
from xdyna.preprocess.tracks import Tracks


def walking(num_frames: int, fps: float = 10.0) -> Tracks:
    """A person that moves 5 px to the right every frame."""
    tracks = standing(num_frames)
    tracks.joints_xy[:, :, 0] += 5 * np.arange(num_frames)[:, None]
    return Tracks(**{**vars(tracks), "fps": fps})


def lose(tracks: Tracks, frames: slice, joints: slice | int = slice(None)) -> None:
    tracks.joints_conf[frames, joints] = 0
    tracks.joints_xy[frames, joints] = 0


def test_short_gap_is_filled_on_the_line_and_reported() -> None:
    truth, tracks = walking(20), walking(20)
    lose(tracks, slice(8, 12))
    filled, report = fill_gaps(tracks, limit_s=0.4)
    assert np.allclose(filled.joints_xy, truth.joints_xy, atol=1e-3)
    assert (filled.joints_conf[8:12] == np.float32(FILLED_CONF)).all()
    assert report.filled == (8, 9, 10, 11)
    assert report.missing == ()
    assert report.num_missing == 0
    assert "4 of 20 frames" in report.lines()[0]


def test_long_gap_stays_and_is_reported() -> None:
    tracks = walking(20)
    lose(tracks, slice(8, 13))
    filled, report = fill_gaps(tracks, limit_s=0.4)
    assert not filled.joints_conf[8:13].any()
    assert report.missing == ((8, 12),)
    assert report.num_missing == 5
    assert report.filled == ()
    assert "5 of 20 frames (0.80-1.30 s)" in report.lines()[0]


def test_single_joint_and_ends_are_filled() -> None:
    tracks = walking(10)
    lose(tracks, slice(3, 5), 4)
    lose(tracks, slice(0, 2), 10)
    lose(tracks, slice(9, 10), 10)
    filled, report = fill_gaps(tracks, limit_s=0.5)
    assert report.joints_filled == 5
    assert report.lines() == []
    assert np.allclose(filled.joints_xy[3:5, 4], walking(10).joints_xy[3:5, 4], atol=1e-3)
    assert np.allclose(filled.joints_xy[:2, 10], tracks.joints_xy[2, 10])
    assert np.allclose(filled.joints_xy[9, 10], tracks.joints_xy[8, 10])


def test_face_and_hands_are_filled() -> None:
    tracks = walking(6)
    tracks.face_xy[:] = np.arange(6)[:, None, None]
    tracks.hands_xy[:] = np.arange(6)[:, None, None, None]
    tracks.face_conf[:] = tracks.hands_conf[:] = 1
    tracks.face_conf[2] = tracks.hands_conf[2] = 0
    tracks.face_xy[2] = tracks.hands_xy[2] = -99
    filled, _ = fill_gaps(tracks, limit_s=0.1)
    assert np.allclose(filled.face_xy[2], 2)
    assert np.allclose(filled.hands_xy[2], 2)
    assert filled.face_conf[2] >= 0.3


def test_nobody_anywhere_is_left_alone() -> None:
    filled, report = fill_gaps(Tracks.empty(4, (64, 96), 8.0))
    assert not filled.joints_conf.any()
    assert report.missing == ((0, 3),)


def test_limit_zero_changes_nothing() -> None:
    tracks = walking(6)
    lose(tracks, slice(2, 3))
    filled, _ = fill_gaps(tracks, limit_s=0)
    assert np.array_equal(filled.joints_xy, tracks.joints_xy)
    assert np.array_equal(filled.joints_conf, tracks.joints_conf)


@pytest.mark.parametrize("fps", [8.0, 30.0])
def test_smoothing_takes_jitter_out_of_a_still_person(fps: float) -> None:
    noise = np.random.default_rng(0).normal(0, 2, (60, 18, 2)).astype(np.float32)
    tracks = Tracks(**{**vars(standing(60)), "fps": fps})
    tracks.joints_xy[:] += noise
    calm = smooth_tracks(tracks).joints_xy - standing(60).joints_xy
    assert calm.std() < (0.8 if fps == 8.0 else 0.6) * noise.std()


def test_smoothing_adds_no_delay_to_a_quick_wave() -> None:
    fps, num_frames = 15.0, 60
    tracks = Tracks(**{**vars(standing(num_frames)), "fps": fps})
    wave = 80 * np.sin(2 * np.pi * 1.0 * np.arange(num_frames) / fps)
    tracks.joints_xy[:, 4, 0] += wave
    moved = smooth_tracks(tracks).joints_xy[:, 4, 0] - standing().joints_xy[0, 4, 0]
    lags = [float(np.dot(moved[5:-5], np.roll(wave, lag)[5:-5])) for lag in range(-3, 4)]
    assert int(np.argmax(lags)) == 3  # no lag
    assert np.abs(moved).max() > 0.9 * 80


def test_smoothing_keeps_still_and_steady_people_and_confidence() -> None:
    still = standing(12)
    assert np.allclose(smooth_tracks(still).joints_xy, still.joints_xy, atol=1e-3)
    steady = walking(30)
    away = np.abs(smooth_tracks(steady).joints_xy - steady.joints_xy)[8:-8]
    assert away.max() < 0.5
    assert np.array_equal(smooth_tracks(steady).joints_conf, steady.joints_conf)


def test_smoothing_does_not_reach_across_a_gap() -> None:
    tracks = standing(10)
    tracks.joints_xy[6:, :, 0] += 200
    lose(tracks, slice(5, 6))
    calm = smooth_tracks(tracks)
    assert np.allclose(calm.joints_xy[:5], tracks.joints_xy[:5], atol=1e-3)
    assert np.allclose(calm.joints_xy[6:], tracks.joints_xy[6:], atol=1e-3)


def test_smoothing_one_or_no_frame() -> None:
    assert len(smooth_tracks(standing(1))) == 1
    assert len(smooth_tracks(standing(1)[:0])) == 0
