"""One picture that shows what the model will see: reference, driving frames and maps side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from xdyna.preprocess.crop import UPPER, Image, fit, ratio_crop
from xdyna.preprocess.prepare import Prepared

CELL_HEIGHT_PX = 216
_GAP_PX, _LABEL_PX, _TEXT_PX = 4, 110, 14
_PAPER, _INK, _WARNING_INK = (238, 238, 238), (30, 30, 30), (170, 40, 20)


def sheet_frames(num_frames: int, columns: int) -> list[int]:
    """Frames to show: the first, the last, and what lies evenly between them."""
    return sorted({round(float(index)) for index in np.linspace(0, num_frames - 1, columns)})


def contact_sheet(prepared: Prepared, driving: Iterable[Image] | None = None, *, columns: int = 8) -> Image:
    """Draw the sheet.

    Args:
        prepared: the model's inputs.
        driving: the driving frames from the very first on, uint8 RGB [H, W, 3] each; the row is left out without.
        columns: how many frames are shown, at most.
    Returns:
        uint8 RGB [H, W, 3]: one row each for driving frame, pose map, pose map over the reference, local and global
        face map, with frame numbers above and the warnings below.
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}, wanted at least 1")
    indices = sheet_frames(prepared.num_frames, columns)
    size_wh = prepared.reference.shape[1], prepared.reference.shape[0]
    rows: list[tuple[str, Sequence[Image]]] = []
    if driving is not None:
        rows.append(("driving video", _pick(driving, prepared.start_frame, indices, size_wh)))
    rows.append(("pose map", [prepared.pose_maps[index] for index in indices]))
    rows.append((f"over the photo\n(align {prepared.align})", [_over(prepared, index) for index in indices]))
    if prepared.face_maps is not None:
        for name, maps in zip(("face, local", "face, global"), prepared.face_maps, strict=True):
            rows.append((name, [maps[index] for index in indices]))
    titles = [f"frame {index}" for index in indices]
    return _lay_out(rows, titles, prepared)


def _pick(driving: Iterable[Image], start: int, indices: list[int], size_wh: tuple[int, int]) -> list[Image]:
    wanted, picked = set(indices), []
    for index, frame in enumerate(islice(driving, start, start + indices[-1] + 1)):
        if index in wanted:
            crop = ratio_crop((frame.shape[1], frame.shape[0]), size_wh, UPPER)
            picked.append(fit(frame, crop, size_wh))
    picked += [np.zeros((size_wh[1], size_wh[0], 3), np.uint8)] * (len(indices) - len(picked))
    return picked


def _over(prepared: Prepared, index: int) -> Image:
    """The pose map over the darkened reference."""
    pose_map = prepared.pose_maps[index]
    drawn = pose_map.max(axis=-1, keepdims=True) > 24
    return np.where(drawn, pose_map, (0.6 * prepared.reference).astype(np.uint8))


def _lay_out(rows: list[tuple[str, Sequence[Image]]], titles: list[str], prepared: Prepared) -> Image:
    height, width = prepared.reference.shape[:2]
    cell_width = max(64, round(CELL_HEIGHT_PX * width / height))
    cell_height = round(cell_width * height / width)
    font = ImageFont.load_default(_TEXT_PX)
    notes = [_summary(prepared), *(f"warning: {line}" for line in prepared.warnings)]
    sheet_width = _LABEL_PX + len(titles) * (cell_width + _GAP_PX)
    notes = [part for note in notes for part in _wrapped(note, font, sheet_width - 2 * _GAP_PX)]
    line = _TEXT_PX + 6
    sheet_height = line + len(rows) * (cell_height + _GAP_PX) + len(notes) * line + _GAP_PX
    sheet = PilImage.new("RGB", (sheet_width, sheet_height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(titles):
        pen.text((_LABEL_PX + column * (cell_width + _GAP_PX), 2), text, _INK, font)
    for row, (name, pictures) in enumerate(rows):
        top = line + row * (cell_height + _GAP_PX)
        pen.text((_GAP_PX, top), name, _INK, font)
        for column, picture in enumerate(pictures):
            place = _LABEL_PX + column * (cell_width + _GAP_PX), top
            sheet.paste(PilImage.fromarray(_scaled(picture, (cell_width, cell_height))), place)
    top = line + len(rows) * (cell_height + _GAP_PX)
    for index, note in enumerate(notes):
        ink = _INK if index == 0 else _WARNING_INK
        pen.text((_GAP_PX, top + index * line), note, ink, font)
    return np.asarray(sheet, np.uint8)


def _summary(prepared: Prepared) -> str:
    height, width = prepared.reference.shape[:2]
    face = "no face" if prepared.face_maps is None else "face"
    skipped = f", from driving frame {prepared.start_frame} on" if prepared.start_frame else ""
    return f"{prepared.num_frames} frames of {width}x{height} px at {float(prepared.fps):g} fps, {face}{skipped}"


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(f"    {word}")
        else:
            lines[-1] = longer if len(lines) == 1 else f"{lines[-1]} {word}"
    return lines


def _scaled(picture: Image, size_wh: tuple[int, int]) -> Image:
    """Averaged when it shrinks, in sharp squares when it grows: the user sees the model's pixels."""
    import cv2

    way = cv2.INTER_AREA if picture.shape[1] >= size_wh[0] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, size_wh, interpolation=way), np.uint8)
