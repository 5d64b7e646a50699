"""Results and comparisons as lines of text, the protocol beside every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xdyna.infer.evaluate.compare import Comparison, Row
from xdyna.infer.evaluate.results import Results

_ARROWS = {"higher": "up", "lower": "down", "truth": "truth", "none": ""}


def summary(results: Results) -> dict[str, Any]:
    """Means of every figure by method, plain values: what the tables show."""
    rows = {}
    for method in results.methods:
        figures = {
            key: {"mean": _plain(mean), "sd": _plain(sd), "clips": count, "truth": _plain(truth)}
            for key, mean, sd, count, truth in _means(results, method)
        }
        line = next((line for line in results.sets if line.method == method), None)
        sets = {key: {"value": _plain(value), "n": line.n[key]} for key, value in line.values.items()} if line else {}
        rows[method] = {"figures": figures, "sets": sets}
    label = results.protocol_label
    failed = [{"method": line.method, "video": line.video, "reason": line.reason} for line in results.failed]
    return {"protocol": label, "protocol_hash": results.header["protocol_hash"], "methods": rows, "failed": failed}


def _plain(value: float) -> float | str | None:
    return None if np.isnan(value) else float(value) if np.isfinite(value) else str(value)


def _means(results: Results, method: str) -> list[tuple[str, float, float, int, float]]:
    """Figure, mean, standard deviation, clips that have a value, and mean of the truth's own."""
    lines = [line for line in results.clips if line.method == method]
    found = []
    for key in dict.fromkeys(key for line in lines for key in line.values):
        values = np.asarray([line.values[key] for line in lines if key in line.values])
        values = values[~np.isnan(values)]
        truth = np.asarray([line.truth.get(key, np.nan) for line in lines])
        truth = truth[~np.isnan(truth)]
        mean = float(values.mean()) if len(values) else float("nan")
        spread = len(values) > 1 and np.isfinite(values).all()
        sd = float(values.std(ddof=1)) if spread else float("nan")
        found.append((key, mean, sd, len(values), float(truth.mean()) if len(truth) else float("nan")))
    return found


def score_table(results: Results) -> list[str]:
    """A line for every figure: mean and spread over clips by method; Frechet distances below."""
    facts, label = results.header["metrics"], results.protocol_label
    head = ["figure", "unit", "better", *results.methods, "clips", "protocol"]
    means = {method: {row[0]: row for row in _means(results, method)} for method in results.methods}
    rows = [head]
    for key in dict.fromkeys(key for figures in means.values() for key in figures):
        metric = facts[key.rpartition("/")[0]]
        cells = [_mean_cell(means[method].get(key)) for method in results.methods]
        truths = [row[4] for figures in means.values() if (row := figures.get(key)) and not np.isnan(row[4])]
        better = f"truth {truths[0]:.4g}" if truths else _ARROWS[metric["better"]]
        clips = max(figures[key][3] for figures in means.values() if key in figures)
        if not clips:
            continue  # a note tells of it
        rows.append([key, metric["unit"], better, *cells, str(clips), label])
    sets = {line.method: line for line in results.sets}
    for key in dict.fromkeys(key for line in results.sets for key in line.values):
        metric = facts[key.rpartition("/")[0]]
        cells = [_number(sets[m].values.get(key, np.nan)) if m in sets else "-" for m in results.methods]
        clips = max(line.clips.get(key, 0) for line in results.sets)
        rows.append([key, metric["unit"], _ARROWS[metric["better"]], *cells, str(clips), label])
    return aligned(rows)


def compare_table(found: Comparison) -> list[str]:
    """A line for every figure: both means, their difference with its interval, and who is better."""
    rows = [["figure", "unit", "better", "A", "B", "A - B", f"{found.level:.0%} interval", "p (Holm)", "", "protocol"]]
    rows += [_compare_row(row, found.protocol) for row in found.rows]
    notes = [f"note: {row.name}: {row.note}" for row in found.rows if row.note]
    return [f"A: {found.a}", f"B: {found.b}", *aligned(rows), *notes, *(f"note: {note}" for note in found.notes)]


def _compare_row(row: Row, label: str) -> list[str]:
    better = "near truth" if row.better == "truth" else _ARROWS[row.better]
    interval = "-" if np.isnan(row.low) else f"{_number(row.low)} .. {_number(row.high)}"
    p = "-" if row.p_holm is None else f"{row.p_holm:.3g}"
    winner = {"a": "A better", "b": "B better", "": ""}[row.winner]
    numbers = [_number(value) for value in (row.a, row.b, row.difference)]
    return [row.name, row.unit, better, *numbers, interval, p, winner, label]


def _mean_cell(row: tuple[str, float, float, int, float] | None) -> str:
    if row is None:
        return "-"
    return _number(row[1]) if np.isnan(row[2]) else f"{_number(row[1])} ± {_number(row[2])}"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4g}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
