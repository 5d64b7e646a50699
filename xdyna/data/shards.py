"""Shards: tar files in WebDataset's layout, each holding many prepared videos; written by `xdyna data pack`.

A sample's members lie one after the other and share their name up to the first dot: `KEY.json`, `KEY.mp4`,
`KEY.pose.mp4`, `KEY.face_local.mp4` .. Members are found by their place in the file, not streamed through a shuffle
buffer, so that a sample is a function of its number and a run can be resumed exactly. Nothing is ever extracted under
a name that an archive gives, and nothing in it is unpickled.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from xdyna.data.recorded import FACE_KINDS, MAP_KINDS, POSE, VIDEO, Cut, RecordedSource, Recording, Recordings
from xdyna.data.source import Face
from xdyna.errors import UserError
from xdyna.video import VideoInfo
from xdyna.video.picture import Turn

FORMAT = "xdyna-clips-1"
MAX_MEMBER_BYTES = 4 * 2**30
MAX_JSON_BYTES = 2**16
MAX_SIDE_PX, MAX_FPS, MAX_FRAMES = 8192, 240, 10_000_000

_ENDINGS = {"json": "json", "mp4": VIDEO, **{f"{kind}.mp4": kind for kind in MAP_KINDS}}
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".joblib", ".pyd")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}(\.[A-Za-z0-9_]{1,32}){1,4}")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class ShardRecording(Recording):
    """A recording inside a shard.

    Attributes:
        shard: the tar file.
        members: first byte and number of bytes of each of its files, by kind.
    """

    shard: Path
    members: Mapping[str, tuple[int, int]]


class ShardSource(RecordedSource):
    """Samples cut from the recordings of shards.

    Args:
        shards: the tar files.
        cut: how samples are taken.
        recordings: what `scan_shards` found in them for the same face maps; None to look now.
    Raises:
        UserError: no usable recording, or an archive that is not safe.
    """

    gap = 12  # as `pack` sets key frames

    def __init__(self, shards: Sequence[Path], cut: Cut, recordings: Recordings | None = None) -> None:
        super().__init__(recordings or scan_shards(shards, cut.face), cut)

    @contextmanager
    def opened(self, recording: Recording, kinds: Sequence[str]) -> Iterator[Mapping[str, Path]]:
        """Copies of the members in a temporary folder, where the video reader can seek in them."""
        assert isinstance(recording, ShardRecording)
        with TemporaryDirectory(prefix="xdyna-") as folder:
            paths = {kind: Path(folder) / f"{kind}.mp4" for kind in kinds}
            try:
                with recording.shard.open("rb") as shard:
                    for kind, path in paths.items():
                        with path.open("wb") as file:
                            _copy(shard, file, *recording.members[kind])
            except OSError as error:
                raise UserError(f"{recording.shard}: {recording.name} cannot be copied: {error}") from error
            yield paths


def find_shards(text: str) -> list[Path]:
    """The shards that ``clips-{000000..000009}.tar``, the name of a tar file or a folder of tar files stands for.

    Returns:
        None at all where the text means something else.
    Raises:
        UserError: a range that runs backwards, or a shard that is not there.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return sorted(folder.glob("*.tar"))
    if not text.endswith(".tar"):
        return []
    paths = [Path(name).expanduser() for name in _expanded(text)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such shard ({len(missing)} of {len(paths)} are missing)")
    return paths


def scan_shards(shards: Sequence[Path], face: Face = False) -> Recordings:
    """Read the headers of all members, and the small JSON member of each sample.

    Args:
        shards: the tar files.
        face: which face maps must be there.
    Returns:
        The complete recordings; what is missing or cut short is among `problems`.
    Raises:
        UserError: a name that could lead elsewhere, a link, a pickle: somebody meddled with the archive.
    """
    problems: list[str] = []
    items: dict[str, ShardRecording] = {}
    for shard in shards:
        for key, members in _members(shard, problems).items():
            try:
                item = _recording(shard, key, members, face)
            except UserError as error:
                problems.append(f"left out: {error}")
                continue
            if item.name in items:
                problems.append(f"left out: {shard}: {key}: {item.name} is in {items[item.name].shard.name} already")
            else:
                items[item.name] = item
    place = str(shards[0]) if len(shards) == 1 else f"{shards[0]} .. {shards[-1].name}"
    return Recordings(place, tuple(items.values()), tuple(problems), "shards are made by: xdyna data pack FOLDER")


def _expanded(text: str) -> list[str]:
    """``a-{08..10}.tar`` -> ``a-08.tar``, ``a-09.tar``, ``a-10.tar``."""
    match = _RANGE.search(text)
    if not match:
        return [text]
    first, last = match.groups()
    if int(last) < int(first) or int(last) - int(first) > 1_000_000:
        raise UserError(f"data {text}: {match.group()} is no range; for example {{000000..000009}}")
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [name for n in numbers for name in _expanded(text[: match.start()] + n + text[match.end() :])]


def _members(shard: Path, problems: list[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """Key -> ending -> (first byte, number of bytes)."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    num_bytes = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                _check_safe(shard, member)
                key, _, ending = member.name.partition(".")
                if ending not in _ENDINGS:
                    problems.append(f"{shard}: {member.name} is not used; wanted .{', .'.join(_ENDINGS)}")
                elif member.offset_data + member.size > num_bytes:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                else:
                    found.setdefault(key, {})[ending] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        problems.append(f"{shard}: damaged or cut short ({error}); {len(found)} samples before that are used")
    return found


def _check_safe(shard: Path, member: tarfile.TarInfo) -> None:
    if not _SAFE_NAME.fullmatch(member.name):
        raise UserError(f"{shard}: refused: member {member.name[:80]!r}; wanted plain names such as 000001.pose.mp4")
    if not member.isreg() or member.issparse():
        raise UserError(f"{shard}: refused: member {member.name} is a link, a folder or a device; wanted files")
    if member.name.lower().endswith(_PICKLES):
        raise UserError(f"{shard}: refused: member {member.name} may hold a pickle, which could run code")
    limit = MAX_JSON_BYTES if member.name.endswith(".json") else MAX_MEMBER_BYTES
    if member.size > limit:
        raise UserError(f"{shard}: refused: member {member.name} has {member.size} bytes; wanted at most {limit}")


def _recording(shard: Path, key: str, members: Mapping[str, tuple[int, int]], face: Face) -> ShardRecording:
    if "json" not in members:
        raise UserError(f"{shard}: {key}: no {key}.json, which xdyna data pack writes")
    with shard.open("rb") as file:
        file.seek(members["json"][0])
        facts = _Facts(f"{shard}: {key}.json", file.read(members["json"][1]))
    files = {_ENDINGS[ending]: place for ending, place in members.items() if ending != "json"}
    is_scene = facts.flag("is_scene")
    for kind in (VIDEO, *(() if is_scene else (POSE, *FACE_KINDS[face]))):
        if kind not in files:
            ending = next(ending for ending, known in _ENDINGS.items() if known == kind)
            raise UserError(f"{shard}: {key}: no {key}.{ending}")
    size_wh = (facts.number("width", MAX_SIDE_PX), facts.number("height", MAX_SIDE_PX))
    num_frames = facts.number("num_frames", MAX_FRAMES)
    fps = Fraction(facts.number("fps_numerator", 10**9), facts.number("fps_denominator", 10**9))
    if fps > MAX_FPS:
        raise UserError(f"{shard}: {key}.json: {float(fps):g} frames per second; wanted at most {MAX_FPS}")
    # `pack` writes every member alike: upright, from time 0 on, at the maps' size and rate.
    info = VideoInfo(size_wh, fps, num_frames, float(num_frames / fps), False, Fraction(0), "h264", Turn())
    return ShardRecording(
        name=facts.text("name"),
        num_frames=num_frames,
        fps=fps,
        size_wh=size_wh,
        is_scene=is_scene,
        files=dict.fromkeys(files, info),
        num_bytes=sum(size for _, size in files.values()),
        shard=shard,
        members=files,
    )


class _Facts:
    """The JSON member of a sample, believed only where it has the right form."""

    def __init__(self, label: str, data: bytes) -> None:
        self._label = label
        try:
            self._values = json.loads(data)
        except ValueError:
            self._values = None
        if not isinstance(self._values, dict) or self._values.get("format") != FORMAT:
            raise UserError(f"{label}: is not JSON of the format {FORMAT}")

    def number(self, key: str, most: int) -> int:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise UserError(f"{self._label}: {key} is {value!r}; wanted a whole number of 1 to {most}")
        return value

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise UserError(f"{self._label}: {key} is {value!r}; wanted true or false")
        return value

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not value:
            raise UserError(f"{self._label}: {key} is {value!r}; wanted a text")
        return value

    def _get(self, key: str) -> Any:
        return self._values.get(key)


def _copy(source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
    source.seek(start)
    data = source.read(size)
    if len(data) < size:
        raise UserError(f"{source.name}: is cut short; wanted {start + size} bytes or more")
    target.write(data)
