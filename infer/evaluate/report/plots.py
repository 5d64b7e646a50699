"""Plots as inline SVG, coloured by the page's style: distributions over clips, curves over time, dots by scene."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from xdyna.infer.evaluate.report.methods import spread

WIDTH, LEFT, RIGHT = 520, 128, 16
ROW, TOP, BOTTOM = 34, 8, 26
CURVE_HEIGHT, CURVE_LEFT = 200, 56
COLOURS = 6

STYLE = """
figure { margin: 0; min-width: 0 } figcaption { font-size: .9em } figcaption span { color: var(--soft) }
svg { display: block; width: 100%; height: auto }
.grid { stroke: var(--rule); stroke-width: 1; fill: none } .soft { stroke: var(--soft); stroke-dasharray: 4 3 }
.tick { fill: var(--soft); font-size: 11px; font-family: inherit } .name { fill: var(--text); font-size: 12px }
.dot { fill: currentColor; opacity: .35 } .mark { stroke: currentColor; stroke-width: 2.5; fill: none }
.box { fill: currentColor; opacity: .22 } .line { stroke: currentColor; stroke-width: 1.8; fill: none }
.line.soft { stroke: var(--soft) }
.legend { display: flex; flex-wrap: wrap; gap: 0 1em; font-size: .85em }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .35em;
  background: currentColor } .legend span span { color: var(--text) }
"""


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """An axis that holds all values, with a margin."""
        low, high = min(values), max(values)
        margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        return cls(low - margin, high + margin, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About so many round values."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        stride = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        return [n * stride for n in range(math.ceil(self.low / stride), math.floor(self.high / stride) + 1)]


def colour(number: int) -> str:
    """Class of the method's colour; there are six, then they repeat."""
    return f"c{number % COLOURS + 1}"


def distributions(title: str, unit: str, values: Mapping[str, Sequence[float]], truth: float | None = None) -> str:
    """A row for each method: its clips as dots, their quartiles as a box, the median as a line."""
    shown = {name: [v for v in found if math.isfinite(v)] for name, found in values.items()}
    every = [value for found in shown.values() for value in found] + ([] if truth is None else [truth])
    if not any(shown.values()):
        return ""
    scale = Scale.over(every, LEFT, WIDTH - RIGHT)
    height = TOP + ROW * len(shown) + BOTTOM
    parts = [_upright(scale, height)]
    if truth is not None:
        parts.append(f'<path class="soft" d="M{scale.at(truth):.1f} {TOP}V{height - BOTTOM}"/>')
    rng = np.random.default_rng(0)
    for number, (name, found) in enumerate(shown.items()):
        middle = TOP + ROW * (number + 0.5)
        parts.append(_name(name, middle))
        if not found:
            continue
        offsets = rng.uniform(-0.26, 0.26, len(found)) * ROW
        dots = "".join(
            f'<circle class="dot" cx="{scale.at(v):.1f}" cy="{middle + off:.1f}" r="2"/>'
            for v, off in zip(found, offsets, strict=True)
        )
        _, lower, median, upper, _ = (scale.at(value) for value in spread(found))
        wide = max(upper - lower, 1)
        box = f'<rect class="box" x="{lower:.1f}" y="{middle - 9:.1f}" width="{wide:.1f}" height="18"/>'
        mark = f'<path class="mark" d="M{median:.1f} {middle - 11:.1f}v22"/>'
        words = escape(f"{name}: median {spread(found)[2]:.4g}, {len(found)} clips")
        parts.append(f'<g class="{colour(number)}"><title>{words}</title>{box}{dots}{mark}</g>')
    note = unit if truth is None else f"{unit}, truth {truth:.4g} dashed".lstrip(", ")
    return _figure(title, note, height, parts)


def by_scene(title: str, unit: str, values: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """A row for each scene: every method's mean with its interval.

    Args:
        title: of the plot.
        unit: of the values.
        values: method -> scene -> (mean, low, high).
    """
    scenes = sorted({scene for found in values.values() for scene in found})
    every = [number for found in values.values() for triple in found.values() for number in triple]
    every = [number for number in every if math.isfinite(number)]
    if not scenes or not every:
        return ""
    scale = Scale.over(every, LEFT, WIDTH - RIGHT)
    height = TOP + ROW * len(scenes) + BOTTOM
    parts = [_upright(scale, height)]
    for row, scene in enumerate(scenes):
        parts.append(_name(scene, TOP + ROW * (row + 0.5)))
        for number, (name, found) in enumerate(values.items()):
            if scene not in found:
                continue
            mean, low, high = found[scene]
            y = TOP + ROW * (row + (number + 1) / (len(values) + 1))
            ends = f'<path class="line" d="M{scale.at(low):.1f} {y:.1f}H{scale.at(high):.1f}"/>' if low < high else ""
            dot = f'<circle fill="currentColor" cx="{scale.at(mean):.1f}" cy="{y:.1f}" r="3.5"/>'
            words = escape(f"{name}, {scene}: {mean:.4g} ({low:.4g} to {high:.4g})")
            parts.append(f'<g class="{colour(number)}"><title>{words}</title>{ends}{dot}</g>')
    return _figure(title, unit, height, parts, list(values))


def over_time(title: str, unit: str, curves: Mapping[str, Sequence[float]], fps: float, truth: str = "truth") -> str:
    """Mean over clips at every frame; the curve named `truth` is dashed and grey."""
    shown = {name: list(found) for name, found in curves.items() if len(found) > 1}
    every = [value for found in shown.values() for value in found if math.isfinite(value)]
    if not every:
        return ""
    longest = max(len(found) for found in shown.values())
    down = Scale.over(every, CURVE_HEIGHT - BOTTOM, TOP)
    along = Scale(0, (longest - 1) / fps, CURVE_LEFT, WIDTH - RIGHT)
    parts = []
    for value in down.ticks(5):
        parts.append(f'<path class="grid" d="M{CURVE_LEFT} {down.at(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_tick(f"{value:.4g}", CURVE_LEFT - 6, down.at(value) + 3.5, "end"))
    for value in along.ticks(5):
        parts.append(_tick(f"{value:.2g} s", along.at(value), CURVE_HEIGHT - 8, "middle"))
    number = 0
    for name, found in shown.items():
        known = [(n / fps, value) for n, value in enumerate(found) if math.isfinite(value)]
        way = "L".join(f"{along.at(second):.1f} {down.at(value):.1f}" for second, value in known)
        path = f'<path class="line{" soft" if name == truth else ""}" d="M{way}"/>'
        parts.append(f'<g class="{colour(number)}"><title>{escape(name)}</title>{path}</g>')
        number += name != truth
    names = [name for name in shown if name != truth]
    note = f"{unit}; truth dashed" if truth in shown else unit
    return _figure(title, note, CURVE_HEIGHT, parts, names)


def _upright(scale: Scale, height: float) -> str:
    parts = []
    for value in scale.ticks(5):
        parts.append(f'<path class="grid" d="M{scale.at(value):.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(_tick(f"{value:.4g}", scale.at(value), height - 9, "middle"))
    return "".join(parts)


def _tick(text: str, x: float, y: float, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _name(text: str, middle: float) -> str:
    short = text if len(text) <= 19 else text[:18] + "…"
    title = f"<title>{escape(text)}</title>"
    return f'<text class="name" x="{LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(short)}{title}</text>'


def _figure(title: str, note: str, height: float, parts: Sequence[str], names: Sequence[str] = ()) -> str:
    entries = [f'<span class="{colour(n)}"><i></i><span>{escape(name)}</span></span>' for n, name in enumerate(names)]
    below = f'<div class="legend">{"".join(entries)}</div>' if len(names) > 1 else ""
    head = f"<b>{escape(title)}</b> <span>{escape(note)}</span>"
    svg = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{head}{below}</figcaption>{svg}</figure>"
