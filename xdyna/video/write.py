"""Write frames as MP4, GIF or a folder of PNG files that appears complete or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av.error
import numpy as np

from xdyna.errors import UserError
from xdyna.files import DISK_ERRORS, PartPath, refuse_inputs, writing_error
from xdyna.spans import Span, no_span
from xdyna.video.codecs import check_codec_size, find_codec
from xdyna.video.gif import MAX_GIF_FPS, GifSink
from xdyna.video.mp4 import Mp4Sink
from xdyna.video.picture import Image
from xdyna.video.png_folder import PngFolderSink, check_replaceable
from xdyna.video.sound import AudioCut
from xdyna.video.source import simple_rate

MP4_SUFFIXES = (".mp4", ".m4v", ".mov")
GIF_SUFFIX = ".gif"


class Sink(Protocol):
    """One kind of output, written at a temporary path."""

    def write(self, frame: Image) -> None:
        """Add a frame, uint8 RGB [H, W, 3]."""

    def close(self) -> None:
        """Finish the output."""

    def abort(self) -> None:
        """Let go of what is open; the output is thrown away. Never raises."""


class VideoWriter:
    """Writes frames to a temporary place beside `path`; a clean end of the `with` block moves them to `path`.

    On any error, Ctrl-C included, nothing is left behind and an older file of that name stays. The same frames give
    the same bytes. Odd sizes get one more row or column in MP4 (a copy of the last), which players need.

    Args:
        path: `.mp4`, `.m4v` or `.mov` for video, `.gif`, or a name without suffix for a folder of PNG files.
        size_wh: (width, height) of the frames, pixels.
        fps: frames per second.
        codec: one of `known_codecs()`; MP4 only.
        audio_from: sound to put beside the frames, as long as they are; MP4 only.
        metadata: text to store in the file (see `xdyna.provenance`).
        span: told when it works on the sound, and when it finishes the file.
    Raises:
        UserError: unknown suffix or codec, frames too small for the codec, a folder that is missing or read-only, and
            while writing a full disk.
    """

    def __init__(
        self,
        path: str | Path,
        size_wh: tuple[int, int],
        fps: float | Fraction,
        codec: str = "h264",
        audio_from: AudioCut | None = None,
        metadata: Mapping[str, str] | None = None,
        span: Span = no_span,
    ) -> None:
        if min(size_wh) < 1 or not fps > 0:
            raise ValueError(f"got size_wh {size_wh} and fps {fps}, wanted numbers above 0")
        self.path = Path(path)
        self.size_wh = size_wh
        self.fps = simple_rate(fps)
        self.num_frames = 0
        self._codec = codec
        self._audio_from = audio_from
        self._metadata = dict(metadata or {})
        self._span = span
        self._part: PartPath | None = None
        self._sink: Sink | None = None
        check_output(self.path, codec, self.fps, size_wh=size_wh)

    def __enter__(self) -> VideoWriter:
        try:
            self._part = PartPath(self.path, folder=_is_folder(self.path))
            self._sink = self._open(self._part.path)
        except BaseException as error:
            if self._part:
                self._part.discard()
            raise self._explained(error) from error
        return self

    def write(self, frame: Image) -> None:
        """Add one frame: uint8 RGB [height, width, 3], 0..255."""
        width, height = self.size_wh
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise ValueError(f"got a frame {frame.dtype} {frame.shape}, wanted uint8 {(height, width, 3)}")
        if self._sink is None:
            raise ValueError("the writer is not open; use it in a with block")
        try:
            self._sink.write(frame)
        except OSError as error:
            raise self._explained(error) from error
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._sink is not None
        assert self._part is not None
        sink, self._sink = self._sink, None
        try:
            if error is None:
                if self.num_frames == 0:
                    raise ValueError(f"{self.path}: no frame was written")
                with self._span("finish the file"):
                    sink.close()
        except BaseException as failure:
            sink.abort()
            self._part.discard()
            raise self._explained(failure) from failure
        if error is None:
            self._part.commit()
        else:
            sink.abort()
            self._part.discard()

    def _explained(self, error: BaseException) -> BaseException:
        """A `UserError` for what the disk or the encoder refused; anything else as it is."""
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return writing_error(self.path, error)
        if isinstance(error, av.error.FFmpegError):
            width, height = self.size_wh
            return UserError(
                f"{self.path}: cannot encode {width}x{height} px at {float(self.fps):g} frames/s as {self._codec} "
                f"({error.strerror}); try another size or --codec"
            )
        return writing_error(self.path, error) if isinstance(error, OSError) else error

    def _open(self, part: Path) -> Sink:
        if _is_folder(self.path):
            return PngFolderSink(part, self.fps, self._metadata)
        if self.path.suffix.lower() == GIF_SUFFIX:
            return GifSink(part, self.size_wh, self.fps, self._metadata)
        codec = find_codec(self._codec)
        return Mp4Sink(part, self.size_wh, self.fps, codec, self._audio_from, self._metadata, self._span)


def check_output(
    path: str | Path,
    codec: str = "h264",
    fps: float | Fraction | None = None,
    inputs: Iterable[str | Path] = (),
    *,
    size_wh: tuple[int, int] | None = None,
) -> None:
    """Refuse an output that could not be written later, before any work is done.

    Args:
        path: as for `VideoWriter`.
        codec: as for `VideoWriter`.
        fps: frames per second, where known.
        inputs: files that the output must not replace.
        size_wh: (width, height) of the frames, where known.
    Raises:
        UserError: unknown suffix or codec, frames too small for the codec, missing or read-only folder, something else
            in the way.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise UserError(f"{path}: is a folder without a name of its own; wanted the name of a new file or folder")
    refuse_inputs([path], inputs)
    suffix = path.suffix.lower()
    if _is_folder(path):
        check_replaceable(path)
    elif suffix not in (*MP4_SUFFIXES, GIF_SUFFIX):
        known = ", ".join((*MP4_SUFFIXES, GIF_SUFFIX))
        raise UserError(f"{path}: cannot write {suffix} files; wanted {known}, or no suffix for a folder of PNG files")
    elif path.is_dir():
        raise UserError(f"{path}: is a folder; wanted a file name")
    if suffix == GIF_SUFFIX and fps is not None and fps > MAX_GIF_FPS:
        raise UserError(
            f"{path}: GIF shows at most {MAX_GIF_FPS} frames/s, got {float(fps):g}; lower --fps or use .mp4"
        )
    find_codec(codec)
    if size_wh is not None and suffix in MP4_SUFFIXES:
        check_codec_size(codec, size_wh)
    PartPath(path, folder=_is_folder(path)).discard()


def _is_folder(path: Path) -> bool:
    return not path.suffix
