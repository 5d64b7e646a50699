"""Draw the skeleton that the pose ControlNet was trained on: coloured limbs, bright joints and hands on black.

Of OpenPose's 18 joints the official maps show 14: neck to nose is drawn, eyes and ears are not. Limbs are ellipses at
60 % of their colour, joints are full-colour discs on top, hands are thin rainbow edges under blue discs. Real clips and
rendered ones go through the same code.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from xdyna.preprocess.tracks import FloatArray, Tracks

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

#: Joints that carry a disc, by index into `tracks.JOINT_NAMES`.
DRAWN_JOINTS = tuple(range(14))
#: (from, to) by index into `tracks.JOINT_NAMES`, in drawing order: a later limb covers an earlier one.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7),
    (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
)  # fmt: skip
#: (from, to) among the 21 hand points: thumb, then the four fingers, each from the wrist outwards.
HAND_EDGES = tuple(
    (4 * finger + step if step else 0, 4 * finger + step + 1) for finger in range(5) for step in range(4)
)
HAND_DISC_COLOR: Color = (0, 0, 255)

#: Below this a joint is not drawn.
MIN_CONF = 0.3
#: Width at which maps for smaller models are drawn before they are reduced.
DRAW_WIDTH_PX = 512

_OFFICIAL_HEIGHT_PX = 896  # the half-widths below are those of maps of this height
_LIMB_HALF_WIDTH_PX = 4.0
_DISC_RADIUS_PX = 3.5
_HAND_EDGE_PX = 2.0
_HAND_DISC_RADIUS_PX = 3.5
_LIMB_BRIGHTNESS = 0.6
_SHIFT = 4  # OpenCV takes fixed-point coordinates with this many fractional bits
_ELLIPSE_POINTS = 40


def wheel_color(index: int) -> Color:
    """The `index`-th of OpenPose's 18 rainbow colours, in steps of 20 degrees of hue (0..17 -> red .. magenta)."""
    sector, step = divmod(index, 3)
    rising, falling = 85 * step, 255 - 85 * step
    sectors = (
        (255, rising, 0), (falling, 255, 0), (0, 255, rising),
        (0, falling, 255), (rising, 0, 255), (255, 0, falling),
    )  # fmt: skip
    return sectors[sector]


def limb_color(index: int) -> Color:
    """Colour of `LIMBS[index]` as it appears in a map."""
    red, green, blue = (int(_LIMB_BRIGHTNESS * channel) for channel in wheel_color(index))
    return red, green, blue


def hand_edge_color(index: int) -> Color:
    """Colour of `HAND_EDGES[index]`: once round the hues."""
    red, green, blue = (int(255 * channel) for channel in colorsys.hsv_to_rgb(index / len(HAND_EDGES), 1.0, 1.0))
    return red, green, blue


def draw_pose_map(
    tracks: Tracks,
    index: int,
    size_wh: tuple[int, int],
    *,
    hands: bool = True,
    min_conf: float = MIN_CONF,
    draw_width: int = DRAW_WIDTH_PX,
) -> Image:
    """Draw one frame's skeleton.

    Args:
        tracks: one person; coordinates are stretched from `tracks.size_wh` to `size_wh`.
        index: frame of `tracks`.
        size_wh: (width, height) of the map, pixels.
        hands: draw the hands too.
        min_conf: joints and hand points below this confidence, 0..1, are left out, and with them their limbs.
        draw_width: a map narrower than this is drawn this wide and then reduced by area averaging, which keeps limbs
            that are thinner than a pixel; smaller is faster, `size_wh[0]` draws directly.

    Returns:
        uint8 RGB [height, width, 3], 0 where nothing is drawn.
    """
    import cv2

    width, height = size_wh
    if width < 1 or height < 1:
        raise ValueError(f"size_wh is {size_wh}, wanted positive sides")
    enlarge = max(1.0, draw_width / width)
    canvas_wh = (round(width * enlarge), round(height * enlarge))
    canvas = np.zeros((canvas_wh[1], canvas_wh[0], 3), np.uint8)
    scale = (np.asarray(canvas_wh) / np.asarray(tracks.size_wh)).astype(np.float32)
    stroke = canvas_wh[1] / _OFFICIAL_HEIGHT_PX

    _draw_body(canvas, tracks.joints_xy[index] * scale, tracks.joints_conf[index] >= min_conf, stroke)
    if hands:
        for side in range(2):
            shown = tracks.hands_conf[index, side] >= min_conf
            _draw_hand(canvas, tracks.hands_xy[index, side] * scale, shown, stroke)
    if canvas_wh == (width, height):
        return canvas
    return np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def draw_pose_maps(
    tracks: Tracks,
    size_wh: tuple[int, int],
    *,
    hands: bool = True,
    min_conf: float = MIN_CONF,
    draw_width: int = DRAW_WIDTH_PX,
) -> Iterator[Image]:
    """Draw every frame in turn; arguments and frames as in `draw_pose_map`."""
    for index in range(len(tracks)):
        yield draw_pose_map(tracks, index, size_wh, hands=hands, min_conf=min_conf, draw_width=draw_width)


def _draw_body(canvas: Image, joints_xy: FloatArray, shown: NDArray[np.bool_], stroke: float) -> None:
    for limb, (start, end) in enumerate(LIMBS):
        if shown[start] and shown[end]:
            _fill_ellipse(canvas, joints_xy[start], joints_xy[end], _LIMB_HALF_WIDTH_PX * stroke, limb_color(limb))
    for joint in DRAWN_JOINTS:
        if shown[joint]:
            _fill_disc(canvas, joints_xy[joint], _DISC_RADIUS_PX * stroke, wheel_color(joint))


def _draw_hand(canvas: Image, points_xy: FloatArray, shown: NDArray[np.bool_], stroke: float) -> None:
    import cv2

    thickness = max(1, round(_HAND_EDGE_PX * stroke))
    for edge, (start, end) in enumerate(HAND_EDGES):
        if shown[start] and shown[end]:
            ends = [_fixed(points_xy[point]) for point in (start, end)]
            cv2.line(canvas, ends[0], ends[1], hand_edge_color(edge), thickness, cv2.LINE_8, _SHIFT)
    for point in np.flatnonzero(shown):
        _fill_disc(canvas, points_xy[point], _HAND_DISC_RADIUS_PX * stroke, HAND_DISC_COLOR)


def _fill_ellipse(canvas: Image, start: FloatArray, end: FloatArray, half_width: float, color: Color) -> None:
    """Fill the ellipse whose long axis runs from `start` to `end` (pixels)."""
    import cv2

    along = (end - start) / 2
    length = math.hypot(float(along[0]), float(along[1]))
    across = np.array([-along[1], along[0]]) * (half_width / length) if length else np.array([0.0, half_width])
    outline = (start + end) / 2 + _CIRCLE[:, :1] * along + _CIRCLE[:, 1:] * across
    cv2.fillConvexPoly(canvas, np.rint(outline * (1 << _SHIFT)).astype(np.int32), color, cv2.LINE_8, _SHIFT)


def _fill_disc(canvas: Image, center: FloatArray, radius: float, color: Color) -> None:
    import cv2

    cv2.circle(canvas, _fixed(center), round(radius * (1 << _SHIFT)), color, cv2.FILLED, cv2.LINE_8, _SHIFT)


def _fixed(point: FloatArray) -> tuple[int, int]:
    return round(float(point[0]) * (1 << _SHIFT)), round(float(point[1]) * (1 << _SHIFT))


_ANGLES = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
