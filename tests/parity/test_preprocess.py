"""Crops and face maps against what was recorded from the official code: exact, byte for byte."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xdyna.preprocess.crop import CENTRE, UPPER, fit, grow_box, ratio_crop
from xdyna.preprocess.face import FacePlace, draw_face_maps, face_maps, face_place
from xdyna.preprocess.tracks import Tracks

pytestmark = pytest.mark.parity

DEFAULT_FOLDER = Path(__file__).parents[2].parent / "shared" / "goldens"
NAMES = ("preprocess.json", "preprocess.safetensors")


def find_folder() -> Path | None:
    """The folder of the environment if it holds the files, else the default one if that does."""
    folders = [Path(os.environ["XDYNA_GOLDENS"])] if os.environ.get("XDYNA_GOLDENS") else []
    return next((f for f in [*folders, DEFAULT_FOLDER] if all((f / name).is_file() for name in NAMES)), None)


FOLDER = find_folder()
SKIP = f"no preprocess.json and preprocess.safetensors in XDYNA_GOLDENS or {DEFAULT_FOLDER}"
needs_goldens = pytest.mark.skipif(FOLDER is None, reason=SKIP)


@cache
def facts() -> dict[str, list[dict[str, Any]]]:
    assert FOLDER is not None
    loaded: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / NAMES[0]).read_text())
    return loaded


@cache
def tensors() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    assert FOLDER is not None
    return load_file(FOLDER / NAMES[1])


def cases(group: str) -> list[Any]:
    """One parameter per recorded case; a single skipped one when nothing was recorded."""
    if FOLDER is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason=SKIP))]
    return [pytest.param(case, id=str(case.get("name", index))) for index, case in enumerate(facts()[group])]


@pytest.mark.parametrize("case", cases("crop2ratio"))
def test_driving_crop(case: dict[str, Any]) -> None:
    (image_h, image_w), (frame_h, frame_w) = case["image_hw"], case["resolution_hw"]
    crop = ratio_crop((image_w, image_h), (frame_w, frame_h), UPPER)
    assert [image_w, image_h, crop.left, crop.top, crop.width, crop.height] == next(
        value for key, value in case.items() if key.startswith("out")
    )


@pytest.mark.parametrize("case", cases("compute_increased_bbox"))
def test_grown_box(case: dict[str, Any]) -> None:
    box = case["bbox[l,t,r,b]"]
    assert list(grow_box(box)) == case["out_1.35_1.25_1.35_1.45"]
    assert list(grow_box(box, (0.35, 0.8, 0.35, 0.2))) == case["out_default"]


@pytest.mark.parametrize("case", cases("reference_crop"))
def test_reference_crop(case: dict[str, Any]) -> None:
    image, (height, width) = tensors()[f"refcrop.{case['i']}.image"], case["target_hw"]
    crop = ratio_crop((image.shape[1], image.shape[0]), (width, height), CENTRE)
    np.testing.assert_array_equal(
        fit(image, crop, (width, height), official=True), tensors()[f"refcrop.{case['i']}.out"]
    )


@pytest.mark.parametrize("case", cases("face_cases"))
def test_face_maps_of_one_frame(case: dict[str, Any]) -> None:
    name = case["name"]
    landmarks = tensors().get(f"{name}.landmarks")
    assert case["missed"] == (landmarks is None)
    last_box = tuple(case["last_bbox"]) if case["last_bbox"] else None
    if landmarks is None:
        assert last_box is not None
        place = FacePlace(last_box, tuple(tuple(xy) for xy in case["last_center"]))
    else:
        place = face_place(landmarks, (case["W"], case["H"]), last_box)
    assert list(place.box) == case["bbox"]
    assert [list(xy) for xy in place.centres] == case["center"]
    local_map, global_map = draw_face_maps(tensors()[f"{name}.image"], place, official=True)
    np.testing.assert_array_equal(local_map, tensors()[f"{name}.local"])
    np.testing.assert_array_equal(global_map, tensors()[f"{name}.global"])


@needs_goldens
def test_face_maps_of_a_sequence() -> None:
    """Frames without a face are black: the official loop never carries its box on."""
    steps = facts()["face_sequence"]
    frames = [tensors()[f"seq.{index}.image"] for index in range(len(steps))]
    tracks = Tracks.empty(len(steps), (frames[0].shape[1], frames[0].shape[0]), fps=8.0)
    for index, step in enumerate(steps):
        if not step["missed"]:
            tracks.face_xy[index] = tensors()[f"seq.{index}.landmarks"]
            tracks.face_conf[index] = 1.0
    for index, (local_map, global_map) in enumerate(face_maps(frames, tracks, official=True)):
        np.testing.assert_array_equal(local_map, tensors()[f"seq.{index}.local"])
        np.testing.assert_array_equal(global_map, tensors()[f"seq.{index}.global"])
