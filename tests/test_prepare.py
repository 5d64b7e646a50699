"""From photo and clip to the model's inputs in one call, and the command that shows them."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from animate_inputs import files_in, make_driver, make_photo, waving_tracks
from clips import make_clip

import xdyna.preprocess.prepare as prepare_module
from xdyna.cli import main
from xdyna.errors import UserError
from xdyna.photo import read_photo
from xdyna.preprocess.contact_sheet import contact_sheet, sheet_frames
from xdyna.preprocess.draw import draw_pose_map
from xdyna.preprocess.face_warp import face_similarity, move_frame
from xdyna.preprocess.prepare import Prepared, prepare
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoReader

CLIP_WH, MODEL_WH = (96, 144), (64, 96)
RED = np.array([250, 20, 20], np.uint8)


class FakeClip:
    """A grey clip whose tracks' noses are red squares; it notes how many of its frames are alive at once."""

    def __init__(self, tracks: Tracks, *, lost: int = 0) -> None:
        self.tracks, self.size_wh, self.fps = tracks, tracks.size_wh, Fraction(tracks.fps)
        self.num_expected = len(tracks)
        self._lost, self._alive, self.most_alive, self.num_read = lost, 0, 0, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self.tracks) - self._lost):
            frame = np.full((self.size_wh[1], self.size_wh[0], 3), 60, np.uint8)
            x, y = self.tracks.joints_xy[index, 0].astype(int)
            frame[max(0, y - 4) : y + 4, max(0, x - 4) : x + 4] = RED
            weakref.finalize(frame, self._gone)
            self._alive += 1
            self.num_read += 1
            self.most_alive = max(self.most_alive, self._alive)
            yield frame
            del frame

    def _gone(self) -> None:
        self._alive -= 1


class FakeDetector:
    """Knows the tracks of one clip and of one photo, by the frame's size."""

    name = "fake"

    def __init__(self, *known: Tracks) -> None:
        self._known = {tracks.size_wh: tracks for tracks in known}

    def detect(self, frames: Iterable[np.ndarray], *, fps: float) -> Tracks:
        number, size_wh = 0, (0, 0)
        for frame in frames:
            number, size_wh = number + 1, (frame.shape[1], frame.shape[0])
            del frame
        return replace(self._known[size_wh][:number], fps=fps)


def photo_of(tracks: Tracks) -> np.ndarray:
    return np.full((tracks.size_wh[1], tracks.size_wh[0], 3), 90, np.uint8)


def scaled(tracks: Tracks, scale: float, shift: tuple[float, float], size_wh: tuple[int, int]) -> Tracks:
    def move(points: np.ndarray) -> np.ndarray:
        return (points * scale + np.asarray(shift)).astype(np.float32)

    return replace(
        tracks,
        joints_xy=move(tracks.joints_xy),
        hands_xy=move(tracks.hands_xy),
        face_xy=move(tracks.face_xy),
        size_wh=size_wh,
    )


def red_centre(image: np.ndarray) -> np.ndarray:
    """(x, y) of the middle of what is red, pixels."""
    rows, columns = np.nonzero((image[..., 0] > 150) & (image[..., 1] < 100))
    assert len(rows)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def test_everything_is_made_at_the_models_size() -> None:
    tracks = waving_tracks(5, CLIP_WH)
    clip, stages = FakeClip(tracks), []
    prepared = prepare(
        photo_of(waving_tracks(1, (128, 192))),
        MODEL_WH,
        clip,
        detector=FakeDetector(tracks, waving_tracks(1, (128, 192))),
        smooth=False,
        on_progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert prepared.reference.shape == (96, 64, 3)
    assert np.asarray(prepared.pose_maps).shape == (5, 96, 64, 3)
    assert prepared.face_maps is not None
    assert [np.asarray(maps).shape for maps in prepared.face_maps] == [(5, 96, 64, 3)] * 2
    assert prepared.align == "bones"
    assert prepared.warnings == []
    assert prepared.fps == 8
    assert prepared.tracks is not None
    # The same body in the same pose: the driver lands where the photo's person is.
    np.testing.assert_allclose(prepared.tracks.joints_xy[0], waving_tracks(1, MODEL_WH).joints_xy[0], atol=1.0)
    np.testing.assert_array_equal(prepared.pose_maps[2], draw_pose_map(prepared.tracks, 2, MODEL_WH))
    ended = {stage for stage, done, total in stages if done == total}
    assert ended == {"pose", "photo", "align", "face maps", "pose maps"}


def test_frames_are_streamed() -> None:
    tracks = waving_tracks(40, CLIP_WH, face=False)
    clip = FakeClip(tracks)
    prepare(photo_of(tracks), MODEL_WH, clip, detector=FakeDetector(tracks), face_finder=NoseFinder(), align="none")
    gc.collect()
    assert clip.num_read == 3 * 40  # pose, faces, face maps
    assert clip.most_alive <= 4


class NoseFinder:
    """A face of one size in the middle of the box."""

    def find(self, frame: np.ndarray, box: np.ndarray) -> np.ndarray | None:
        centre = (box[:2] + box[2:]) / 2
        ring = waving_tracks(1, CLIP_WH).face_xy[0]
        return (ring - ring.mean(0) + centre).astype(np.float32)


@pytest.mark.parametrize("mode", ["none", "affine", "bones"])
def test_face_pixels_lie_where_the_aligned_head_is(mode: str) -> None:
    tracks = waving_tracks(3, CLIP_WH)
    person = scaled(waving_tracks(1, CLIP_WH), 0.5, (30, 12), MODEL_WH)
    prepared = prepare(photo_of(person), MODEL_WH, FakeClip(tracks), tracks=tracks, reference_tracks=person, align=mode)
    assert prepared.face_maps is not None
    assert prepared.tracks is not None
    for index in range(3):
        nose = prepared.tracks.joints_xy[index, 0]
        assert np.abs(red_centre(prepared.face_maps[1][index]) - nose).max() < 0.8
    if mode != "none":
        np.testing.assert_allclose(prepared.tracks.joints_xy[0, 0], person.joints_xy[0, 0], atol=0.05)


def test_frames_move_by_the_similarity_of_their_faces() -> None:
    before = np.random.default_rng(0).uniform(20, 60, (68, 2)).astype(np.float32)
    scale, shift = face_similarity(before, before * 1.7 - np.float32(9))
    assert scale == pytest.approx(1.7, rel=1e-5)
    np.testing.assert_allclose(shift, [-9, -9], atol=1e-3)
    frame = np.full((90, 80, 3), 60, np.uint8)
    frame[40:50, 30:40] = RED
    for scale in (1.7, 1.0, 0.5, 0.21):
        moved = move_frame(frame, scale, np.array([5.0, 8.0]), (120, 150))
        assert np.abs(red_centre(moved) - (np.array([35, 45]) * scale + [5, 8])).max() < 0.8
        assert not moved[-1, -1].any() or scale == 1.7


def test_without_a_face_it_goes_on_with_a_warning() -> None:
    class Blind:
        def find(self, frame: np.ndarray, box: np.ndarray) -> None:
            return None

    tracks = waving_tracks(3, CLIP_WH, face=False)
    photo = photo_of(tracks)
    none = prepare(photo, MODEL_WH, FakeClip(tracks), tracks=tracks, face_finder=Blind(), align="none")
    assert none.face_maps is None
    assert none.warnings == ["no face found in the driving clip: face maps left out"]
    asked = prepare(photo, MODEL_WH, FakeClip(tracks), tracks=tracks, face=False, align="none")
    assert asked.face_maps is None
    assert asked.warnings == []
    alone = prepare(photo, MODEL_WH, None, tracks=waving_tracks(3, CLIP_WH), align="none")
    assert alone.face_maps is None
    assert "without the driving video" in alone.warnings[0]
    half = waving_tracks(4, CLIP_WH)
    half.face_conf[2:] = 0
    some = prepare(photo, MODEL_WH, FakeClip(half), tracks=half, align="none")
    assert some.face_maps is not None
    assert np.asarray(some.face_maps[1]).any(axis=(1, 2, 3)).tolist() == [True, True, False, False]
    assert "2 of 4 frames" in some.warnings[0]


def test_a_missing_mediapipe_costs_the_face_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("finding faces needs MediaPipe")

    monkeypatch.setattr(prepare_module, "FaceMesh", refuse)
    tracks = waving_tracks(2, CLIP_WH, face=False)
    prepared = prepare(photo_of(tracks), MODEL_WH, FakeClip(tracks), tracks=tracks, align="none")
    assert prepared.face_maps is None
    assert prepared.warnings[0] == "finding faces needs MediaPipe"


def test_nobody_in_the_clip_or_in_the_photo() -> None:
    tracks, empty = waving_tracks(3, CLIP_WH), Tracks.empty(3, CLIP_WH, 8.0)
    photo = photo_of(waving_tracks(1, (128, 192)))
    with pytest.raises(UserError, match="no person found in the driving clip"):
        prepare(photo, MODEL_WH, FakeClip(empty), detector=FakeDetector(empty), align="none")
    detector = FakeDetector(tracks, Tracks.empty(1, (128, 192), 8.0))
    prepared = prepare(photo, MODEL_WH, FakeClip(tracks), detector=detector, start_at_best=True)
    assert prepared.align == "none"
    assert [line for line in prepared.warnings if "no person found in the photo" in line] == prepared.warnings
    assert len(prepared.warnings) == 2
    with pytest.raises(UserError, match="align bones: no person found in the photo"):
        prepare(photo, MODEL_WH, FakeClip(tracks), detector=detector, align="bones")
    with pytest.raises(ValueError, match="wanted tracks"):
        prepare(photo, MODEL_WH, None)


def test_tracks_must_be_of_this_clip() -> None:
    tracks = waving_tracks(60, CLIP_WH)
    photo = photo_of(tracks)
    small = prepare(photo, MODEL_WH, FakeClip(tracks), tracks=tracks.resized((48, 72)), align="none")
    assert small.driving_tracks is not None
    np.testing.assert_allclose(small.driving_tracks.joints_xy, tracks.joints_xy, atol=1e-3)
    with pytest.raises(UserError, match="not the same clip"):
        prepare(photo, MODEL_WH, FakeClip(tracks), tracks=replace(tracks, size_wh=(144, 96)), align="none")
    # Uneven frame rates cost a frame or two, another clip costs more.
    assert prepare(photo, MODEL_WH, FakeClip(tracks, lost=2), tracks=tracks, align="none").num_frames == 60
    with pytest.raises(UserError, match="has 50 frames where its tracks have 60"):
        prepare(photo, MODEL_WH, FakeClip(tracks, lost=10), tracks=tracks, align="none")


def test_the_best_start_leaves_out_what_is_before_it() -> None:
    tracks = waving_tracks(30, CLIP_WH)
    person = tracks[[3]].resized((128, 192))
    clip = FakeClip(tracks)
    detector = FakeDetector(tracks, person)
    prepared = prepare(
        photo_of(person), MODEL_WH, clip, detector=detector, start_at_best=True, num_frames=10, smooth=False
    )
    assert prepared.start_frame == 3
    assert prepared.num_frames == 10
    assert prepared.driving_tracks is not None
    np.testing.assert_array_equal(prepared.driving_tracks.joints_xy, tracks.joints_xy[3:13])
    # The end of the clip is no place to start.
    late = prepare(photo_of(person), MODEL_WH, clip, tracks=tracks, reference_tracks=tracks[[25]], start_at_best=True)
    assert late.start_frame <= 15


def test_a_long_clip_is_not_read_to_its_end_for_the_best_start() -> None:
    tracks = waving_tracks(200, CLIP_WH)
    clip = FakeClip(tracks)
    person = waving_tracks(1, (128, 192))
    detector = FakeDetector(tracks, person)
    prepare(photo_of(person), MODEL_WH, clip, detector=detector, start_at_best=True, num_frames=5, face=False)
    assert clip.num_read == 5 + 80


def test_only_what_a_detector_found_is_smoothed() -> None:
    tracks = waving_tracks(12, CLIP_WH)
    tracks.joints_xy[6] += 2
    photo = photo_of(tracks)
    taken = prepare(photo, MODEL_WH, FakeClip(tracks), tracks=tracks, align="none").driving_tracks
    calm = prepare(photo, MODEL_WH, FakeClip(tracks), detector=FakeDetector(tracks), align="none").driving_tracks
    rough = prepare(
        photo, MODEL_WH, FakeClip(tracks), detector=FakeDetector(tracks), smooth=False, align="none"
    ).driving_tracks
    assert taken is not None
    assert calm is not None
    assert rough is not None
    np.testing.assert_array_equal(taken.joints_xy, tracks.joints_xy)
    np.testing.assert_array_equal(rough.joints_xy, tracks.joints_xy)
    assert np.abs(np.diff(calm.joints_xy[:, 1, 0])).max() < 2


class DrawnClip:
    """An already drawn skeleton clip."""

    fps = Fraction(8)

    def __init__(self, tracks: Tracks, size_wh: tuple[int, int]) -> None:
        self.size_wh, self.num_expected, self._tracks = size_wh, len(tracks), tracks

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self._tracks)):
            yield draw_pose_map(self._tracks, index, self.size_wh)


def test_drawn_pose_maps_are_fitted_and_faces_come_from_the_clip() -> None:
    tracks = waving_tracks(6, CLIP_WH)
    drawn = DrawnClip(tracks, (96, 144))
    photo = photo_of(tracks)
    alone = prepare(photo, MODEL_WH, None, pose_maps=drawn, num_frames=4, face=False)
    assert alone.num_frames == 4
    assert np.asarray(alone.pose_maps).any(axis=(1, 2, 3)).all()
    assert alone.tracks is None
    both = prepare(photo, MODEL_WH, FakeClip(tracks), pose_maps=drawn, detector=FakeDetector(tracks))
    assert both.num_frames == 6
    assert both.face_maps is not None
    assert both.tracks is not None
    assert np.abs(red_centre(both.face_maps[1][0]) - both.tracks.joints_xy[0, 0]).max() < 0.8
    empty = Tracks.empty(6, CLIP_WH, 8.0)
    faceless = prepare(photo, MODEL_WH, FakeClip(empty), pose_maps=drawn, detector=FakeDetector(empty))
    assert faceless.face_maps is None
    assert "no person" in faceless.warnings[0]


def test_official_maps_without_a_face_are_stretched() -> None:
    wide = DrawnClip(waving_tracks(1, (200, 100)), (200, 100))
    photo = np.full((96, 64, 3), 90, np.uint8)
    stretched = prepare(photo, MODEL_WH, None, pose_maps=wide, face=False, official=True).pose_maps[0]
    cropped = prepare(photo, MODEL_WH, None, pose_maps=wide, face=False).pose_maps[0]
    spread = [np.ptp(np.nonzero(image.any(-1))[1]) / image.shape[1] for image in (next(iter(wide)), stretched, cropped)]
    assert spread[1] == pytest.approx(spread[0], abs=0.05)
    assert spread[2] > 2 * spread[0]


def prepared_of(num_frames: int, *, face: bool = True) -> Prepared:
    tracks = waving_tracks(num_frames, CLIP_WH)
    return prepare(photo_of(tracks), MODEL_WH, FakeClip(tracks), tracks=tracks, face=face, reference_tracks=tracks[[0]])


def test_the_contact_sheet_shows_every_row() -> None:
    assert sheet_frames(48, 4) == [0, 16, 31, 47]
    assert sheet_frames(1, 8) == [0]
    prepared = prepared_of(5)
    full = contact_sheet(prepared, FakeClip(waving_tracks(5, CLIP_WH)))
    without_driver = contact_sheet(prepared)
    without_face = contact_sheet(prepared_of(5, face=False))
    row = full.shape[0] - without_driver.shape[0]
    assert row > 200
    assert without_driver.shape[0] - without_face.shape[0] == 2 * row
    assert full.shape[1] > contact_sheet(prepared, columns=2).shape[1]
    assert ((full[..., 0] > 200) & (full[..., 1] < 60)).any()  # the driver's red nose
    warned = contact_sheet(replace(prepared, warnings=["something long enough to be broken over lines " * 6]))
    assert warned.shape[0] > without_driver.shape[0] + 40
    with pytest.raises(ValueError, match="columns"):
        contact_sheet(prepared, columns=0)


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_writes_maps_tracks_and_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, clip = make_photo(tmp_path / "me.png"), make_driver(tmp_path / "dance.mp4", 6)
    folder = tmp_path / "deep" / "maps"
    assert run("preprocess", "--ref", photo, "--pose-video", clip, "--size", "32x48", "-o", folder, "--json") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == ""
    wanted = ["face_global.mp4", "face_local.mp4", "pose.mp4", "sheet.png", "tracks.npz"]
    assert files_in(folder) == [f"dance.{name}" for name in wanted]
    assert report["files"][0] == str(folder / "dance.sheet.png")
    assert report["num_frames"] == 6
    assert report["align"] == "bones"
    assert report["face"] is True
    assert read_photo(folder / "dance.sheet.png").shape[0] > 5 * 200
    for kind in ("pose", "face_local", "face_global"):
        assert len(list(VideoReader(folder / f"dance.{kind}.mp4"))) == 6
    written, truth = Tracks.load(folder / "dance.tracks.npz"), Tracks.load(tmp_path / "dance.tracks.npz")
    np.testing.assert_allclose(written.joints_xy, truth.joints_xy, atol=1e-4)


def test_written_tracks_fit_the_same_video_from_the_same_start(tmp_path: Path) -> None:
    photo, clip = make_photo(tmp_path / "me.png"), make_driver(tmp_path / "dance.mp4", 12)
    common = ["--ref", photo, "--pose-video", clip, "--size", "32x48", "--start", "0.5", "--frames", "3", "--no-face"]
    assert run("preprocess", *common, "-o", tmp_path / "one") == 0
    written = tmp_path / "one" / "dance.tracks.npz"
    assert len(Tracks.load(written)) == 4 + 3
    assert run("preprocess", *common, "--tracks", written, "-o", tmp_path / "two") == 0
    one, two = (list(VideoReader(tmp_path / name / "dance.pose.mp4")) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
    assert files_in(tmp_path / "one") == ["dance.pose.mp4", "dance.sheet.png", "dance.tracks.npz"]


def test_a_tracks_file_that_is_read_stays_as_it_is(tmp_path: Path) -> None:
    photo, clip = make_photo(tmp_path / "me.png"), make_driver(tmp_path / "dance.mp4", 12)
    tracks = tmp_path / "dance.tracks.npz"
    before = tracks.read_bytes()
    common = ["--ref", photo, "--pose-video", clip, "--size", "32x48", "--frames", "3", "--no-face", "-o", tmp_path]
    for options in ([], ["--tracks", tracks]):
        assert run("preprocess", *common, *options) == 0
        assert tracks.read_bytes() == before
    assert (tmp_path / "dance.pose.mp4").is_file()


def test_maps_replace_no_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, clip = make_photo(tmp_path / "me.png"), make_driver(tmp_path / "dance.pose.mp4", 3)
    driver = make_driver(tmp_path / "dance.mp4", 3)
    before = clip.read_bytes()
    options = ["--ref", photo, "--pose-video", driver, "--pose-maps", clip, "--size", "32x48"]
    assert run("preprocess", *options, "-o", tmp_path) == 2
    assert f"{clip}: is an input of this very run" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_the_command_takes_drawn_maps_and_the_models_size(tmp_path: Path, tiny_folder: Path) -> None:
    photo = make_photo(tmp_path / "me.png")
    tracks = waving_tracks(4, CLIP_WH)
    drawn = make_clip(tmp_path / "drawn.mp4", 4, 8, CLIP_WH, draw=lambda n, wh: draw_pose_map(tracks, n, wh))
    folder = tmp_path / "maps"
    assert run("preprocess", "--ref", photo, "--pose-maps", drawn, "--model", tiny_folder, "-o", folder) == 0
    assert files_in(folder) == ["drawn.pose.mp4", "drawn.sheet.png"]
    assert VideoReader(folder / "drawn.pose.mp4").size_wh == (32, 48)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--ref", "nobody.png"], "nobody.png"),
        (["--pose-video", "none.mp4"], "none.mp4"),
        (["--size", "0x5"], "--size"),
        (["--align", "best"], "--align"),
        (["-o", "me.png"], "me.png"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_photo(tmp_path / "me.png")
    make_driver(tmp_path / "dance.mp4", 2)
    options = {"--ref": "me.png", "--pose-video": "dance.mp4", "--size": "32x48", "-o": "maps"}
    options[change[0]] = change[1]
    if change[0] == "--model":
        del options["--size"]
    assert run("preprocess", *(part for pair in options.items() for part in pair)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert not list(tmp_path.glob("maps/*"))


def test_the_photo_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("preprocess", "--pose-video", "dance.mp4") == 2
    assert "--ref is missing" in capsys.readouterr().err
