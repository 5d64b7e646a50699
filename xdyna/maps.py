"""Clips of maps that lie on disk and are read frame by frame, so that memory does not grow with their length."""

from __future__ import annotations

import os
import tempfile
import threading
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from xdyna.files import writing_error

Image = NDArray[np.uint8]
Clip = NDArray[np.uint8]

#: For temporary files that may grow large; where it cannot be written, and where TMPDIR is set, Python's choice.
_LARGE_TEMPORARY = Path("/var/tmp")
#: Maps are mostly black: the fastest level leaves a tenth or less of them.
_LEVEL = 1


@runtime_checkable
class MapClip(Protocol):
    """A clip of RGB pictures whose frames are handed out when asked for.

    Attributes:
        size_wh: (width, height) of every frame, pixels.
    """

    size_wh: tuple[int, int]

    def __len__(self) -> int:
        """Number of frames."""

    def frames(self, indices: Sequence[int]) -> Clip:
        """Some frames, uint8 RGB [n, H, W, 3], 0..255, in the order asked for."""

    def extremes(self) -> tuple[int, int]:
        """Least and greatest value of the clip, over all frames, channels and pixels together."""


class SpilledMaps:
    """Pictures of one size, packed one by one into a file that has no name and goes with the last reader.

    Args:
        size_wh: (width, height), pixels.
    """

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self.size_wh = size_wh
        self._folder = _folder()
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="xdyna-maps-", dir=self._folder)  # noqa: SIM115 (outlives this)
        self._lock = threading.Lock()
        self._ends = array("q", [0])  # frame i lies from _ends[i] to _ends[i + 1]
        self._low, self._high = array("B"), array("B")

    def append(self, frame: Image) -> None:
        """Add a frame, uint8 RGB [H, W, 3].

        Raises:
            UserError: the disk is full.
        """
        width, height = self.size_wh
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {frame.dtype} {frame.shape}, wanted uint8 {(height, width, 3)}")
        packed = zlib.compress(np.ascontiguousarray(frame).data, _LEVEL)
        with self._lock:
            try:
                self._file.seek(self._ends[-1])
                self._file.write(packed)
                self._file.flush()
            except OSError as error:
                raise writing_error(Path(self._folder), error) from error
            self._ends.append(self._ends[-1] + len(packed))
            self._low.append(int(frame.min()))
            self._high.append(int(frame.max()))

    def first(self, number: int) -> Self:
        """The first frames, in the same file; what is appended to one of the two after that ruins the other."""
        part = object.__new__(type(self))
        part.size_wh, part._folder, part._file, part._lock = self.size_wh, self._folder, self._file, self._lock
        part._ends, part._low, part._high = self._ends[: number + 1], self._low[:number], self._high[:number]
        return part

    @property
    def num_bytes(self) -> int:
        """What the frames take on disk."""
        return self._ends[-1]

    def __len__(self) -> int:
        return len(self._low)

    def __getitem__(self, index: int) -> Image:
        """One frame, uint8 RGB [H, W, 3]."""
        index = range(len(self))[index]
        start, end = self._ends[index], self._ends[index + 1]
        with self._lock:
            self._file.seek(start)
            packed = self._file.read(end - start)
        width, height = self.size_wh
        return np.frombuffer(zlib.decompress(packed, bufsize=width * height * 3), np.uint8).reshape(height, width, 3)

    def __iter__(self) -> Iterator[Image]:
        for index in range(len(self)):
            yield self[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All frames at once, [F, H, W, 3]: as much memory as they take."""
        return self.frames(range(len(self))).astype(dtype or np.uint8, copy=False)

    def frames(self, indices: Sequence[int]) -> Clip:
        """See `MapClip`."""
        width, height = self.size_wh
        picked = np.empty((len(indices), height, width, 3), np.uint8)
        for place, index in enumerate(indices):
            picked[place] = self[int(index)]
        return picked

    def extremes(self) -> tuple[int, int]:
        """See `MapClip`."""
        if not len(self):
            raise ValueError("no frames, wanted one at least")
        return min(self._low), max(self._high)


def _folder() -> str:
    """Where large temporary files go: not where temporary files lie in memory, as they do on some systems."""
    if "TMPDIR" in os.environ or not os.access(_LARGE_TEMPORARY, os.W_OK):
        return tempfile.gettempdir()
    return str(_LARGE_TEMPORARY)
