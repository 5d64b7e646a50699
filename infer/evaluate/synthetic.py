"""`synthetic-v1`: drawn clips of which everything is known, the same for everybody because seeds say what they show.

Nothing of it is shipped. Clips are drawn where they are needed, and a hash of what was drawn stands in the results.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.clips import World
from xdyna.files import PartPath, make_folder, written_whole
from xdyna.infer.evaluate.pairs import Pair
from xdyna.metrics.held_out import MODES, Case, Mode, build_case
from xdyna.photo import save_png, write_png
from xdyna.video import VideoWriter

NAME = "synthetic-v1"
#: Frozen: another world, number, order or length is another test set and gets another name. Training and its
#: validation draw clips with numbers below, `xdyna.metrics.held_out` says which.
WORLD = World(
    seed=0,
    size_wh=(64, 96),
    fps=12.0,
    scenes=("studio", "sea", "waterfall", "fire", "meadow"),
    framings={"full": 0.6, "half": 0.1, "bust": 0.3},
    energy=1.0,
    loop_s=1.0,
    scene_only=0.0,
)
FIRST, COUNT, FRAMES = 24_000_000, 40, 16
FIRST_LONG, COUNT_LONG, LONG_FRAMES = 25_000_000, 4, 40
_INDEX = "clips.json"


@dataclass(frozen=True)
class Entry:
    """One clip of the list.

    Attributes:
        name: of its files.
        index: number in the world.
        mode: who drives it, see `xdyna.metrics.held_out.Case`.
        frames: driving frames.
    """

    name: str
    index: int
    mode: Mode
    frames: int


def entries(count: int | None = None) -> list[Entry]:
    """The list, or its first `count` clips: two of four self-driven, one driven by another person's motion drawn on
    this body, one by a body of other proportions; then long self-driven ones, which cross the borders of windows."""
    found = []
    for number in range(COUNT):
        mode = MODES[number % len(MODES)]
        found.append(Entry(f"{number:02d}-{mode.replace(' ', '-')}", FIRST + number, mode, FRAMES))
    for number in range(COUNT_LONG):
        found.append(Entry(f"{COUNT + number:02d}-long", FIRST_LONG + number, "self", LONG_FRAMES))
    return found[:count]


class SyntheticFolder:
    """The test set as files, drawn clip by clip; what was drawn before is kept.

    Args:
        folder: made if missing.
        count: of the first clips; None for all.
        world: for tests; another world is not `synthetic-v1`.
    """

    def __init__(self, folder: Path, count: int | None = None, world: World = WORLD) -> None:
        self.folder, self.world = folder, world
        self.entries = entries(count)
        make_folder(folder)
        self._index = self._read_index()

    def cases(self, needed: Any) -> Iterator[tuple[Entry, Case | None]]:
        """Every entry, with its case where `needed(entry)` says so or its files are not there yet.

        Raises:
            UserError: a file cannot be written.
        """
        for entry in self.entries:
            known = entry.name in self._index and self._paths(entry)["truth"].is_dir()
            if known and not needed(entry):
                yield entry, None
                continue
            case = build_case(self.world, entry.index, entry.frames, entry.mode)
            if not known:
                self._write(entry, case)
            yield entry, case

    def pair(self, entry: Entry, generated: Path, borders: tuple[int, ...] = ()) -> Pair:
        """A generated video with the entry's files."""
        paths = self._paths(entry)
        return Pair(
            entry.name, generated, paths["truth"], paths["masks"], paths["photo"], paths["tracks"], paths["pose"],
            str(self._index[entry.name]["scene"]), borders,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Name, number of clips and hash of what they show, for the header of results."""
        total = hashlib.sha256()
        for entry in self.entries:
            total.update(f"{entry.name} {self._index[entry.name]['sha256']}\n".encode())
        own = self.world == WORLD
        return {"name": NAME if own else "synthetic", "clips": len(self.entries), "sha256": total.hexdigest()}

    def _paths(self, entry: Entry) -> dict[str, Path]:
        return {
            "truth": self.folder / "truth" / entry.name,
            "masks": self.folder / "masks" / entry.name,
            "pose": self.folder / "pose" / entry.name,
            "photo": self.folder / "photos" / f"{entry.name}.png",
            "tracks": self.folder / "tracks" / f"{entry.name}.tracks.npz",
        }

    def _write(self, entry: Entry, case: Case) -> None:
        paths = self._paths(entry)
        for path in paths.values():
            make_folder(path.parent)
        write_png(paths["photo"], case.reference.frames[0])
        true = case.truth.tracks
        with written_whole(paths["tracks"]) as part:
            replace(case.wanted, face_xy=true.face_xy, face_conf=true.face_conf).save(part)
        for kind, clip in (("masks", case.truth.masks), ("pose", case.pose_maps), ("truth", case.truth.frames)):
            write_frames(paths[kind], clip, self.world.fps)
        shown = hashlib.sha256()
        for array in (case.reference.frames, case.truth.frames, case.truth.masks, case.pose_maps):
            shown.update(np.ascontiguousarray(array).data)
        self._index[entry.name] = {"sha256": shown.hexdigest(), "scene": case.spec.scene, "index": entry.index}
        with written_whole(self.folder / _INDEX) as part:
            part.write_text(json.dumps(self._index, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _read_index(self) -> dict[str, dict[str, Any]]:
        """What an earlier run drew; what it drew by other numbers is drawn again."""
        try:
            index = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
            return {e.name: index[e.name] for e in self.entries if index.get(e.name, {}).get("index") == e.index}
        except (OSError, ValueError, AttributeError):
            return {}


def write_frames(folder: Path, clip: NDArray[np.uint8], fps: float, metadata: dict[str, str] | None = None) -> None:
    """A folder of PNG files, colour [F, H, W, 3] or grey [F, H, W], that appears whole or not at all."""
    if clip.ndim == 4:
        with VideoWriter(folder, (clip.shape[2], clip.shape[1]), fps, metadata=metadata) as writer:
            for frame in clip:
                writer.write(frame)
        return
    part = PartPath(folder, folder=True)
    try:
        for number, frame in enumerate(clip):
            save_png(part.path / f"{number:06d}.png", frame)
    except BaseException:
        shutil.rmtree(part.path, ignore_errors=True)
        raise
    part.commit()
