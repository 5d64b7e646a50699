"""The tables of the page: as the paper reports, every figure, every clip, and what is not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from xdyna.infer.evaluate.report.methods import LEVEL, Figure, Gathered, Method
from xdyna.page import table

#: Columns of the paper's tables, with what we measure in their place where its networks are not at hand.
PAPER = (
    ("FG-DTFVD", "dtfvd/fg"), ("BG-DTFVD", "dtfvd/bg"), ("DTFVD", "dtfvd/all"),
    ("FG-DTFVD-synth", "dtfvd-synth/fg"), ("BG-DTFVD-synth", "dtfvd-synth/bg"), ("DTFVD-synth", "dtfvd-synth/all"),
    ("Face-Cos", "face-cos/all"), ("Face-Exp", "face-exp/all"), ("Face-Det", "face-det/all"),
    ("FID", "fid/all"), ("FVD", "fvd/all"), ("cd-FVD", "cd-fvd/all"),
    ("L1", "l1/all"), ("PSNR", "psnr/all"), ("SSIM", "ssim/all"), ("LPIPS", "lpips/all"),
)  # fmt: skip
#: Figures that are drawn, where there are any values.
DRAWN = (
    "psnr/all", "psnr/fg", "psnr/bg", "ssim/all", "motion-map/bg", "motion-energy/fg", "motion-energy/bg",
    "dynamic-degree/bg", "flicker/all", "colour/fg", "joints-synth/all", "pose/all",
)  # fmt: skip


def drawn_keys(found: Gathered) -> list[str]:
    """The figures that plots and the table of clips show."""
    keys = found.keys("clip")
    return [key for key in DRAWN if key in keys] or keys[:6]


def paper_table(found: Gathered) -> str:
    """A row for each method, in the form of the paper's tables."""
    heads = ["method", *(f"{label} {arrow(found.better(key))}".strip() for label, key in PAPER)]
    rows = [[_named(method.name), *_row_cells(found, method, [key for _, key in PAPER])] for method in found.methods]
    absent = [label for label, key in PAPER if all(method.figure(key) is None for method in found.methods)]
    words = (
        "<p>Columns and directions are the paper's; its test set and its sampling were never published, so its numbers "
        "stand beside these only as far as yours were made like them. Those ending in -synth are from networks trained "
        "on drawn clips, which are not the paper's.</p>"
    )
    if absent:
        words += f"<p>Without values: {escape(', '.join(absent))}; the reasons are under Left out.</p>"
    return words + _sortable(heads, rows)


def figures_table(found: Gathered) -> str:
    """A row for each figure."""
    methods = found.methods
    heads = ["figure", "unit", "better", *(method.name for method in methods), "truth", "clips"]
    rows = []
    for key in [*found.keys("clip"), *found.keys("set")]:
        figures = [method.figure(key) for method in methods]
        known = [figure for figure in figures if figure is not None]
        if not known:
            continue
        truth = next((figure.truth for figure in known if figure.truth is not None), None)
        cells = _marked(figures, found.better(key))
        rest = [_cell("" if truth is None else f"{truth:.4g}", truth), _cell(str(known[0].count), known[0].count)]
        rows.append([_named(key), _cell(found.unit(key)), _cell(arrow(found.better(key))), *cells, *rest])
    note = (
        f"<p>Mean over clips, in brackets the {LEVEL:.0%} interval of a bootstrap over videos; Frechet distances, of "
        "all clips together, have none here (<code>xdyna eval compare</code> gives it). Bold: best, or nearest to "
        "the truth's own value.</p>"
    )
    return note + _sortable(heads, rows) if rows else ""


def clips_table(found: Gathered) -> str:
    """A row for each clip and method, figures of whole pictures first."""
    keys = drawn_keys(found)
    rows = []
    for method in found.methods:
        for line in method.lines:
            values = [line.values.get(key, float("nan")) for key in keys]
            cells = [_cell(f"{v:.4g}", v) if np.isfinite(v) else _cell("", "") for v in values]
            rows.append([_named(line.clip), _cell(method.name), _cell(line.scene), *cells])
    heads = ["clip", "method", "scene", *(f"{key} {arrow(found.better(key))}".strip() for key in keys)]
    inside = _sortable(heads, rows)
    return f"<details><summary>{len(rows)} clips</summary>{inside}</details>" if rows else ""


def left_out(found: Gathered, notes: Sequence[str]) -> str:
    parts = [table(("metric", "why"), list(found.missing.items()))]
    failed = [[video, method, reason] for method, video, reason in found.failed]
    if failed:
        parts.append("<h3>Pairs that failed</h3>" + table(("video", "method", "why"), failed))
    warnings = [[method.name, text] for method in found.methods if method.sets for text in method.sets.warnings]
    if warnings:
        parts.append("<h3>Warnings</h3>" + table(("method", ""), warnings))
    if notes:
        parts.append("<h3>Not shown</h3><ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    return "".join(parts)


def facts(found: Gathered) -> str:
    protocol = found.header["protocol"]
    rows = [*protocol["config"].items(), *((f"{name} (version)", text) for name, text in protocol["versions"].items())]
    rows.append(("SHA-256", found.header["protocol_hash"]))
    models = [
        [method.name, json.dumps(method.facts, sort_keys=True)[:600] or "files by name"] for method in found.methods
    ]
    return table((), rows) + "<h3>Models</h3>" + table((), models)


def _marked(figures: Sequence[Figure | None], better: str) -> list[str]:
    """Cells of one figure, the best in bold."""
    apart = [_loss(figure, better) for figure in figures]
    known = [value for value in apart if value is not None]
    best = min(known) if len(known) > 1 else None
    return [_number(figure, value is not None and value == best) for figure, value in zip(figures, apart, strict=True)]


def _row_cells(found: Gathered, method: Method, keys: Sequence[str]) -> list[str]:
    cells = []
    for key in keys:
        own = method.figure(key)
        losses = [_loss(other.figure(key), found.better(key)) for other in found.methods]
        known = [value for value in losses if value is not None]
        mine = _loss(own, found.better(key))
        cells.append(_number(own, len(known) > 1 and mine is not None and mine == min(known)))
    return cells


def _loss(figure: Figure | None, better: str) -> float | None:
    if figure is None or better == "none" or (better == "truth" and figure.truth is None):
        return None
    if better == "truth":
        assert figure.truth is not None
        return abs(figure.value - figure.truth)
    return -figure.value if better == "higher" else figure.value


def _number(figure: Figure | None, best: bool = False) -> str:
    if figure is None:
        return _cell("–", "")
    text = f"{figure.value:.4g}"
    if best:
        text = f'<span class="best">{text}</span>'
    if figure.low is not None and figure.high is not None:
        text += f" <small>[{figure.low:.4g}, {figure.high:.4g}]</small>"
    return f'<td data-v="{figure.value!r}">{text}</td>'


def _cell(text: str, value: Any = None) -> str:
    mark = "" if value is None else f' data-v="{escape(str(value))}"'
    return f"<td{mark}>{escape(text)}</td>"


def _named(text: str) -> str:
    return f'<th scope="row">{escape(text)}</th>'


def arrow(better: str) -> str:
    return {"higher": "↑", "lower": "↓", "truth": "→ truth"}.get(better, "")


def _sortable(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="sorts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
