"""What detectors found, remembered by what they looked at: jobs that share a driver or a photo look once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdyna.infer.kept import Kept, array_sha256, file_sha256
from xdyna.preprocess.crop import Image
from xdyna.preprocess.detect import PoseDetector, TracksDetector
from xdyna.preprocess.face_mesh import FaceMesh, cut_square
from xdyna.preprocess.tracks import FloatArray, Tracks

Built = tuple[PoseDetector, str]


@dataclass
class Found:
    """Tracks and faces that were found so far.

    Attributes:
        tracks: what was found in a clip or photo, and the line that says by which detector.
        faces: points of a face as shares of its box, float32 [68, 2], or None where there is none; by the pixels
            looked at.
        file_hashes: hashes of files, by path, size and time of change: no file is read twice for its hash.
    """

    tracks: Kept[tuple[Tracks, str]] = field(default_factory=lambda: Kept(64))
    faces: Kept[tuple[FloatArray | None]] = field(default_factory=lambda: Kept(20_000))
    file_hashes: Kept[str] = field(default_factory=lambda: Kept(1000))
    _mesh: FaceMesh | None = None

    def close(self) -> None:
        """Free the face network."""
        if self._mesh is not None:
            self._mesh.close()
            self._mesh = None

    def sha256(self, path: Path | None) -> str | None:
        """A hash of a file's content; None for no file, and for one that is not there: who reads it tells that."""
        if path is None or not path.is_file():
            return None
        stat = path.stat()
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        return self.file_hashes.fetch(key, lambda: file_sha256(path))

    def detector(self, key: Hashable, build: Callable[[], Built]) -> Built:
        """A detector for frames that have been looked at before, or one that will be remembered for them.

        Args:
            key: everything the detector and its frames depend on.
            build: makes the detector and the line that announces it. One that reads a tracks file is not remembered.
        """
        known = self.tracks.get(key)
        if known is not None:
            return _Recalled(known[0]), known[1]
        detector, announcement = build()
        if isinstance(detector, TracksDetector):
            return detector, announcement
        return _Remembered(detector, lambda tracks: self.tracks.put(key, (tracks, announcement))), announcement

    def open_faces(self) -> RememberedFaces:
        """What finds faces; its network is opened once.

        Raises:
            UserError: MediaPipe is not installed.
        """
        if self._mesh is None:
            self._mesh = FaceMesh()
        return RememberedFaces(self._mesh, self.faces)


class _Recalled:
    """A detector that need not look again."""

    name = "recalled"

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks

    def detect(self, frames: Iterable[Image], *, fps: float) -> Tracks:
        """What was found; the frames are not read."""
        return deepcopy(self._tracks)


class _Remembered:
    """A detector whose finding is passed on to be kept."""

    def __init__(self, detector: PoseDetector, keep: Callable[[Tracks], None]) -> None:
        self.name = detector.name
        self._detector, self._keep = detector, keep

    def detect(self, frames: Iterable[Image], *, fps: float) -> Tracks:
        """As `PoseDetector.detect`."""
        tracks = self._detector.detect(frames, fps=fps)
        self._keep(deepcopy(tracks))
        return tracks


class RememberedFaces:
    """A `FaceFinder` that looks at the same pixels once."""

    def __init__(self, mesh: FaceMesh, faces: Kept[tuple[FloatArray | None]]) -> None:
        self._mesh, self._faces = mesh, faces

    def find(self, frame: Image, box: FloatArray) -> FloatArray | None:
        """See `FaceFinder.find`."""
        looked_at: NDArray[np.uint8] = cut_square(frame, box)  # all that the network sees of the frame
        key = (array_sha256(looked_at), box.tobytes())
        return self._faces.fetch(key, lambda: (self._mesh.find(frame, box),))[0]
