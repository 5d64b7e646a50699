"""Where tracks come from: the detectors by name, and what each does with a clip.

A detector is an object with one method, `detect`; anything that has it can be passed where one is wanted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError, near_matches
from xdyna.preprocess.people import LOOK_EVERY, MAX_PEOPLE, PeopleFinder, choose_person, detect_people
from xdyna.preprocess.tracks import SUFFIX, Tracks

Image = NDArray[np.uint8]

DETECTORS = ("auto", "mediapipe", "dwpose", "controlnet-aux", "tracks")


class PoseDetector(Protocol):
    """Turns a clip into one person's tracks."""

    name: str

    def detect(self, frames: Iterable[Image], *, fps: float) -> Tracks:
        """Follow the person to be animated.

        Args:
            frames: uint8 RGB [H, W, 3] each, read once.
            fps: of the frames.

        Returns:
            Tracks as long as the clip; confidence 0 where the person is not seen.

        Raises:
            UserError: nobody is seen in any frame.
        """


class PeopleDetector:
    """Finds everybody and follows one: the biggest, or the one with a given number.

    Args:
        finder: finds people in a frame.
        person: number (1..) as in the picture of `people.people_picture`; None takes the biggest.
        label: what to call the clip in messages.
    """

    def __init__(self, finder: PeopleFinder, *, person: int | None = None, label: str = "the clip") -> None:
        self.name = finder.name
        self._finder, self._person, self._label = finder, person, label

    def detect(self, frames: Iterable[Image], *, fps: float) -> Tracks:
        """As `PoseDetector.detect`."""
        watched = _Watched(frames)
        # Numbers must mean the same people as in the picture of all, so a choice by number searches every frame.
        every = 1 if self._person is not None else LOOK_EVERY
        people = detect_people(watched, self._finder, fps=fps, look_every=every)
        if watched.num_frames == 0:
            raise UserError(f"{self._label}: has no frames; wanted at least one")
        if not people and watched.num_frames == 1:  # a photo, most of the time
            black = ", all of it is black" if watched.brightest < _BLACK else ""
            raise UserError(f"{self._label}: no person found{black}; wanted a picture that shows a person")
        if not people and watched.brightest < _BLACK:
            raise UserError(f"{self._label}: no person found, every frame is black; wanted a clip that shows a person")
        return choose_person(people, self._person, self._label)

    def detect_all(self, frames: Iterable[Image], *, fps: float, max_people: int = MAX_PEOPLE) -> list[Tracks]:
        """Everybody in the clip, in the order of their numbers.

        Raises:
            UserError: nobody is seen in any frame.
        """
        people = detect_people(frames, self._finder, fps=fps, max_people=max_people, look_every=1)
        if not people:
            choose_person(people, None, self._label)
        return people


class TracksDetector:
    """Takes the tracks from a file instead of looking.

    Args:
        path: a `.tracks.npz` file of the same clip.
        start_s: where the frames begin in the clip, seconds.
        person: must be None or 1: such a file holds one person.

    Raises:
        UserError: the file is missing or not such a file, holds nobody, or another person than 1 was asked for.
    """

    name = "tracks"

    def __init__(self, path: Path, *, start_s: float = 0.0, person: int | None = None) -> None:
        if person not in (None, 1):
            raise UserError(f"{path}: --person {person}, but a tracks file holds one person")
        self._path, self._start_s = path, start_s
        self._tracks = Tracks.load(path)
        if not (self._tracks.joints_conf > 0).any():
            raise UserError(f"{path}: holds no person in any frame")

    def detect(self, frames: Iterable[Image], *, fps: float) -> Tracks:
        """The file's tracks at the frames' times and size; `frames` are only counted.

        Raises:
            UserError: there is no frame, or the clip is longer than the file.
        """
        num_frames, size_wh = 0, (0, 0)
        for frame in frames:
            num_frames, size_wh = num_frames + 1, (frame.shape[1], frame.shape[0])
        if not num_frames:
            raise UserError(f"{self._path}: the clip it belongs to has no frames; wanted at least one")
        return self.at_times(num_frames, fps).resized(size_wh)

    def at_times(self, num_frames: int, fps: float) -> Tracks:
        """The nearest tracked frame for each of `num_frames` frames at `fps` from the start."""
        index = np.rint((self._start_s + np.arange(num_frames) / fps) * self._tracks.fps - _TIE).astype(int)
        if index[-1] > len(self._tracks):  # one frame of slack for rates that do not divide
            seconds = len(self._tracks) / self._tracks.fps
            raise UserError(
                f"{self._path}: covers {seconds:.2f} s, but frames up to {index[-1] / self._tracks.fps:.2f} s are"
                " wanted; is it another clip's?"
            )
        picked = self._tracks[[int(at) for at in index.clip(0, len(self._tracks) - 1)]]
        return Tracks(**{**vars(picked), "fps": float(fps)})


def build_detector(
    name: str = "auto",
    *,
    video: Path | None = None,
    tracks: Path | None = None,
    dwpose_files: tuple[Path, Path] | None = None,
    person: int | None = None,
    start_s: float = 0.0,
    hands: bool = True,
    device: str = "cpu",
) -> tuple[PoseDetector, str]:
    """Make a detector by name.

    `auto` takes, in this order, what is there: a tracks file (given, or beside the video), DWPose files, MediaPipe,
    controlnet-aux.

    Args:
        name: one of `DETECTORS`.
        video: the clip, for messages and for the tracks file beside it.
        tracks: a tracks file.
        dwpose_files: DWPose's people detector and pose model, ONNX.
        person: number of the person to follow; None for the biggest.
        start_s: where the frames begin in the clip, seconds.
        hands: look for hands too (MediaPipe; the others always do).
        device: for DWPose and controlnet-aux.

    Returns:
        The detector and one line that says which it is and why.

    Raises:
        UserError: no such detector, or it cannot work here.
    """
    if name not in DETECTORS:
        raise UserError(f"--detector {name}: no such detector{near_matches(name, DETECTORS)}")
    if tracks is not None and name not in ("auto", "tracks"):
        raise UserError(f"--tracks {tracks}: goes with --detector tracks or auto, got --detector {name}")
    beside = tracks_beside(video)
    chosen, why = (name, "asked for") if name != "auto" else _choose(tracks or beside, dwpose_files)
    label = str(video) if video is not None else "the clip"
    if chosen == "tracks":
        path = tracks or beside
        if path is None:
            where = f"beside {video}" if video is not None else "given"
            raise UserError(f"--detector tracks: no tracks file {where}; wanted NAME{SUFFIX} there, or --tracks FILE")
        return TracksDetector(path, start_s=start_s, person=person), f"pose: tracks from {path}"
    finder = _build_finder(chosen, dwpose_files, hands, device)
    return PeopleDetector(finder, person=person, label=label), f"pose: detector {chosen} ({why})"


def tracks_beside(video: Path | None) -> Path | None:
    """The tracks file beside a video (`dance.mp4` -> `dance.tracks.npz`), if there is one."""
    path = video.with_name(video.stem + SUFFIX) if video is not None else None
    return path if path is not None and path.is_file() else None


def _choose(tracks: Path | None, dwpose_files: tuple[Path, Path] | None) -> tuple[str, str]:
    if tracks is not None:
        return "tracks", ""
    if dwpose_files is not None:
        return "dwpose", "its files were given"
    if importlib.util.find_spec("mediapipe") is not None:
        return "mediapipe", "installed, works offline"
    if importlib.util.find_spec("controlnet_aux") is not None:
        return "controlnet-aux", "installed"
    raise UserError(
        "--detector auto: no detector is installed and no tracks file is there; wanted pip install 'xdyna[pose]',"
        " DWPose files, pip install 'xdyna[annotators]', or --tracks FILE"
    )


def _build_finder(name: str, dwpose_files: tuple[Path, Path] | None, hands: bool, device: str) -> PeopleFinder:
    if name == "mediapipe":
        from xdyna.preprocess.mediapipe_pose import MediaPipeFinder

        return MediaPipeFinder(hands=hands)
    if name == "dwpose":
        from xdyna.preprocess.dwpose import DWPoseFinder

        if dwpose_files is None:
            raise UserError("--detector dwpose: needs its two ONNX files: --dwpose-det FILE and --dwpose-pose FILE")
        return DWPoseFinder(*dwpose_files, device=device)
    from xdyna.preprocess.annotator import ControlNetAuxFinder

    return ControlNetAuxFinder(device=device)


_BLACK = 24  # compressed black stays below
_TIE = 1e-6  # a time exactly between two frames takes the earlier


class _Watched:
    """Counts frames that pass, and how bright they get (every eighth is looked at)."""

    def __init__(self, frames: Iterable[Image]) -> None:
        self._frames = iter(frames)
        self.num_frames, self.brightest = 0, 0

    def __iter__(self) -> _Watched:
        return self

    def __next__(self) -> Image:
        frame = next(self._frames)
        if self.num_frames % LOOK_EVERY == 0:
            self.brightest = max(self.brightest, int(frame.max()))
        self.num_frames += 1
        return frame
