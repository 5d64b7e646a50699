"""From a photo and a driving clip to everything the model reads, at the model's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from xdyna.errors import UserError
from xdyna.maps import SpilledMaps
from xdyna.preprocess.align import (
    AlignMode,
    align_tracks,
    alignment_obstacle,
    best_start,
    coverage_warnings,
    crop_tracks,
)
from xdyna.preprocess.boxes import confident_boxes, is_box
from xdyna.preprocess.crop import CENTRE, UPPER, Image, fit, ratio_crop
from xdyna.preprocess.detect import PoseDetector, TracksDetector
from xdyna.preprocess.draw import draw_pose_maps
from xdyna.preprocess.drawn import read_pose_maps
from xdyna.preprocess.face import FOUND, face_maps
from xdyna.preprocess.face_mesh import FaceFinder, FaceMesh, find_faces
from xdyna.preprocess.face_warp import warp_to_face
from xdyna.preprocess.smooth import fill_gaps, smooth_tracks
from xdyna.preprocess.tracks import Tracks

OnProgress = Callable[[str, int, int], None]
FaceMaps = tuple[SpilledMaps, SpilledMaps]

#: With `start_at_best` the starting frame is looked for in so many seconds from the beginning.
BEST_START_WITHIN_S = 10.0
#: A face that is missing for so many seconds is filled in between its neighbours.
FACE_GAP_S = 0.25
#: Tracks and clip may differ in length or shape by this share: clips of uneven frame rate, sides rounded to even.
LOST_SHARE = 0.02


class Frames(Protocol):
    """A clip that can be read several times, such as `xdyna.video.VideoReader`."""

    size_wh: tuple[int, int]
    fps: Fraction

    @property
    def num_expected(self) -> int:
        """How many frames there probably are."""

    def __iter__(self) -> Iterator[Image]:
        """uint8 RGB [H, W, 3] each, from the first frame on."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the model reads, and how it came about. Maps lie on disk: only keypoints take memory for each frame.

    Attributes:
        reference: uint8 RGB [h, w, 3], the photo cut and stretched to the model's size.
        pose_maps: F frames of the model's size.
        face_maps: local and global maps, as many; None where no face is to steer.
        fps: frames per second of the maps, that is of the driving clip.
        start_frame: how many driving frames were left out in front (`start_at_best`).
        align: the alignment that was done.
        tracks: the person in the maps, in pixels of the model's size; None with ready-made pose maps.
        driving_tracks: the person in the driving frames, from `start_frame` on; None if nobody was looked for.
        reference_tracks: the person of the photo in pixels of the model's size, one frame; None if not looked for.
        warnings: what the user should know, one line each.
    """

    reference: Image
    pose_maps: SpilledMaps
    face_maps: FaceMaps | None
    fps: Fraction
    start_frame: int = 0
    align: AlignMode = "none"
    tracks: Tracks | None = None
    driving_tracks: Tracks | None = None
    reference_tracks: Tracks | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def num_frames(self) -> int:
        """Driving frames."""
        return len(self.pose_maps)


def prepare(
    reference: Image,
    size_wh: tuple[int, int],
    driving: Frames | None,
    *,
    detector: PoseDetector | None = None,
    photo_detector: PoseDetector | None = None,
    tracks: Tracks | None = None,
    reference_tracks: Tracks | None = None,
    pose_maps: Frames | None = None,
    face: bool = True,
    face_finder: FaceFinder | Callable[[], FaceFinder] | None = None,
    align: Literal["auto", "none", "affine", "bones"] = "auto",
    smooth: bool = True,
    start_at_best: bool = False,
    num_frames: int | None = None,
    official: bool = False,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Prepared:
    """Find, smooth, align and draw.

    Args:
        reference: the photo, uint8 RGB [H, W, 3], of any size.
        size_wh: the model's (width, height), pixels.
        driving: the driving clip; may be None when `tracks` or `pose_maps` are given, then no face steers.
        detector: finds the driver; needed unless tracks or maps make up for it.
        photo_detector: finds the person in the photo; `detector` does if not given, unless it reads a tracks file.
        tracks: the driver's joints, one frame of them for each driving frame; taken as they are.
        reference_tracks: one frame, in pixels of `reference`.
        pose_maps: an already drawn skeleton clip in step with `driving`; it is fitted, not aligned.
        face: whether to make face maps; without any face in the clip a warning takes their place.
        face_finder: finds face points where the tracks have none, or a function that opens what does once it is
            needed; MediaPipe's mesh if not given.
        align: see `xdyna.preprocess.align`; `auto` is `bones` where the two bodies can be compared, else `none`.
        smooth: fill short gaps and filter jitter in what the detector found (not in tracks from a file).
        start_at_best: leave out driving frames in front of the one whose pose is nearest the photo's.
        num_frames: at most so many frames, counted from there.
        official: crop, stretch and cut face maps as the official code does, quirks included.
        on_progress: called with the stage's name and how many of its frames are done.
    Raises:
        UserError: no person in the clip; or in the photo, when an alignment was asked for by name.
        ValueError: nothing to make pose maps from.
    """
    if photo_detector is None and not isinstance(detector, TracksDetector):
        photo_detector = detector
    task = _Task(size_wh, driving, detector, smooth, official, on_progress)
    fitted = fit(reference, ratio_crop(_size(reference), size_wh, CENTRE), size_wh, official=official)
    if pose_maps is not None:
        return task.with_ready_maps(fitted, pose_maps, tracks, face, face_finder, num_frames)
    if tracks is None:
        tracks = task.find_driver(num_frames if start_at_best else None)
    tracks = task.in_driving_pixels(tracks)
    if reference_tracks is None and (align != "none" or start_at_best):
        reference_tracks = task.find_reference(reference, photo_detector)
    if reference_tracks is not None:
        crop = ratio_crop(_size(reference), size_wh, CENTRE)
        reference_tracks = crop_tracks(reference_tracks.resized(_size(reference)), crop, size_wh)

    start = task.best_start(tracks, reference_tracks, num_frames) if start_at_best else 0
    tracks = tracks[start : None if num_frames is None else start + num_frames]
    if face:
        tracks = task.find_faces(tracks, start, face_finder)
    task.on_progress("align", 0, 1)
    aligned, mode = task.align(tracks, reference_tracks, align)
    task.on_progress("align", 1, 1)
    faces = task.face_maps(tracks, aligned, mode, start) if face else None
    maps = _spilled(task.watched("pose maps", draw_pose_maps(aligned, size_wh), len(aligned)), size_wh)
    return Prepared(
        fitted, maps, faces, task.fps(tracks), start, mode, aligned, tracks, reference_tracks, task.warnings
    )


@dataclass
class _Task:
    """The steps of `prepare`, with what they share."""

    size_wh: tuple[int, int]
    driving: Frames | None
    detector: PoseDetector | None
    smooth: bool
    official: bool
    on_progress: OnProgress
    warnings: list[str] = field(default_factory=list)

    def fps(self, tracks: Tracks) -> Fraction:
        return self.driving.fps if self.driving is not None else Fraction(tracks.fps).limit_denominator(1001)

    def watched(self, stage: str, items: Iterable[Image], total: int) -> Iterator[Image]:
        """The same items; progress is reported as they go by."""
        done = 0
        self.on_progress(stage, 0, total)
        for item in items:
            yield item
            done += 1
            self.on_progress(stage, done, max(done, total))
        self.on_progress(stage, done, done)

    def find_driver(self, num_wanted: int | None) -> Tracks:
        """Look at the whole clip; with `num_wanted` only so far that as many frames follow any start looked at."""
        if self.driving is None or self.detector is None:
            raise ValueError("wanted tracks, pose maps, or a driving clip and a detector")
        limit = None if num_wanted is None else num_wanted + round(BEST_START_WITHIN_S * self.driving.fps)
        number = self.driving.num_expected if limit is None else min(limit, self.driving.num_expected)
        frames = self.watched("pose", islice(self.driving, limit), number)
        tracks = self.detector.detect(frames, fps=float(self.driving.fps))
        if not is_box(confident_boxes(tracks)).any():
            raise UserError("no person found in the driving clip; wanted one that shows a person")
        if self.smooth and not isinstance(self.detector, TracksDetector):
            tracks, report = fill_gaps(tracks)
            self.warnings += [f"driving clip: {line}" for line in report.lines()]
            tracks = smooth_tracks(tracks)
        return tracks

    def find_reference(self, reference: Image, detector: PoseDetector | None) -> Tracks | None:
        if detector is None:
            return None
        self.on_progress("photo", 0, 1)
        try:
            found = detector.detect([reference], fps=1.0)
        except UserError:  # a detector may refuse a clip without a person; a photo without one is no mistake
            found = Tracks.empty(1, _size(reference), 1.0)
        self.on_progress("photo", 1, 1)
        return found

    def best_start(self, tracks: Tracks, reference: Tracks | None, num_frames: int | None) -> int:
        if reference is None or not is_box(confident_boxes(reference)).any():
            self.warnings.append("no person found in the photo: the clip starts at its first frame")
            return 0
        last = len(tracks) - min(len(tracks), num_frames or (len(tracks) + 1) // 2)
        last = min(last, round(BEST_START_WITHIN_S * tracks.fps))
        return best_start(tracks[: last + 1], reference)

    def align(
        self, tracks: Tracks, reference: Tracks | None, wanted: Literal["auto", "none", "affine", "bones"]
    ) -> tuple[Tracks, AlignMode]:
        if wanted == "none":
            return self._cropped(tracks), "none"
        if reference is None or not is_box(confident_boxes(reference)).any():
            obstacle: str | None = "no person found in the photo"
        else:
            obstacle = alignment_obstacle(tracks, reference)
        if obstacle is not None:
            if wanted != "auto":
                raise UserError(f"align {wanted}: {obstacle}; wanted a photo and a clip of a person, or align none")
            self.warnings.append(f"the driver is not aligned to the photo's body: {obstacle}")
            return self._cropped(tracks), "none"
        assert reference is not None
        self.warnings += coverage_warnings(tracks, reference)
        mode: AlignMode = "bones" if wanted == "auto" else wanted
        return align_tracks(tracks, reference, mode), mode

    def _cropped(self, tracks: Tracks) -> Tracks:
        return crop_tracks(tracks, ratio_crop(tracks.size_wh, self.size_wh, UPPER), self.size_wh)

    def find_faces(self, tracks: Tracks, start: int, finder: FaceFinder | Callable[[], FaceFinder] | None) -> Tracks:
        """Fill in face points unless the tracks have some, which then come from truth or from the detector."""
        if self.driving is None or (tracks.face_conf >= FOUND).any():
            return tracks
        try:
            opened = FaceMesh() if finder is None else nullcontext(finder() if callable(finder) else finder)
        except UserError as error:  # without MediaPipe the body is followed all the same
            self.warnings.append(str(error))
            return tracks
        frames = self.watched("faces", self._frames(start, len(tracks)), len(tracks))
        with opened as ready:
            found = find_faces(frames, tracks, ready)
        return self._calm_faces(found) if self.smooth else found

    def _calm_faces(self, tracks: Tracks) -> Tracks:
        """Short gaps between faces filled and jitter filtered; the joints, done before, stay as they are."""
        calm = smooth_tracks(fill_gaps(tracks, FACE_GAP_S)[0])
        return replace(tracks, face_xy=calm.face_xy, face_conf=calm.face_conf)

    def face_maps(self, tracks: Tracks, aligned: Tracks, mode: AlignMode, start: int) -> FaceMaps | None:
        """Face maps of the aligned person; None, with a warning, where there is no face to show."""
        if self.driving is None:
            self.warnings.append("without the driving video no face can steer: face maps left out")
            return None
        num_found = int((tracks.face_conf >= FOUND).sum())
        if not num_found:
            self.warnings.append("no face found in the driving clip: face maps left out")
            return None
        if num_found < len(tracks):
            self.warnings.append(f"face found in {num_found} of {len(tracks)} frames; its maps are black in the others")
        frames = self.watched("face maps", self._frames(start, len(tracks)), len(tracks))
        if mode == "none":
            crop = ratio_crop(self.driving.size_wh, self.size_wh, UPPER)
            moved: Iterator[Image] = (fit(frame, crop, self.size_wh, official=self.official) for frame in frames)
        else:
            moved = warp_to_face(frames, tracks, aligned)
        clips = SpilledMaps(self.size_wh), SpilledMaps(self.size_wh)
        for pair in face_maps(moved, aligned, official=self.official):
            for clip, drawn in zip(clips, pair, strict=True):
                clip.append(drawn)
        return clips

    def _frames(self, start: int, number: int) -> Iterator[Image]:
        assert self.driving is not None
        number_left, frame = number, None
        for frame in islice(iter(self.driving), start, start + number):
            yield frame
            number_left -= 1
        if frame is None or number_left > max(2, LOST_SHARE * number):
            got = number - number_left
            raise UserError(
                f"the driving clip has {got} frames where its tracks have {number}; wanted those of this clip"
            )
        yield from [frame] * number_left

    def in_driving_pixels(self, tracks: Tracks) -> Tracks:
        """Tracks of another size of the same clip, in pixels of the clip."""
        if self.driving is None or tracks.size_wh == self.driving.size_wh:
            return tracks
        (width, height), (wanted_width, wanted_height) = tracks.size_wh, self.driving.size_wh
        if abs(width * wanted_height - height * wanted_width) > LOST_SHARE * width * wanted_height:
            got, wanted = (f"{size[0]}x{size[1]}" for size in (tracks.size_wh, self.driving.size_wh))
            raise UserError(f"the tracks are of a {got} clip, but the driving clip is {wanted}: not the same clip")
        return tracks.resized(self.driving.size_wh)

    def with_ready_maps(
        self,
        fitted: Image,
        pose_maps: Frames,
        tracks: Tracks | None,
        face: bool,
        finder: FaceFinder | Callable[[], FaceFinder] | None,
        num_frames: int | None,
    ) -> Prepared:
        """Pose maps that somebody drew; the face maps are cut at the same place of the driving clip."""
        label = str(getattr(pose_maps, "path", "the pose maps"))
        number = pose_maps.num_expected if num_frames is None else min(num_frames, pose_maps.num_expected)
        drawn = self.watched(
            "pose maps", islice(read_pose_maps(pose_maps, pose_maps.size_wh, label), num_frames), number
        )
        stretched = self.official and not face
        maps = _spilled((self._fit_map(frame, stretched=stretched) for frame in drawn), self.size_wh)
        low, high = maps.extremes()
        if low == high:
            self.warnings.append(f"{label}: every pixel of every frame is the same: no pose will steer")
        faces, cropped = None, None
        tracks = self._face_owner(tracks) if face else None
        if tracks is not None:
            if abs(len(tracks) - len(maps)) > 1 and num_frames is None:
                self.warnings.append(f"{len(maps)} pose maps and {len(tracks)} driving frames: the surplus is left out")
            number = min(len(maps), len(tracks))
            maps, tracks = maps.first(number), self.find_faces(tracks[:number], 0, finder)
            cropped = self._cropped(tracks)
            faces = self.face_maps(tracks, cropped, "none", 0)
        return Prepared(
            fitted, maps, faces, pose_maps.fps, tracks=cropped, driving_tracks=tracks, warnings=self.warnings
        )

    def _face_owner(self, tracks: Tracks | None) -> Tracks | None:
        """Whose face is to steer beside ready-made pose maps; None, with a warning, if that cannot be told."""
        if self.driving is None:
            self.warnings.append("without the driving video no face can steer: face maps left out")
            return None
        try:
            return self.in_driving_pixels(tracks if tracks is not None else self.find_driver(None))
        except UserError as error:
            self.warnings.append(f"face maps left out: {error}")
            return None

    def _fit_map(self, frame: Image, *, stretched: bool) -> Image:
        if stretched:
            # Without face control the official code stretches the map, whatever its shape.
            import cv2

            return np.asarray(cv2.resize(frame, self.size_wh, interpolation=cv2.INTER_AREA), np.uint8)
        return fit(frame, ratio_crop(_size(frame), self.size_wh, UPPER), self.size_wh, official=self.official)


def _size(image: Image) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _spilled(images: Iterable[Image], size_wh: tuple[int, int]) -> SpilledMaps:
    clip = SpilledMaps(size_wh)
    for image in images:
        clip.append(image)
    return clip
