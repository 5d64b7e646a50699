"""Face-Exp: how far the expression of a generated face is from that of the driving one, by face points.

For filmed faces, whose points a mesh finds. `expression` reads drawn ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Floats
from xdyna.metrics.expression import FIXED, TEMPLATE
from xdyna.metrics.pose import Reader
from xdyna.metrics.specs import ClipMetric, Region, Sample

#: Points of the 68 that expressions move: brows, lids (the eyes' corners stay), mouth.
MOVING = tuple(point for point in (*range(17, 27), *range(36, 68)) if point not in FIXED)
#: Of fewer frames with a face in both clips nothing is said.
LEAST_FRAMES = 3


def face_exp(found_xy: NDArray[np.floating], wanted_xy: NDArray[np.floating]) -> float:
    """Mean distance of brows, eyes and mouth from where the driving face has them, each face seen from the front.

    Both faces are first brought upright and to one size by the points that no expression moves; then each person's own
    mean face is taken off, so that it does not matter whose face it is, or which way it looks on the whole.

    Args:
        found_xy: 68 face points of the generated clip, float [F, 68, 2], pixels; NaN in frames without a face.
        wanted_xy: of the driving one, likewise, of any size.

    Returns:
        In hundredths of the head's radius, 0 for the same expressions throughout; NaN for fewer than 3 frames that
        show a face in both.

    Raises:
        ValueError: of other shapes.
    """
    if found_xy.shape != wanted_xy.shape or found_xy.shape[1:] != (68, 2):
        raise ValueError(f"got face points {list(found_xy.shape)} and {list(wanted_xy.shape)}, wanted [F, 68, 2] twice")
    both = np.isfinite(found_xy).all((1, 2)) & np.isfinite(wanted_xy).all((1, 2))
    if both.sum() < LEAST_FRAMES:
        return float("nan")
    found, wanted = (_expressions(points[both]) for points in (found_xy, wanted_xy))
    return float(100 * np.linalg.norm(found - wanted, axis=-1).mean())


def _expressions(face_xy: Floats) -> Floats:
    """The moving points beside the clip's mean, in head radii: [F, 38, 2]."""
    heads = np.stack([frontal(points) for points in face_xy])[:, list(MOVING)]
    return np.asarray(heads - heads.mean(0))


def frontal(points: Floats) -> Floats:
    """68 points [68, 2] as on a head seen from the front, in head radii: the affine map that fits the fixed points."""
    fixed = np.concatenate([points[list(FIXED)].astype(np.float64), np.ones((len(FIXED), 1))], 1)
    matrix, *_ = np.linalg.lstsq(fixed, TEMPLATE, rcond=None)  # [3, 2]
    return np.asarray(points @ matrix[:2] + matrix[2])


def found_faces(frames: NDArray[np.uint8], reader: Reader) -> Floats:
    """Face points [F, 68, 2] of a clip, pixels; NaN where no face is found."""
    tracks = reader.read(frames)
    return np.where(tracks.face_conf[:, None, None] > 0, tracks.face_xy, np.nan)


def _wanted(sample: Sample, reader: Reader) -> Floats | None:
    """The driving face: found in the truth, so that the mesh's habits are on both sides; else as given."""
    if sample.truth is not None:
        return found_faces(sample.truth, reader)
    return None if sample.face_xy is None else np.asarray(sample.face_xy)


def _measure(sample: Sample, _: Region, reader: Reader) -> float:
    wanted = _wanted(sample, reader)
    return float("nan") if wanted is None else face_exp(found_faces(sample.made, reader), wanted)


SPECS = (
    ClipMetric(
        name="face-exp", unit="% of radius", better="lower", backbone="mediapipe-pose", least_frames=LEAST_FRAMES,
        measure=_measure,
    ),
)  # fmt: skip
