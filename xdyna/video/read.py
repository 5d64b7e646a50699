"""Read a driving video as a stream of upright RGB frames at a chosen rate."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path
from typing import Literal

import av
import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from xdyna.errors import UserError
from xdyna.video.decord_frames import decord_frames
from xdyna.video.picture import Image, to_rgb
from xdyna.video.sample import Timed, sample_by_time
from xdyna.video.sound import AudioCut
from xdyna.video.source import VideoInfo, open_decoder, open_video, packet_frames, probe, simple_rate

MAX_FPS = 240
_SEEK_FROM_S = 2  # nearer to the beginning it is not worth it


class VideoReader:
    """The frames of a video, one after the other; each `for` loop reads the file anew.

    Order of the options: the clip from `start_s` on is sampled at `fps` by its time stamps, then every `stride`-th
    sample is kept, then at most `frames` of them. The output rate is `fps / stride`, so motion keeps its speed.

    Args:
        path: video file.
        start_s: where to begin, seconds from the first frame.
        fps: frames per second to sample at; None keeps the video's own rate.
        stride: keep every Nth.
        frames: at most this many; None for all.
        backend: what decodes: "av" (PyAV), or "decord" (extra `video`), which gives the same frames; PyAV takes over
            for files that decord does not read alike.
        info: what `probe` found in this file earlier; None to look now.
    Attributes:
        path: the file.
        info: what `probe` found.
        start_s: where the first frame lies, seconds from the video's first.
        fps: output rate, frames per second.
        size_wh: (width, height) of the frames, pixels.
        warnings: filled when a loop has ended: one line for each thing that was wrong but did not stop it.
    Raises:
        UserError: not a readable video, or options that this video cannot meet.
    """

    def __init__(
        self,
        path: str | Path,
        start_s: float = 0.0,
        fps: float | Fraction | None = None,
        stride: int = 1,
        frames: int | None = None,
        backend: Literal["av", "decord"] = "av",
        *,
        info: VideoInfo | None = None,
    ) -> None:
        self.path = Path(path)
        _check_options(self.path, start_s, fps, stride, frames)
        self.info = info or probe(self.path)
        _check_start(self.path, start_s, self.info)
        self._rate = self.info.fps if fps is None else simple_rate(fps)
        self.start_s = start_s
        self._start = Fraction(start_s).limit_denominator(1_000_000)
        self._stride = stride
        self._limit = frames
        self._backend = backend
        self.fps = self._rate / stride
        self.size_wh = self.info.size_wh
        self.warnings: list[str] = []

    @property
    def num_expected(self) -> int:
        """Frames that the header promises, for a progress bar; a damaged file gives fewer."""
        left_s = self.info.duration_s - float(self._start)
        expected = ceil(max(1, round(left_s * self._rate)) / self._stride)
        return expected if self._limit is None else min(expected, self._limit)

    def sound(self) -> AudioCut | None:
        """The sound that belongs to these frames, for `VideoWriter`; None for a silent video."""
        return AudioCut(self.path, float(self._start)) if self.info.has_audio else None

    def __iter__(self) -> Iterator[Image]:
        """uint8 RGB [H, W, 3], 0..255.

        Raises:
            UserError: no frame at all could be read.
        """
        for picture in self.pictures():
            yield picture()

    def pictures(self) -> Iterator[Callable[[], Image]]:
        """The same frames, each converted to RGB when it is called; calling none but the wanted ones saves time.

        Raises:
            UserError: no frame at all could be read.
        """
        self.warnings.clear()
        start = self.info.start + self._start
        decoder = _Decoder(self.path, self.info, start)
        by_decord = decord_frames(self.path, self.info) if self._backend == "decord" else None
        num_given = 0
        with closing(by_decord or decoder.frames()) as shown:
            for picture in sample_by_time(shown, self._rate, start=start, stride=self._stride, limit=self._limit):
                num_given += 1
                yield picture
        if num_given == 0:
            raise UserError(f"{self.path}: no frame could be read from {float(self._start):g} s on")
        if by_decord is None:
            self.warnings += decoder.complaints(cut_off=self._limit == num_given)


@dataclass
class _Decoder:
    """Decodes from the key frame before `start` on, passes over damage and remembers it.

    Attributes:
        end: end of the last readable frame, seconds.
        broken: times of the packets that gave no frame, seconds.
    """

    path: Path
    info: VideoInfo
    start: Fraction
    end: Fraction = Fraction(0)
    broken: list[Fraction] = field(default_factory=list)

    def frames(self) -> Generator[Timed[Callable[[], Image]]]:
        """The readable frames with their times, seconds; converted to RGB when they are asked for."""
        with open_video(self.path) as (container, stream):
            far_in = self.start - self.info.start > _SEEK_FROM_S
            if far_in and stream.time_base and self._seek(container, stream):
                yield from self._decode(container, stream)
                return
        with open_video(self.path) as (container, stream):
            yield from self._decode(container, stream)

    def complaints(self, *, cut_off: bool) -> list[str]:
        """What to tell the user; with `cut_off` the end of the file was not reached on purpose."""
        declared_end = self.info.start + Fraction(self.info.duration_s).limit_denominator(1_000_000)
        num_missing = 0 if cut_off else max(0, round((declared_end - self.end) * self.info.fps))
        num_broken = sum(time < self.end for time in self.broken)
        num_lost = num_broken + (num_missing if num_missing > 1 else 0)
        if not num_lost:
            return []
        num_all = round(self.info.duration_s * self.info.fps)
        num_readable = max(0, num_all - num_lost)
        return [f"{self.path}: only {num_readable} of {num_all} frames could be read; the file is damaged or cut short"]

    def _seek(self, container: InputContainer, stream: VideoStream) -> bool:
        """Go to a key frame at or before `start`; False where the file cannot do that."""
        assert stream.time_base is not None
        try:
            container.seek(int(self.start / stream.time_base), stream=stream, backward=True)
            first = next(packet for packet in container.demux(stream) if packet.pts is not None)
            if first.pts is None or first.pts * stream.time_base > self.start:
                return False
            container.seek(int(self.start / stream.time_base), stream=stream, backward=True)
        except (av.error.FFmpegError, OSError, StopIteration):
            return False
        return True

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[Timed[Callable[[], Image]]]:
        num_seen = 0
        decode = open_decoder(stream)
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError):
                return  # what is missing shows in `complaints`
            if packet is None:
                return
            frames = packet_frames(decode, packet)
            if frames is None and packet.pts is not None:
                self.broken.append(packet.pts * packet.time_base)
            for frame in frames or []:
                timed = self._timed(frame, num_seen)
                num_seen += 1
                self.end = max(self.end, timed.time + timed.duration)
                yield timed

    def _timed(self, frame: VideoFrame, index: int) -> Timed[Callable[[], Image]]:
        time_base = frame.time_base or Fraction(1)
        # Raw streams carry no time stamps: their frames follow each other at the stated rate.
        time = self.info.start + index / self.info.fps if frame.pts is None else frame.pts * time_base
        duration = Fraction(frame.duration or 0) * time_base or 1 / self.info.fps
        return Timed(time, duration, partial(to_rgb, frame, self.info.size_wh, self.info.turn))


def _check_options(path: Path, start_s: float, fps: float | Fraction | None, stride: int, frames: int | None) -> None:
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise UserError(f"{path}: fps is {float(fps):g}; wanted more than 0 and at most {MAX_FPS}")
    if stride < 1:
        raise UserError(f"{path}: stride is {stride}; wanted 1 or more")
    if frames is not None and frames < 1:
        raise UserError(f"{path}: frames is {frames}; wanted 1 or more")
    if not 0 <= start_s < float("inf"):
        raise UserError(f"{path}: start is {start_s:g} s; wanted 0 or more")


def _check_start(path: Path, start_s: float, info: VideoInfo) -> None:
    if start_s >= info.duration_s:
        raise UserError(f"{path}: start is {start_s:g} s; wanted less than its duration, {info.duration_s:.3f} s")
