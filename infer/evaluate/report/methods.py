"""Results of one protocol gathered by method, with intervals over videos: what tables and plots are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.infer.evaluate.resample import interval, mean_draws
from xdyna.infer.evaluate.results import ClipLine, Results, SetLine

DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True, eq=False)
class Method:
    """What is known of one method.

    Attributes:
        name: unique in the report.
        lines: its clips.
        sets: figures of all clips together; None for a run that has not ended.
        facts: what the header says of its model.
    """

    name: str
    lines: tuple[ClipLine, ...]
    sets: SetLine | None
    facts: Mapping[str, Any]

    def clip_values(self, key: str) -> dict[str, float]:
        """A figure's finite values by clip."""
        found = {line.clip: line.values[key] for line in self.lines if key in line.values}
        return {clip: value for clip, value in found.items() if np.isfinite(value)}

    def figure(self, key: str) -> Figure | None:
        """Mean over clips with its interval, or the distance of the whole set; None where there is none."""
        if self.sets is not None and key in self.sets.values:
            value = self.sets.values[key]
            return Figure(value, count=self.sets.clips.get(key, 0)) if np.isfinite(value) else None
        values = self.clip_values(key)
        if not values:
            return None
        owners = {line.clip: line.video for line in self.lines}
        by_video: dict[str, list[float]] = {}
        for clip, value in values.items():
            by_video.setdefault(owners[clip], []).append(value)
        means = np.array([np.mean(found) for found in by_video.values()])
        drawn = mean_draws(means, DRAWS, np.random.default_rng(0))
        low, high = interval(drawn, LEVEL) if len(means) > 1 else (None, None)
        truth = [line.truth[key] for line in self.lines if np.isfinite(line.truth.get(key, np.nan))]
        whole = float(np.mean(list(values.values())))
        return Figure(whole, low, high, len(values), float(np.mean(truth)) if truth else None)


@dataclass(frozen=True)
class Figure:
    """A number of a method.

    Attributes:
        value: mean over clips, or a distance of sets.
        low, high: ends of the mean's interval over videos; None for sets and single videos.
        count: clips in it.
        truth: mean of the truth's own value, for figures that should come near to it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0
    truth: float | None = None


@dataclass(frozen=True, eq=False)
class Gathered:
    """Files of results side by side.

    Attributes:
        methods: in the order of the files.
        header: of the first file.
        metrics: facts of every metric that a file has.
        missing: metrics that no file has, and why.
        failed: (method, video, reason).
    """

    methods: tuple[Method, ...]
    header: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    missing: Mapping[str, str]
    failed: tuple[tuple[str, str, str], ...]

    @property
    def label(self) -> str:
        """Version and hash of the protocol, to stand beside numbers."""
        return f"{self.header['protocol']['config']['version']}:{self.header['protocol_hash'][:12]}"

    def keys(self, kind: str) -> list[str]:
        """`METRIC/REGION` of a kind (clip or set) that some method has."""
        found: dict[str, None] = {}
        for method in self.methods:
            own = method.sets.values if kind == "set" and method.sets else {}
            lines: Sequence[Mapping[str, float]] = [line.values for line in method.lines] if kind == "clip" else [own]
            found |= {key: None for values in lines for key in values}
        order = {name: number for number, name in enumerate(self.metrics)}
        return sorted(found, key=lambda key: (order.get(key.rpartition("/")[0], len(order)), key))

    def better(self, key: str) -> str:
        """Which way a figure is good: higher, lower, truth or none."""
        return str(self.metrics.get(key.rpartition("/")[0], {}).get("better", "none"))

    def unit(self, key: str) -> str:
        return str(self.metrics.get(key.rpartition("/")[0], {}).get("unit", ""))


def gather(files: Sequence[Path]) -> Gathered:
    """Read files of results.

    Raises:
        UserError: no file, one that is none, or files of different protocols or test sets.
    """
    if not files:
        raise UserError("no results given, wanted one file that `xdyna eval score` or `model` wrote, or more")
    read = [Results.read(file) for file in files]
    first = read[0]
    for other in read[1:]:
        if other.header["protocol_hash"] != first.header["protocol_hash"]:
            raise UserError(
                f"{other.path}: protocol {other.protocol_label}, and {first.path} has {first.protocol_label}; numbers "
                "of different protocols do not go side by side: score the videos again"
            )
        if _data(other) != _data(first):
            raise UserError(f"{other.path}: is of test set {_data(other)}, and {first.path} of {_data(first)}")
    methods = [method for results in read for method in _methods(results, several=len(read) > 1)]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two files hold a method {name}; score one of them again under another --name")
    metrics = {name: facts for results in read for name, facts in results.header["metrics"].items()}
    missing = {name: why for results in read for name, why in results.header["missing"].items() if name not in metrics}
    failed = tuple((line.method, line.video, line.reason) for results in read for line in results.failed)
    return Gathered(tuple(methods), first.header, metrics, missing, failed)


def _data(results: Results) -> str:
    data = results.header.get("dataset") or {}
    return f"{data.get('name', '')} {str(data.get('sha256', ''))[:12]}".strip() or "no name"


def _methods(results: Results, *, several: bool) -> list[Method]:
    found = []
    sets = {line.method: line for line in results.sets}
    for name in results.methods:
        lines = tuple(line for line in results.clips if line.method == name)
        if lines or not several:
            found.append(Method(name, lines, sets.get(name), results.header["methods"][name]))
    return found


def spread(values: Sequence[float]) -> NDArray[np.float64]:
    """Least, lower quartile, median, upper quartile and greatest."""
    return np.asarray(np.quantile(np.asarray(values, np.float64), [0, 0.25, 0.5, 0.75, 1]))
