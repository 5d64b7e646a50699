"""A folder of numbered PNG files as output."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from xdyna.errors import UserError
from xdyna.photo import save_png
from xdyna.video.picture import Image

_FRAME_NAME = re.compile(r"\d{6}\.png")


class PngFolderSink:
    """See `VideoWriter`: `000000.png`, `000001.png` ..; the text chunk `fps` of each holds the rate."""

    def __init__(self, path: Path, fps: Fraction, metadata: Mapping[str, str]) -> None:
        self._path = path
        self._metadata = {**metadata, "fps": str(fps)}
        self._num_frames = 0

    def write(self, frame: Image) -> None:
        save_png(self._path / f"{self._num_frames:06d}.png", frame, self._metadata)
        self._num_frames += 1

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


def check_replaceable(path: Path) -> None:
    """Only a folder that holds nothing but such frames may be replaced.

    Raises:
        UserError: `path` is a file, or a folder with anything else in it.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path}: is a file; wanted a new folder for PNG files (or a suffix such as .mp4)")
    other = next((entry.name for entry in path.iterdir() if not _FRAME_NAME.fullmatch(entry.name)), None)
    if other is not None:
        raise UserError(f"{path}: holds other files ({other}); wanted a new folder, or one of earlier frames only")
