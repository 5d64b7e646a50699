"""The Frechet distance between two sets of features, each taken as a Gaussian: FID, FVD and their kin.

Features stream through: a set is its count, sum and sum of outer products in float64, which add up over clips, machines
and resumed runs in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError

Doubles = NDArray[np.float64]


@dataclass(eq=False)
class Moments:
    """What is kept of a set of feature vectors.

    Attributes:
        count: how many.
        total: their sum, [D]; empty before the first.
        outer: sum of their outer products, [D, D].
    """

    count: int = 0
    total: Doubles = field(default_factory=lambda: np.zeros(0))
    outer: Doubles = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, features: NDArray[Any], name: str = "features") -> None:
        """Take in more vectors.

        Args:
            features: [n, D].
            name: of the clip and metric, for the message.

        Raises:
            UserError: some are not finite.
            ValueError: not a table, or of another width than those before.
        """
        if features.ndim != 2:
            raise ValueError(f"{name}: features are {list(features.shape)}, wanted [n, D]")
        if not len(features):
            return
        rows = features.astype(np.float64)
        if bad := int((~np.isfinite(rows)).any(1).sum()):
            raise UserError(
                f"{name}: {bad} of {len(rows)} feature vectors hold NaN or infinity; wanted finite ones: the network's "
                "weights or the frames are broken, or it ran in half precision"
            )
        if self.count and rows.shape[1] != len(self.total):
            raise ValueError(f"{name}: features have {rows.shape[1]} columns, wanted {len(self.total)} as before")
        self._take(len(rows), rows.sum(0), rows.T @ rows)

    def merge(self, other: Moments) -> None:
        """Take in another set."""
        if other.count:
            if self.count and len(other.total) != len(self.total):
                raise ValueError(f"merging {len(other.total)} columns into {len(self.total)}")
            self._take(other.count, other.total, other.outer)

    def _take(self, count: int, total: Doubles, outer: Doubles) -> None:
        self.total = self.total + total if self.count else total.copy()
        self.outer = self.outer + outer if self.count else outer.copy()
        self.count += count

    @property
    def mean(self) -> Doubles:
        """[D]."""
        return np.asarray(self.total / self.count)

    @property
    def covariance(self) -> Doubles:
        """[D, D], without bias (divided by one less than the count)."""
        middle = self.mean
        centred = self.outer - self.count * np.outer(middle, middle)
        return np.asarray((centred + centred.T) / (2 * (self.count - 1)))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Frechet distance of two sets; NaN if one has fewer than two vectors.

    The trace of the root of S1 S2 is that of the root of R S2 R, R the symmetric root of S1: a symmetric matrix, whose
    eigenvalues are real and, up to rounding, not negative. No iteration, no complex numbers, nothing added.

    Raises:
        ValueError: the vectors differ in length.
    """
    if first.count < 2 or second.count < 2:
        return float("nan")
    if len(first.total) != len(second.total):
        raise ValueError(f"features of {len(first.total)} and {len(second.total)} columns cannot be compared")
    return gaussian_distance(first.mean, first.covariance, second.mean, second.covariance)


def gaussian_distance(mean1: Doubles, covariance1: Doubles, mean2: Doubles, covariance2: Doubles) -> float:
    """Squared Frechet distance of two Gaussians, from means [D] and covariances [D, D]; never negative."""
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = root @ covariance2 @ root
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum()
    apart = float(((mean1 - mean2) ** 2).sum())
    return max(apart + float(np.trace(covariance1) + np.trace(covariance2)) - 2 * float(shared), 0.0)


def shortage(count: int, size: int, name: str) -> str | None:
    """A line of warning where there are too few vectors for what they are to tell; None where there are enough.

    Args:
        count: of vectors in the smaller set.
        size: of a vector.
        name: of the metric and region.
    """
    if count < 2:
        return f"{name}: {count} feature vectors, wanted at least 2; it has no value"
    if count <= size:
        return (
            f"{name}: {count} feature vectors of length {size}; a covariance wants more than {size}, so the value is "
            "biased upwards and compares only with values of as many clips"
        )
    return None
