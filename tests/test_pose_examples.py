"""The shipped examples go through the offline detector as a user's own clips do."""

from pathlib import Path

import numpy as np
import pytest

from xdyna.photo import read_photo
from xdyna.preprocess.detect import TracksDetector, build_detector
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoReader

pytest.importorskip("mediapipe")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_the_shipped_dance_is_found_where_its_truth_says() -> None:
    video = EXAMPLES / "dance.mp4"
    detector, line = build_detector("mediapipe", video=video, hands=False)
    assert line == "pose: detector mediapipe (asked for)"
    reader = VideoReader(video, frames=16)
    found = detector.detect(reader, fps=float(reader.fps))
    truth = Tracks.load(EXAMPLES / "dance.tracks.npz").resized(found.size_wh)[: len(found)]
    both = (found.joints_conf >= 0.3) & (truth.joints_conf >= 0.3)
    both[:, 14:] = False  # eyes and ears are not drawn
    assert both[:, :14].mean() > 0.9
    away = np.linalg.norm(found.joints_xy - truth.joints_xy, axis=-1)[both] / found.size_wh[1]
    assert np.median(away) < 0.02
    assert isinstance(build_detector("auto", video=video)[0], TracksDetector)


def test_the_shipped_photo_is_found() -> None:
    photo = EXAMPLES / "photo.png"
    detector, _ = build_detector("auto", video=photo, hands=False)
    assert (detector.detect([read_photo(photo)], fps=1.0).joints_conf[0, :14] >= 0.3).sum() >= 12
