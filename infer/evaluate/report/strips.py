"""Clips side by side as small videos inside the page, and what they do frame by frame."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.infer.evaluate.frames import crop_to, open_source, resized, windows
from xdyna.infer.evaluate.measure import OpenedPair
from xdyna.infer.evaluate.pairs import Pair
from xdyna.infer.evaluate.protocol import Protocol
from xdyna.infer.evaluate.results import ClipLine
from xdyna.metrics.specs import Sample
from xdyna.page import data_uri
from xdyna.video import VideoWriter

Image = NDArray[np.uint8]

HEIGHT = 192  # pixels of a strip; small clips are enlarged by whole steps, large ones brought down
GAIN = 3  # of the difference
COLUMNS = ("reference", "driver", "output", "truth", f"difference x{GAIN}")


@dataclass(frozen=True)
class Strip:
    """One clip as a video.

    Attributes:
        columns: what stands side by side, from the left.
        source: the video as an address that holds it.
        size_wh: of the video, pixels.
    """

    columns: tuple[str, ...]
    source: str
    size_wh: tuple[int, int]


def read_clip(line: ClipLine, protocol: Protocol) -> Sample:
    """A clip's frames as they were measured.

    Raises:
        UserError: its files have gone or changed.
    """
    pair = pair_of(line)
    for start, sample in OpenedPair(pair, protocol).samples():
        if start == line.start:
            return sample
    raise UserError(f"{pair.generated}: has no clip from frame {line.start} on; it has changed since it was measured")


def pair_of(line: ClipLine) -> Pair:
    """The files of a clip."""
    paths = {kind: Path(path) for kind, path in line.files.items()}
    return Pair(line.video, scene=line.scene, **paths)  # type: ignore[arg-type]


def make_strip(line: ClipLine, protocol: Protocol) -> Strip:
    """Reference, driver, output, truth and difference, those that there are.

    Raises:
        UserError: a file has gone or changed.
    """
    sample = read_clip(line, protocol)
    height, width = sample.made.shape[1:3]
    shown: dict[str, Image] = {}
    if sample.reference is not None:
        photo = _fitted(sample.reference, (width, height))
        shown["reference"] = np.broadcast_to(photo, sample.made.shape)
    driving = line.files.get("driving")
    if driving is not None and Path(driving).exists():
        shown["driver"] = _driver(Path(driving), line, (width, height), protocol)
    shown["output"] = sample.made
    if sample.truth is not None:
        shown["truth"] = sample.truth
        apart = np.abs(sample.made.astype(np.int16) - sample.truth) * GAIN
        shown[COLUMNS[-1]] = np.minimum(apart, 255).astype(np.uint8)
    frames = np.concatenate([shown[name] for name in COLUMNS if name in shown], axis=2)
    frames = _scaled(frames)
    return Strip(
        tuple(name for name in COLUMNS if name in shown), _video(frames, sample.fps), (frames.shape[2], frames.shape[1])
    )


def frame_curves(line: ClipLine, protocol: Protocol) -> tuple[list[float], list[float], list[float]]:
    """Frame by frame: mean absolute error, and the change from one frame to the next of the output and of the truth,
    grey levels; lists are empty where there is no truth."""
    sample = read_clip(line, protocol)
    made = sample.made.astype(np.float32)
    change = np.abs(np.diff(made, axis=0)).mean((1, 2, 3)).tolist()
    if sample.truth is None:
        return [], change, []
    truth = sample.truth.astype(np.float32)
    error = np.abs(made - truth).mean((1, 2, 3)).tolist()
    return error, change, np.abs(np.diff(truth, axis=0)).mean((1, 2, 3)).tolist()


def _driver(path: Path, line: ClipLine, size_wh: tuple[int, int], protocol: Protocol) -> Image:
    source = open_source(path, protocol.config)
    scale = min(size_wh[0] / source.size_wh[0], size_wh[1] / source.size_wh[1])
    if source.size_wh == size_wh:
        crop = crop_to(source.size_wh, size_wh, protocol.config)
        clips = windows(source, [line.start], line.frames, lambda frame: resized(frame, crop, size_wh, protocol.config))
    else:
        clips = windows(source, [line.start], line.frames, lambda frame: _fitted(frame, size_wh) if scale else frame)
    found = next(iter(clips), None)
    if found is None:
        raise UserError(f"{path}: is shorter than the clip it drives")
    return found


def _fitted(picture: Image, size_wh: tuple[int, int]) -> Image:
    """The whole picture within (width, height), grey beside it."""
    height, width = picture.shape[:2]
    scale = min(size_wh[0] / width, size_wh[1] / height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = picture if inner == (width, height) else cv2.resize(picture, inner, interpolation=cv2.INTER_AREA)
    framed = np.full((size_wh[1], size_wh[0], 3), 128, np.uint8)
    left, top = (size_wh[0] - inner[0]) // 2, (size_wh[1] - inner[1]) // 2
    framed[top : top + inner[1], left : left + inner[0]] = small
    return framed


def _scaled(frames: Image) -> Image:
    """[F, H, W, 3] at about `HEIGHT`, both sides even."""
    height, width = frames.shape[1:3]
    if height * 2 <= HEIGHT:
        factor = HEIGHT // height
        frames = frames.repeat(factor, 1).repeat(factor, 2)
    elif height > HEIGHT:
        size = (max(2, round(width * HEIGHT / height)), HEIGHT)
        frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def _video(frames: Image, fps: float) -> str:
    with tempfile.TemporaryDirectory(prefix="xdyna-report-") as folder:
        path = Path(folder) / "strip.mp4"
        with VideoWriter(path, (frames.shape[2], frames.shape[1]), fps) as writer:
            for frame in frames:
                writer.write(frame)
        return data_uri(path.read_bytes(), "video/mp4")


def worst_and_best(
    lines: Sequence[ClipLine], key: str, better: str, count: int
) -> tuple[list[ClipLine], list[ClipLine]]:
    """The `count` worst and best clips by a figure, the worst and the best first; no clip is in both."""

    def loss(line: ClipLine) -> float:
        value = line.values[key]
        if better == "truth":
            return abs(value - line.truth.get(key, np.nan))
        return -value if better == "higher" else value

    known = [line for line in lines if key in line.values and np.isfinite(loss(line))]
    ranked = sorted(known, key=loss, reverse=True)
    half = (len(ranked) + 1) // 2
    return ranked[: min(count, half)], ranked[::-1][: min(count, len(ranked) - half)]
