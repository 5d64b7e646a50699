"""What a session keeps from one job for the next, by the content of what it was made from."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from xdyna.maps import MapClip

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """The values that were asked for last, by key.

    Args:
        most: values kept; the one that was not asked for the longest goes first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """The value of a key, if it is kept."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)

    def fetch(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The kept value, or a new one; of one that cannot be made nothing is kept."""
        if key not in self._values:
            self.put(key, make())
        self._values.move_to_end(key)
        return self._values[key]


def array_sha256(array: NDArray[Any] | MapClip) -> str:
    """A hash of an array's type, shape and values; of a clip on disk that of the array it would be."""
    if isinstance(array, np.ndarray):
        total = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()
    width, height = array.size_wh
    total = hashlib.sha256(f"{np.dtype(np.uint8).str} {(len(array), height, width, 3)}".encode())
    for index in range(len(array)):
        total.update(array.frames([index]).data)
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """A hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file in a folder: differs once one of them was written again."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stamps = [(path, path.stat()) for path in files]
    return tuple((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in stamps)
