"""What is kept of a run of results in the repository: one JSON with every clip's values, and statistics over such.

Files of results name videos and features on one machine; a record holds the numbers and what they were made with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.files import make_folder, written_whole
from xdyna.infer.evaluate.resample import interval
from xdyna.infer.evaluate.results import Results

Floats = NDArray[np.float64]
Record = Mapping[str, Any]

DRAWS, LEVEL, SEED = 10_000, 0.95, 0


@dataclass(frozen=True)
class Cell:
    """A figure of a method.

    Attributes:
        mean: over seeds and videos; of a set the mean over seeds.
        low: end of the interval; of a set the least of the seeds.
        high: likewise.
        against: the same three of the difference to the first method; None for that method and for sets.
    """

    mean: float
    low: float
    high: float
    against: tuple[float, float, float] | None = None


def record_of(results: Results, method: str) -> dict[str, Any]:
    """A method's values of every clip and of all together, NaN as null."""
    lines = [line for line in results.clips if line.method == method]
    sets = next((line.values for line in results.sets if line.method == method), {})
    header = results.header
    return {
        "model": header["methods"][method],
        "dataset": header["dataset"],
        "protocol": header["protocol"],
        "protocol_hash": header["protocol_hash"],
        "metrics": header["metrics"],
        "backbones": header["backbones"],
        "missing": dict(header["missing"]),
        "sets": _plain(sets),
        "clips": {
            line.clip: {"scene": line.scene, "values": _plain(line.values), "truth": _plain(line.truth)}
            for line in lines
        },
    }


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    make_folder(path.parent)
    with written_whole(path) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_record(path: Path, wanted: Sequence[str] = ("clips", "sets", "metrics")) -> dict[str, Any]:
    """Read a record.

    Raises:
        UserError: it cannot be read, or lacks one of the `wanted` keys.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lacks = [key for key in wanted if key not in record]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is no record of a run ({type(error).__name__}); remove it to run again") from None
    if lacks:
        raise UserError(f"{path}: is no record of a run (no {', '.join(lacks)}); remove it to run again")
    return record


def cells(groups: Mapping[str, Sequence[Record]], key: str) -> dict[str, Cell]:
    """A figure of every method that has it.

    Videos and seeds are drawn with replacement, the same videos for all methods; a method with one seed has an interval
    of its videos alone. Where a figure should come near to the truth's own, it is the distance to that.

    Args:
        groups: method -> its records, one for each seed; the first method is the one that others are compared with.
        key: `METRIC/REGION`.
    """
    records = [record for group in groups.values() for record in group]
    facts = next((r["metrics"][n] for r in records if (n := key.rpartition("/")[0]) in r["metrics"]), None)
    if facts is None:
        return {}
    if facts["kind"] == "set":
        return _set_cells(groups, key)
    values = {name: _by_seed_and_video(group, key, facts["better"]) for name, group in groups.items()}
    values = {name: (videos, table) for name, (videos, table) in values.items() if videos}
    shared = sorted(set.intersection(*(set(videos) for videos, _ in values.values()))) if values else []
    if not shared:
        return {}
    tables = {name: table[:, [videos.index(video) for video in shared]] for name, (videos, table) in values.items()}
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(shared), (DRAWS, len(shared)))
    samples = {name: _drawn_means(table, drawn, rng) for name, table in tables.items()}
    first, found = next(iter(groups)), {}
    for name, table in tables.items():
        against = None
        if name != first and first in tables:
            gap = interval(samples[name] - samples[first], LEVEL)
            against = (float(table.mean() - tables[first].mean()), *gap)
        found[name] = Cell(float(table.mean()), *interval(samples[name], LEVEL), against)
    return found


def _drawn_means(table: Floats, drawn: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Means of bootstrap samples of a table [seeds, videos]: its videos as `drawn` [D, V] says, its seeds at random."""
    seeds = rng.integers(0, len(table), (len(drawn), len(table)))
    by_seed = np.stack([row[drawn].mean(1) for row in table], 1)  # [D, seeds]
    return np.asarray(np.take_along_axis(by_seed, seeds, 1).mean(1))


def _by_seed_and_video(group: Sequence[Record], key: str, better: str) -> tuple[list[str], Floats]:
    """Values [seeds, videos], and the videos that have one under every seed."""
    rows = []
    for record in group:
        clips: dict[str, list[float]] = {}
        for name, clip in record["clips"].items():
            value, truth = clip["values"].get(key), clip["truth"].get(key)
            if better == "truth" and value is not None:
                value = None if truth is None else abs(value - truth)
            if value is not None:
                clips.setdefault(name.partition("@")[0], []).append(value)
        rows.append({video: float(np.mean(found)) for video, found in clips.items()})
    videos = sorted(set.intersection(*(set(row) for row in rows)))
    return videos, np.array([[row[video] for video in videos] for row in rows])


def _set_cells(groups: Mapping[str, Sequence[Record]], key: str) -> dict[str, Cell]:
    """A distance of whole sets: mean, least and greatest over seeds."""
    found = {}
    for name, group in groups.items():
        known = [value for record in group if (value := record["sets"].get(key)) is not None]
        if known:
            found[name] = Cell(float(np.mean(known)), min(known), max(known))
    return found


def figure_table(
    groups: Mapping[str, Sequence[Record]], figures: Sequence[tuple[str, str]], heads: Sequence[str]
) -> list[str]:
    """Markdown: a row for each figure, a column for each method.

    Args:
        groups: as for `cells`.
        figures: (key, label).
        heads: names of the columns, in the order of the groups.
    """
    lines = ["| figure | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for key, label in figures:
        row = cells(groups, key)
        texts = [number(row[name].mean) + _range(row[name]) if name in row else "-" for name in groups]
        lines.append(f"| {label}{_arrow(groups, key)} | " + " | ".join(texts) + " |")
    return lines


def difference_table(
    groups: Mapping[str, Sequence[Record]], figures: Sequence[tuple[str, str]], heads: Sequence[str]
) -> list[str]:
    """Markdown: as `figure_table`, each method's difference to the first; bold where the interval leaves out zero."""
    lines = ["| figure | " + " | ".join(heads[1:]) + " |", "|---" * len(heads) + "|"]
    for key, label in figures:
        row, texts = cells(groups, key), []
        for name in list(groups)[1:]:
            against = row[name].against if name in row else None
            if against is None:
                texts.append("-")
                continue
            mean, low, high = against
            bold = "**" if low > 0 or high < 0 else ""
            texts.append(f"{bold}{mean:+.3g}{bold} [{low:+.3g}, {high:+.3g}]")
        if any(text != "-" for text in texts):
            lines.append(f"| {label}{_arrow(groups, key)} | " + " | ".join(texts) + " |")
    return [*lines, "", "Bold: the interval leaves out zero. No correction for the number of figures."]


def number(value: float) -> str:
    """A value in few characters."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _arrow(groups: Mapping[str, Sequence[Record]], key: str) -> str:
    name = key.rpartition("/")[0]
    facts = next((r["metrics"][name] for group in groups.values() for r in group if name in r["metrics"]), None)
    return {"higher": " ↑", "lower": " ↓", "truth": "* ↓"}.get(facts["better"], "") if facts else ""


def _range(cell: Cell) -> str:
    return "" if cell.low == cell.high else f" [{number(cell.low)}, {number(cell.high)}]"


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: round(value, 6) if math.isfinite(value) else None for key, value in values.items()}
