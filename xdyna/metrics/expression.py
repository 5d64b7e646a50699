"""How far mouth and eyes are open, read from pixels: the area of what is not skin, in boxes that move with the head.

The boxes hang on face points that no expression moves (nose, eye corners, the jaw's ends), so that where they lie says
nothing of how far anything is open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Floats, Frames, check_clip
from xdyna.metrics.colour import to_lab
from xdyna.metrics.motion_energy import correlation
from xdyna.metrics.specs import ClipMetric, Region, Sample

#: Points of the 68 that expressions leave alone.
FIXED = (0, 16, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 39, 42, 45)
#: (left, top, right, bottom) in head radii: a strip through the mouth, so narrow that a smile counts little; both eyes.
MOUTH = (-0.15, 0.42, 0.15, 0.95)
EYES = ((-0.66, -0.30, -0.12, 0.06), (0.12, -0.30, 0.66, 0.06))
#: A cheek, whose colour is the skin's.
CHEEKS = ((-0.72, 0.15, -0.35, 0.42), (0.35, 0.15, 0.72, 0.42))
#: Distance from the skin in Lab from which a pixel wholly counts as something else.
OTHER_DE = 25.0

_SIDE_PX = 48  # the head is brought to a square of -1.2..1.2 head radii


@dataclass(frozen=True, eq=False)
class Openness:
    """Openness of F frames: the height in pixels of a bar, as broad as the box, that covers what is not skin.

    Attributes:
        mouth: [F].
        eyes: [F], both eyes' mean.
    """

    mouth: Floats
    eyes: Floats


def openness(frames: Frames, face_xy: NDArray[np.floating]) -> Openness:
    """Read mouth and eyes.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        face_xy: 68 face points [F, 68, 2], pixels: where the face should be (of the driving person, say); only the
            points of `FIXED` count.
    """
    check_clip(frames)
    heads = [_upright(frame, points[list(FIXED)]) for frame, points in zip(frames, face_xy, strict=True)]
    others = np.stack([_not_skin(head) for head, _ in heads])  # [F, S, S] 0..1
    radius_px = np.asarray([radius for _, radius in heads])
    mouth = _mean(others, MOUTH) * (MOUTH[3] - MOUTH[1]) * radius_px
    eyes = np.mean([_mean(others, box) * (box[3] - box[1]) for box in EYES], axis=0) * radius_px
    return Openness(mouth, eyes)


def expression(frames: Frames, face_xy: NDArray[np.floating], truth: Frames, part: str = "mouth") -> float:
    """Correlation over a clip of the openness of `mouth` or `eyes` with that in the true frames; NaN if they rest.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        face_xy: 68 face points [F, 68, 2], pixels.
        truth: uint8 RGB [F, H, W, 3].
        part: `mouth` or `eyes`.
    """
    made, wanted = openness(frames, face_xy), openness(truth, face_xy)
    return correlation(getattr(made, part), getattr(wanted, part))


def pooled_correlation(made: list[Floats], wanted: list[Floats]) -> float:
    """Correlation over the frames of several clips, each clip's own mean taken out on both sides.

    What differs from face to face (lips, shade of skin) so does not count, and clips in which nothing happens weigh
    nothing.
    """
    return correlation(
        np.concatenate([clip - clip.mean() for clip in made]), np.concatenate([clip - clip.mean() for clip in wanted])
    )


def _upright(frame: NDArray[np.uint8], points: NDArray[np.floating]) -> tuple[NDArray[np.uint8], float]:
    """The head brought upright [S, S, 3], and how many pixels its vertical radius measures in the frame."""
    ones = np.ones((len(FIXED), 1))
    forth, *_ = np.linalg.lstsq(np.concatenate([TEMPLATE, ones], 1), points.astype(np.float64), rcond=None)  # [3, 2]
    scale = 2 * _EXTENT / _SIDE_PX  # head radii per pixel of the square
    corner = np.asarray([[scale, 0, 0], [0, scale, 0], [scale / 2 - _EXTENT, scale / 2 - _EXTENT, 1]])
    matrix = (corner @ forth).T.copy()
    matrix[:, 2] -= 0.5  # OpenCV counts from the middle of the first pixel
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    head = cv2.warpAffine(frame, matrix, (_SIDE_PX, _SIDE_PX), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return head, float(np.linalg.norm(forth[1]))


def _not_skin(head: NDArray[np.uint8]) -> Floats:
    """How little each pixel is skin, 0..1: [S, S]."""
    lab = to_lab(head)
    skin = np.median(np.concatenate([lab[_box(cheek)].reshape(-1, 3) for cheek in CHEEKS]), axis=0)
    return np.asarray(np.minimum(np.linalg.norm(lab - skin, axis=-1) / OTHER_DE, 1))


def _mean(maps: Floats, box: tuple[float, float, float, float]) -> Floats:
    return np.asarray(maps[(slice(None), *_box(box))].mean((1, 2)))


def _box(box: tuple[float, float, float, float]) -> tuple[slice, slice]:
    left, top, right, bottom = (round((side + _EXTENT) / (2 * _EXTENT) * _SIDE_PX) for side in box)
    return slice(top, bottom), slice(left, right)


_EXTENT = 1.2
#: Where the points of `FIXED` are on a head seen from the front, in head radii.
TEMPLATE = np.asarray(
    [[-0.95, 0.02], [0.95, 0.02], [0, -0.10], [0, 0.007], [0, 0.113], [0, 0.22],
     [-0.17, 0.28], [-0.085, 0.31], [0, 0.33], [0.085, 0.31], [0.17, 0.28],
     [-0.605, -0.09], [-0.175, -0.09], [0.175, -0.09], [0.605, -0.09]]
)  # fmt: skip


def _measure(part: str) -> Callable[[Sample, Region, Any], float]:
    def measure(sample: Sample, _: Region, __: Any) -> float:
        assert sample.face_xy is not None
        assert sample.truth is not None
        return expression(sample.made, sample.face_xy, sample.truth, part)

    return measure


SPECS = tuple(
    ClipMetric(
        name=f"expression-{part}", unit="correlation", better="higher", needs=frozenset({"face_xy", "truth"}),
        least_frames=3, measure=_measure(part),
    )
    for part in ("mouth", "eyes")
)  # fmt: skip
