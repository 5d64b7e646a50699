"""Features on disk, by the content of what they were computed from."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.files import make_folder, written_whole

Features = NDArray[np.float32]
_MAGIC = b"xdyna features 1\n"


class FeatureCache:
    """One file for every clip, metric and region; a damaged one counts as absent and is made anew.

    A file's name is a hash of the video's and its masks' content, the protocol, the metric and its network's weights;
    with any of them changed nothing is found. Several processes may share a folder.

    Args:
        folder: made if missing.
    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)

    def load(self, name: str) -> Features | None:
        """float32 [n, D]; None where it is absent or damaged."""
        try:
            data = self._path(name).read_bytes()
        except OSError:
            return None
        head, _, body = data.removeprefix(_MAGIC).partition(b"\n")
        try:
            facts = json.loads(head)
            rows, columns = (int(side) for side in facts["shape"])
            if not data.startswith(_MAGIC) or zlib.crc32(body) != facts["crc"] or len(body) != 4 * rows * columns:
                return None
        except (ValueError, KeyError, TypeError):
            return None
        return np.frombuffer(body, "<f4").reshape(rows, columns).astype(np.float32)

    def save(self, name: str, features: Features) -> None:
        """Write float32 [n, D].

        Raises:
            UserError: it cannot be written.
        """
        body = np.ascontiguousarray(features, "<f4").tobytes()
        path = self._path(name)
        make_folder(path.parent)
        with written_whole(path) as part:
            head = json.dumps({"shape": features.shape, "crc": zlib.crc32(body)})
            part.write_bytes(_MAGIC + head.encode() + b"\n" + body)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name[2:]}.features"


def feature_name(facts: Mapping[str, Any]) -> str:
    """The name of features that depend on these facts alone."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
