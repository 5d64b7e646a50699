"""The page of an ablation: tables with intervals and a picture strip, made from the records of its runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.configs.ablation import AblationConfig
from xdyna.errors import UserError
from xdyna.files import make_folder, written_whole
from xdyna.infer.evaluate.records import LEVEL, difference_table, figure_table
from xdyna.infer.load import choose_model
from xdyna.photo import write_png
from xdyna.train.ablation import Trial, Workshop, check_record, terms_of

Records = Mapping[Trial, Mapping[str, Any]]

#: Of a strip's clips, so many frames at even distances.
STRIP_FRAMES = 4


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
    groups = {name: [record for trial, record in records.items() if trial.method == name] for name in methods}
    figures = [(figure.key, figure.label) for figure in plan.figures]
    labels = [plan.method(name).label for name in methods]
    counted = [f"{label} ({_seeds(len(group))})" for label, group in zip(labels, groups.values(), strict=True)]
    lines += figure_table(groups, figures, counted)
    if len(methods) > 1:
        lines += ["", f"## Differences to {labels[0]}", "", *difference_table(groups, figures, labels)]
    lines += ["", "## Runs", "", *_runs(plan, records)]
    if picture:
        lines += ["", "## Pictures", "", *_caption(plan, methods), "", f"![strips]({picture})"]
    return "\n".join(lines) + "\n"


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


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "1 seed, no spread known"


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
