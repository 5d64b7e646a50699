"""From runs to figures: medians with their spread, ratios between plans, growth with length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from xdyna.infer.bench.rounds import Run


@dataclass(frozen=True)
class Spread:
    """A median, and the least and the greatest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Cost:
    """What one plan takes at one length.

    Attributes:
        seconds: on the wall.
        cpu_seconds: of all threads together.
        peak_bytes: greatest of all runs.
        working_bytes: of that, what the run added to the loaded model.
    """

    seconds: Spread
    cpu_seconds: Spread
    peak_bytes: int
    working_bytes: int


@dataclass(frozen=True)
class Growth:
    """How a cost grows with the number of frames.

    Attributes:
        per_frame: slope of the least-squares line.
        at_zero: its value at no frames.
        exponent: p where the cost grows as frames**p, from the shortest to the longest clip; 1 is linear, 0 is flat.
        worst: greatest deviation of a value from the line, as a share of the value.
    """

    per_frame: float
    at_zero: float
    exponent: float
    worst: float


def cost(runs: Sequence[Run]) -> Cost:
    """Of the runs of one plan at one length."""
    return Cost(
        Spread.of([run.seconds for run in runs]),
        Spread.of([run.cpu_seconds for run in runs]),
        max(run.peak_bytes for run in runs),
        max(run.peak_bytes - run.resident_bytes for run in runs),
    )


def ratio(runs: Sequence[Run], others: Sequence[Run]) -> Spread:
    """How many times as long `runs` take as `others`: round by round, so that what slows a whole round cancels."""
    seconds = {run.turn: run.seconds for run in others}
    return Spread.of([run.seconds / seconds[run.turn] for run in runs if run.turn in seconds])


def growth(values: Mapping[int, float]) -> Growth | None:
    """Of a cost by number of frames; None for fewer than two lengths or a cost that is not positive."""
    if len(values) < 2 or min(values.values()) <= 0:
        return None
    frames = sorted(values)
    mean_x, mean_y = sum(frames) / len(frames), sum(values.values()) / len(frames)
    slope = sum((x - mean_x) * (values[x] - mean_y) for x in frames) / sum((x - mean_x) ** 2 for x in frames)
    base = mean_y - slope * mean_x
    first, last = frames[0], frames[-1]
    exponent = math.log(values[last] / values[first]) / math.log(last / first)
    worst = max(abs(base + slope * x - values[x]) / values[x] for x in frames)
    return Growth(slope, base, exponent, worst)


def by_cell(runs: Sequence[Run]) -> dict[tuple[str, int], list[Run]]:
    """Runs by plan and number of frames."""
    cells: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.plan, run.num_frames), []).append(run)
    return cells
