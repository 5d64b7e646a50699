"""Decode with decord, which jumps straight to the frames that are wanted; needs the extra `video`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.video.picture import Image, Turn
from xdyna.video.sample import Timed
from xdyna.video.source import VideoInfo

_CODECS = {"h264", "hevc"}  # where its frames were compared with PyAV's, and are the same to the bit

_FAR = 60  # frames ahead from which a jump is tried


def decord_frames(path: Path, info: VideoInfo) -> Generator[Timed[Callable[[], Image]]] | None:
    """Every frame with its time, decoded when it is asked for.

    Returns:
        None where decord would give other frames than PyAV does: other codecs, mirrored or turned video, pixels that
        are not square, damage.
    Raises:
        UserError: decord is not installed.
    """
    try:
        import decord
    except ImportError:
        raise UserError("reading with decord needs one more package; run: pip install 'xdyna[video]'") from None
    if info.codec not in _CODECS or info.turn != Turn():
        return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        times = reader.get_frame_timestamp(list(range(len(reader))))
        height, width = reader[0].shape[:2]
    except (decord.DECORDError, IndexError):
        return None
    if (width, height) != info.size_wh or len(reader) != info.num_frames:
        return None
    return _timed(reader, path, np.asarray(times, np.float64), info.start)


class _Cursor:
    """Steps through a decord reader forwards; jumping for every frame would decode from a key frame each time."""

    def __init__(self, reader: Any, path: Path) -> None:
        self._reader = reader
        self._path = path
        self._reader.seek_accurate(0)  # `decord_frames` has looked at frame 0
        self._next = 0
        self._last: tuple[int, Image] | None = None

    def picture(self, index: int) -> Image:
        import decord

        if self._last is None or self._last[0] != index:
            try:
                self._last = (index, self._decode(index))
            except decord.DECORDError as error:
                raise UserError(f"{self._path}: decord cannot decode frame {index}; read it with PyAV") from error
        # A copy, because a frame that is shown twice must not carry what was drawn on it the first time.
        return self._last[1].copy()

    def _decode(self, index: int) -> Image:
        if index > self._next + _FAR:
            self._reader.seek_accurate(index)
            self._next = index
        for _ in range(index - self._next):
            self._reader.next()
        self._next = index + 1
        return np.asarray(self._reader.next().asnumpy(), np.uint8)


def _timed(
    reader: Any, path: Path, times_s: NDArray[np.float64], start: Fraction
) -> Generator[Timed[Callable[[], Image]]]:
    cursor = _Cursor(reader, path)
    for index, (begin, end) in enumerate(times_s - times_s[0, 0]):
        time, after = (Fraction(value).limit_denominator(1_000_000) for value in (begin, end))
        yield Timed(start + time, after - time, partial(cursor.picture, index))
