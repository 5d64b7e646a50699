"""Context windows: how a clip of any length is cut into pieces that the motion modules can see at once.

Three schedules. `closed` is the official one: a loop whose last window runs on from the last frame to the first, every
frame's predictions averaged. `open`, the default, never joins the end of a clip to its beginning, and blends
neighbouring windows by weights that fall off towards their ends. `grid` blends in the same way, but its windows begin
at fixed frames, for models whose scenes repeat after `size - overlap` frames: every window then begins at the same
moment of the loop, which is the one the models were trained to begin at.

A fourth, `continue`, is for windows that are denoised one after the other, each through all steps, and begin with the
last frames of the one before: there is nothing to shift or to blend (`xdyna.infer.engine.long.continue_clip`).

Indices count driving frames from 0; the reference frame belongs to every window and is never listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Schedule = Literal["open", "closed", "grid"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)

DEFAULT_SIZE = 16
DEFAULT_OVERLAP = 4


def make_windows(
    schedule: str, num_driving_frames: int, size: int = DEFAULT_SIZE, overlap: int = DEFAULT_OVERLAP, offset: int = 0
) -> list[list[int]]:
    """Windows of one denoising step by schedule name.

    Args:
        schedule: `open`, `closed`, `grid` or `continue`.
        num_driving_frames: frames of the clip, without the reference.
        size: driving frames in a window.
        overlap: frames that neighbouring windows share (at least, when `open` or `continue`).
        offset: shift of the windows, 0 or more; drawn anew for every step by `draw_offsets`. `grid` and `continue` are
            never shifted.

    Raises:
        ValueError: an unknown schedule or sizes that make no sense.
    """
    if schedule not in (*SCHEDULES, "continue"):
        raise ValueError(f"schedule is {schedule!r}, wanted one of {', '.join(SCHEDULES)}, continue")
    if schedule in ("grid", "continue"):
        _check(num_driving_frames, size, overlap, offset)
        make_fixed = grid_windows if schedule == "grid" else continue_windows
        return make_fixed(num_driving_frames, size, overlap)
    make = open_windows if schedule == "open" else closed_windows
    return make(num_driving_frames, size, overlap, offset)


def open_windows(
    num_driving_frames: int, size: int = DEFAULT_SIZE, overlap: int = DEFAULT_OVERLAP, offset: int = 0
) -> list[list[int]]:
    """Windows of equal size that cover a clip from its first to its last frame and never wrap.

    The windows lie on a grid of `size - overlap` frames that `offset` shifts, with one window held at each end of the
    clip; so the seams of one denoising step fall elsewhere in the next. A window beside an end is left out where its
    neighbours share twice the overlap without it: a blend that wide needs no moving seam.

    Returns:
        Lists of consecutive indices, in order; one list of the whole clip when it fits into a window.

    Raises:
        ValueError: sizes that make no sense.
    """
    _check(num_driving_frames, size, overlap, offset)
    if num_driving_frames <= size:
        return [list(range(num_driving_frames))]
    stride, last = size - overlap, num_driving_frames - size
    candidates = sorted({0, *range(offset % stride, last, stride), last})
    starts = candidates[:1]
    for start, following in pairwise(candidates[1:]):
        if following - starts[-1] > size - max(2 * overlap, 1):
            starts.append(start)
    starts.append(last)
    return [list(range(start, start + size)) for start in starts]


def grid_windows(num_driving_frames: int, size: int = DEFAULT_SIZE, overlap: int = DEFAULT_OVERLAP) -> list[list[int]]:
    """Windows of equal size from every multiple of `size - overlap` on; the last repeats the last frame to its end.

    Returns:
        Lists of indices, in order; one list of the whole clip when it fits into a window.

    Raises:
        ValueError: sizes that make no sense.
    """
    _check(num_driving_frames, size, overlap, 0)
    if num_driving_frames <= size:
        return [list(range(num_driving_frames))]
    starts = range(0, num_driving_frames - overlap, size - overlap)
    return [[min(frame, num_driving_frames - 1) for frame in range(start, start + size)] for start in starts]


def continue_windows(
    num_driving_frames: int, size: int = DEFAULT_SIZE, overlap: int = DEFAULT_OVERLAP
) -> list[list[int]]:
    """Windows of equal size, each from `overlap` frames before the end of the one before; the last ends with the clip.

    Returns:
        Lists of consecutive indices, in order; one list of the whole clip when it fits into a window.

    Raises:
        ValueError: sizes that make no sense.
    """
    _check(num_driving_frames, size, overlap, 0)
    last = max(0, num_driving_frames - size)
    starts = [*range(0, last, size - overlap), last]
    return [list(range(start, min(start + size, num_driving_frames))) for start in starts]


def closed_windows(
    num_driving_frames: int, size: int = DEFAULT_SIZE, overlap: int = DEFAULT_OVERLAP, offset: int = 0
) -> list[list[int]]:
    """The windows of the official pipeline: every `size - overlap` frames, shifted by `offset`, modulo the clip.

    Raises:
        ValueError: sizes that make no sense.
    """
    return uniform_windows(num_driving_frames, size, overlap, offset=offset)


def uniform_windows(
    num_driving_frames: int,
    size: int = DEFAULT_SIZE,
    overlap: int = DEFAULT_OVERLAP,
    *,
    stride: int = 1,
    step: int = 0,
    closed_loop: bool = True,
    offset: int = 0,
) -> list[list[int]]:
    """The official scheduler with all its parameters; the official pipeline uses `closed_windows`, its defaults.

    Args:
        num_driving_frames: frames of the clip, without the reference.
        size: driving frames in a window.
        overlap: frames that neighbouring windows share.
        stride: number of passes; pass p takes every 2**p-th frame. Passes too coarse for the clip are left out.
        step: denoising step; its binary digits, mirrored about the point, shift the windows by a fraction of the clip.
        closed_loop: start windows up to the clip's end; else up to `overlap` frames before it. Both wrap.
        offset: a further shift.

    Raises:
        ValueError: sizes that make no sense.
    """
    _check(num_driving_frames, size, overlap, offset)
    if stride < 1 or step < 0:
        raise ValueError(f"stride is {stride} and step {step}, wanted at least 1 and 0")
    if num_driving_frames <= size:
        return [list(range(num_driving_frames))]
    fraction = mirrored_bits(step)
    shift = round(num_driving_frames * fraction)
    end = num_driving_frames + shift - (0 if closed_loop else overlap)
    num_passes = min(stride, int(np.ceil(np.log2(num_driving_frames / size))) + 1)
    windows = []
    for skip in (2**p for p in range(num_passes)):
        for start in range(int(fraction * skip) + shift, end, size * skip - overlap):
            frames = range(start + offset, start + offset + size * skip, skip)
            windows.append([frame % num_driving_frames for frame in frames])
    return windows


def mirrored_bits(step: int) -> float:
    """The van der Corput sequence, 0, 1/2, 1/4, 3/4, 1/8 ..: binary digits mirrored about the point (of 64 digits)."""
    return int(f"{step:064b}"[::-1], 2) / 2**64


def draw_offsets(
    generator: torch.Generator,
    num_steps: int,
    schedule: str,
    size: int = DEFAULT_SIZE,
    overlap: int = DEFAULT_OVERLAP,
) -> list[int]:
    """One window offset per denoising step, in one draw that does not depend on the clip's length.

    `closed` draws from 0..size-1 as the official pipeline does (it takes 0..15 from Python's `random`); `open` from one
    period of its grid; `grid` stays where it is.

    Raises:
        ValueError: a schedule whose windows are not denoised together.
    """
    import torch

    _check_joint(schedule)
    if schedule == "grid":
        return [0] * num_steps
    high = size if schedule == "closed" else size - overlap
    drawn = torch.randint(0, high, (num_steps,), generator=generator, device=generator.device)
    return [int(offset) for offset in drawn.tolist()]


def blend_weights(
    windows: Sequence[Sequence[int]], num_driving_frames: int, overlap: int = DEFAULT_OVERLAP, schedule: str = "open"
) -> list[NDArray[np.float32]]:
    """How much each window's prediction counts for each of its frames.

    `closed`: every window that covers a frame counts alike (official). `open` and `grid`: a window's weight rises over
    its first `overlap` frames and falls over its last ones, so no frame jumps where a window begins or ends. Where a
    window repeats a frame, its first prediction alone counts.

    Args:
        windows: of one denoising step.
        num_driving_frames: frames of the clip.
        overlap: length of the ramps, frames.
        schedule: `open`, `closed` or `grid`.

    Returns:
        For each window, float32 weights of its frames; for each frame they sum to one over the windows.

    Raises:
        ValueError: a frame that no window covers, or a schedule without blending.
    """
    _check_joint(schedule)
    raw = [_ramps(len(window), 0 if schedule == "closed" else overlap) * _first(window) for window in windows]
    total = np.zeros(num_driving_frames)
    for window, weights in zip(windows, raw, strict=True):
        np.add.at(total, np.asarray(window), weights)
    if not total.all():
        raise ValueError(f"frame {int(np.argmin(total))} of {num_driving_frames} is in no window")
    return [
        (weights / total[np.asarray(window)]).astype(np.float32) for window, weights in zip(windows, raw, strict=True)
    ]


def _ramps(length: int, overlap: int) -> NDArray[np.float64]:
    """1/(overlap+1), 2/(overlap+1), .., 1, .., 1, .., 1/(overlap+1)."""
    position = np.arange(length)
    steps = np.minimum(np.minimum(position, position[::-1]), overlap) + 1
    return np.asarray(steps / (overlap + 1), np.float64)


def _first(window: Sequence[int]) -> NDArray[np.bool_]:
    """Where a window shows a frame for the first time."""
    found = np.zeros(len(window), bool)
    found[np.unique(np.asarray(window), return_index=True)[1]] = True
    return found


def _check_joint(schedule: str) -> None:
    if schedule not in SCHEDULES:
        raise ValueError(
            f"schedule is {schedule!r}, wanted one of {', '.join(SCHEDULES)} for windows that are denoised together"
            " (xdyna.infer.engine.long.continue_clip denoises them one after the other)"
        )


def _check(num_driving_frames: int, size: int, overlap: int, offset: int) -> None:
    if num_driving_frames < 1:
        raise ValueError(f"{num_driving_frames} driving frames, wanted at least 1")
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"windows of {size} frames that share {overlap}: wanted 0 <= overlap < size")
    if offset < 0:
        raise ValueError(f"window offset is {offset}, wanted 0 or more")
