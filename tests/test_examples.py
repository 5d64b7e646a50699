"""The shipped examples: drawn by their script, readable, with truth beside them, and found by the default detector."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from xdyna.photo import read_photo
from xdyna.preprocess.detect import TracksDetector, build_detector
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoReader, probe

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
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


def test_the_examples_are_what_the_script_draws_and_the_page_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = import_module("make_examples")
    for picture in script.PICTURES:
        drawn = script.draw(picture, np.asarray([picture.time_s])).frames[0]
        gap = np.abs(drawn.astype(int) - read_photo(EXAMPLES / f"{picture.name}.png"))
        assert (gap > 2).mean() < 1e-3  # processors may round differently
    for dance in script.DANCES:
        drawn = script.draw(dance, dance.start_s + np.asarray([0, 35]) / script.FPS).tracks
        shipped = Tracks.load(EXAMPLES / f"{dance.name}.tracks.npz")
        assert np.allclose(drawn.joints_xy, shipped.joints_xy[[0, 35]], atol=0.01)
    named = {f"{picture.name}.png" for picture in script.PICTURES}
    for dance in script.DANCES:
        named |= {f"{dance.name}.mp4", f"{dance.name}.tracks.npz"}
    assert {path.name for path in EXAMPLES.iterdir()} == named
    page = (ROOT / "docs" / "synthetic.md").read_text()
    assert all(f"`{name}`" in page for name in named if not name.endswith(".npz"))


@pytest.mark.parametrize("name", DANCES)
def test_a_dancer_is_found_where_the_truth_says(name: str) -> None:
    pytest.importorskip("mediapipe")
    video = EXAMPLES / f"{name}.mp4"
    detector, line = build_detector("mediapipe", video=video, hands=False)
    assert line == "pose: detector mediapipe (asked for)"
    reader = VideoReader(video, frames=16)
    found = detector.detect(reader, fps=float(reader.fps))
    truth = Tracks.load(EXAMPLES / f"{name}.tracks.npz").resized(found.size_wh)[: len(found)]
    both = ((found.joints_conf >= 0.3) & (truth.joints_conf >= 0.3))[:, :14]
    assert both.mean() > 0.9
    away = np.linalg.norm(found.joints_xy - truth.joints_xy, axis=-1)[:, :14][both] / found.size_wh[1]
    assert np.median(away) < 0.02
    assert isinstance(build_detector("auto", video=video)[0], TracksDetector)


def test_the_person_of_the_photo_is_found() -> None:
    pytest.importorskip("mediapipe")
    photo = EXAMPLES / "photo.png"
    detector, _ = build_detector("auto", video=photo, hands=False)
    assert (detector.detect([read_photo(photo)], fps=1.0).joints_conf[0, :14] >= 0.3).sum() >= 12
