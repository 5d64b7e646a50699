"""The page of an ablation: tables with intervals and a picture strip, made from the records of its runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.configs.ablation import AblationConfig, AblationFigure
from xdyna.errors import UserError
from xdyna.files import make_folder, written_whole
from xdyna.infer.evaluate.resample import interval
from xdyna.infer.load import choose_model
from xdyna.photo import write_png
from xdyna.train.ablation import Trial, Workshop, check_record, terms_of

Floats = NDArray[np.float64]
Records = Mapping[Trial, Mapping[str, Any]]

DRAWS, LEVEL, SEED = 10_000, 0.95, 0
#: Of a strip's clips, so many frames at even distances.
STRIP_FRAMES = 4


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


def read_records(shop: Workshop) -> dict[Trial, dict[str, Any]]:
    """The records that are there, in the plan's order.

    Raises:
        UserError: none is there, or one is of another plan.
    """
    base = choose_model(str(shop.plan.base)).sha256
    found = {}
    for trial in shop.trials():
        if shop.record_path(trial).exists():
            found[trial] = check_record(shop.record_path(trial), terms_of(shop.plan, trial, base))
    if not found:
        raise UserError(f"{shop.records}: holds no record of this plan, wanted one run at least")
    return found


def write_page(shop: Workshop, page: Path, picture: Path, command: str) -> list[Path]:
    """Write the page, and the strip where the runs' videos are at hand; returns what was written."""
    records = read_records(shop)
    make_folder(page.parent)
    strip = strip_of(shop, list(records))
    written = [page]
    if strip is not None:
        make_folder(picture.parent)
        write_png(picture, strip)
        written.append(picture)
    link = Path(os.path.relpath(picture.resolve(), page.parent.resolve())).as_posix()
    with written_whole(page) as part:
        part.write_text(page_text(shop.plan, records, command, link if picture.exists() else ""), encoding="utf-8")
    return written


def page_text(plan: AblationConfig, records: Records, command: str, picture: str) -> str:
    """The page in Markdown."""
    methods = [m.name for m in plan.methods if any(trial.method == m.name for trial in records)]
    lines = ["# Ways to show a model its reference, compared", ""]
    lines += [f"Written by `{command}`; every number comes from a record.", ""]
    lines += [*_about(plan, records), "", "## Figures", ""]
    lines += _table(plan, records, methods)
    lines += ["", "## Differences to " + plan.method(methods[0]).label, ""]
    lines += _differences(plan, records, methods)
    lines += ["", "## Runs", "", *_runs(plan, records)]
    if picture:
        lines += ["", "## Pictures", "", *_caption(plan, methods), "", f"![strips]({picture})"]
    return "\n".join(lines) + "\n"


def cells(plan: AblationConfig, records: Records, key: str, methods: Sequence[str]) -> dict[str, Cell]:
    """A figure of every method that has it.

    Videos and seeds are drawn with replacement, the same videos for all methods; a method with one seed has an interval
    of its videos alone.
    """
    first = next(iter(records.values()))
    facts = first["metrics"].get(key.rpartition("/")[0])
    if facts is None:
        return {}
    if facts["kind"] == "set":
        return _set_cells(records, key, methods)
    values = {name: _by_seed_and_video(records, key, name, facts["better"]) for name in methods}
    shared = sorted(set.intersection(*(set(videos) for videos, _ in values.values())))
    if not shared:
        return {}
    tables = {name: table[:, [videos.index(video) for video in shared]] for name, (videos, table) in values.items()}
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(shared), (DRAWS, len(shared)))
    samples = {name: _drawn_means(table, drawn, rng) for name, table in tables.items()}
    found = {}
    for name, table in tables.items():
        against = None
        if name != methods[0]:
            gap = samples[name] - samples[methods[0]]
            against = (float(table.mean() - tables[methods[0]].mean()), *interval(gap, LEVEL))
        found[name] = Cell(float(table.mean()), *interval(samples[name], LEVEL), against)
    return found


def _drawn_means(table: Floats, drawn: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Means of bootstrap samples of a table [seeds, videos]: its videos as `drawn` [D, V] says, its seeds at random."""
    seeds = rng.integers(0, len(table), (len(drawn), len(table)))
    by_seed = np.stack([row[drawn].mean(1) for row in table], 1)  # [D, seeds]
    return np.take_along_axis(by_seed, seeds, 1).mean(1)


def _by_seed_and_video(records: Records, key: str, method: str, better: str) -> tuple[list[str], Floats]:
    """A method's values [seeds, videos], and the videos that have one under every seed.

    Where a figure should come near to the truth's own, the value is its distance to that.
    """
    rows = []
    for trial, record in records.items():
        if trial.method != method:
            continue
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


def _set_cells(records: Records, key: str, methods: Sequence[str]) -> dict[str, Cell]:
    """A distance of whole sets: mean, least and greatest over seeds."""
    found = {}
    for name in methods:
        values = [record["sets"].get(key) for trial, record in records.items() if trial.method == name]
        known = [value for value in values if value is not None]
        if known:
            found[name] = Cell(float(np.mean(known)), min(known), max(known))
    return found


def _about(plan: AblationConfig, records: Records) -> list[str]:
    first = next(iter(records.values()))
    missing = ", ".join(sorted(first["missing"])) or "none"
    data = first["dataset"]
    return [
        f"All runs start from the same frozen weights (`{plan.base}`, {first['terms']['base_sha256'][:12]}) and train "
        f"what is compared alone, for {plan.train['steps']} steps of the same clips in the same order. Test clips: "
        f"{data['name']}, {data['clips']} clips ({data['sha256'][:12]}), seen by no run; protocol "
        f"{first['protocol']['config']['version']}:{first['terms']['protocol'][:12]}.",
        "",
        f"Brackets are {LEVEL:.0%} intervals of a bootstrap over videos and seeds; with one seed (so marked) over "
        "videos alone, which says nothing about another training. Of Frechet distances, of all clips together, "
        "they are the least and greatest over seeds. Figures with * are distances to the truth's own value.",
        f"Left out because their networks' weights are not at hand: {missing}.",
    ]


def _label(plan: AblationConfig, records: Records, method: str) -> str:
    count = sum(trial.method == method for trial in records)
    label = plan.method(method).label
    return f"{label} ({count} seed{'s' if count > 1 else ', no spread known'})"


def _head(records: Records, figure: AblationFigure) -> str:
    facts = next(iter(records.values()))["metrics"].get(figure.key.rpartition("/")[0])
    if facts is None:
        return figure.label
    arrow = {"higher": " ↑", "lower": " ↓", "truth": "* ↓"}.get(facts["better"], "")
    return figure.label + arrow


def _table(plan: AblationConfig, records: Records, methods: Sequence[str]) -> list[str]:
    lines = ["| figure | " + " | ".join(_label(plan, records, name) for name in methods) + " |"]
    lines.append("|---" * (len(methods) + 1) + "|")
    for figure in plan.figures:
        row = cells(plan, records, figure.key, methods)
        texts = [_number(row[name].mean) + _range(row[name]) if name in row else "-" for name in methods]
        lines.append(f"| {_head(records, figure)} | " + " | ".join(texts) + " |")
    return lines


def _differences(plan: AblationConfig, records: Records, methods: Sequence[str]) -> list[str]:
    lines = ["| figure | " + " | ".join(plan.method(name).label for name in methods[1:]) + " |"]
    lines.append("|---" * len(methods) + "|")
    for figure in plan.figures:
        row = cells(plan, records, figure.key, methods)
        texts = []
        for name in methods[1:]:
            against = row[name].against if name in row else None
            if against is None:
                texts.append("-")
                continue
            mean, low, high = against
            bold = "**" if low > 0 or high < 0 else ""
            texts.append(f"{bold}{mean:+.3g}{bold} [{low:+.3g}, {high:+.3g}]")
        lines.append(f"| {_head(records, figure)} | " + " | ".join(texts) + " |")
    return [*lines, "", "Bold: the interval leaves out zero. No correction for the number of figures."]


def _runs(plan: AblationConfig, records: Records) -> list[str]:
    lines = ["| run | recipe | steps | minutes | loss of the last steps |", "|---|---|---|---|---|"]
    for trial, record in records.items():
        training = record["training"]
        lines.append(
            f"| {trial.name} | `{plan.method(trial.method).recipe}` | {training['steps']} | "
            f"{training['seconds'] / 60:.1f} | {training['loss_of_last_steps']:.4f} |"
        )
    waiting = sum(len(method.seeds) for method in plan.methods) - len(records)
    return [*lines, "", f"Runs still to do: {waiting}."]


def _caption(plan: AblationConfig, methods: Sequence[str]) -> list[str]:
    names = ["reference", "pose map", "truth", *(plan.method(name).label for name in methods)]
    return [f"Rows, from the top, for each clip: {', '.join(names)}. First seeds; {STRIP_FRAMES} frames of each clip."]


def strip_of(shop: Workshop, trials: Sequence[Trial]) -> NDArray[np.uint8] | None:
    """Clips side by side, rows of frames below each other; None where the videos are not at hand."""
    shown: list[Trial] = []
    for trial in trials:
        if all(trial.method != other.method for other in shown):
            shown.append(trial)
    columns = []
    for clip in shop.plan.strip:
        rows = [
            shop.data / "pose" / clip,
            shop.data / "truth" / clip,
            *(shop.videos(trial) / clip for trial in shown),
        ]
        if not all(folder.is_dir() for folder in rows):
            return None
        photo = _read(shop.data / "photos" / f"{clip}.png")
        pictures = [np.hstack([photo, np.full((len(photo), photo.shape[1] * (STRIP_FRAMES - 1), 3), 255, np.uint8)])]
        for folder in rows:
            files = sorted(folder.glob("*.png"))
            chosen = [files[round(at)] for at in np.linspace(0, len(files) - 1, STRIP_FRAMES)]
            pictures.append(np.hstack([_read(file) for file in chosen]))
        columns.append(np.vstack(pictures))
    if not columns:
        return None
    gap = np.full((len(columns[0]), 8, 3), 255, np.uint8)
    return np.hstack([part for column in columns for part in (column, gap)][:-1])


def _read(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise UserError(f"{path}: cannot be read as a picture")
    return np.asarray(picture[..., ::-1], np.uint8)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _range(cell: Cell) -> str:
    return "" if cell.low == cell.high else f" [{_number(cell.low)}, {_number(cell.high)}]"
