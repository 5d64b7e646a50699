"""Show who is in a driving video, so that one of them can be chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.files import PartPath
from xdyna.infer.sources import detector_device, open_video, start_seconds
from xdyna.photo import write_png
from xdyna.preprocess.detect import PeopleDetector, build_detector
from xdyna.preprocess.people import people_picture

logger = logging.getLogger("xdyna")


def list_people(
    driving: Path,
    picture: Path,
    config: AnimateConfig,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[dict[str, Any]]:
    """Find everybody in a video and draw them, numbered, into the frame that shows most of them.

    Args:
        driving: the video.
        picture: PNG file to write.
        config: its driving video and detector settings are used.
        on_progress: as for `animate`.
    Returns:
        For each person its `number` (for `config.person`) and the share of frames in which it is `seen`, 0..1.
    Raises:
        UserError: an unreadable video, nobody found.
    """
    if picture.suffix.lower() != ".png":
        raise UserError(f"--list-people {picture}: wanted a .png file")
    PartPath(picture).discard()  # what cannot be written is said before the search, not after it
    clip = open_video(driving, config)
    detector, announcement = build_detector(
        config.detector,
        video=driving,
        tracks=config.tracks,
        dwpose_files=config.dwpose_files,
        start_s=start_seconds(config),
        device=detector_device(config),
    )
    logger.info("%s", announcement)

    def watched() -> Iterator[Any]:
        for index, frame in enumerate(clip):
            on_progress("people", index + 1, max(index + 1, clip.num_expected))
            yield frame

    if isinstance(detector, PeopleDetector):
        people = detector.detect_all(watched(), fps=float(clip.fps))
    else:
        people = [detector.detect(watched(), fps=float(clip.fps))]
    seen = np.stack([(person.joints_conf > 0).any(axis=1) for person in people])
    index = int(seen.sum(axis=0).argmax())
    write_png(picture, people_picture(next(islice(clip, index, None)), people, index))
    return [{"number": number, "seen": float(share)} for number, share in enumerate(seen.mean(axis=1), 1)]
