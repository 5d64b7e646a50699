"""Bootstrap over videos: means of paired differences, and Frechet distances of features that are drawn again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdyna.infer.evaluate.features import FeatureCache
from xdyna.infer.evaluate.results import ClipLine

Floats = NDArray[np.float64]
_CHUNK = 1 << 22  # numbers drawn at once


def draw_videos(count: int, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which videos each bootstrap sample holds, [draws, count]."""
    return rng.integers(0, count, (draws, count))


def mean_draws(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Means of bootstrap samples of values [V]: float64 [draws]."""
    step = max(1, _CHUNK // len(values))
    parts = [
        np.asarray(values, np.float64)[draw_videos(len(values), min(step, draws - at), rng)].mean(1)
        for at in range(0, draws, step)
    ]
    return np.concatenate(parts)


def interval(sample: Floats, level: float) -> tuple[float, float]:
    """The percentile interval of a bootstrap sample; NaN for an empty one."""
    if len(sample) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_chance(differences: Floats, draws: int, rng: np.random.Generator) -> float:
    """Chance of a mean this far from 0 if each difference might as well have had the other sign, two-sided.

    All patterns of signs are tried where there are no more than `draws`, else as many are drawn. Unlike counts over a
    bootstrap sample this is never smaller than so few videos can tell: with four it is 1/8 at least.

    Args:
        differences: [V], one for each video.
        draws: most patterns that are tried.
        rng: draws them.
    """
    count = len(differences)
    found = abs(differences.mean()) * (1 - 1e-12)  # rounding does not part equal sums
    if 2**count <= draws:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float((np.abs(signs @ differences) / count >= found).mean())
    step = max(1, _CHUNK // count)
    far = 0
    for at in range(0, draws, step):
        signs = rng.integers(0, 2, (min(step, draws - at), count)) * 2 - 1
        far += int((np.abs(signs @ differences) / count >= found).sum())
    return (far + 1) / (draws + 1)


def centred(sample: Floats, estimate: float) -> Floats:
    """A bootstrap sample moved so that its mean is the estimate.

    Distances of drawn features are too large: a sample holds fewer different clips than the set. That error is the
    same in every draw, so what is left after it is taken out tells how far the estimate may be off.
    """
    return np.asarray(sample - sample.mean() + estimate)


def normal_chance(sample: Floats, estimate: float) -> float | None:
    """Chance of an estimate this far from 0, both tails, if it is normal with the spread of a bootstrap sample.

    Not limited by the number of draws, which for Frechet distances are few.
    """
    if len(sample) < 2:
        return None
    error = float(sample.std(ddof=1))
    if error == 0:
        return 1.0 if estimate == 0 else 0.0
    return math.erfc(abs(estimate) / error / math.sqrt(2))


def holm(chances: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each of several tests' chances, as if it had been one of so many."""
    corrected = [0.0] * len(chances)
    highest = 0.0
    for rank, index in enumerate(np.argsort(chances, kind="stable")):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[index]))
        corrected[index] = highest
    return corrected


@dataclass(frozen=True, eq=False)
class FrechetSample:
    """Features of videos, from which some can be drawn.

    Attributes:
        made: float64 [N, D], all generated features.
        true: float64 [N, D], those of the truth.
        rows: by video, which rows are its.
    """

    made: Floats
    true: Floats
    rows: Sequence[NDArray[np.int64]]

    @classmethod
    def load(
        cls, key: str, lines: Sequence[ClipLine], videos: Sequence[str], cache: FeatureCache
    ) -> FrechetSample | None:
        """Read the features of some clips; None where one of them is not in the cache."""
        made, true, owners = [], [], []
        number = {video: index for index, video in enumerate(videos)}
        for line in lines:
            if key not in line.features:
                continue
            pair = [cache.load(name) for name in line.features[key]]
            if pair[0] is None or pair[1] is None:
                return None
            if np.isfinite(pair[0]).all() and np.isfinite(pair[1]).all() and len(pair[0]) == len(pair[1]):
                made.append(pair[0])
                true.append(pair[1])
                owners += [number[line.video]] * len(pair[0])
        if not made:
            return None
        owner = np.asarray(owners)
        rows = [np.flatnonzero(owner == index) for index in range(len(videos))]
        return cls(np.concatenate(made).astype(np.float64), np.concatenate(true).astype(np.float64), rows)

    def distance(self, videos: NDArray[np.int64] | None = None) -> float:
        """Frechet distance of the features of some videos, repeated ones counting as often; None is all of them."""
        rows = np.concatenate([self.rows[video] for video in (range(len(self.rows)) if videos is None else videos)])
        return frechet_of_rows(self.made[rows], self.true[rows])


def frechet_of_rows(made: Floats, true: Floats) -> float:
    """Frechet distance of two sets of features, [N, D] each, through the smaller of N and D; NaN below two rows.

    The trace of the root of the product of both covariances is the sum of the singular values of the product of the
    centred features, which is N x N: with few clips and long features that is far smaller than D x D.
    """
    if min(len(made), len(true)) < 2:
        return float("nan")
    mean_made, mean_true = made.mean(0), true.mean(0)
    x = (made - mean_made) / np.sqrt(len(made) - 1)
    y = (true - mean_true) / np.sqrt(len(true) - 1)
    if max(len(x), len(y)) <= x.shape[1]:
        product = np.asarray(x @ y.T, np.float64)
    else:  # triangles R with R.T @ R = the covariance: the same singular values from D x D
        first, second = (np.asarray(np.linalg.qr(rows, "r"), np.float64) for rows in (x, y))
        product = first @ second.T
    shared = np.linalg.svd(product, compute_uv=False).sum()
    distance = float(((mean_made - mean_true) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * shared)
    return max(0.0, distance)
