"""The body as a tree of bones rooted at the neck, and how long each bone is in the picture when seen in full."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdyna.preprocess.boxes import MIN_CONF
from xdyna.preprocess.tracks import JOINT_NAMES, NUM_JOINTS, FloatArray, Tracks

Mask = NDArray[np.bool_]

NOSE, NECK = JOINT_NAMES.index("nose"), JOINT_NAMES.index("neck")
SHOULDERS = (JOINT_NAMES.index("right_shoulder"), JOINT_NAMES.index("left_shoulder"))
WRISTS = (JOINT_NAMES.index("right_wrist"), JOINT_NAMES.index("left_wrist"))
HIPS = (JOINT_NAMES.index("right_hip"), JOINT_NAMES.index("left_hip"))
ANKLES = (JOINT_NAMES.index("right_ankle"), JOINT_NAMES.index("left_ankle"))
HEAD = (NOSE, *(JOINT_NAMES.index(f"{side}_{part}") for part in ("eye", "ear") for side in ("right", "left")))

#: Joint -> (its parent, the kind of bone between them). Left and right bones of a kind count as equally long.
#: Eyes and ears hang on the nose: the head moves as one piece. Every parent stands before its children.
BONES: dict[int, tuple[int, str]] = {
    JOINT_NAMES.index(name): (JOINT_NAMES.index(parent), kind)
    for name, parent, kind in (
        ("nose", "neck", "neck"),
        *(
            (f"{side}_{joint}", parent.format(side=side), kind)
            for side in ("right", "left")
            for joint, parent, kind in (
                ("shoulder", "neck", "shoulder"),
                ("elbow", "{side}_shoulder", "upper arm"),
                ("wrist", "{side}_elbow", "forearm"),
                ("hip", "neck", "torso"),
                ("knee", "{side}_hip", "thigh"),
                ("ankle", "{side}_knee", "shin"),
                ("eye", "nose", "head"),
                ("ear", "nose", "head"),
            )
        ),
    )
}
KINDS = ("neck", "shoulder", "upper arm", "forearm", "torso", "thigh", "shin", "head")
LEG_KINDS = ("thigh", "shin")

#: A bone is 'seen in full' at this percentile of its lengths over a clip: motion in depth only shortens it in the
#: picture, and the few longest values are a detector's slips.
FULL_PERCENTILE = 95.0
#: A bone's ratio of reference to driver stays within these factors of the whole body's: beyond them the reference's
#: bone points at the camera rather than being that short.
RATIO_LIMITS = (0.4, 2.5)


def found_joints(tracks: Tracks) -> Mask:
    """Bool [F, 18]: joints confident enough to measure by and inside the frame (outside it detectors only guess)."""
    inside = ((tracks.joints_xy >= 0) & (tracks.joints_xy <= np.asarray(tracks.size_wh))).all(axis=-1)
    return np.asarray(inside & (tracks.joints_conf >= MIN_CONF), np.bool_)


def full_lengths(tracks: Tracks) -> dict[str, float]:
    """Length in pixels of each kind of bone when seen in full; kinds never seen are absent.

    A left and a right bone are measured each over the clip, and the longer one counts for both. The head's length is
    the largest distance between two of its joints, which hardly changes when it turns.
    """
    found = found_joints(tracks)
    lengths: dict[str, float] = {}
    for joint, (parent, kind) in BONES.items():
        if kind == "head":
            continue
        seen = found[:, joint] & found[:, parent]
        if seen.any():
            spans = np.linalg.norm(tracks.joints_xy[seen, joint] - tracks.joints_xy[seen, parent], axis=-1)
            lengths[kind] = max(lengths.get(kind, 0.0), float(np.percentile(spans, FULL_PERCENTILE)))
    return {kind: length for kind, length in lengths.items() if length > 0}


def head_length(tracks: Tracks, joints: list[int]) -> float:
    """Largest distance (pixels) between two of the given head joints, in frames that show them all; 0 if none does."""
    shown = found_joints(tracks)[:, joints].all(axis=1)
    if len(joints) < 2 or not shown.any():
        return 0.0
    points = tracks.joints_xy[shown][:, joints]
    spans = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1).max(axis=(1, 2))
    return float(np.percentile(spans, FULL_PERCENTILE))


@dataclass(frozen=True)
class Ratios:
    """How much longer the reference's bones are than the driver's.

    Attributes:
        whole: of the whole body, from all bones that both show.
        kinds: of each kind of bone; those that one of both never shows have the whole body's.
        driving: the driver's full lengths, pixels.
    """

    whole: float
    kinds: dict[str, float]
    driving: dict[str, float]

    def of_chain(self, kinds: list[str]) -> float:
        """Of several bones one after another, weighted by the driver's lengths."""
        weights = [self.driving.get(kind, 0.0) for kind in kinds]
        return float(np.average([self.kinds[kind] for kind in kinds], weights=weights if any(weights) else None))


def bone_ratios(driving: Tracks, reference: Tracks) -> Ratios | None:
    """Compare two bodies bone by bone; None when they show no bone in common."""
    ours, theirs = full_lengths(reference), full_lengths(driving)
    shared = [kind for kind in KINDS if kind in ours and kind in theirs]
    if not shared:
        return None
    whole = sum(ours[kind] for kind in shared) / sum(theirs[kind] for kind in shared)
    low, high = (whole * limit for limit in RATIO_LIMITS)
    kinds = {kind: float(np.clip(ours[kind] / theirs[kind], low, high)) if kind in shared else whole for kind in KINDS}
    found = found_joints(reference)[0], found_joints(driving)
    head = [joint for joint in HEAD if found[0][joint] and found[1][:, joint].any()]
    head_spans = head_length(reference, head), head_length(driving, head)
    kinds["head"] = float(np.clip(head_spans[0] / head_spans[1], low, high)) if all(head_spans) else kinds["neck"]
    return Ratios(whole, kinds, theirs)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Joints to build on, completed from what else is known.

    Attributes:
        joints_xy: float64 [F, 18, 2], pixels.
        known: bool [F, 18]: others may hang on this joint; the neck's are all true.
    """

    joints_xy: NDArray[np.float64]
    known: Mask


def complete_skeleton(tracks: Tracks) -> Skeleton | None:
    """Give every frame a neck, and wrists and nose where only the hand or the face was found.

    A missing neck is taken midway between the shoulders, else between its places in the frames around it. None when
    no frame shows neck or shoulders.
    """
    joints_xy, known = tracks.joints_xy.astype(np.float64), tracks.joints_conf >= MIN_CONF
    _substitute(joints_xy, known, NOSE, tracks.face_xy[:, 30], tracks.face_conf > 0)
    for hand, wrist in ((0, WRISTS[1]), (1, WRISTS[0])):
        _substitute(joints_xy, known, wrist, tracks.hands_xy[:, hand, 0], tracks.hands_conf[:, hand, 0] >= MIN_CONF)
    shoulders_known: Mask = known[:, SHOULDERS[0]] & known[:, SHOULDERS[1]]
    _substitute(joints_xy, known, NECK, joints_xy[:, SHOULDERS].mean(axis=1), shoulders_known)
    seen = np.flatnonzero(known[:, NECK])
    if not len(seen):
        return None
    for axis in range(2):
        joints_xy[:, NECK, axis] = np.interp(np.arange(len(tracks)), seen, joints_xy[seen, NECK, axis])
    known[:, NECK] = True
    return Skeleton(joints_xy, known)


def _substitute(
    joints_xy: NDArray[np.float64], known: Mask, joint: int, points_xy: FloatArray | NDArray[np.float64], usable: Mask
) -> None:
    taken = usable & ~known[:, joint]
    joints_xy[taken, joint] = points_xy[taken]
    known[taken, joint] = True


def ancestors(joint: int) -> list[tuple[int, list[str]]]:
    """Every joint between a joint and the neck, nearest first, with the kinds of the bones on the way to it."""
    path: list[tuple[int, list[str]]] = []
    kinds: list[str] = []
    while joint != NECK:
        joint, kind = BONES[joint]
        kinds = [*kinds, kind]
        path.append((joint, kinds))
    return path


assert len(BONES) == NUM_JOINTS - 1
