"""The hash that names a model: of its weight files as they were when it was loaded, whatever becomes of them later."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from xdyna.errors import UserError

_READ_BYTES = 1 << 22


class WeightsHash:
    """SHA-256 over names and contents of a folder's weight files, in the order of their names.

    The files are opened at once and read in a thread of its own. Whoever puts other files in their place later changes
    nothing of it; that a file itself is written meanwhile is noticed.

    Args:
        folder: its `.safetensors` files count, at any depth.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._hash = ""
        self._error: Exception | None = None
        self._open = ExitStack()
        files: list[tuple[str, BinaryIO]] = []
        try:
            for path in sorted(folder.rglob("*.safetensors")):
                files.append((path.relative_to(folder).as_posix(), self._open.enter_context(path.open("rb"))))
            self._stamps = [_stamp(file) for _, file in files]
        except OSError as error:
            self._open.close()
            self._error = UserError(f"{folder}: the weights cannot be read: {error}")
        # Whoever gives up does not wait for gigabytes to be read.
        self._thread = threading.Thread(target=self._run, args=(files,), name="xdyna-hash", daemon=True)
        if self._error is None:
            self._thread.start()

    def result(self) -> str:
        """Wait, and return the hash in hexadecimal.

        Raises:
            UserError: a file could not be read, or was written meanwhile.
        """
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._hash

    def stop(self) -> None:
        """Read no further: nobody will ask."""
        self._stop.set()

    def _run(self, files: list[tuple[str, BinaryIO]]) -> None:
        total = hashlib.sha256()
        try:
            with self._open:
                for name, file in files:
                    one = hashlib.sha256()
                    while not self._stop.is_set() and (data := file.read(_READ_BYTES)):
                        one.update(data)
                    total.update(name.encode() + b"\0" + one.digest())
                if [_stamp(file) for _, file in files] != self._stamps:
                    self._error = changed(self._folder)
        except OSError as error:
            self._error = UserError(f"{self._folder}: the weights cannot be read: {error}")
        if self._stop.is_set():
            self._error = self._error or RuntimeError("the hash was stopped before it was asked for")
        self._hash = total.hexdigest()


def changed(folder: Path) -> UserError:
    """What to say of weights that are not the same from beginning to end."""
    return UserError(f"{folder}: its weights were written while they were read; run again once they are in place")


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
