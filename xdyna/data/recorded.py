"""Recordings: videos with precomputed maps, and how samples are cut from them."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdyna.data.buckets import BucketPlan, SizeWH, nearest_bucket
from xdyna.data.source import FACE_CHANNELS, Face, TrainingClip
from xdyna.errors import UserError
from xdyna.preprocess.crop import UPPER, Image, fit, ratio_crop
from xdyna.video import VideoInfo, VideoReader

logger = logging.getLogger("xdyna")

#: A video and what belongs to it, by the end of the file's name.
VIDEO, POSE, MASK = "video", "pose", "mask"
FACE_KINDS: Mapping[Face, tuple[str, ...]] = {
    False: (),
    True: ("face_local", "face_global"),
    "swapped": ("swapped.face_local", "swapped.face_global"),
}
MAP_KINDS = (POSE, MASK, *FACE_KINDS[True], *FACE_KINDS["swapped"])

ATTEMPTS = 8  # recordings tried for one sample before the run stops
HELD_OUT_EVERY = 20  # one recording in so many is kept for validation


@dataclass(frozen=True)
class Recording:
    """One video with its maps.

    Attributes:
        name: for messages, and what tells recordings apart.
        num_frames: that video and maps all have.
        fps: rate of the maps, at which the video is sampled too.
        size_wh: (width, height) of the maps, pixels; the video is cut to this shape as `xdyna preprocess` cuts it.
        is_scene: nobody is in it; it needs no maps.
        files: what there is of it, by kind ("video", "pose" ..).
        num_bytes: of all its files together, part of the fingerprint.
    """

    name: str
    num_frames: int
    fps: Fraction
    size_wh: SizeWH
    is_scene: bool
    files: Mapping[str, VideoInfo]
    num_bytes: int


@dataclass(frozen=True)
class Recordings:
    """What a folder or a set of shards holds.

    Attributes:
        place: folder or shards, for messages.
        items: the readable ones, in a fixed order.
        problems: one line each for what is left out or odd.
        hint: what to do where nothing is readable.
    """

    place: str
    items: tuple[Recording, ...]
    problems: tuple[str, ...]
    hint: str

    def only(self, *, scenes: bool) -> Recordings:
        """Those without a person, or those with one."""
        return Recordings(self.place, tuple(i for i in self.items if i.is_scene == scenes), self.problems, self.hint)


@dataclass(frozen=True)
class Cut:
    """How samples are cut from recordings.

    Attributes:
        frames: driving frames per sample.
        consecutive: they follow each other; else they are random moments of the recording.
        strides: distance between consecutive driving frames; one is drawn for each sample.
        face: which face maps come along.
        sizes: buckets (width, height) that recordings are brought to, each to the one nearest in shape.
        group: samples that share a bucket: a step's global batch.
        seed: of order and moments.
        held_out: sample number from which on recordings of the validation set are drawn.
        skipped: file to which recordings are added that turn out unreadable during training.
    """

    frames: int
    consecutive: bool = True
    strides: tuple[int, ...] = (1,)
    face: Face = False
    sizes: tuple[SizeWH, ...] = ((512, 768),)
    group: int = 1
    seed: int = 0
    held_out: int = 10_000_000
    skipped: Path | None = None

    def moments(self, num_frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Frame numbers [1+F], no two alike: a reference, and driving frames; consecutive ones do not span it.

        Args:
            num_frames: of the recording, F + 1 at least.
            rng: draws stride, start and reference.
        """
        if not self.consecutive:
            return rng.choice(num_frames, self.frames + 1, replace=False)
        fitting = [stride for stride in self.strides if (self.frames - 1) * stride + 2 <= num_frames] or [1]
        stride = int(rng.choice(fitting))
        span = (self.frames - 1) * stride + 1
        start = int(rng.integers(num_frames - span + 1))
        driving = start + stride * np.arange(self.frames)
        outside = np.delete(np.arange(num_frames), np.s_[start : start + span])
        return np.concatenate([rng.choice(outside, 1), driving])


class RecordedSource(ABC):
    """Samples cut from recordings. One recording in twenty is kept for validation.

    A recording that cannot be read is passed over: another of its bucket takes its place (the same one in every run),
    a warning names it, and `cut.skipped` gets a line.

    Args:
        recordings: what there is.
        cut: how samples are taken from it.
    Attributes:
        gap: about half the distance of key frames, in frames: see `read_frames`.

    Raises:
        UserError: no recording is usable.
    """

    gap = 125  # encoders' usual choice is 250 frames

    def __init__(self, recordings: Recordings, cut: Cut) -> None:
        usable = [item for item in recordings.items if item.num_frames > cut.frames]
        self.problems = list(recordings.problems)
        self.problems += [
            f"left out: {recordings.place}: {item.name}: {item.num_frames} frames; wanted {cut.frames + 1} or more "
            "(reference and driving)"
            for item in recordings.items
            if item.num_frames <= cut.frames
        ]
        if not usable:
            first = f" (first problem: {self.problems[0]})" if self.problems else ""
            raise UserError(f"{recordings.place}: no usable clips{first}; {recordings.hint}")
        self.cut = cut
        train, held_out = _split(usable)
        if not held_out:
            self.problems.append(f"{usable[0].name}: the only recording serves for validation too")
        self._train = _Shelf.build(train, cut)
        self._held_out = _Shelf.build(held_out or train, cut).largest()
        self._noted: set[str] = set()
        self.num_clips: int | None = len(train)
        self.fingerprint = _fingerprint(recordings.items, cut)

    @abstractmethod
    def opened(self, recording: Recording, kinds: Sequence[str]) -> AbstractContextManager[Mapping[str, Path]]:
        """The files of some kinds, readable while the context lasts."""

    def check(self) -> list[str]:
        """One line for every recording that is left out or odd."""
        return list(self.problems)

    @property
    def sizes(self) -> tuple[SizeWH, ...]:
        """Sizes (width, height) that samples come in, those of the validation set too, pixels."""
        trained = (size for size, members in zip(self._train.sizes, self._train.members, strict=True) if members)
        return tuple(dict.fromkeys((*trained, *self._held_out.sizes)))

    def draw(self, index: int) -> TrainingClip:
        """Sample number `index`; from `cut.held_out` on, samples of the validation set.

        Raises:
            UserError: recording after recording is unreadable.
        """
        shelf, number = self._train, index
        if index >= self.cut.held_out:
            shelf, number = self._held_out, index - self.cut.held_out
        bucket, member = shelf.plan(number)
        for attempt, recording in enumerate(self._candidates(shelf.members[bucket], member, index)):
            rng = np.random.default_rng([self.cut.seed, index, attempt, 5])
            try:
                return self._read(recording, shelf.sizes[bucket], rng)
            except UserError as error:
                self._note(recording, error)
                last = error
        raise UserError(f"sample {index}: {ATTEMPTS} recordings in a row cannot be read; the last: {last}")

    def _candidates(self, members: Sequence[Recording], member: int, index: int) -> Iterator[Recording]:
        """The recording of a sample, then others in its place: all of the bucket before one comes again."""
        yield members[member]
        rng = np.random.default_rng([self.cut.seed, index, 6])
        order = [*rng.permutation(np.delete(np.arange(len(members)), member)), member]
        for attempt in range(ATTEMPTS - 1):
            yield members[order[attempt % len(order)]]

    def _read(self, recording: Recording, size_wh: SizeWH, rng: np.random.Generator) -> TrainingClip:
        """Cut one sample out of a recording."""
        moments = self.cut.moments(recording.num_frames, rng)
        shape = (len(moments), size_wh[1], size_wh[0])
        frames, pose_maps = np.empty((*shape, 3), np.uint8), np.zeros((*shape, 3), np.uint8)
        masks = np.full(shape, 0 if recording.is_scene else 255, np.uint8)
        faces = np.zeros((*shape, FACE_CHANNELS), np.uint8) if self.cut.face else None
        targets: dict[str, NDArray[np.uint8]] = {VIDEO: frames}
        if not recording.is_scene:
            targets |= {POSE: pose_maps, MASK: masks}
            for number, kind in enumerate(FACE_KINDS[self.cut.face]):
                assert faces is not None
                targets[kind] = faces[..., 3 * number : 3 * number + 3]
        kinds = [kind for kind in targets if kind in recording.files]

        def place(image: Image) -> Image:
            return brought_to(image, recording.size_wh, size_wh)

        def place_mask(image: Image) -> Image:
            return place(image)[..., 0]

        with self.opened(recording, kinds) as paths:
            for kind in kinds:
                info, placed = recording.files[kind], place_mask if kind == MASK else place
                read_frames(paths[kind], info, recording.fps, moments, placed, targets[kind], self.gap)
        return TrainingClip(recording.name, frames, masks, pose_maps, faces, recording.is_scene)

    def _note(self, recording: Recording, error: UserError) -> None:
        if recording.name in self._noted:
            return
        self._noted.add(recording.name)
        line = f"left out: {error}"
        logger.warning("%s", line)
        if self.cut.skipped is not None:
            # The run's folder may not be there yet, the disk full; the warning above is out in any case.
            with suppress(OSError), self.cut.skipped.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


@dataclass(frozen=True)
class _Shelf:
    """Recordings by bucket, and the plan of which comes when."""

    sizes: tuple[SizeWH, ...]
    members: tuple[tuple[Recording, ...], ...]
    plan: BucketPlan = field(repr=False)

    @classmethod
    def build(cls, recordings: Sequence[Recording], cut: Cut) -> _Shelf:
        nearest = [nearest_bucket(item.size_wh, cut.sizes) for item in recordings]
        members = tuple(
            tuple(item for item, bucket in zip(recordings, nearest, strict=True) if bucket == number)
            for number in range(len(cut.sizes))
        )
        return cls(cut.sizes, members, BucketPlan([len(m) for m in members], cut.group, cut.seed))

    def largest(self) -> _Shelf:
        """Only the bucket with the most members: a validation set is one batch of one size."""
        number = max(range(len(self.sizes)), key=lambda bucket: len(self.members[bucket]))
        members = self.members[number]
        return _Shelf((self.sizes[number],), (members,), BucketPlan([len(members)], self.plan.group, self.plan.seed))


def read_frames(
    path: Path,
    info: VideoInfo,
    fps: Fraction,
    moments: NDArray[np.int64],
    place: Callable[[Image], Image],
    into: NDArray[np.uint8],
    gap: int,
) -> None:
    """Read some frames of a video, found by seeking.

    Args:
        path: the file.
        info: what `probe` says of it.
        fps: rate at which its frames are numbered, frames per second.
        moments: frame numbers [N], no two alike, in any order.
        place: applied to every frame, uint8 RGB [H, W, 3].
        into: [N, h, w, ..], is filled with what `place` gives.
        gap: frames farther apart are read by a seek of their own; nearer ones by decoding what lies between.
    Raises:
        UserError: damaged, or shorter than it says.
    """
    row_of = {int(moment): row for row, moment in enumerate(moments)}
    wanted = np.sort(moments)
    for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > gap) + 1):
        first, last = int(run[0]), int(run[-1])
        reader = VideoReader(path, float(first / fps), fps, frames=last - first + 1, info=info)
        num_read = 0
        for number, picture in enumerate(reader.pictures(), first):
            if number in row_of:
                into[row_of[number]] = place(picture())
                num_read += 1
        if reader.warnings or num_read < len(run):
            problem = reader.warnings[0] if reader.warnings else f"{path}: only {num_read} of {len(run)} frames read"
            raise UserError(f"{problem} (frames {first} to {last} at {float(fps):g} fps)")


def brought_to(image: Image, maps_wh: SizeWH, size_wh: SizeWH) -> Image:
    """A frame or map in a bucket's size, cut first to the maps' shape as `xdyna preprocess` does."""
    for wanted in (maps_wh, size_wh):
        have = (image.shape[1], image.shape[0])
        if have != wanted:
            image = fit(image, ratio_crop(have, wanted, UPPER), wanted)
    return image


def _split(recordings: Sequence[Recording]) -> tuple[list[Recording], list[Recording]]:
    """Training and validation, told apart by a hash of the name, so that new videos move few others.

    One recording alone is not split.
    """
    if len(recordings) == 1:
        return list(recordings), []
    number = max(1, len(recordings) // HELD_OUT_EVERY)
    names = sorted((hashlib.sha256(item.name.encode()).hexdigest(), item.name) for item in recordings)
    chosen = {name for _, name in names[:number]}
    return [i for i in recordings if i.name not in chosen], [i for i in recordings if i.name in chosen]


def _fingerprint(recordings: Sequence[Recording], cut: Cut) -> str:
    described = [(item.name, item.num_frames, item.num_bytes, item.size_wh) for item in recordings]
    settings = (cut.frames, cut.consecutive, cut.strides, cut.face, cut.sizes)
    return "recorded-" + hashlib.sha256(repr((described, settings)).encode()).hexdigest()[:16]
