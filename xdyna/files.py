"""Input files checked by name; output files that appear complete or not at all, renamed at the end."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from xdyna.errors import UserError

_REASONS = {
    errno.ENOSPC: "no space left on the disk; free some or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file grew past the largest size allowed here; write less or elsewhere",
    errno.EROFS: "the folder is on a read-only disk; choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long",
}

#: Error numbers that tell of the disk or the folder, not of what is written.
DISK_ERRORS = frozenset(_REASONS)


def check_is_file(path: Path, wanted: str) -> None:
    """Refuse a missing file, a folder, a device and an empty file, each by its name.

    Raises:
        UserError: any of these, or a file that may not be read.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; {wanted}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {wanted}") from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is a folder; {wanted}")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is a device or a pipe; {wanted}")
    if status.st_size == 0:
        raise UserError(f"{path}: is empty (0 bytes); {wanted}")


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Refuse to replace what is read.

    Raises:
        UserError: one of `outputs` is one of the files `inputs`, under whatever name.
    """
    inputs = [Path(file) for file in inputs if Path(file).exists()]
    for path in outputs:
        if path.exists() and any(path.samefile(file) for file in inputs):
            raise UserError(f"{path}: is an input of this very run; wanted another name for the output")


def writing_error(path: Path, error: OSError) -> UserError:
    """The one line that tells the user why `path` could not be written."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"{path}: cannot write: {reason}")


def make_folder(folder: Path) -> None:
    """Make a folder and those it lies in, where missing.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_error(folder, error) from error


class PartPath:
    """A temporary file or folder beside `path`, made at once and moved to `path` by `commit`.

    The name begins with a dot and ends in `.part` plus the suffix of `path`, so a left-over of a killed process is
    easy to tell.

    Args:
        path: where the result goes; its folder must exist.
        folder: make a folder, not a file.
    Raises:
        UserError: the folder is missing or cannot be written to.
    """

    def __init__(self, path: Path, *, folder: bool = False) -> None:
        self.target = path
        self.is_folder = folder
        try:
            self.path = _create_beside(path, folder)
        except OSError as error:
            raise writing_error(path, error) from error

    def commit(self) -> None:
        """Move the finished result to its name, in place of what was there."""
        try:
            if self.is_folder and self.target.exists():
                self._swap_folders()
            else:
                self.path.replace(self.target)
        except OSError as error:
            self.discard()
            raise writing_error(self.target, error) from error

    def _swap_folders(self) -> None:
        old = _create_beside(self.target, folder=True)
        self.target.rename(old)
        try:
            self.path.rename(self.target)
        except BaseException:
            old.rename(self.target)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove the unfinished result; does nothing when it is gone."""
        if self.is_folder:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)


def remove_parts(path: Path, process: int) -> None:
    """Remove what a process that was killed had begun to write for `path`, and nobody else's.

    Args:
        path: that was to be written.
        process: its number; it must be gone.
    """
    begun = f".{path.stem}.{process}-"
    with suppress(OSError):
        for part in list(path.parent.iterdir()):
            if part.name.startswith(begun) and part.name.endswith(f".part{path.suffix}"):
                if part.is_dir():
                    shutil.rmtree(part, ignore_errors=True)
                else:
                    part.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; on a clean end it becomes `path`, else (Ctrl-C too) it is removed.

    Raises:
        UserError: the disk is full, the folder is read-only or missing.
    """
    part = PartPath(path)
    try:
        yield part.path
    except OSError as error:
        part.discard()
        raise writing_error(path, error) from error
    except BaseException:
        part.discard()
        raise
    part.commit()


def _create_beside(path: Path, folder: bool) -> Path:
    for number in count():
        part = path.with_name(f".{path.stem}.{os.getpid()}-{number}.part{path.suffix}")
        try:
            if folder:
                part.mkdir()
            else:
                # Not tempfile.mkstemp: the result must get the permissions the user's umask gives.
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return part
    raise AssertionError("count() has no end")
