"""The shipped examples: readable, with truth beside them, and found by the default detector."""

from pathlib import Path

import numpy as np
import pytest

from xdyna.photo import read_photo
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoReader, probe

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DANCES = ("dance", "dance_2")
PHOTOS = ("photo", "photo_waterfall", "photo_fire", "photo_clouds", "portrait")


@pytest.mark.parametrize("name", [*DANCES, "song"])
def test_dances_have_sound_and_tracks(name: str) -> None:
    info = probe(EXAMPLES / f"{name}.mp4")
    tracks = Tracks.load(EXAMPLES / f"{name}.tracks.npz")
    assert info.has_audio
    assert info.size_wh == tracks.size_wh == (384, 576)
    assert info.num_frames == len(tracks) == 36
    assert float(info.fps) == tracks.fps == 12


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_are_pictures(name: str) -> None:
    assert read_photo(EXAMPLES / f"{name}.png").shape == (576, 384, 3)


@pytest.mark.parametrize("name", DANCES)
def test_mediapipe_finds_the_drawn_dancer(name: str) -> None:
    pytest.importorskip("mediapipe")
    from xdyna.preprocess.detect import build_detector

    frames = list(VideoReader(EXAMPLES / f"{name}.mp4", frames=4))
    detector, _ = build_detector("mediapipe")
    found = detector.detect(frames, fps=12)
    truth = Tracks.load(EXAMPLES / f"{name}.tracks.npz")[:4]
    body = found.joints_conf[:, :14] > 0.3
    assert body.mean() > 0.9
    miss = np.linalg.norm(found.joints_xy - truth.joints_xy, axis=-1)[:, :14][body]
    assert np.median(miss) < 0.02 * 576
