"""What all measures ask of the clips and masks they are given, and the 3-frame mean that several of them take."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]
#: Everything, the person, or what is not the person.
Region = Literal["all", "fg", "bg"]
ALL_REGIONS: tuple[Region, ...] = ("all", "fg", "bg")

#: A pixel belongs to a region that covers at least this much of it, of 255.
COVERED = 128
#: What lies outside a region is shown to a network as this.
MID_GREY = 128


def check_clip(frames: Frames, least: int = 1, name: str = "frames") -> None:
    """Raise ValueError for what is not uint8 [F, H, W, 3] with at least `least` frames."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"{name} is {frames.dtype} {list(frames.shape)}, wanted uint8 [F, H, W, 3]")
    if len(frames) < least:
        raise ValueError(f"{name} has {len(frames)} frames, wanted at least {least}")


def check_pair(frames: Frames, truth: Frames) -> None:
    """Raise ValueError unless both are clips of one shape."""
    check_clip(frames)
    check_clip(truth, name="truth")
    if frames.shape != truth.shape:
        raise ValueError(f"frames are {list(frames.shape)} and truth {list(truth.shape)}, wanted one shape")


def as_mask(masks: NDArray[Any] | None, shape: tuple[int, ...]) -> Mask:
    """Bool [F, H, W]: true where to measure.

    Args:
        masks: bool, or uint8 coverage 0..255 (half covered counts), [F, H, W] or [H, W] for all frames; None is
            everywhere.
        shape: (F, H, W).
    """
    if masks is None:
        return np.ones(shape, np.bool_)
    if masks.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"masks are {masks.dtype}, wanted bool or uint8")
    if masks.shape not in (shape, shape[1:]):
        raise ValueError(f"masks are {list(masks.shape)}, wanted {list(shape)} or {list(shape[1:])}")
    mask: Mask = masks if masks.dtype == np.bool_ else masks >= COVERED
    return np.broadcast_to(mask, shape)


def region_mask(masks: NDArray[Any] | None, region: Region) -> Mask | None:
    """Bool [F, H, W] of a region, from the person's cover (see `as_mask`); None is everywhere.

    Raises:
        ValueError: a part is asked for and there are no masks.
    """
    if region == "all":
        return None
    if masks is None:
        raise ValueError(f"region {region!r} without masks of the person")
    person = as_mask(masks, masks.shape)
    return person if region == "fg" else ~person


def isolated(frames: Frames, masks: NDArray[Any] | None, region: Region) -> Frames:
    """A clip whose pixels outside a region are mid grey, so that a network sees nothing else.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        masks: cover of the person, [F, H, W] or [H, W]; the truth's, for the generated clip as well.
        region: what is kept.
    """
    check_clip(frames)
    where = region_mask(masks, region)
    if where is None:
        return frames
    return np.where(as_mask(where, frames.shape[:3])[..., None], frames, np.uint8(MID_GREY))


def grown(masks: NDArray[Any], radius_px: int) -> Mask:
    """Bool [F, H, W]: the masks grown by `radius_px` pixels on all sides (a square element)."""
    import cv2

    mask = as_mask(masks, masks.shape)
    element = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    return np.stack([cv2.dilate(frame.astype(np.uint8), element) > 0 for frame in mask])


def mean_of_three(values: NDArray[Any]) -> Floats:
    """Moving mean [F-2, ...] of three neighbouring entries along the first axis: it takes flicker out of motion."""
    if len(values) < 3:
        raise ValueError(f"got {len(values)} frames, wanted at least 3")
    parts = values.astype(np.float32)
    return np.asarray((parts[:-2] + parts[1:-1] + parts[2:]) / 3)


def all_of_three(masks: Mask) -> Mask:
    """Moving 'and' [F-2, ...] of three neighbouring entries: where `mean_of_three` saw nothing but the region."""
    return np.asarray(masks[:-2] & masks[1:-1] & masks[2:])


def mean_where(values: Floats, where: Mask) -> float:
    """Mean of the values under the mask; NaN where it is empty."""
    count = int(where.sum())
    return float(values[where].mean(dtype=np.float64)) if count else float("nan")
