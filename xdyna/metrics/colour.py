"""Colour distance under masks, in CIE Lab (D65): whether a person kept hair, skin and clothes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Floats, Frames, as_mask, check_clip
from xdyna.metrics.specs import ALL_REGIONS, ClipMetric, Region, Sample

Formula = Literal["76", "2000"]

#: A region of fewer pixels than this has no colour to speak of.
LEAST_PX = 6


def colour(
    frames: Frames,
    reference: Frames,
    masks: NDArray[Any],
    reference_masks: NDArray[Any],
    formula: Formula = "76",
) -> float:
    """Mean over frames of the distance between a region's colour there and its colour in the reference.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        reference: uint8 RGB [R, h, w, 3], usually one frame.
        masks: the region in `frames`, [F, H, W], see `clips.as_mask`.
        reference_masks: the region in `reference`, [R, h, w].
        formula: dE*ab of 1976 or CIEDE2000.

    Returns:
        dE; about 1 is barely seen. NaN where the region shows fewer than 6 pixels in the reference or in all frames.
    """
    wanted = region_colours(reference, reference_masks)
    found = region_colours(frames, masks)
    shown = ~np.isnan(found[:, 0])
    if np.isnan(wanted[:, 0]).all() or not shown.any():
        return float("nan")
    middle = np.broadcast_to(np.nanmean(wanted, 0), found[shown].shape)
    distance = delta_e_76 if formula == "76" else delta_e_2000
    return float(distance(found[shown], middle).mean())


def region_colours(frames: Frames, masks: NDArray[Any]) -> Floats:
    """Median L, a and b of a region, frame by frame: [F, 3]; NaN where it shows fewer than 6 pixels."""
    check_clip(frames)
    where = as_mask(masks, frames.shape[:3])
    lab = to_lab(frames)
    medians = np.full((len(frames), 3), np.nan)
    for index, mask in enumerate(where):
        if mask.sum() >= LEAST_PX:
            medians[index] = np.median(lab[index][mask], axis=0)
    return medians


def to_lab(pixels: NDArray[np.uint8]) -> Floats:
    """sRGB 0..255 [..., 3] -> CIE Lab under D65, float64 [..., 3]: L 0..100, a and b about -110..110."""
    encoded = pixels.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _RGB_TO_XYZ.T / _RGB_TO_XYZ.sum(1)  # white is (1, 1, 1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


_RGB_TO_XYZ = np.asarray(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def delta_e_76(first: Floats, second: Floats) -> Floats:
    """Euclidean distance in Lab: [..., 3] and [..., 3] -> [...]."""
    return np.asarray(np.linalg.norm(np.asarray(first) - second, axis=-1))


def delta_e_2000(first: Floats, second: Floats) -> Floats:
    """CIEDE2000 with all weights 1: Lab [..., 3] and [..., 3] -> [...]. Steps and names as Sharma, Wu, Dalal 2005."""
    light1, a1, b1 = np.moveaxis(np.asarray(first, np.float64), -1, 0)
    light2, a2, b2 = np.moveaxis(np.asarray(second, np.float64), -1, 0)
    mean_chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25.0**7))
    a1, a2 = a1 * stretch, a2 * stretch
    chroma1, chroma2 = np.hypot(a1, b1), np.hypot(a2, b2)
    hue1, hue2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    grey = chroma1 * chroma2 == 0
    turn = np.where(grey, 0, (hue2 - hue1 + 180) % 360 - 180)  # the shorter way round
    d_light, d_chroma = light2 - light1, chroma2 - chroma1
    d_hue = 2 * np.sqrt(chroma1 * chroma2) * np.sin(np.radians(turn / 2))
    light, chroma = (light1 + light2) / 2, (chroma1 + chroma2) / 2
    hue = np.where(grey, hue1 + hue2, (hue1 + turn / 2) % 360)

    def cos(degrees: Floats) -> Floats:
        return np.asarray(np.cos(np.radians(degrees)))

    tilt = 1 - 0.17 * cos(hue - 30) + 0.24 * cos(2 * hue) + 0.32 * cos(3 * hue + 6) - 0.20 * cos(4 * hue - 63)
    s_light = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    s_chroma, s_hue = 1 + 0.045 * chroma, 1 + 0.015 * chroma * tilt
    blue = 30 * np.exp(-(((hue - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(2 * blue))
    parts = d_light / s_light, d_chroma / s_chroma, d_hue / s_hue
    return np.asarray(np.sqrt(parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2 + rotation * parts[1] * parts[2]))


def _measure(sample: Sample, region: Region, _: Any) -> float:
    assert sample.truth is not None
    where = sample.where(region)
    masks = np.ones(sample.made.shape[:3], np.bool_) if where is None else where
    return colour(sample.made, sample.truth, masks, masks)


SPECS = (
    ClipMetric(
        name="colour", unit="dE", better="lower", needs=frozenset({"truth"}), regions=ALL_REGIONS, measure=_measure
    ),
)
