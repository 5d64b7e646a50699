"""Crops and face maps against what was recorded from the official code: exact, byte for byte."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xdyna.preprocess.crop import CENTRE, UPPER, fit, grow_box, ratio_crop
from xdyna.preprocess.face import FacePlace, draw_face_maps, face_maps, face_place
from xdyna.preprocess.tracks import Tracks

pytestmark = pytest.mark.parity

DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "goldens"
FOLDER = Path(os.environ.get("XDYNA_GOLDENS") or DEFAULT_FOLDER)
FACTS, TENSORS = "preprocess.json", "preprocess.safetensors"


def find_sets() -> list[Path]:
    """The json file of every recorded set, `preprocess.json` or `NAME_preprocess.json`.

    What belongs to no named set may be missing in the folder of the environment; the default folder's is taken then.
    """
    found = [path for path in sorted(FOLDER.glob(f"*{FACTS}")) if tensor_file(path).is_file()]
    if FOLDER / FACTS not in found and (DEFAULT_FOLDER / FACTS).is_file():
        found.append(DEFAULT_FOLDER / FACTS)
    return found


def tensor_file(facts_file: Path) -> Path:
    return facts_file.with_name(facts_file.name.removesuffix(FACTS) + TENSORS)


SETS = find_sets()
SKIP = f"no {FACTS} with {TENSORS} in {FOLDER} or {DEFAULT_FOLDER}"


@dataclass(frozen=True)
class Case:
    """One recorded call: what went in and came out, with the arrays of its set."""

    facts: Any
    arrays: dict[str, np.ndarray]

    def __getitem__(self, key: str) -> Any:
        return self.facts[key]


@cache
def facts_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    loaded: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    return loaded


@cache
def arrays_of(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(tensor_file(path))


def cases(group: str) -> list[Any]:
    """One parameter per recorded call of every set; a single skipped one when nothing was recorded."""
    found = [
        pytest.param(
            Case(facts, arrays_of(path)),
            id=f"{path.name.removesuffix(FACTS) or path.parent.name}-{facts.get('name', index)}",
        )
        for path in SETS
        for index, facts in enumerate(facts_of(path).get(group, []))
    ]
    return found or [pytest.param(None, id="none", marks=pytest.mark.skip(reason=SKIP))]


@pytest.mark.parametrize("case", cases("crop2ratio"))
def test_driving_crop(case: Case) -> None:
    (image_h, image_w), (frame_h, frame_w) = case["image_hw"], case["resolution_hw"]
    crop = ratio_crop((image_w, image_h), (frame_w, frame_h), UPPER)
    assert [image_w, image_h, crop.left, crop.top, crop.width, crop.height] == next(
        value for key, value in case.facts.items() if key.startswith("out")
    )


@pytest.mark.parametrize("case", cases("compute_increased_bbox"))
def test_grown_box(case: Case) -> None:
    box = case["bbox[l,t,r,b]"]
    assert list(grow_box(box)) == case["out_1.35_1.25_1.35_1.45"]
    assert list(grow_box(box, (0.35, 0.8, 0.35, 0.2))) == case["out_default"]


@pytest.mark.parametrize("case", cases("reference_crop"))
def test_reference_crop(case: Case) -> None:
    image, (height, width) = case.arrays[f"refcrop.{case['i']}.image"], case["target_hw"]
    crop = ratio_crop((image.shape[1], image.shape[0]), (width, height), CENTRE)
    np.testing.assert_array_equal(
        fit(image, crop, (width, height), official=True), case.arrays[f"refcrop.{case['i']}.out"]
    )


@pytest.mark.parametrize("case", cases("face_cases"))
def test_face_maps_of_one_frame(case: Case) -> None:
    name = case["name"]
    landmarks = case.arrays.get(f"{name}.landmarks")
    assert case["missed"] == (landmarks is None)
    last_box = tuple(case["last_bbox"]) if case["last_bbox"] else None
    if landmarks is None:
        assert last_box is not None
        place = FacePlace(last_box, tuple(tuple(xy) for xy in case["last_center"]))
    else:
        place = face_place(landmarks, (case["W"], case["H"]), last_box)
    assert list(place.box) == case["bbox"]
    assert [list(xy) for xy in place.centres] == case["center"]
    local_map, global_map = draw_face_maps(case.arrays[f"{name}.image"], place, official=True)
    np.testing.assert_array_equal(local_map, case.arrays[f"{name}.local"])
    np.testing.assert_array_equal(global_map, case.arrays[f"{name}.global"])


@pytest.mark.parametrize("path", SETS or [pytest.param(None, marks=pytest.mark.skip(reason=SKIP))], ids=str)
def test_face_maps_of_a_sequence(path: Path) -> None:
    """Frames without a face are black: the official loop never carries its box on."""
    steps, arrays = facts_of(path).get("face_sequence", []), arrays_of(path)
    if not steps:
        pytest.skip(f"{path} holds no sequence")
    frames = [arrays[f"seq.{index}.image"] for index in range(len(steps))]
    tracks = Tracks.empty(len(steps), (frames[0].shape[1], frames[0].shape[0]), fps=8.0)
    for index, step in enumerate(steps):
        if not step["missed"]:
            tracks.face_xy[index] = arrays[f"seq.{index}.landmarks"]
            tracks.face_conf[index] = 1.0
    for index, (local_map, global_map) in enumerate(face_maps(frames, tracks, official=True)):
        np.testing.assert_array_equal(local_map, arrays[f"seq.{index}.local"])
        np.testing.assert_array_equal(global_map, arrays[f"seq.{index}.global"])
