"""Results as lines of JSON: a header, a line for every clip, a line for every pair that failed, and one for each set.

Lines are appended whole, so that a run that was killed loses at most the clip it was at and goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xdyna.errors import UserError
from xdyna.files import writing_error

SCHEMA = 1
#: Keys of the header that must agree for a run to go on in a file. The others tell of places and may differ.
_SAME = ("schema", "protocol_hash", "metrics", "backbones", "methods", "dataset")


@dataclass(frozen=True)
class ClipLine:
    """The values of one clip.

    Attributes:
        protocol: hash of the protocol.
        method: whose video it is.
        clip: name; the video's own, and `@START` where a video has several.
        video: name of the video.
        start: the clip's first frame at the protocol's rate.
        frames: of the clip.
        scene: kind of scene, "" where nobody said.
        values: by `METRIC/REGION`; NaN where a metric has no meaning for this clip.
        truth: the truth's own values of metrics that should come near to it.
        files: paths by kind (generated, truth, masks, photo, tracks).
        sha256: their contents' hashes.
        features: by `METRIC/REGION` the names of the generated and the true features in the cache.
    """

    protocol: str
    method: str
    clip: str
    video: str
    start: int
    frames: int
    scene: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    truth: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class FailedLine:
    """A pair that could not be measured.

    Attributes:
        protocol: hash of the protocol.
        method: whose video it is.
        video: name of the video.
        reason: one line.
    """

    protocol: str
    method: str
    video: str
    reason: str


@dataclass(frozen=True)
class SetLine:
    """The values of all clips of a method together.

    Attributes:
        protocol: hash of the protocol.
        method: whose videos they are.
        values: Frechet distances by `METRIC/REGION`.
        n: rows of features that went into each: frames or clips.
        clips: clips that went into each.
        warnings: what to think of when reading them.
    """

    protocol: str
    method: str
    values: Mapping[str, float] = field(default_factory=dict)
    n: Mapping[str, int] = field(default_factory=dict)
    clips: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """A file of results.

    Attributes:
        path: of the file.
        header: protocol, versions, methods with their models' hashes, metrics, backbones, what is missing and why.
        clips: line by line.
        sets: one for each method; empty for a run that has not ended.
        failed: pairs that could not be measured.
    """

    path: Path
    header: Mapping[str, Any]
    clips: tuple[ClipLine, ...]
    sets: tuple[SetLine, ...] = ()
    failed: tuple[FailedLine, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> Results:
        """Read a file; a last line that was cut off is left out.

        Raises:
            UserError: missing, not such a file, or damaged before its last line.
        """
        path = Path(path)
        lines = [_load(path, number, text) for number, text in enumerate(_whole_lines(path), 1)]
        if not lines or not lines[0].get("header"):
            raise UserError(f"{path}: is not a file of results, wanted one that `xdyna eval score` wrote")
        header = {key: value for key, value in lines[0].items() if key != "header"}
        if header.get("schema") != SCHEMA:
            raise UserError(f"{path}: is of schema {header.get('schema')}, wanted {SCHEMA}; score the videos again")
        try:
            parsed = [_parsed(line) for line in lines[1:]]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: is damaged: {error}") from None
        # A run that went on writes newer lines below: of a video that has changed, of one that can be read by now.
        latest: dict[tuple[str, str], list[ClipLine] | FailedLine] = {}
        for line in parsed:
            if isinstance(line, ClipLine):
                before = latest.get((line.method, line.video))
                if isinstance(before, list) and before[0].sha256 == line.sha256:
                    before.append(line)
                else:
                    latest[line.method, line.video] = [line]
            elif isinstance(line, FailedLine):
                latest[line.method, line.video] = line
        sets = {line.method: line for line in parsed if isinstance(line, SetLine)}
        clips = tuple(line for lines in latest.values() if isinstance(lines, list) for line in lines)
        failed = tuple(line for line in latest.values() if isinstance(line, FailedLine))
        return cls(path, header, clips, tuple(sets.values()), failed)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods in the order of the header."""
        return tuple(self.header["methods"])

    @property
    def protocol_label(self) -> str:
        """Version and the beginning of the hash, to print with every number."""
        return f"{self.header['protocol']['config']['version']}:{self.header['protocol_hash'][:12]}"


class ResultsWriter:
    """Appends to a file of results; a file that is there goes on where it stopped.

    Args:
        path: of the file; its folder must exist.
        header: what the run is.
    Attributes:
        done: what the file holds of each video, by method and video.
    Raises:
        UserError: the file holds a run of something else, another process writes to it, or it cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.header = {"header": True, "schema": SCHEMA, **header}
        self.done: dict[tuple[str, str], list[ClipLine]] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise writing_error(path, error) from error
        try:
            self._begin()
        except BaseException:
            os.close(self._file)
            raise

    def _begin(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.path}: another process writes to it; wait for it, or name another --out") from None
        if not os.fstat(self._file).st_size:
            self._append(self.header)
            return
        whole = _whole_lines(self.path)
        os.ftruncate(self._file, sum(len(line.encode()) + 1 for line in whole))
        if not whole:
            self._append(self.header)
            return
        before = Results.read(self.path)
        for key in _SAME:
            mine, theirs = _plain(self.header.get(key)), before.header.get(key)
            if mine != theirs:
                raise UserError(
                    f"{self.path}: holds another run ({_difference(key, mine, theirs)}); name another --out, or remove "
                    "the file to begin anew"
                )
        for line in before.clips:
            self.done.setdefault((line.method, line.video), []).append(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def video(self, clips: Iterable[ClipLine]) -> None:
        """All clips of one video at once: a run that goes on finds all of them or none."""
        self._write("".join(_text({**vars(line)}) for line in clips))

    def failed(self, line: FailedLine) -> None:
        """A pair that could not be measured."""
        self._append({"failed": True, **vars(line)})

    def set(self, line: SetLine) -> None:
        """All clips of a method."""
        self._append({"set": True, **vars(line)})

    def _append(self, line: Mapping[str, Any]) -> None:
        self._write(_text(line))

    def _write(self, text: str) -> None:
        data = text.encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise writing_error(self.path, error) from error


def _difference(key: str, mine: Any, theirs: Any) -> str:
    if key == "protocol_hash":
        return f"protocol {str(theirs)[:12]}, wanted {str(mine)[:12]}"
    if isinstance(mine, dict) and isinstance(theirs, dict):
        other = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        return f"other {key}: {', '.join(other[:5])}"
    return f"{key} {theirs!r}, wanted {mine!r}"


def _whole_lines(path: Path) -> list[str]:
    """The lines that end in a line break; without what a killed run left behind the last one."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        return [line.decode() for line in lines[:-1]]
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a file of results, wanted lines of JSON") from None


def _load(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} line {number}: not JSON ({error}); the file is damaged") from None
    if not isinstance(line, dict):
        raise UserError(f"{path} line {number}: holds a {type(line).__name__}, wanted a mapping")
    return line


def _parsed(line: dict[str, Any]) -> ClipLine | SetLine | FailedLine:
    if line.pop("failed", False):
        return FailedLine(**line)
    if line.pop("set", False):
        line["warnings"] = tuple(line.get("warnings", ()))
        return SetLine(**{**line, "values": _numbers(line["values"])})
    numbers = {key: _numbers(line.get(key, {})) for key in ("values", "truth")}
    features = {key: (made, true) for key, (made, true) in line.get("features", {}).items()}
    return ClipLine(**{**line, **numbers, "features": features})


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: math.nan if value is None else float(value) for key, value in values.items()}


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(_plain(line), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """What JSON can hold: NaN becomes null, infinities become text, paths too."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    return str(value) if isinstance(value, Path) else value
