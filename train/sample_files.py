"""The folder `samples/` of a run: a contact sheet and a video per sampled step, and the figures measured on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.files import writing_error, written_whole

FOLDER = "samples"
NOTES = "samples.jsonl"  # a line per sample; of a step that was sampled twice the later line counts
WIDEST_PX, HIGHEST_PX = 2400, 4800

#: What was measured on a sample: chart -> line -> value, such as {"PSNR (dB)": {"model": 21.3, "copy": 16.8}}.
Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Sample:
    """What a run has shown of itself after a step.

    Attributes:
        step: steps done.
        caption: what the pictures show, in words.
        figures: what was measured.
        sheet: the contact sheet, a PNG file; None if there is none.
        video: an MP4 file; None if there is none.
    """

    step: int
    caption: str
    figures: Figures
    sheet: Path | None
    video: Path | None


def sample_path(run: Path, step: int, suffix: str) -> Path:
    """Where a sample's picture (".png") or video (".mp4") goes: `RUN/samples/step-NNNNNN.png`. Makes the folder.

    Raises:
        UserError: the folder cannot be made.
    """
    path = run / FOLDER / f"step-{step:06d}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_error(path.parent, error) from error
    return path


def write_sheet(path: Path, sheet: NDArray[np.uint8]) -> None:
    """Write a contact sheet whole or not at all, made smaller where it is too large to look at.

    Args:
        path: of a PNG file.
        sheet: uint8 RGB [H, W, 3]; narrow ones are doubled in size, pixel by pixel.
    Raises:
        UserError: it cannot be written.
    """
    height, width = sheet.shape[:2]
    if width < 1000 and height < 2000:
        sheet = np.repeat(np.repeat(sheet, 2, 0), 2, 1)
    elif width > WIDEST_PX or height > HIGHEST_PX:
        factor = min(WIDEST_PX / width, HIGHEST_PX / height)
        size_wh = (max(round(width * factor), 1), max(round(height * factor), 1))
        sheet = cv2.resize(sheet, size_wh, interpolation=cv2.INTER_AREA).astype(np.uint8)
    with written_whole(path) as part:
        if not cv2.imwrite(str(part), np.ascontiguousarray(sheet[..., ::-1])):
            raise UserError(f"{path}: cannot write the contact sheet; is there room on the disk?")


def note_sample(run: Path, step: int, caption: str, figures: Figures) -> None:
    """Keep what a sample shows and what was measured on it.

    Args:
        run: the run folder.
        step: steps done.
        caption: what the pictures of that step show.
        figures: chart -> line -> value; the charts of one unit each.
    Raises:
        UserError: it cannot be written.
    """
    line = json.dumps({"step": step, "caption": caption, "figures": {k: dict(v) for k, v in figures.items()}})
    path = sample_path(run, step, ".png").with_name(NOTES)
    try:
        with path.open("a", encoding="utf-8") as notes:
            notes.write(line + "\n")
    except OSError as error:
        raise writing_error(path, error) from error


def read_samples(run: Path, last_step: int | None = None) -> list[Sample]:
    """The samples of a run folder, oldest first.

    Args:
        run: the run folder.
        last_step: leave out what lies behind this step: a killed run's samples that its resume has yet to repeat.
    """
    notes = {}
    path = run / FOLDER / NOTES
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            note = json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
            continue
        notes[int(note["step"])] = note
    for file in (run / FOLDER).glob("step-*.png"):
        notes.setdefault(int(file.stem[5:]), {"caption": "", "figures": {}})
    return [
        Sample(step, note["caption"], note["figures"], _there(run, step, ".png"), _there(run, step, ".mp4"))
        for step, note in sorted(notes.items())
        if last_step is None or step <= last_step
    ]


def _there(run: Path, step: int, suffix: str) -> Path | None:
    path = run / FOLDER / f"step-{step:06d}{suffix}"
    return path if path.is_file() else None
