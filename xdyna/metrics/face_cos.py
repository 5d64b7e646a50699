"""Whether it is the same person: the angle between directions of faces in the clip and in the reference photo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import Frames, check_clip
from xdyna.metrics.faces import Recogniser
from xdyna.metrics.specs import ClipMetric, Region, Sample


def face_cos(frames: Frames, reference: NDArray[np.uint8], recogniser: Recogniser) -> float:
    """Mean cosine between the face of the reference and those found in the clip.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        reference: uint8 RGB [h, w, 3].
        recogniser: finds the faces and says whose they are.

    Returns:
        -1..1, 1 for the same picture; NaN if the reference or every frame shows no face (see `face_det` for how many
        frames do).
    """
    check_clip(frames)
    wanted, _ = recogniser.directions(reference[None])
    if not len(wanted):
        return float("nan")
    found, _ = recogniser.directions(frames)
    return float((found @ wanted[0]).mean()) if len(found) else float("nan")


def _measure(sample: Sample, _: Region, recogniser: Recogniser) -> float:
    assert sample.reference is not None
    return face_cos(sample.made, sample.reference, recogniser)


SPECS = (
    ClipMetric(
        name="face-cos", unit="", better="higher", needs=frozenset({"reference"}), backbone="adaface", measure=_measure
    ),
    ClipMetric(
        name="face-cos-arcface", unit="", better="higher", needs=frozenset({"reference"}), backbone="insightface",
        measure=_measure,
    ),
)  # fmt: skip
