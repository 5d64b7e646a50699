"""`report.html`: results of one protocol as one page with tables, plots and clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from xdyna.configs.evaluate import ProtocolConfig
from xdyna.errors import UserError, near_matches
from xdyna.files import make_folder, written_whole
from xdyna.infer.evaluate.protocol import Protocol
from xdyna.infer.evaluate.report import plots
from xdyna.infer.evaluate.report.methods import LEVEL, Gathered, gather
from xdyna.infer.evaluate.report.strips import Strip, frame_curves, make_strip, worst_and_best
from xdyna.infer.evaluate.report.tables import (
    arrow,
    clips_table,
    drawn_keys,
    facts,
    figures_table,
    left_out,
    paper_table,
)
from xdyna.infer.evaluate.resample import interval, mean_draws
from xdyna.infer.evaluate.results import ClipLine
from xdyna.page import html_page, section

OnProgress = Callable[[str, int, int], None]

#: Most clips of a method that the curves over time are read from.
CURVE_CLIPS = 64

STYLE = """
body { max-width: 84rem } thead th { cursor: pointer; white-space: nowrap } .sorts td { white-space: nowrap }
thead th[aria-sort=ascending]::after { content: " ▲" } thead th[aria-sort=descending]::after { content: " ▼" }
td small { color: var(--soft) } .best { font-weight: 650 }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1rem 1.5rem }
.strip video { width: 100%; margin: .2rem 0; border-radius: 0; cursor: pointer }
.strip div { display: flex; font-size: .8em; color: var(--soft) }
.strip div span { flex: 1; text-align: center } .strip p { margin: 0 }
"""
#: Clicking a head sorts by its column: numbers by `data-v`, those without a value last. Clicking a clip halts it.
SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)], [p, q] = [parseFloat(x), parseFloat(y)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const apart = Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q;
      return down ? -apart : apart;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
for (const video of document.querySelectorAll("video"))
  video.addEventListener("click", () => video.paused ? video.play() : video.pause());
"""


@dataclass(frozen=True)
class ReportJob:
    """What to put on a page.

    Attributes:
        files: of results.
        out: the page.
        by: the figure that tells worst from best clips; None: PSNR, or the first that there is.
        strips: worst, and as many best clips, of every method; 0 for none.
    """

    files: tuple[Path, ...]
    out: Path
    by: str | None = None
    strips: int = 3


def write_report(job: ReportJob, on_progress: OnProgress = lambda stage, done, total: None) -> list[str]:
    """Write the page, whole or not at all; returns notes on what could not be shown.

    Raises:
        UserError: what `gather` refuses, no such figure, or the page cannot be written.
    """
    found = gather(job.files)
    key = chosen_key(found, job.by)
    notes: list[str] = []
    body = [
        _head(found, job),
        section("As the paper reports", paper_table(found)),
        section("All figures", figures_table(found)),
        section("Over the clips", "".join(_distributions(found)), "charts"),
        section("Over time", "".join(_curves(found, notes, on_progress)), "charts"),
        section("By scene", "".join(_scenes(found)), "charts"),
        section(f"Worst and best clips by {key}", _strips(found, key, job.strips, notes, on_progress)),
        section("Every clip", clips_table(found)),
        section("Left out", left_out(found, notes)),
        section("Protocol and models", facts(found)),
    ]
    make_folder(job.out.parent)
    page = html_page(
        f"xdyna eval: {', '.join(m.name for m in found.methods)}", "\n".join(body), STYLE + plots.STYLE, SCRIPT
    )
    with written_whole(job.out) as part:
        part.write_text(page, encoding="utf-8")
    return notes


def chosen_key(found: Gathered, by: str | None) -> str:
    """The figure that ranks clips.

    Raises:
        UserError: no clip has it.
    """
    keys = found.keys("clip")
    if by is None:
        return next((key for key in ("psnr/all", *keys) if key in keys), "")
    name = by if "/" in by else f"{by}/all"
    if name not in keys:
        raise UserError(f"--by {by}: no clip has that figure{near_matches(name, keys)}")
    if found.better(name) == "none":
        raise UserError(f"--by {by}: says neither good nor bad, so it cannot rank clips; wanted another figure")
    return name


def _head(found: Gathered, job: ReportJob) -> str:
    data = found.header.get("dataset") or {}
    clips = max((len(method.lines) for method in found.methods), default=0)
    tiles = [
        ("protocol", found.label), ("test set", str(data.get("name", "files by name"))), ("clips a method", str(clips)),
        ("methods", str(len(found.methods))), ("pairs that failed", str(len(found.failed))),
    ]  # fmt: skip
    shown = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles)
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    files = ", ".join(file.name for file in job.files)
    return (
        f"<header><h1>Evaluation</h1><p>{escape(files)}; written {now}. Every number on this page is by protocol "
        f'{escape(found.label)}.</p><div class="tiles">{shown}</div></header>'
    )


def _distributions(found: Gathered) -> list[str]:
    drawn = []
    for key in drawn_keys(found):
        values = {method.name: list(method.clip_values(key).values()) for method in found.methods}
        truths = [
            figure.truth for method in found.methods if (figure := method.figure(key)) and figure.truth is not None
        ]
        title = f"{key} {arrow(found.better(key))}".strip()
        drawn.append(plots.distributions(title, found.unit(key), values, truths[0] if truths else None))
    return drawn


def _scenes(found: Gathered) -> list[str]:
    drawn = []
    rng = np.random.default_rng(0)
    for key in drawn_keys(found):
        values: dict[str, dict[str, tuple[float, float, float]]] = {}
        for method in found.methods:
            scenes: dict[str, list[float]] = {}
            for line in method.lines:
                value = line.values.get(key, float("nan"))
                if line.scene and np.isfinite(value):
                    scenes.setdefault(line.scene, []).append(value)
            values[method.name] = {scene: _mean_and_ends(found, rng) for scene, found in scenes.items()}
        if len({scene for known in values.values() for scene in known}) > 1:
            drawn.append(plots.by_scene(f"{key} {arrow(found.better(key))}".strip(), found.unit(key), values))
    return drawn


def _mean_and_ends(values: Sequence[float], rng: np.random.Generator) -> tuple[float, float, float]:
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    return mean, *interval(mean_draws(np.asarray(values), 1000, rng), LEVEL)


def _curves(found: Gathered, notes: list[str], on_progress: OnProgress) -> list[str]:
    """Error and change frame by frame, means over the clips whose files are at hand."""
    protocol = _protocol(found)
    errors: dict[str, list[float]] = {}
    changes: dict[str, list[float]] = {}
    truth: list[float] = []
    total = sum(min(len(method.lines), CURVE_CLIPS) for method in found.methods)
    done = 0
    for method in found.methods:
        places = np.unique(
            np.linspace(0, len(method.lines) - 1, min(len(method.lines), CURVE_CLIPS)).round().astype(int)
        )
        rows: list[tuple[list[float], list[float], list[float]]] = []
        for place in places:
            done += 1
            on_progress("curves", done, total)
            try:
                rows.append(frame_curves(method.lines[place], protocol))
            except UserError as error:
                notes.append(f"curves of {method.name}: {error}")
                break
        errors[method.name] = _mean_curve([row[0] for row in rows])
        changes[method.name] = _mean_curve([row[1] for row in rows])
        truth = truth or _mean_curve([row[2] for row in rows])
    fps = protocol.config.fps
    return [
        plots.over_time("Mean absolute error", "grey levels", errors, fps),
        plots.over_time("Change from frame to frame", "grey levels", {**changes, "truth": truth}, fps),
    ]


def _mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    known = [curve for curve in curves if curve]
    if not known:
        return []
    longest = max(map(len, known))
    return [float(np.mean([curve[at] for curve in known if at < len(curve)])) for at in range(longest)]


def _strips(found: Gathered, key: str, count: int, notes: list[str], on_progress: OnProgress) -> str:
    if not key or not count:
        return ""
    protocol, parts = _protocol(found), []
    chosen = [(method, *worst_and_best(method.lines, key, found.better(key), count)) for method in found.methods]
    total, done = sum(len(worst) + len(best) for _, worst, best in chosen), 0
    for method, worst, best in chosen:
        for words, lines in (("worst", worst), ("best", best)):
            shown = []
            for line in lines:
                done += 1
                on_progress("clips", done, total)
                try:
                    shown.append(_strip(line, key, make_strip(line, protocol)))
                except UserError as error:
                    notes.append(f"{method.name}, {line.clip}: {error}")
            if shown:
                title = escape(f"{method.name}: {words}")
                parts.append(f'<h3>{title}</h3><div class="strips">{"".join(shown)}</div>')
    return "".join(parts)


def _strip(line: ClipLine, key: str, strip: Strip) -> str:
    names = "".join(f"<span>{escape(name)}</span>" for name in strip.columns)
    words = escape(f"{line.clip}{', ' + line.scene if line.scene else ''}: {key} {line.values[key]:.4g}")
    size = f'width="{strip.size_wh[0]}" height="{strip.size_wh[1]}"'
    video = f'<video autoplay loop muted playsinline {size} src="{strip.source}"></video>'
    return f'<div class="strip"><p>{words}</p><div>{names}</div>{video}</div>'


def _protocol(found: Gathered) -> Protocol:
    content: Mapping[str, Any] = found.header["protocol"]
    return Protocol(ProtocolConfig.model_validate(content["config"]), content["versions"])
