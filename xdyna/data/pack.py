"""Write shards: prepared videos cut to their maps' size and encoded so that any frame is near a key frame."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from xdyna.data.buckets import SizeWH
from xdyna.data.folder import recording_files, scan_folder
from xdyna.data.recorded import VIDEO, Recording, brought_to
from xdyna.data.shards import FORMAT
from xdyna.errors import UserError
from xdyna.files import PartPath, writing_error
from xdyna.video import VideoReader
from xdyna.video.codecs import Codec
from xdyna.video.mp4 import Mp4Sink

#: A key frame every 12 frames and no frame that waits for a later one: 1.5 times the bytes of the usual settings, and
#: a short clip anywhere in a video is decoded without what lies before it.
SEEKABLE = Codec(
    "libx264", {"crf": "15", "preset": "veryfast", "g": "12", "bf": "0", "x264-params": "mbtree=0:scenecut=0"}
)

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote.

    Attributes:
        shards: the tar files.
        num_clips: videos in them.
        problems: one line each for what was left out.
    """

    shards: tuple[Path, ...]
    num_clips: int
    problems: tuple[str, ...]


def pack(
    folder: Path, output: Path, shard_mb: int, on_progress: OnProgress = lambda stage, done, total: None
) -> Packed:
    """Write the videos of a prepared folder, with all maps they have, as `OUTPUT/clips-NNNNNN.tar`.

    Args:
        folder: see `scan_folder`.
        output: folder for the shards, made if missing.
        shard_mb: a shard is closed once it holds so many megabytes.
        on_progress: called after every video.
    Raises:
        UserError: no usable video, shards in `output` already, or a disk that is full.
    """
    recordings = scan_folder(folder, whatever=True)
    if not recordings.items:
        raise UserError(f"{folder}: no usable clips ({recordings.problems[0]}); {recordings.hint}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_error(output, error) from error
    if any(output.glob("clips-*.tar")):
        raise UserError(f"{output}: holds shards already; wanted an empty or a new folder")
    problems, writer = list(recordings.problems), _ShardWriter(output, shard_mb * 10**6)
    try:
        with writer:
            for number, item in enumerate(recordings.items):
                with TemporaryDirectory(prefix="xdyna-") as place:
                    try:
                        files = _encoded(folder, item, Path(place))
                    except UserError as error:
                        problems.append(f"left out: {error}")
                    else:
                        writer.add(f"{number:08d}", item, files)
                on_progress("pack", number + 1, len(recordings.items))
    except OSError as error:
        raise writing_error(output, error) from error
    if not writer.num_clips:
        raise UserError(f"{folder}: no clip could be read ({problems[-1]})")
    return Packed(tuple(writer.shards), writer.num_clips, tuple(problems))


def _encoded(folder: Path, item: Recording, place: Path) -> dict[str, Path]:
    """All files of a recording, cut to the maps' size, at their rate, as many frames of each."""
    sources = recording_files(folder / item.name, list(item.files))
    encoded = {}
    for kind, source in sources.items():
        reader = VideoReader(source, 0.0, item.fps, 1, item.num_frames, info=item.files[kind])
        encoded[kind] = place / f"{kind}.mp4"
        number = _encode(reader, encoded[kind], item.size_wh)
        if reader.warnings or number < item.num_frames:
            problem = reader.warnings[0] if reader.warnings else f"{source}: only {number} of {item.num_frames} frames"
            raise UserError(problem)
    return encoded


def _encode(reader: VideoReader, path: Path, size_wh: SizeWH) -> int:
    sink = Mp4Sink(path, size_wh, reader.fps, SEEKABLE, None, {})
    number = 0
    try:
        for frame in reader:
            sink.write(brought_to(frame, size_wh, size_wh))
            number += 1
        sink.close()
    except BaseException:
        sink.abort()
        raise
    return number


class _ShardWriter:
    """Tar files of about one size, each complete or not there."""

    def __init__(self, output: Path, num_bytes: int) -> None:
        self.output, self.num_bytes = output, num_bytes
        self.shards: list[Path] = []
        self.num_clips = 0
        self._part: PartPath | None = None
        self._archive: tarfile.TarFile | None = None

    def __enter__(self) -> _ShardWriter:
        return self

    def add(self, key: str, item: Recording, files: dict[str, Path]) -> None:
        """Add one sample; its members follow each other."""
        facts = {
            "format": FORMAT,
            "name": item.name,
            "num_frames": item.num_frames,
            "fps_numerator": item.fps.numerator,
            "fps_denominator": item.fps.denominator,
            "width": item.size_wh[0],
            "height": item.size_wh[1],
            "is_scene": item.is_scene,
        }
        archive = self._open()
        data = json.dumps(facts).encode()
        archive.addfile(_header(f"{key}.json", len(data)), io.BytesIO(data))
        for kind, path in files.items():
            name = f"{key}.mp4" if kind == VIDEO else f"{key}.{kind}.mp4"
            with path.open("rb") as file:
                archive.addfile(_header(name, path.stat().st_size), file)
        self.num_clips += 1
        if archive.offset >= self.num_bytes:
            self._close()

    def _open(self) -> tarfile.TarFile:
        if self._archive is None:
            path = self.output / f"clips-{len(self.shards):06d}.tar"
            self._part = PartPath(path)
            self._archive = tarfile.open(self._part.path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        return self._archive

    def _close(self) -> None:
        if self._archive is not None and self._part is not None:
            self._archive.close()
            self._part.commit()
            self.shards.append(self._part.target)
        self._archive = self._part = None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._close()
        elif self._archive is not None and self._part is not None:
            self._archive.close()
            self._part.discard()


def _header(name: str, num_bytes: int) -> tarfile.TarInfo:
    """Without owner and time: the same clips give the same shard."""
    header = tarfile.TarInfo(name)
    header.size = num_bytes
    return header
