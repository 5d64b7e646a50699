"""Detectors by name: which is taken, what it says, what a user did wrong; tracks files; a stand-in controlnet-aux."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from animate_inputs import waving_tracks
from test_pose_draw import standing

from xdyna.errors import UserError
from xdyna.preprocess.detect import DETECTORS, PeopleDetector, TracksDetector, build_detector, tracks_beside
from xdyna.preprocess.tracks import Tracks

FRAME = np.zeros((96, 64, 3), np.uint8)


@pytest.fixture
def tracks_file(tmp_path: Path) -> Path:
    """30 frames at 10 fps whose nose moves a pixel a frame."""
    tracks = standing(30)
    tracks.joints_xy[:, 0, 0] = np.arange(30)
    Tracks(**{**vars(tracks), "fps": 10.0}).save(tmp_path / "dance.tracks.npz")
    return tmp_path / "dance.tracks.npz"


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make modules look as if they were not installed."""
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in modules else found(name, *rest))


def test_auto_takes_tracks_beside_the_video(tracks_file: Path) -> None:
    video = tracks_file.with_name("dance.mp4")
    assert tracks_beside(video) == tracks_file
    detector, line = build_detector("auto", video=video)
    assert isinstance(detector, TracksDetector)
    assert line == f"pose: tracks from {tracks_file}"
    assert tracks_beside(tracks_file.with_name("other.mp4")) is None


def test_auto_prefers_given_tracks_over_those_beside(tracks_file: Path, tmp_path: Path) -> None:
    given = tmp_path / "mine.npz"
    Tracks.load(tracks_file).save(given)
    assert str(given) in build_detector("auto", video=tmp_path / "dance.mp4", tracks=given)[1]


def test_tracks_follow_time_rate_and_size(tracks_file: Path) -> None:
    detector = TracksDetector(tracks_file, start_s=0.5)
    tracks = detector.detect([FRAME] * 5, fps=5.0)
    assert tracks.size_wh == (64, 96)
    assert tracks.fps == 5.0
    assert np.allclose(tracks.joints_xy[:, 0, 0], np.array([5, 7, 9, 11, 13]) * 64 / 512)


def test_tracks_that_end_too_soon(tracks_file: Path) -> None:
    assert len(TracksDetector(tracks_file).detect([FRAME] * 31, fps=10.0)) == 31  # a frame of slack
    with pytest.raises(UserError, match=r"covers 3\.00 s, but frames up to 3\.90 s"):
        TracksDetector(tracks_file).detect([FRAME] * 40, fps=10.0)
    with pytest.raises(UserError, match="no frames"):
        TracksDetector(tracks_file).detect([], fps=10.0)


def test_tracks_mistakes(tracks_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--person 2, but a tracks file holds one person"):
        TracksDetector(tracks_file, person=2)
    with pytest.raises(UserError, match="no such file"):
        build_detector("tracks", tracks=tmp_path / "none.tracks.npz")
    with pytest.raises(UserError, match=r"no tracks file beside .*other\.mp4; wanted NAME\.tracks\.npz"):
        build_detector("tracks", video=tmp_path / "other.mp4")
    with pytest.raises(UserError, match="goes with --detector tracks or auto, got --detector mediapipe"):
        build_detector("mediapipe", tracks=tracks_file)
    (tmp_path / "text.tracks.npz").write_text("no")
    with pytest.raises(UserError, match=r"not a tracks file \(\.tracks\.npz\): another kind of file$"):
        build_detector("tracks", tracks=tmp_path / "text.tracks.npz")
    Tracks.empty(3, (64, 96), 8.0).save(tmp_path / "empty.tracks.npz")
    with pytest.raises(UserError, match="holds no person"):
        build_detector("tracks", tracks=tmp_path / "empty.tracks.npz")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"fps": 0.0}, "at 0.0 frames/s"),
        ({"fps": float("nan")}, "at nan frames/s"),
        ({"size_wh": (0, 96)}, "frames of 0x96 px"),
        ({"joints_conf": np.full((3, 18), np.nan, np.float32)}, "joints_conf holds values that are not finite"),
        ({"joints_xy": np.full((3, 18, 2), np.inf, np.float32)}, "joints_xy holds values that are not finite where"),
    ],
)
def test_numbers_that_no_clip_can_have(tmp_path: Path, change: dict[str, Any], wanted: str) -> None:
    good = waving_tracks(3, (64, 96))
    replace(good, **change).save(tmp_path / "bad.tracks.npz")
    with pytest.raises(UserError, match=re.escape(wanted)):
        Tracks.load(tmp_path / "bad.tracks.npz")


def test_nan_may_stand_for_what_was_not_found(tmp_path: Path) -> None:
    tracks = waving_tracks(3, (64, 96))
    tracks.joints_conf[1, 4], tracks.joints_xy[1, 4] = 0, np.nan
    tracks.save(tmp_path / "a.tracks.npz")
    loaded = Tracks.load(tmp_path / "a.tracks.npz")
    assert not loaded.joints_xy[1, 4].any()
    np.testing.assert_array_equal(loaded.joints_xy[[0, 2]], tracks.joints_xy[[0, 2]])


def test_unknown_name_gets_near_matches() -> None:
    with pytest.raises(UserError, match="--detector mediapip: no such detector; did you mean mediapipe"):
        build_detector("mediapip")
    assert DETECTORS[0] == "auto"


def test_auto_with_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "mediapipe", "controlnet_aux")
    with pytest.raises(UserError, match=r"xdyna\[pose\].*xdyna\[annotators\].*--tracks FILE"):
        build_detector("auto")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("mediapipe", "mediapipe", "pose"), ("controlnet-aux", "controlnet_aux", "annotators")],
)
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str) -> None:
    hide(monkeypatch, module)
    with pytest.raises(
        UserError, match=rf"detector {name}: cannot import {module}.*pip install 'xdyna\[{extra}\]'"
    ) as caught:
        build_detector(name)
    assert "\n" not in str(caught.value)


def test_later_mediapipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", ModuleType("mediapipe"))
    with pytest.raises(UserError, match=r"no bundled models; wanted 0\.10\.14"):
        build_detector("mediapipe")


class _OpenPose:
    """Stand-in for controlnet-aux's detector: a small and a large person, the small one first."""

    device = ""

    @classmethod
    def from_pretrained(cls, weights: str) -> "_OpenPose":
        if weights == "nowhere/nothing":
            raise OSError("401 Client Error\nRepository Not Found")
        return cls()

    def to(self, device: str) -> "_OpenPose":
        self.device = device
        return self

    def detect_poses(self, image: np.ndarray, include_hand: bool, include_face: bool) -> list[SimpleNamespace]:
        assert include_hand
        assert include_face
        assert image.dtype == np.uint8

        def point(x: float, y: float) -> SimpleNamespace:
            return SimpleNamespace(x=x, y=y, score=0.9)

        large = [point(0.5 + 0.02 * joint, 0.1 + 0.05 * joint) for joint in range(18)]
        large[17] = None  # type: ignore[call-overload]
        small = [point(0.1 + 0.001 * joint, 0.1 + 0.005 * joint) for joint in range(18)]
        hand = [point(0.25, 0.5)] * 20 + [SimpleNamespace(x=-0.01, y=-0.01)]
        face = [point(0.5, 0.25)] * 70
        return [
            SimpleNamespace(body=SimpleNamespace(keypoints=small), left_hand=None, right_hand=None, face=None),
            SimpleNamespace(body=SimpleNamespace(keypoints=large), left_hand=hand, right_hand=None, face=face),
        ]


def test_controlnet_aux_by_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("controlnet_aux")
    package.OpenposeDetector = _OpenPose  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    detector, line = build_detector("controlnet-aux", device="cpu")
    assert isinstance(detector, PeopleDetector)
    assert line == "pose: detector controlnet-aux (asked for)"
    tracks = detector.detect([FRAME] * 4, fps=8.0)
    assert tracks.joints_xy[2, 0].tolist() == pytest.approx([0.5 * 64, 0.1 * 96])
    assert tracks.joints_conf[2, 0] == pytest.approx(0.9)
    assert tracks.joints_conf[2, 17] == 0
    assert tracks.hands_xy[0, 0, 3].tolist() == [16, 48]
    assert tracks.hands_conf[0, 0, 20] == 0
    assert not tracks.hands_conf[:, 1].any()
    assert tracks.face_xy[1, 67].tolist() == [32, 24]
    assert (tracks.face_conf > 0.5).all()


def test_controlnet_aux_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from xdyna.preprocess.annotator import ControlNetAuxFinder

    package = ModuleType("controlnet_aux")
    package.OpenposeDetector = _OpenPose  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    with pytest.raises(
        UserError, match=r"cannot load its weights from nowhere/nothing .*Repository Not Found"
    ) as caught:
        ControlNetAuxFinder(weights="nowhere/nothing")
    assert "\n" not in str(caught.value)


def test_dwpose_needs_its_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs its two ONNX files"):
        build_detector("dwpose")
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"det\.onnx: no such file"):
        build_detector("dwpose", dwpose_files=(tmp_path / "det.onnx", tmp_path / "pose.onnx"))


def test_dwpose_without_onnxruntime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "onnxruntime")
    with pytest.raises(UserError, match=r"onnxruntime is not installed: pip install 'xdyna\[onnx\]'"):
        build_detector("dwpose", dwpose_files=(tmp_path / "a", tmp_path / "b"))
