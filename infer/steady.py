"""Colours held steady over a long video: what goes off slowly is led back to the first second, frame by frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]

DEFAULT_SETTLE_S = 4.0
#: Differences up to this, root mean square over the picture in grey levels, are left alone: who moves about in a
#: picture without drift changes its averages by as much.
TOLERANCE = 2.0
#: Variance, grey levels squared, that is added on both sides of a match: what is flat is shifted, not stretched.
FLOOR = 4.0
#: The strongest change of a colour direction's spread.
MOST_GAIN = 2.0


class SteadyColours:
    """Leads mean and covariance of R, G and B back to those of the first second. Causal; holds numbers, no frames.

    Statistics of the frames as they come are averaged over about `settle_s` seconds before they are compared, so what
    changes faster passes, and a lasting change of the scene fades as fast as drift does. Each frame is then moved by
    the linear map that turns a normal distribution of the averaged statistics into one of the first second's with the
    smallest change of pixels (Pitié and Kokaram 2007). Frames of the first second, and frames whose average is no
    further than `TOLERANCE` from it, come out as they went in.

    Args:
        fps: frames per second.
        settle_s: time constant of the average, seconds.

    Raises:
        ValueError: a rate or a time that is not above 0.
    """

    def __init__(self, fps: float, settle_s: float = DEFAULT_SETTLE_S) -> None:
        if not fps > 0 or not settle_s > 0:
            raise ValueError(f"fps is {fps} and settle_s {settle_s}, wanted both above 0")
        self._first = max(1, round(fps))
        self._share = 1 - float(np.exp(-1 / (fps * settle_s)))
        self._seen = 0
        self._wanted = self._average = np.zeros((4, 3))

    def __call__(self, frame: Image) -> Image:
        """uint8 RGB [H, W, 3] in and out; call it once per frame, in order."""
        statistics = _statistics(frame)
        self._seen += 1
        if self._seen <= self._first:
            self._wanted = self._wanted + (statistics - self._wanted) / self._seen
            self._average = self._wanted
            return frame
        self._average = self._average + (statistics - self._average) * self._share
        matrix, offset = correction(self._average, self._wanted)
        if not matrix.any() and not offset.any():
            return frame
        moved = frame + (frame @ matrix.astype(np.float32) + offset.astype(np.float32))
        return np.asarray(np.clip(np.rint(moved), 0, 255), np.uint8)


def correction(found: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    """What to add to a pixel x, as `x @ matrix + offset`, for the found statistics to become the wanted ones.

    Args:
        found: covariance of R, G and B [3, 3], and below it their mean: [4, 3], grey levels.
        wanted: likewise.

    Returns:
        Matrix [3, 3] and offset [3]; 0 where the statistics are no more than `TOLERANCE` apart, and weaker than a full
        match by as much beyond that, so that nothing sets in with a jump.
    """
    spread, wanted_spread = found[:3] + FLOOR * np.eye(3), wanted[:3] + FLOOR * np.eye(3)
    stretch = _transport(spread, wanted_spread) - np.eye(3)
    shift = wanted[3] - found[3]
    distance = float(np.sqrt((shift @ shift + np.trace(stretch @ spread @ stretch)) / 3))
    if distance <= TOLERANCE:
        return np.zeros((3, 3)), np.zeros(3)
    strength = 1 - TOLERANCE / distance
    return strength * stretch, strength * (shift - found[3] @ stretch)


def _statistics(frame: Image) -> Floats:
    """Covariance of R, G and B, and below it their mean: [4, 3]."""
    channels = [frame[..., channel].ravel().astype(np.int64) for channel in range(3)]
    # In whole numbers: no sum depends on its order, and so none on how many threads there are.
    mean = np.asarray([int(values.sum()) for values in channels]) / channels[0].size
    products = np.asarray([[int(np.dot(a, b)) for a in channels] for b in channels]) / channels[0].size
    return np.concatenate([products - np.outer(mean, mean), mean[None]])


def _transport(spread: Floats, wanted: Floats) -> Floats:
    """The symmetric matrix T, of bounded gain, with `T spread T = wanted`: [3, 3]."""
    root, inverse = _power(spread, 0.5), _power(spread, -0.5)
    values, vectors = np.linalg.eigh(inverse @ _power(root @ wanted @ root, 0.5) @ inverse)
    return np.asarray(vectors * np.clip(values, 1 / MOST_GAIN, MOST_GAIN) @ vectors.T)


def _power(matrix: Floats, exponent: float) -> Floats:
    """Of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors * np.maximum(values, 1e-9) ** exponent @ vectors.T)
