"""`report.html` of a run folder: one file that opens from disk, without scripts and without asking any other place.

It is made from what lies in the folder alone (`config.json`, `about.json`, `log.jsonl`, `samples/`, `checkpoints/`,
`skipped.txt`), so it can be made again at any time, also of a killed run: `python -m xdyna.train.report RUN`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.data.source import SKIPPED
from xdyna.errors import UserError
from xdyna.files import written_whole
from xdyna.page import data_uri, html_page, section, table
from xdyna.train import curves
from xdyna.train.curves import Chart, Line
from xdyna.train.sample_files import Sample, read_samples

REPORT = "report.html"
ABOUT = "about.json"
EARLIER = 8  # sheets before the last one
LARGEST_BYTES = 6_000_000  # of one picture or video inside the page; larger ones are shown smaller, or linked
SHOWN_SKIPPED = 200
#: What this page has beyond the common style.
STYLE = """
video { width: 46rem }
.earlier { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .8rem }
.earlier span { color: var(--soft); font-size: .85em }
"""
FIRST_CHARTS = {"loss": "Loss", "grad": "Gradient norm", "lr": "Learning rate"}


def write_report(run: Path, state: str = "") -> Path:
    """Write `RUN/report.html`, whole or not at all.

    Args:
        run: a run folder; what is missing in it is left out.
        state: what the run is doing, in a word: "running", "finished", "stopped".
    Returns:
        the file.
    Raises:
        UserError: no run folder, or it cannot be written.
    """
    if not (run / "config.json").is_file():
        raise UserError(f"{run}: no config.json in it; wanted the folder of a training run")
    log = read_log(run / "log.jsonl")
    last_step = max((points[-1][0] for points in log.values()), default=0)
    samples = read_samples(run, last_step)
    settings = _read_json(run / "config.json")
    about = _read_json(run / ABOUT)
    title = f"{settings.get('recipe', 'training')}: {run.resolve().name}"
    body = [
        _head(title, state, last_step, settings, log),
        section("Curves", "".join(f"{curves.draw(chart)}\n" for chart in charts(log, samples)), "charts"),
        _samples(run, samples),
        section("Trained parameters", _parameters(about.get("parts", []))),
        section("Checkpoints", _checkpoints(run)),
        section("Left out of the data", _skipped(run)),
        section("Settings", _settings(settings, about.get("changed", []))),
        section("Environment", table((), ([key, value] for key, value in about.get("environment", {}).items()))),
    ]
    with written_whole(run / REPORT) as path:
        path.write_text(html_page(title, "\n".join(body), STYLE + curves.STYLE), encoding="utf-8")
    return run / REPORT


def read_log(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The log as (step, value) pairs of each key, in its order; lines that a kill cut off and NaNs are left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    if not path.is_file():
        return found
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            step = int(entry.pop("step"))
            for key, value in entry.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    found.setdefault(key, []).append((step, float(value)))
    return found


def charts(log: Mapping[str, Sequence[tuple[int, float]]], samples: Sequence[Sample]) -> list[Chart]:
    """Loss with validation, gradient norm and rate, what else the system told, and what was measured on the samples."""
    validation = Line("validation", log.get("validation", []))
    found = []
    for key, title in {**FIRST_CHARTS, **{key: key for key in log if key not in {*FIRST_CHARTS, "validation"}}}.items():
        if key != "time":
            line = Line("training" if key == "loss" else title, log.get(key, []))
            found.append(Chart(title, (line, validation) if key == "loss" and validation.points else (line,)))
    measured: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for sample in samples:
        for title, lines in sample.figures.items():
            for name, value in lines.items():
                if math.isfinite(value):
                    measured.setdefault(title, {}).setdefault(name, []).append((sample.step, value))
    for title, named in measured.items():
        found.append(Chart(title, tuple(Line(name, points) for name, points in named.items())))
    return found


# -- parts of the page -----------------------------------------------------------------------------------------------


def _head(
    title: str, state: str, step: int, settings: Mapping[str, Any], log: Mapping[str, Sequence[tuple[int, float]]]
) -> str:
    tiles = [("steps", f"{step:,} of {settings.get('steps', 0):,}")]
    if log.get("loss"):
        tiles.append(("loss, last 100 steps", curves.number(_mean([value for _, value in log["loss"][-100:]]))))
    if log.get("validation"):
        best_step, best = min(log["validation"], key=lambda point: point[1])
        tiles.append((f"lowest validation loss (step {best_step:,})", curves.number(best)))
    times = [value for _, value in log.get("time", [])]
    gaps = sorted(later - earlier for earlier, later in pairwise(times[-101:]))
    if gaps and gaps[len(gaps) // 2] > 0:
        pace_s = gaps[len(gaps) // 2]
        tiles.append(("seconds per step", curves.number(pace_s)))
    if times:
        tiles.append(("first to last step", _span(times[-1] - times[0])))
    words = f"{escape(state)}, " if state else ""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    shown = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles)
    return f'<header><h1>{escape(title)}</h1><p>{words}written {now}</p><div class="tiles">{shown}</div></header>'


def _samples(run: Path, samples: Sequence[Sample]) -> str:
    """The last sample large, with its video; some of the earlier ones small."""
    shown = [sample for sample in samples if sample.sheet or sample.video]
    if not shown:
        return ""
    *before, last = shown
    parts = [f"<p>Step {last.step:,}. {escape(last.caption)}</p>"]
    if last.video:
        link = f'<a href="{escape(_relative(run, last.video))}">{escape(_relative(run, last.video))}</a>'
        if last.video.stat().st_size <= LARGEST_BYTES:
            data = data_uri(last.video.read_bytes(), "video/mp4")
            parts.append(f'<video controls loop muted playsinline src="{data}"></video>')
        parts.append(f"<p>{link}</p>")
    if last.sheet:
        parts.append(_picture(run, last, 0))
    strides = np.unique(np.linspace(0, len(before) - 1, min(EARLIER, len(before))).round().astype(int))
    earlier = [f"<div>{_picture(run, before[k], 480)}<span>step {before[k].step:,}</span></div>" for k in strides]
    if earlier:
        parts.append(f'<h3>Before</h3><div class="earlier">{"".join(earlier)}</div>')
    return section("Samples", "".join(parts))


def _picture(run: Path, sample: Sample, width_px: int) -> str:
    """A sheet inside the page, linked to its file; at most `width_px` wide unless that is 0."""
    if sample.sheet is None:
        return ""
    data = sample.sheet.read_bytes()
    kind = "image/png"
    if width_px or len(data) > LARGEST_BYTES:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            return f"<p>{escape(sample.sheet.name)} cannot be read.</p>"
        data, kind = _as_jpeg(picture.astype(np.uint8), width_px or 1600), "image/jpeg"
    name = escape(_relative(run, sample.sheet))
    return f'<a href="{name}"><img src="{data_uri(data, kind)}" alt="samples of step {sample.step}"></a>'


def _as_jpeg(picture: NDArray[np.uint8], width_px: int) -> bytes:
    height, width = picture.shape[:2]
    if width > width_px:
        size_wh = (width_px, max(round(height * width_px / width), 1))
        picture = cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


def _parameters(parts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [part["name"], f"{part['tensors']:,}" if part["tensors"] else "", f"{part['trained']:,}", f"{part['all']:,}",
         f"{part['trained'] / max(part['all'], 1):.1%}"]
        for part in parts
    ]  # fmt: skip
    return table(("part", "tensors that train", "parameters that train", "parameters", "share"), rows)


def _checkpoints(run: Path) -> str:
    folders = sorted((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    found = [(path, _read_json(path / "state.json").get("validation")) for path in folders]
    losses = [loss for _, loss in found if loss is not None]
    rows = []
    for path, loss in found:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        text = "" if loss is None else curves.number(loss) + (" (lowest here)" if loss == min(losses) else "")
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(path.stat().st_mtime))
        rows.append([_relative(run, path), text, f"{size / 1e6:.1f} MB", written])
    return table(("folder", "validation loss", "size", "written (UTC)"), rows)


def _skipped(run: Path) -> str:
    path = run / SKIPPED
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    if not lines:
        return "<p>Nothing.</p>"
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:SHOWN_SKIPPED])
    more = len(lines) - SHOWN_SKIPPED
    rest = f"<p>And {more:,} more, see {SKIPPED}.</p>" if more > 0 else ""
    return f"<ul>{items}</ul>{rest}"


def _settings(settings: Mapping[str, Any], changed: Iterable[str]) -> str:
    """Every setting; those that differ from the recipe's defaults first."""
    values = flat(settings)
    marked = [key for key in changed if key in values]
    others = [key for key in values if key not in marked]
    parts = []
    if marked:
        parts.append("<h3>Not the defaults</h3>" + table((), ([key, _shown(values[key])] for key in marked)))
    if others:
        rest = table((), ([key, _shown(values[key])] for key in others))
        parts.append(f"<details><summary>{'The others' if marked else 'All settings'}</summary>{rest}</details>")
    return "".join(parts)


# -- small things ----------------------------------------------------------------------------------------------------


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys, as `--set` takes them."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, or only a part of it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _relative(run: Path, path: Path) -> str:
    return path.relative_to(run).as_posix()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m xdyna.train.report RUN")
    try:
        print(write_report(Path(sys.argv[1])))
    except UserError as error:
        sys.exit(str(error))
