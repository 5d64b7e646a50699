"""The work folder of a job: how far its denoising has come, and a lock against a second command on the same output."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from xdyna.errors import UserError
from xdyna.files import make_folder, writing_error

if TYPE_CHECKING:
    from io import FileIO

    from xdyna.resume import DenoiseState

_STATE, _PART, _LOCK = "state.safetensors", "state.part", "lock"

logger = logging.getLogger("xdyna")


def work_folder(output: Path) -> Path:
    """``out.mp4`` -> ``.out.mp4.work``."""
    return output.with_name(f".{output.name}.work")


class Work:
    """The work folder beside an output, held for one job in a `with` block.

    The folder is made and locked at the start. At the end it is removed, unless it holds a state and `finish` was not
    called: then the same job can go on from there.

    Args:
        output: what the job writes.
        restart: throw away what is there, whoever left it.
        ignore: neither look at a state nor save one.
        follows: another process of the same job holds the folder: do nothing with it.
    Attributes:
        folder: its path.
    Raises:
        UserError: another process works on the same output; the folder cannot be made.
    """

    def __init__(self, output: Path, *, restart: bool = False, ignore: bool = False, follows: bool = False) -> None:
        self.folder = work_folder(output)
        self._output, self._restart, self._ignore, self._follows = output, restart, ignore or follows, follows
        self._state = self.folder / _STATE
        self._lock: FileIO | None = None
        self._saves = not self._ignore

    def __enter__(self) -> Self:
        if not self._follows:
            self._lock = _locked(self.folder, self._output)
            if self._restart:
                self.discard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        with suppress(OSError):
            (self.folder / _PART).unlink(missing_ok=True)
            (self.folder / _LOCK).unlink(missing_ok=True)
        self._lock.close()
        with suppress(OSError):  # it holds a state, or another process has locked it by now
            self.folder.rmdir()

    def has_state(self) -> bool:
        """Whether there is a state to look at."""
        return not self._ignore and self._state.exists()

    def discard(self) -> None:
        """Remove the state: the job is done, or begins anew."""
        with suppress(OSError):
            self._state.unlink(missing_ok=True)

    def check(self, facts: Mapping[str, Any]) -> None:
        """See that a state, if there is one, belongs to a job with these facts; a damaged state is thrown away.

        Args:
            facts: plain values by name; those that the state has nothing to say about are not looked at.
        Raises:
            UserError: the state is another job's.
        """
        if not self.has_state():
            return
        from safetensors import SafetensorError

        from xdyna.resume import read_facts

        try:
            saved = read_facts(self._state)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("%s: damaged (%s): the job begins anew", self._state, error)
            self.discard()
            return
        others = [name for name, value in facts.items() if name in saved and saved[name] != value]
        if others:
            name = others[0]
            got, wanted = (_shown(value) for value in (saved[name], facts[name]))
            rest = f" (also {', '.join(others[1:])})" if len(others) > 1 else ""
            raise UserError(
                f"{self.folder}: holds the unfinished work of another job, with {name} {got}, not {wanted}{rest}; "
                "--restart throws it away, the command it belongs to goes on with it, or choose another output"
            )

    def saved_fact(self, name: str) -> Any:
        """One fact of the state, or None; call `check` first."""
        if not self.has_state():
            return None
        from xdyna.resume import read_facts

        return read_facts(self._state).get(name)

    def load(self) -> DenoiseState | None:
        """The state, if there is one; call `check` first."""
        if not self.has_state():
            return None
        from safetensors import SafetensorError

        from xdyna.resume import DenoiseState

        try:
            return DenoiseState.load(self._state)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("%s: damaged (%s): the job begins anew", self._state, error)
            self.discard()
            return None

    def save(self, state: DenoiseState, facts: Mapping[str, Any]) -> None:
        """Put a state in place of the last one, whole or not at all. Where that fails, warn once and do without."""
        if not self._saves:
            return
        from safetensors import SafetensorError

        part = self.folder / _PART
        try:
            state.save(part, facts)
            part.replace(self._state)
        except (OSError, SafetensorError) as error:
            self._saves = False
            reason = writing_error(self._state, error) if isinstance(error, OSError) else f"{self._state}: {error}"
            logger.warning("%s; the job goes on, but could not be resumed from here", reason)
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _locked(folder: Path, output: Path) -> FileIO:
    """The lock file, open and locked by this process; the system lets go of it when the process ends, however it ends.

    Raises:
        UserError: another process holds it; the folder cannot be made.
    """
    path = folder / _LOCK
    while True:
        make_folder(folder)
        try:
            file = path.open("a+b", buffering=0)
        except FileNotFoundError:
            continue  # whoever had it removed the folder just now
        except OSError as error:
            raise writing_error(path, error) from error
        if not _try_lock(file):
            file.seek(0)
            owner = file.read().decode(errors="replace").strip()
            file.close()
            raise UserError(
                f"{output}: another command (process {owner or 'unknown'}) is writing it; wait for it, or choose "
                "another output"
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                with suppress(OSError):  # the lock holds without a name on a full disk too
                    file.truncate(0)
                    file.write(str(os.getpid()).encode())
                return file
        file.close()  # whoever had it removed the file between our opening and locking it


def _try_lock(file: FileIO) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: no lock, as an open file cannot be removed there either
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}.."
