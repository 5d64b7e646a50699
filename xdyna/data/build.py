"""From a recipe's settings to the source of its clips."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from xdyna.configs.train import TrainConfig
from xdyna.data.buckets import SizeWH
from xdyna.data.folder import FolderSource, find_videos, scan_folder
from xdyna.data.mix import MixedSource
from xdyna.data.recorded import Cut, RecordedSource, Recordings
from xdyna.data.shards import ShardSource, find_shards, scan_shards
from xdyna.data.source import SKIPPED, ClipSource, Face
from xdyna.data.synthetic.clips import World
from xdyna.data.synthetic_source import SyntheticSource
from xdyna.errors import UserError

SYNTHETIC = "synthetic"
WANTED = "wanted synthetic, a folder of videos, or shards such as clips-{000000..000009}.tar"

_SIDE_MULTIPLE = 8  # what every VAE here halves three times at most

#: Gives the clips with a person (False), of scenes (True), or all (None); None where there are none of them.
View = Callable[[bool | None], SyntheticSource | RecordedSource | None]


def build(cfg: TrainConfig, *, frames: int, consecutive: bool, face: Face) -> ClipSource:
    """See `xdyna.data.source.build_source`."""
    parts = parse_data(cfg.data)
    sizes = cfg.buckets or (cfg.world.size_wh,)
    check_sizes(sizes)
    group = cfg.batch * cfg.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
    cut = Cut(
        frames,
        consecutive,
        strides=cfg.strides,
        face=face,
        sizes=sizes,
        group=group,
        seed=cfg.seed,
        held_out=cfg.held_out,
        skipped=None if cfg.dry_run else cfg.out / SKIPPED,
    )
    world = World(**cfg.world.model_dump())
    views = [(_view(name, cut, world), share) for name, share in parts]

    def mixed(scenes: bool | None) -> tuple[ClipSource, set[SizeWH]]:
        """All parts of `data` that have such clips, and the sizes they come in."""
        found = [(source, share) for view, share in views if (source := view(scenes)) is not None]
        if not found:
            raise UserError(f"data {cfg.data}: {_nothing(scenes)}")
        sizes = {size for source, _ in found for size in source.sizes}
        return _mix([source for source, _ in found], [share for _, share in found], cut, sizes), sizes

    if cfg.scene_share is None:
        return mixed(None)[0]
    if cfg.scene_share in (0, 1):
        return mixed(cfg.scene_share == 1)[0]
    (people, people_sizes), (scenes, scene_sizes) = mixed(False), mixed(True)
    return _mix([people, scenes], [1 - cfg.scene_share, cfg.scene_share], cut, people_sizes | scene_sizes)


def parse_data(text: str) -> list[tuple[str, float]]:
    """``dance=0.7,nature=0.3`` becomes ``[("dance", 0.7), ("nature", 0.3)]``; a share left out is 1.

    Raises:
        UserError: an empty part, a share that is no number above 0.
    """
    if Path(text).exists():
        return [(text, 1.0)]
    parts = []
    for part in text.split(","):
        name, _, share = part.partition("=")
        if not name.strip() or (share and not _is_share(share)):
            raise UserError(f"data {text}: {part!r} is not SOURCE or SOURCE=SHARE; for example dance=0.7,nature=0.3")
        parts.append((name.strip(), float(share or 1)))
    return parts


def check_sizes(sizes: tuple[SizeWH, ...]) -> None:
    """Refuse frame sizes that no VAE takes.

    Raises:
        UserError: a side that is not a multiple of 8.
    """
    for width, height in sizes:
        if min(width, height) < _SIDE_MULTIPLE or width % _SIDE_MULTIPLE or height % _SIDE_MULTIPLE:
            raise UserError(f"frames of {width}x{height} px: wanted sides that are multiples of {_SIDE_MULTIPLE}")


def _is_share(text: str) -> bool:
    return re.fullmatch(r"\s*\d*\.?\d+\s*", text) is not None and float(text) > 0


def _view(name: str, cut: Cut, world: World) -> View:
    if name == SYNTHETIC:
        return lambda scenes: SyntheticSource(
            world if scenes is None else replace(world, scene_only=float(scenes)),
            frames=cut.frames,
            consecutive=cut.consecutive,
            face=cut.face,
        )
    folder = Path(name).expanduser()
    shards = find_shards(name)
    if shards:
        recordings = scan_shards(shards, cut.face)
        if folder.is_dir() and (videos := find_videos(folder)):
            unused = f"{folder}: holds shards; videos beside them ({len(videos)}) are not used"
            recordings = replace(recordings, problems=(*recordings.problems, unused))
        return _chosen(recordings, lambda chosen: ShardSource(shards, cut, chosen))
    if not folder.is_dir():
        raise UserError(f"data {name}: no such file or folder; {WANTED}")
    return _chosen(scan_folder(folder, cut.face), lambda chosen: FolderSource(folder, cut, chosen))


def _chosen(recordings: Recordings, source: Callable[[Recordings], RecordedSource]) -> View:
    def view(scenes: bool | None) -> RecordedSource | None:
        chosen = recordings if scenes is None else recordings.only(scenes=scenes)
        # Where the reason may be that something is wrong with them, the source says so.
        return source(chosen) if chosen.items or chosen.problems or scenes is None else None

    return view


def _mix(sources: list[ClipSource], shares: list[float], cut: Cut, sizes: set[SizeWH]) -> ClipSource:
    """One source, or several mixed: within a step where all have one size, else step by step."""
    if len(sources) == 1:
        return sources[0]
    return MixedSource(sources, shares, group=1 if len(sizes) == 1 else cut.group, held_out=cut.held_out)


def _nothing(scenes: bool | None) -> str:
    if scenes:
        return "no clips without a person; put such videos into a folder called scenes, or set scene_share to 0"
    return "no usable clips with a person"
