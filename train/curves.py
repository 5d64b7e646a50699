"""Curves as inline SVG: drawn from numbers, readable without scripts, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 520, 230  # user units of the SVG
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 10, 28
COLUMNS = 160  # more points than these are drawn as the mean, least and greatest of each column
LOG_FROM = 25.0  # largest over smallest value from which an axis is logarithmic

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Line:
    """One curve: (step, value) pairs in order of the steps; values are finite."""

    name: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """Curves over the steps that share one axis, and so one unit."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Column:
    """Neighbouring points of a curve in one: their mean step and value, and the range of the values."""

    step: float
    mean: float
    low: float
    high: float


def draw(chart: Chart) -> str:
    """A chart as an HTML `<figure>`: title, legend with the last values, SVG; hovering tells the values at a step.

    Colours are the classes `c1`, `c2`, .. of `STYLE`. A chart without points is an empty string.
    """
    lines = [line for line in chart.lines if line.points]
    if not lines:
        return ""
    steps = [step for line in lines for step, _ in line.points]
    first, last = min(steps), max(*steps, min(steps) + 1)
    curves = [(line, columns(line.points, first, last)) for line in lines]
    axis = Axis.over([column for _, drawn in curves for column in drawn])
    parts = [_grid(axis, first, last)]
    for number, (_, drawn) in enumerate(curves, 1):
        parts.append(_curve(drawn, axis, first, last, f"c{number}"))
    parts.append(_slices(curves, first, last))
    note = ", logarithmic" if axis.log else ""
    label = escape(f"{chart.title}, steps {first:,} to {last:,}")
    head = f'<b>{escape(chart.title)}</b><span class="note">{note}</span>{_legend(lines)}'
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{head}</figcaption>{svg}</figure>'


def columns(points: Points, first: int, last: int, most: int = COLUMNS) -> list[Column]:
    """Points as they are, or where there are more than `most`, one column for each of `most` equal stretches."""
    if len(points) <= most:
        return [Column(step, value, value, value) for step, value in points]
    stretches: dict[int, list[tuple[int, float]]] = {}
    for step, value in points:
        stretches.setdefault(min((step - first) * most // (last - first), most - 1), []).append((step, value))
    found = []
    for _, members in sorted(stretches.items()):
        values = [value for _, value in members]
        mean_step = sum(step for step, _ in members) / len(members)
        found.append(Column(mean_step, sum(values) / len(values), min(values), max(values)))
    return found


@dataclass(frozen=True)
class Axis:
    """The vertical axis, from `low` to `high`; logarithmic where the values span more than `LOG_FROM`."""

    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, drawn: Sequence[Column]) -> Axis:
        """An axis that holds every mean, and the ranges but for their rarest hundredths."""
        means = [column.mean for column in drawn]
        ends = sorted([column.low for column in drawn] + [column.high for column in drawn])
        rare = len(ends) // 100
        low, high = min([*means, ends[rare]]), max([*means, ends[-1 - rare]])
        if low > 0 and high / low > LOG_FROM:
            return cls(low / 1.1, high * 1.1, True)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(low - margin, high + margin, False)

    def place(self, value: float) -> float:
        """The height of a value in the SVG; those outside the axis lie on its end."""
        value = min(max(value, self.low), self.high)
        share = (
            math.log(value / self.low) / math.log(self.high / self.low)
            if self.log
            else (value - self.low) / (self.high - self.low)
        )
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def ticks(self) -> list[float]:
        """Round values along the axis."""
        if not self.log:
            return round_values(self.low, self.high, 6)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(powers) < 4 else (1,)
        every = max(len(powers) // 6, 1) if len(factors) == 1 else 1
        values = [factor * 10.0**power for power in powers[::every] for factor in factors]
        return [value for value in values if self.low <= value <= self.high]


def round_values(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between two, which differ."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [number * stride for number in range(math.ceil(low / stride), math.floor(high / stride) + 1)]


def number(value: float) -> str:
    """A value in few characters: 0.1234, 12.3, 1.2e-05."""
    return f"{value:.4g}"


def _x(step: float, first: int, last: int) -> float:
    return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)


def _grid(axis: Axis, first: int, last: int) -> str:
    parts = [f'<text class="tick" x="{LEFT - 6}" y="{HEIGHT - 9}" text-anchor="end">step</text>']
    for value in axis.ticks():
        y = axis.place(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for step in round_values(first, last, 5):
        if step == int(step):
            place = f'x="{_x(step, first, last):.1f}" y="{HEIGHT - 9}"'
            parts.append(f'<text class="tick" {place} text-anchor="middle">{int(step):,}</text>')
    return "".join(parts)


def _curve(drawn: list[Column], axis: Axis, first: int, last: int, colour: str) -> str:
    """The range as a band, the means as a line; few points are marked each."""
    xs = [_x(column.step, first, last) for column in drawn]
    parts = []
    if any(column.high > column.low for column in drawn):
        there = [f"{x:.1f} {axis.place(column.high):.1f}" for x, column in zip(xs, drawn, strict=True)]
        back = [f"{x:.1f} {axis.place(column.low):.1f}" for x, column in zip(xs, drawn, strict=True)]
        parts.append(f'<path class="band {colour}" d="M{"L".join(there + back[::-1])}Z"/>')
    places = [f"{x:.1f} {axis.place(column.mean):.1f}" for x, column in zip(xs, drawn, strict=True)]
    parts.append(f'<path class="line {colour}" d="M{"L".join(places)}"/>')
    if len(drawn) <= 40:
        spots = (place.partition(" ") for place in places)
        parts.append("".join(f'<circle class="dot {colour}" cx="{x}" cy="{y}" r="2.5"/>' for x, _, y in spots))
    return "".join(parts)


def _slices(curves: list[tuple[Line, list[Column]]], first: int, last: int) -> str:
    """Upright strips that tell the values under the pointer."""
    steps = sorted({column.step for _, drawn in curves for column in drawn})
    steps = steps[:: max(len(steps) // COLUMNS, 1)]
    middles = [(one + other) / 2 for one, other in pairwise(steps)]
    borders = [float(first), *middles, float(last)]
    parts = []
    for index, step in enumerate(steps):
        low, high = borders[index], borders[index + 1]
        words = [
            _told(line.name, column)
            for line, drawn in curves
            for column in drawn
            if low <= column.step < high or column.step == step
        ]
        left, right = _x(low, first, last), _x(high, first, last)
        text = escape(f"step {round(step):,}: " + ", ".join(words))
        parts.append(
            f'<rect class="slice" x="{left:.1f}" y="{TOP}" width="{max(right - left, 1):.1f}" '
            f'height="{HEIGHT - BOTTOM - TOP}"><title>{text}</title></rect>'
        )
    return "".join(parts)


def _told(name: str, column: Column) -> str:
    spread = f" ({number(column.low)} to {number(column.high)})" if column.high > column.low else ""
    return f"{name} {number(column.mean)}{spread}"


def _legend(lines: Sequence[Line]) -> str:
    """Every curve's name in its colour, with its last value; of a single curve the value alone."""
    words = []
    for index, line in enumerate(lines, 1):
        name = f'<i class="c{index}"></i>{escape(line.name)} ' if len(lines) > 1 else ""
        words.append(f'<span>{name}<span class="value">{number(line.points[-1][1])}</span></span>')
    return f'<span class="legend">{"".join(words)}</span>'


#: What the charts need of a page's style sheet.
STYLE = """
.chart { margin: 0; min-width: 0 }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 0 .6em; align-items: baseline; font-size: .9em }
.chart svg { display: block; width: 100%; height: auto }
.note { color: var(--soft) }
.legend { margin-left: auto; display: flex; flex-wrap: wrap; gap: 0 1em; color: var(--soft) }
.legend .value { color: var(--text); font-variant-numeric: tabular-nums }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .35em;
  background: currentColor; vertical-align: -.05em }
.grid { stroke: var(--rule); stroke-width: 1; fill: none }
.tick { fill: var(--soft); font-size: 11px; font-family: inherit }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
.band { fill: currentColor; opacity: .16; stroke: none }
.dot { fill: currentColor }
.slice { fill: transparent }
.slice:hover { fill: var(--soft); opacity: .18 }
"""
