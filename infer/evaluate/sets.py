"""Frechet distances over all clips of a method, from running sums in float64: memory does not grow with the clips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xdyna.errors import UserError
from xdyna.infer.evaluate.features import Features
from xdyna.infer.evaluate.results import SetLine
from xdyna.metrics.frechet import Moments, frechet_distance, shortage


class SetState:
    """The features of a method's clips so far, by `METRIC/REGION`: generated ones and the truth's."""

    def __init__(self) -> None:
        self._made: dict[str, Moments] = {}
        self._true: dict[str, Moments] = {}
        self._clips: dict[str, int] = {}

    def add(self, clip: str, features: Mapping[str, tuple[Features, Features]]) -> list[str]:
        """Take in a clip's features; one line for each pair that is left out because it is not finite."""
        problems = []
        for key, (made, true) in features.items():
            checked = Moments(), Moments()
            try:
                for moments, rows, whose in zip(checked, (made, true), ("generated", "true"), strict=True):
                    moments.add(rows, f"{clip}: {whose} {key}")
            except UserError as error:
                problems.append(f"{error}; left out of {key}")
                continue
            for states, moments in zip((self._made, self._true), checked, strict=True):
                states.setdefault(key, Moments()).merge(moments)
            self._clips[key] = self._clips.get(key, 0) + (len(made) > 0)
        return problems

    def line(self, protocol: str, method: str, problems: Iterable[str] = ()) -> SetLine:
        """The distances of what was taken in, with a warning where the clips are too few."""
        values, n, warnings = {}, {}, list(problems)
        for key, made in self._made.items():
            values[key], n[key] = frechet_distance(made, self._true[key]), made.count
            short = shortage(made.count, len(made.total), f"{key}, {self._clips[key]} clips")
            warnings += [short] if short else []
        return SetLine(protocol, method, values, n, dict(self._clips), tuple(warnings))
