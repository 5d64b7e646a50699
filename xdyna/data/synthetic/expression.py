"""A face's play over time: mouth, smile, brows and eyelids as smooth, periodic functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: Columns of an expression: mouth opening 0..1.1, smile -0.5..1, brow height -1..1.2, eye opening 0..1.2.
EXPRESSIONS = ("mouth_open", "smile", "brow", "eye_open")
#: Eyes stay shut this long in a blink, seconds: at least two frames at 12 per second.
SHUT_S = 0.19
_LID_S = 0.07  # time of an eyelid's way down, and up again


@dataclass(frozen=True, eq=False)
class Expression:
    """A face's play.

    Attributes:
        keys: [K, 4] in `EXPRESSIONS` order; they repeat.
        step_s: seconds from key to key.
        phase_s: time within the play at t = 0, seconds.
        blink_s: seconds between blinks.
    """

    keys: FloatArray
    step_s: float
    phase_s: float
    blink_s: float

    def __call__(self, times_s: FloatArray) -> FloatArray:
        """Expressions [F, 4] at the given times [F]."""
        shifted_s = np.asarray(times_s, np.float64) + self.phase_s
        values = between_keys(self.keys, shifted_s / self.step_s)
        away_s = np.abs(shifted_s % self.blink_s - 0.5 * self.blink_s) - 0.5 * SHUT_S
        values[:, 3] *= np.clip(away_s / _LID_S, 0, 1)
        return values


def between_keys(keys: FloatArray, beats: FloatArray) -> FloatArray:
    """Values [F, P] at places [F] counted in keys; smooth steps lead from each of the keys [K, P] to the next."""
    index = np.floor(beats).astype(int)
    along = beats - index
    weight = (along**2 * (3 - 2 * along))[:, None]
    count = len(keys)
    return np.asarray(keys[index % count] * (1 - weight) + keys[(index + 1) % count] * weight)


def random_expression(rng: np.random.Generator) -> Expression:
    """A lively face: most sing, with a mouth that opens and closes with every key; the others smile and frown."""
    count = 2 * int(rng.integers(8, 13))
    keys = np.zeros((count, 4))
    if rng.random() < 0.8:
        keys[0::2, 0] = rng.uniform(0.45, 1.1, count // 2)
        keys[1::2, 0] = rng.uniform(0.0, 0.3, count // 2)
        pause = int(rng.integers(0, count))
        keys[(pause + np.arange(4)) % count, 0] = 0.0
    else:
        keys[:, 0] = _held(rng, count, 0.0, 0.5)
    keys[:, 1] = _held(rng, count, -0.5, 1.0)
    keys[:, 2] = _held(rng, count, -1.0, 1.2)
    keys[:, 3] = _held(rng, count, 0.55, 1.2)
    step_s = float(rng.uniform(0.19, 0.32))
    return Expression(
        keys=keys,
        step_s=step_s,
        phase_s=float(rng.uniform(0, count * step_s)),
        blink_s=float(rng.uniform(1.0, 2.0)),
    )


def _held(rng: np.random.Generator, count: int, low: float, high: float) -> FloatArray:
    """[count] values that change every three to five keys."""
    values = np.empty(count)
    start = 0
    while start < count:
        stop = start + int(rng.integers(3, 6))
        values[start:stop] = rng.uniform(low, high)
        start = stop
    return values
