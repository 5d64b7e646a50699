"""Make the maps of every video in a folder, beside the videos, for training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from xdyna.configs.animate import AnimateConfig
from xdyna.data.buckets import SizeWH, nearest_bucket
from xdyna.data.folder import SWAPPED, find_videos, frames_at, recording_files, shows_scene
from xdyna.data.recorded import FACE_KINDS, POSE
from xdyna.errors import UserError
from xdyna.infer.preprocess import OnProgress, PreprocessJob, preprocess
from xdyna.photo import write_png
from xdyna.preprocess.tracks import SUFFIX
from xdyna.video import VideoReader, VideoWriter

logger = logging.getLogger("xdyna")


@dataclass(frozen=True)
class FolderMaps:
    """What `prepare_folder` did.

    Attributes:
        prepared: videos that got maps now.
        ready: videos that had them.
        problems: one line each for the videos without maps.
    """

    prepared: tuple[Path, ...]
    ready: tuple[Path, ...]
    problems: tuple[str, ...]


def prepare_folder(
    folder: Path,
    sizes: Sequence[SizeWH],
    config: AnimateConfig,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> FolderMaps:
    """Write pose and face maps of the videos that have none yet, as `xdyna preprocess` does, in step with the video.

    A video in a folder called `scenes` gets a blank pose map: it says at which rate and size the video is used. A
    swapped video, `NAME.swapped.mp4`, gets face maps at the places where the faces of `NAME.mp4` are.

    Args:
        folder: of the videos, with sub-folders.
        sizes: of the maps (width, height), pixels; each video gets the one nearest in shape.
        config: how poses are found, and `fps` the rate of the maps; the clip is neither cut nor aligned.
        on_progress: called after each video.
    Raises:
        UserError: no such folder, no video in it, or not one video that got maps.
    """
    videos = find_videos(folder)
    if not videos:
        raise UserError(f"{folder}: no video in it")
    prepared: list[Path] = []
    ready: list[Path] = []
    problems: list[str] = []
    for number, video in enumerate(videos):
        jobs = _missing(video, folder, faces=config.face is not False)
        try:
            for job in jobs:
                _prepare(job, video, folder, sizes, config)
        except UserError as error:
            problems.append(f"left out: {error}")
            logger.warning("%s", problems[-1])
        else:
            (prepared if jobs else ready).append(video)
        on_progress("videos", number + 1, len(videos))
    if not prepared and not ready:
        raise UserError(f"{folder}: no video got maps; {problems[0]}")
    return FolderMaps(tuple(prepared), tuple(ready), tuple(problems))


def _missing(video: Path, folder: Path, *, faces: bool) -> list[Path]:
    """The video and its swapped version, as far as maps of them are missing."""
    kinds = (POSE, *FACE_KINDS[True]) if faces and not shows_scene(video, folder) else (POSE,)
    jobs = [video] if any(not path.is_file() for path in recording_files(video, kinds).values()) else []
    swapped = video.with_name(f"{video.stem}{SWAPPED}{video.suffix}")
    maps = recording_files(video, FACE_KINDS["swapped"]).values()
    if swapped.is_file() and any(not path.is_file() for path in maps):
        jobs.append(swapped)
    return jobs


def _prepare(job: Path, video: Path, folder: Path, sizes: Sequence[SizeWH], config: AnimateConfig) -> None:
    reader = VideoReader(job, fps=config.fps)
    size_wh = sizes[nearest_bucket(reader.size_wh, sizes)]
    if shows_scene(video, folder):
        _write_blank(reader, job.with_name(f"{job.stem}.{POSE}.mp4"), size_wh)
        return
    changes: dict[str, object] = {"size": size_wh, "align": "none"}
    if job != video:
        changes |= {"tracks": video.with_name(video.stem + SUFFIX), "detector": "tracks"}
    with TemporaryDirectory(prefix="xdyna-") as place:
        photo = Path(place) / "first.png"  # without alignment nothing depends on the photo
        write_png(photo, next(iter(reader)), {})
        settings = AnimateConfig.model_validate({**dict(config), **changes})
        preprocess(PreprocessJob(photo, job, job.parent, settings))


def _write_blank(reader: VideoReader, path: Path, size_wh: SizeWH) -> None:
    blank = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    with VideoWriter(path, size_wh, reader.fps) as writer:
        for _ in range(frames_at(reader.info, Fraction(reader.fps))):
            writer.write(blank)
