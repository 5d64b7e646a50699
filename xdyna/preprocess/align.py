"""Put the driving skeleton onto the reference's body.

Three modes:

* ``none``: the driving frame, cut to the reference's shape, as it is;
* ``affine``: one scale and one shift for the whole clip, so that the torsos agree in the anchor frame;
* ``bones``: every bone keeps the driver's direction and takes the reference's length. A bone's length in a frame is
  the driver's times (reference's full length / driver's full length), so bones that point at the camera stay short.
  Feet keep their height over the ground line, hands move with the wrists, face points with the head.

The *anchor* is the driving frame whose pose is most like the reference's; there the two bodies are laid over each
other. Everything is in pixels with square sides; frames of any two sizes can be combined.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.preprocess.body import (
    ANKLES,
    BONES,
    HIPS,
    LEG_KINDS,
    NECK,
    NOSE,
    WRISTS,
    Ratios,
    Skeleton,
    ancestors,
    bone_ratios,
    complete_skeleton,
    found_joints,
    full_lengths,
)
from xdyna.preprocess.crop import UPPER, Crop, ratio_crop
from xdyna.preprocess.tracks import JOINT_NAMES, NUM_JOINTS, Tracks

AlignMode = Literal["none", "affine", "bones"]
Array = NDArray[np.float64]

#: Costs in `best_start`, where a bone at a right angle to the reference's costs 1: of showing none of its bones; what
#: nobody notices (about eight degrees); and how much dearer feet a leg's length off the ground make a frame (a leap may
#: look like standing, but would put the ground line too low).
MISSING_COST, UNSEEN_DIFFERENCE, AIRBORNE_FACTOR = 1.0, 0.01, 2.0
GROUND_WINDOW_S = 0.5
#: A group of joints counts as part of the driver's motion when it is found in this share of the frames.
NEEDED_SHARE = 0.2


def align_tracks(driving: Tracks, reference: Tracks, mode: AlignMode, anchor: int | None = None) -> Tracks:
    """Move the driving tracks into the reference's pixel frame.

    Args:
        driving: F frames of the driver.
        reference: one frame of the person in the photo; with mode `none` only its size counts.
        mode: see the module's text.
        anchor: the driving frame that is laid over the reference; the most alike one if not given.
    Returns:
        F frames of the reference's size; confidences are the driver's.
    Raises:
        UserError: the two bodies cannot be compared (see `alignment_obstacle`).
        ValueError: an unknown mode, or more than one reference frame.
    """
    if mode == "none":
        return crop_tracks(driving, ratio_crop(driving.size_wh, reference.size_wh, UPPER), reference.size_wh)
    if mode not in ("affine", "bones"):
        raise ValueError(f"mode is {mode!r}, wanted 'none', 'affine' or 'bones'")
    obstacle = alignment_obstacle(driving, reference)
    if obstacle is not None:
        raise UserError(f"the driving body cannot be aligned ({mode}) to the photo's: {obstacle}; use align none")
    if anchor is None:
        anchor = best_start(driving, reference)
    if mode == "affine":
        return _scale_and_shift(driving, reference, anchor)
    return _retarget(driving, reference, anchor)


def alignment_obstacle(driving: Tracks, reference: Tracks) -> str | None:
    """Why two bodies cannot be compared, in words for the user; None if they can."""
    if len(reference) != 1:
        raise ValueError(f"the reference has {len(reference)} frames, wanted 1")
    for name, tracks in (("the photo", reference), ("the driving clip", driving)):
        if complete_skeleton(tracks) is None:
            return f"{name} shows neither neck nor shoulders"
    return "they show no bone in common" if bone_ratios(driving, reference) is None else None


def crop_tracks(tracks: Tracks, crop: Crop, size_wh: tuple[int, int]) -> Tracks:
    """The same tracks in a rectangle of the frame that has been stretched to `size_wh`."""
    return replace(
        tracks,
        joints_xy=crop.points(tracks.joints_xy, size_wh),
        hands_xy=crop.points(tracks.hands_xy, size_wh),
        face_xy=crop.points(tracks.face_xy, size_wh),
        size_wh=size_wh,
    )


def best_start(driving: Tracks, reference: Tracks) -> int:
    """The driving frame whose pose is most like the reference's.

    Bones are compared by direction, so neither place, size nor proportions count; long and confident bones count
    more. Against a frame count bones that the reference shows and it lacks, and, a little, feet off the ground. The
    earliest of equals wins.
    """
    lengths = full_lengths(driving)
    found, wanted = found_joints(driving), found_joints(reference)[0]
    turned, weights, lost, total = np.zeros(len(driving)), np.zeros(len(driving)), np.zeros(len(driving)), 0.0
    for joint, (parent, kind) in BONES.items():
        ours = reference.joints_xy[0, joint].astype(np.float64) - reference.joints_xy[0, parent]
        if kind not in lengths or not (wanted[joint] and wanted[parent] and ours.any()):
            continue
        seen = found[:, joint] & found[:, parent]
        theirs = driving.joints_xy[:, joint].astype(np.float64) - driving.joints_xy[:, parent]
        theirs[~seen] = 0  # what was not found may hold anything
        span = np.linalg.norm(theirs, axis=-1)
        seen &= span > 0
        cosine = (theirs @ ours) / np.where(seen, span * np.linalg.norm(ours), 1.0)
        weight = np.where(seen, np.minimum(span, lengths[kind]), 0.0)
        turned += weight * (1.0 - cosine)
        weights += weight
        lost += np.where(seen, 0.0, lengths[kind])
        total += lengths[kind]
    if not weights.any():
        return 0
    cost = turned / np.maximum(weights, 1e-9) + MISSING_COST * lost / total
    cost = (cost + UNSEEN_DIFFERENCE) * (1 + AIRBORNE_FACTOR * _off_ground(driving, found))
    return int(np.argmin(np.round(cost, 6)))  # differences below that are rounding


def _off_ground(driving: Tracks, found: NDArray[np.bool_]) -> Array:
    """Height [F] of the lower ankle over its lowest place within half a second, in units of a leg; 0 if unknown."""
    lengths = full_lengths(driving)
    leg = sum(lengths.get(kind, 0.0) for kind in LEG_KINDS)
    height = np.zeros(len(driving))
    frames = np.flatnonzero(found[:, ANKLES].any(axis=1))
    if not leg or not len(frames):
        return height
    feet = _feet(driving.joints_xy[frames][:, ANKLES].astype(np.float64), found[frames][:, ANKLES], 1)
    reach = GROUND_WINDOW_S * driving.fps
    first, stop = np.searchsorted(frames, frames - reach), np.searchsorted(frames, frames + reach, side="right")
    ground = np.array([feet[start:end].max() for start, end in zip(first, stop, strict=True)])
    height[frames] = (ground - feet) / leg
    return height


def coverage_warnings(driving: Tracks, reference: Tracks) -> list[str]:
    """What one of the two pictures shows of a body and the other does not, in lines for the user."""
    ours, theirs = found_joints(reference)[0], found_joints(driving).mean(axis=0) >= NEEDED_SHARE
    if not ours.any():
        return []
    warnings = []
    for part, joints in (("legs", ("knee", "ankle")), ("arms", ("elbow", "wrist"))):
        indices = [JOINT_NAMES.index(f"{side}_{joint}") for joint in joints for side in ("left", "right")]
        in_photo, in_clip = ours[indices].any(), theirs[indices].any()
        if in_clip and not in_photo:
            warnings.append(
                f"the photo does not show the {part} that the driving clip moves: what they look like is invented where"
                " they come into view; a photo of the whole body works better"
            )
        if in_photo and not in_clip:
            warnings.append(f"the driving clip never shows the {part} that the photo shows: nothing will steer them")
    return warnings


def _scale_and_shift(driving: Tracks, reference: Tracks, anchor: int) -> Tracks:
    ratios, ours, theirs = bone_ratios(driving, reference), complete_skeleton(reference), complete_skeleton(driving)
    assert ratios is not None
    assert ours is not None
    assert theirs is not None
    known = ratios.driving.keys() & full_lengths(reference).keys()
    scale = next((ratios.kinds[kind] for kind in ("torso", "shoulder") if kind in known), ratios.whole)
    torso = [joint for joint in (NECK, *HIPS) if ours.known[0, joint] and theirs.known[anchor, joint]]
    start, end = theirs.joints_xy[anchor, torso].mean(axis=0), ours.joints_xy[0, torso].mean(axis=0)

    def move(points_xy: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(end + scale * (points_xy - start), np.float32)

    return replace(
        driving,
        joints_xy=move(driving.joints_xy),
        hands_xy=move(driving.hands_xy),
        face_xy=move(driving.face_xy),
        size_wh=reference.size_wh,
    )


def _retarget(driving: Tracks, reference: Tracks, anchor: int) -> Tracks:
    ratios, ours, theirs = bone_ratios(driving, reference), complete_skeleton(reference), complete_skeleton(driving)
    assert ratios is not None
    assert ours is not None
    assert theirs is not None
    travel = theirs.joints_xy[:, NECK] - theirs.joints_xy[anchor, NECK]
    placed = _grow_bones(theirs, ours.joints_xy[0, NECK] + ratios.whole * travel, ratios)
    placed += _foot_correction(theirs, found_joints(driving), placed, ratios, _ground_y(reference), anchor)[:, None]

    nose, moved_nose = theirs.joints_xy[:, NOSE], placed[:, NOSE]
    face_xy = moved_nose[:, None] + ratios.kinds["head"] * (driving.face_xy - nose[:, None])
    hands_xy = np.empty(driving.hands_xy.shape)
    for hand, wrist in ((0, WRISTS[1]), (1, WRISTS[0])):
        offset = driving.hands_xy[:, hand] - theirs.joints_xy[:, None, wrist]
        hands_xy[:, hand] = placed[:, None, wrist] + ratios.kinds["forearm"] * offset
    return replace(
        driving,
        joints_xy=placed.astype(np.float32),
        hands_xy=hands_xy.astype(np.float32),
        face_xy=face_xy.astype(np.float32),
        size_wh=reference.size_wh,
    )


def _grow_bones(skeleton: Skeleton, neck_xy: Array, ratios: Ratios) -> Array:
    """Rebuild a skeleton [F, 18, 2] from the neck outwards, each bone in its direction with its new length.

    A joint whose parent was not found hangs on the nearest ancestor that was, by the ratio of the bones between.
    """
    placed = np.empty_like(skeleton.joints_xy)
    placed[:, NECK] = neck_xy
    for joint in BONES:
        open_frames = np.ones(len(placed), bool)
        for ancestor, kinds in ancestors(joint):
            here = open_frames & skeleton.known[:, ancestor]
            bone = skeleton.joints_xy[here, joint] - skeleton.joints_xy[here, ancestor]
            placed[here, joint] = placed[here, ancestor] + ratios.of_chain(kinds) * bone
            open_frames &= ~here
    return placed


def _ground_y(reference: Tracks) -> float | None:
    """Height (pixels from the top) of the reference's lower ankle; None if no ankle is found."""
    found = found_joints(reference)[0, ANKLES]
    return float(reference.joints_xy[0, ANKLES][found, 1].max()) if found.any() else None


def _foot_correction(
    skeleton: Skeleton, found: NDArray[np.bool_], placed: Array, ratios: Ratios, ground_y: float | None, anchor: int
) -> Array:
    """Shift [F, 2] of the whole body that keeps the feet where the driver's legs say.

    The lower ankle's height over the ground line, and the way the middle of the ankles goes sideways, are the
    driver's times the legs' ratio. The ground line is the reference's lower ankle, or, if its feet are not shown,
    where the placed body's ankle is in the anchor frame. Frames without ankles take the shift of those around them.
    """
    shift, legs, times = np.zeros((len(placed), 2)), ratios.of_chain(list(LEG_KINDS)), np.arange(len(placed))
    ankles = found[:, ANKLES]
    for axis, seen in ((0, ankles.all(axis=1)), (1, ankles.any(axis=1))):
        frames = np.flatnonzero(seen)
        if not len(frames):
            continue
        start = int(np.argmin(np.abs(frames - anchor)))
        before, after = (
            _feet(joints_xy[frames][:, ANKLES], ankles[frames], axis) for joints_xy in (skeleton.joints_xy, placed)
        )
        origin = ground_y if axis == 1 and ground_y is not None else after[start]
        shift[:, axis] = np.interp(times, frames, origin + legs * (before - before[start]) - after)
    return shift


def _feet(ankles_xy: Array, found: NDArray[np.bool_], axis: int) -> Array:
    """[F]: x midway between both ankles (axis 0), or y of the lower ankle found (axis 1)."""
    if axis == 0:
        return np.asarray(ankles_xy[..., 0].mean(axis=1))
    return np.asarray(np.where(found, ankles_xy[..., 1], -np.inf).max(axis=1))


assert set(BONES) | {NECK} == set(range(NUM_JOINTS))
