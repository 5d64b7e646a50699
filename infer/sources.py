"""The files a job reads: photo, driving video, drawn pose maps, tracks; and what becomes of them before the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer.found import Found
from xdyna.photo import read_photo
from xdyna.preprocess.crop import UPPER, fit, ratio_crop
from xdyna.preprocess.detect import PoseDetector, TracksDetector, build_detector, tracks_beside
from xdyna.preprocess.prepare import Prepared, prepare
from xdyna.preprocess.tracks import Tracks
from xdyna.video import AudioCut, VideoReader

Image = NDArray[np.uint8]
OnProgress = Callable[[str, int, int], None]
#: What decides, with the files, which frames a detector sees and what it finds in them.
_DRIVER_SETTINGS = ("detector", "person", "start", "fps", "stride", "frames", "device")
#: Called with the level and the line of a notice or a warning.
Say = Callable[[int, str], None]

logger = logging.getLogger("xdyna")


def _log(level: int, line: str) -> None:
    logger.log(level, "%s", line)


@dataclass(frozen=True, eq=False)
class Sources:
    """Opened input files of one job.

    Attributes:
        photo_path: the photo's file.
        photo: uint8 RGB [H, W, 3].
        driving: the driving video; None where maps or tracks stand for it.
        pose_maps: already drawn skeletons, in step with `driving`.
        tracks: tracks that stand for a missing driving video, at the output's rate.
        tracks_path: the tracks file that is read, if one is: given, or beside the driving video.
    """

    photo_path: Path
    photo: Image
    driving: VideoReader | None
    pose_maps: VideoReader | None
    tracks: Tracks | None
    tracks_path: Path | None

    @classmethod
    def open(cls, reference: Path, driving: Path | None, config: AnimateConfig) -> Sources:
        """Open and look at everything.

        Raises:
            UserError: a file that cannot be read, nothing to drive with, or settings that do not go together.
        """
        if driving is None and config.pose_maps is None and config.tracks is None:
            raise UserError("--pose-video is missing: wanted a driving video, --pose-maps or --tracks")
        if config.start == "auto" and config.pose_maps is not None:
            raise UserError("--start auto: needs poses to compare, got drawn --pose-maps; wanted seconds")
        if config.align not in ("auto", "none") and config.pose_maps is not None:
            raise UserError(f"--align {config.align}: drawn --pose-maps cannot be aligned, wanted none")
        if config.dwpose_files is None and config.detector == "dwpose":
            raise UserError("--detector dwpose: needs its two ONNX files: --dwpose-det FILE and --dwpose-pose FILE")
        photo = read_photo(reference)
        video = open_video(driving, config) if driving is not None else None
        maps = open_video(config.pose_maps, config) if config.pose_maps is not None else None
        alone = driving is None and config.pose_maps is None
        tracks = _read_tracks(config.tracks, config) if config.tracks is not None and alone else None
        beside = tracks_beside(driving) if config.detector in ("auto", "tracks") else None
        return cls(reference, photo, video, maps, tracks, config.tracks or beside)

    @property
    def fps(self) -> Fraction:
        """Frames per second of the output."""
        clip = self.driving or self.pose_maps
        if clip is not None:
            return clip.fps
        assert self.tracks is not None
        return Fraction(self.tracks.fps).limit_denominator(1001)

    def num_frames(self, config: AnimateConfig) -> int:
        """How many frames a job will have, as far as its files tell."""
        clip = self.pose_maps or self.driving
        if clip is None:
            assert self.tracks is not None
            return len(self.tracks)
        return min(clip.num_expected, config.frames or clip.num_expected)

    def prepare(
        self, config: AnimateConfig, *, face: bool, on_progress: OnProgress, found: Found | None = None, say: Say = _log
    ) -> Prepared:
        """Find pose and face, align, and draw what the model reads.

        Args:
            config: with the model's defaults filled in.
            face: make face maps.
            on_progress: called with stage, done and total.
            found: what was found for earlier jobs; it takes up what is found now.
            say: called with level and line of each notice and warning, which are logged by default.
        Raises:
            UserError: no person, a damaged video.
        """
        face_finder = found.open_faces if found else None
        found = found or Found()
        detector = None
        if self.driving is not None and (self.pose_maps is None or face):
            detector, announcement = self._driver_detector(self.driving.path, config, found)
            say(logging.INFO, announcement)
        aligns = self.pose_maps is None and (config.align != "none" or config.start == "auto")
        prepared = prepare(
            self.photo,
            config.sampling().size_wh,
            self.driving,
            detector=detector,
            tracks=self.tracks,
            reference_tracks=self._photo_tracks(config, on_progress, found, say) if aligns else None,
            pose_maps=self.pose_maps,
            face=face,
            face_finder=face_finder,
            align=config.align if self.pose_maps is None else "none",
            smooth=config.smooth,
            start_at_best=config.start == "auto",
            num_frames=config.frames,
            official=config.official_maps,
            on_progress=on_progress,
        )
        for line in prepared.warnings:
            say(logging.WARNING, line)
        return prepared

    def content(self, config: AnimateConfig, found: Found) -> tuple[Hashable, ...]:
        """What `prepare` gives depends on this and on whether it makes face maps."""
        driving = None if self.driving is None else self.driving.path
        files = (
            self.photo_path, driving, config.pose_maps, self.tracks_path, config.dwpose_det,
            config.dwpose_pose, tracks_beside(self.photo_path),
        )  # fmt: skip
        names = (*_DRIVER_SETTINGS, "size", "smooth", "align", "official_maps")
        # Names are part of it because announcements and warnings tell them.
        return (*((str(path), found.sha256(path)) for path in files), *(getattr(config, name) for name in names))

    def _driver_detector(self, path: Path, config: AnimateConfig, found: Found) -> tuple[PoseDetector, str]:
        def build() -> tuple[PoseDetector, str]:
            return build_detector(
                config.detector,
                video=path,
                tracks=config.tracks,
                dwpose_files=config.dwpose_files,
                person=config.person,
                start_s=start_seconds(config),
                device=detector_device(config),
            )

        if self.tracks_path is not None:
            return build()
        files = (path, config.dwpose_det, config.dwpose_pose)
        key = (*(found.sha256(file) for file in files), *(getattr(config, name) for name in _DRIVER_SETTINGS))
        return found.detector(("driver", *key), build)

    def _photo_tracks(self, config: AnimateConfig, on_progress: OnProgress, found: Found, say: Say) -> Tracks:
        """The person in the photo, one frame; empty, with confidence 0, where nobody is found."""
        size_wh = (self.photo.shape[1], self.photo.shape[0])
        on_progress("photo", 0, 1)
        # The driver's tracks file says nothing about the photo: it may have one of its own beside it.
        name = "auto" if config.detector == "tracks" or tracks_beside(self.photo_path) else config.detector

        def build() -> tuple[PoseDetector, str]:
            return build_detector(
                name, video=self.photo_path, dwpose_files=config.dwpose_files, device=detector_device(config)
            )

        hashes = [found.sha256(file) for file in (self.photo_path, config.dwpose_det, config.dwpose_pose)]
        try:
            key = ("photo", *hashes, name, config.device)
            detector, _ = build() if tracks_beside(self.photo_path) else found.detector(key, build)
            tracks = detector.detect([self.photo], fps=1.0)
        except UserError as error:
            if config.align not in ("auto", "none"):
                raise
            say(logging.WARNING, str(error))
            tracks = Tracks.empty(1, size_wh, 1.0)
        on_progress("photo", 1, 1)
        return tracks

    def sound(self, prepared: Prepared) -> AudioCut | None:
        """The driving video's sound from the first frame that is used."""
        cut = self.driving.sound() if self.driving is not None else None
        if cut is None:
            return None
        return AudioCut(cut.path, cut.start_s + float(prepared.start_frame / prepared.fps))

    def check_map_places(self, folder: Path, inputs: Iterable[Path]) -> None:
        """Make the folder for `save_maps`, and see that nothing there is an input.

        Raises:
            UserError: one is, or nothing can be written there.
        """
        from xdyna.infer.preprocess import check_places

        check_places(folder, self._maps_name, inputs)

    def save_maps(self, folder: Path, prepared: Prepared) -> list[Path]:
        """Write what the model sees, as `xdyna preprocess` does."""
        from xdyna.infer.preprocess import write_maps

        return write_maps(folder, self._maps_name, prepared, self)

    @property
    def _maps_name(self) -> str:
        clip = self.driving or self.pose_maps
        return clip.path.stem if clip else self.photo_path.stem

    def panels(self, prepared: Prepared) -> Iterator[list[Image]]:
        """For each frame what lies beside the result: the photo, the driving frame, the pose map."""
        shown = self._driving_frames(prepared)
        for pose_map in prepared.pose_maps:
            yield [prepared.reference, *next(shown, []), pose_map]

    def _driving_frames(self, prepared: Prepared) -> Iterator[list[Image]]:
        if self.driving is None:
            return
        size_wh = (prepared.reference.shape[1], prepared.reference.shape[0])
        crop = ratio_crop(self.driving.size_wh, size_wh, UPPER)
        for frame in islice(self.driving, prepared.start_frame, None):
            yield [fit(frame, crop, size_wh)]


class WholeVideo(VideoReader):
    """A video that must be whole up to the last frame that is wanted: half a dance is not what was asked for."""

    def __iter__(self) -> Iterator[Image]:
        """As `VideoReader`.

        Raises:
            UserError: also, at its end, for a damaged file.
        """
        yield from super().__iter__()
        if self.warnings:
            raise UserError(f"{self.warnings[0]}; wanted a whole video (--frames N takes only its beginning)")


def open_video(path: Path, config: AnimateConfig) -> VideoReader:
    """A video with the start, rate, stride and number of frames of a config."""
    # Where the start is still to be found, the frames are counted from there, not from the beginning.
    frames = config.frames if config.start != "auto" else None
    return WholeVideo(path, start_seconds(config), config.fps, config.stride, frames)


def detector_device(config: AnimateConfig) -> str:
    """What detectors run on: the CPU unless a device is named."""
    return config.device if config.device != "auto" else "cpu"


def start_seconds(config: AnimateConfig) -> float:
    """Where reading begins in the driving video, seconds: its beginning where the start is still to be found."""
    return 0.0 if config.start == "auto" else config.start


def _read_tracks(path: Path, config: AnimateConfig) -> Tracks:
    """Tracks without a video, sampled like one: from the start, at the rate, every Nth, at most so many."""
    tracks = Tracks.load(path)
    start_s, rate = start_seconds(config), config.fps or tracks.fps
    left_s = len(tracks) / tracks.fps - start_s
    if left_s <= 0:
        raise UserError(f"{path}: start is {start_s:g} s; wanted less than its {len(tracks) / tracks.fps:.3f} s")
    number = ceil(max(1, round(left_s * rate)) / config.stride)
    if config.frames is not None and config.start != "auto":
        number = min(number, config.frames)
    return TracksDetector(path, start_s=start_s, person=config.person).at_times(number, rate / config.stride)
