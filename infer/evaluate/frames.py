"""Frames of videos and of folders as a protocol wants them: sampled in time, cut into clips, brought to one size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from xdyna.configs.evaluate import ProtocolConfig
from xdyna.data.folder import VIDEO_SUFFIXES
from xdyna.errors import UserError
from xdyna.photo import read_photo
from xdyna.preprocess.crop import CENTRE, Crop, ratio_crop
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoReader, probe
from xdyna.video.sample import Timed, sample_by_time
from xdyna.video.source import simple_rate

Image = NDArray[np.uint8]
SizeWH = tuple[int, int]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CLIP_SUFFIXES = (*VIDEO_SUFFIXES, ".gif")


class Source(Protocol):
    """A clip's frames in order, any number of times.

    Attributes:
        size_wh: (width, height) of the frames, pixels.
        count: frames that can be read.
    """

    @property
    def size_wh(self) -> SizeWH: ...
    @property
    def count(self) -> int: ...
    def pictures(self) -> Iterator[Callable[[], Image]]:
        """Frame by frame what gives uint8 RGB [H, W, 3]; those that are not called cost little."""
        ...


class VideoFile:
    """A video sampled at the protocol's rate.

    Raises:
        UserError: not a video, or a GIF where the protocol takes none.
    """

    def __init__(self, path: Path, config: ProtocolConfig) -> None:
        self.path, info = path, probe(path)
        if info.codec == "gif" and config.gif == "refuse":
            raise UserError(
                f"{path}: is a GIF (256 colours a frame, rounded times), which protocol {config.version} does not "
                "take; give the same clip as MP4 or as a folder of PNG files"
            )
        self._reader = VideoReader(path, fps=config.fps, info=info)
        self.size_wh = info.size_wh

    @cached_property
    def count(self) -> int:
        """Found by decoding all of it.

        Raises:
            UserError: a part cannot be decoded.
        """
        count = sum(1 for _ in self._reader.pictures())
        if self._reader.warnings:
            raise UserError(self._reader.warnings[0])
        return count

    def pictures(self) -> Iterator[Callable[[], Image]]:
        """See `Source`."""
        return self._reader.pictures()


class FrameFolder:
    """A folder of pictures in the order of the numbers in their names.

    PNG files that say their rate (text chunk `fps`, as `xdyna animate` writes it) are sampled like a video; all others
    are taken one after the other, as if they had the protocol's rate.
    """

    def __init__(self, path: Path, config: ProtocolConfig) -> None:
        self.path, self._files = path, picture_files(path)
        if not self._files:
            raise UserError(f"{path}: holds no pictures; wanted one frame a file ({', '.join(PICTURE_SUFFIXES)})")
        height, width = read_photo(self._files[0]).shape[:2]
        self.size_wh = (width, height)
        wanted = simple_rate(config.fps)
        self._files = _at_rate(self._files, stated_rate(self._files[0]) or wanted, wanted)
        self.count = len(self._files)

    def pictures(self) -> Iterator[Callable[[], Image]]:
        """See `Source`."""
        for file in self._files:
            yield partial(self._read, file)

    def _read(self, file: Path) -> Image:
        image = read_photo(file)
        if image.shape[1::-1] != self.size_wh:
            width, height = self.size_wh
            got = f"{image.shape[1]}x{image.shape[0]}"
            raise UserError(f"{file}: {got} px, and the folder's first frame {width}x{height}; wanted one size")
        return image


def stated_rate(file: Path) -> Fraction | None:
    """Frames per second that a PNG file says it was written at; None where it does not."""
    if file.suffix.lower() != ".png":
        return None
    try:
        with Picture.open(file) as picture:
            return simple_rate(Fraction(str(picture.info["fps"])))
    except (KeyError, ValueError, ZeroDivisionError, OSError):
        return None


def _at_rate(files: list[Path], rate: Fraction, wanted: Fraction) -> list[Path]:
    if rate == wanted or rate <= 0:
        return files
    shown = (Timed(number / rate, 1 / rate, file) for number, file in enumerate(files))
    return list(sample_by_time(shown, wanted, start=Fraction(0)))


class OnePicture:
    """A picture that stands for every frame of a clip: masks of people who stand still."""

    def __init__(self, path: Path, count: int) -> None:
        self._image, self.count = read_photo(path), count
        self.size_wh = (self._image.shape[1], self._image.shape[0])

    def pictures(self) -> Iterator[Callable[[], Image]]:
        """See `Source`."""
        for _ in range(self.count):
            yield lambda: self._image


def open_source(path: Path, config: ProtocolConfig) -> Source:
    """A video file or a folder of frames.

    Raises:
        UserError: neither, or of a kind that the protocol does not take.
    """
    return FrameFolder(path, config) if path.is_dir() else VideoFile(path, config)


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder (not below it), in the order of the numbers in their names."""
    files = (f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES and not f.name.startswith("."))
    return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in _parts(file.stem)])


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


# --- clips in time ----------------------------------------------------------------------------------------------------


def clip_starts(name: str, count: int, config: ProtocolConfig) -> list[int]:
    """First frames of the clips that are measured of a video, in order; no frame is in two of them.

    They depend on the protocol's seed, the video's name and its number of frames alone.

    Raises:
        UserError: fewer frames than a clip has.
    """
    most = min(config.clips, count // config.frames)
    if most == 0:
        raise UserError(
            f"{name}: has {count} frames at {config.fps:g} fps; protocol {config.version} wants {config.frames} or more"
        )
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    spare = count - most * config.frames
    gaps = np.sort(np.random.default_rng([config.seed, key]).integers(0, spare + 1, most))
    return [int(gap) + number * config.frames for number, gap in enumerate(gaps)]


def windows(source: Source, starts: Sequence[int], length: int, turn: Callable[[Image], Image]) -> Iterator[Image]:
    """uint8 [length, H, W, ..] from each start on: one clip at a time is in memory.

    Args:
        source: of frames.
        starts: rising, `length` or more apart.
        length: frames of a clip.
        turn: what is done with each frame.
    """
    waiting = list(starts)
    kept: list[Image] = []
    for number, picture in enumerate(source.pictures()):
        if not waiting:
            return
        if number >= waiting[0]:
            kept.append(turn(picture()))
        if len(kept) == length:
            waiting.pop(0)
            clip, kept = np.stack(kept), []
            yield clip
            del clip


# --- size -------------------------------------------------------------------------------------------------------------


class Part(Crop):
    """A rectangle that can lie in another."""

    def inside(self, inner: Crop) -> Part:
        """A rectangle of this one, as one of the whole picture."""
        return Part(self.left + inner.left, self.top + inner.top, inner.width, inner.height)


def crop_to(size_wh: SizeWH, wanted_wh: SizeWH, config: ProtocolConfig) -> Part:
    """What is kept of pictures of a size that are to have another.

    Raises:
        UserError: another shape, and the protocol refuses that.
    """
    kept = ratio_crop(size_wh, wanted_wh, CENTRE)
    whole, middle = Part(0, 0, *size_wh), Part(kept.left, kept.top, kept.width, kept.height)
    if config.crop == "stretch" or middle == whole:
        return whole
    if config.crop == "refuse":
        raise UserError(
            f"is {size_wh[0]}x{size_wh[1]} px and not of the shape of {wanted_wh[0]}x{wanted_wh[1]}; protocol "
            f"{config.version} takes no other shape"
        )
    return middle


def resized(image: Image, crop: Crop, size_wh: SizeWH, config: ProtocolConfig) -> Image:
    """uint8 [H, W, ..] cut and brought to (width, height); as it is where nothing changes."""
    if (crop.left, crop.top, crop.width, crop.height) == (0, 0, *size_wh) and image.shape[1::-1] == size_wh:
        return image
    import cv2

    smaller = crop.width >= size_wh[0] and crop.height >= size_wh[1]
    filters = {
        "area": cv2.INTER_AREA if smaller else cv2.INTER_LINEAR,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "lanczos": cv2.INTER_LANCZOS4,
    }
    pixels = np.ascontiguousarray(crop.cut(image))
    return np.asarray(cv2.resize(pixels, size_wh, interpolation=filters[config.filter]), np.uint8)


def as_cover(image: Image) -> Image:
    """Cover 0..255 [H, W] from a mask's picture [H, W, 3]; masks of 0 and 1 are spread."""
    cover = image.max(-1)
    return np.asarray(cover * 255 if cover.max() == 1 else cover, np.uint8)


def tracks_at(tracks: Tracks, count: int, crop: Crop, size_wh: SizeWH, config: ProtocolConfig) -> Tracks:
    """Tracks for the frames of a video as the protocol reads them.

    Args:
        tracks: of the video's own frames.
        count: frames at the protocol's rate.
        crop: what is kept of the frames.
        size_wh: (width, height) that they are brought to.
        config: gives the rate.
    """
    if len(tracks) != count:  # else of a folder of frames, or already at this rate
        seconds = np.arange(count) / config.fps
        tracks = tracks[np.minimum((seconds * tracks.fps + 0.5).astype(int), len(tracks) - 1).tolist()]
    return replace(
        tracks,
        joints_xy=crop.points(tracks.joints_xy, size_wh),
        hands_xy=crop.points(tracks.hands_xy, size_wh),
        face_xy=crop.points(tracks.face_xy, size_wh),
        size_wh=size_wh,
        fps=config.fps,
    )


# --- content ----------------------------------------------------------------------------------------------------------


def content_sha256(path: Path) -> str:
    """Hash of a file, or of a folder's pictures with their names.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256()
        for picture in picture_files(path):
            with picture.open("rb") as file:
                total.update(picture.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
