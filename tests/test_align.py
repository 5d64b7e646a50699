"""Alignment of the driving skeleton: what it must keep, what it must change, and what it says when it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdyna.errors import UserError
from xdyna.preprocess.align import align_tracks, alignment_obstacle, best_start, coverage_warnings
from xdyna.preprocess.body import ANKLES, BONES, NECK, bone_ratios, full_lengths
from xdyna.preprocess.tracks import JOINT_NAMES, NUM_JOINTS, Tracks

LENGTHS = {
    "neck": 30.0, "shoulder": 35.0, "upper arm": 55.0, "forearm": 50.0, "torso": 105.0, "thigh": 85.0, "shin": 80.0,
    "head": 14.0,
}  # fmt: skip
#: Direction of each bone of a person who stands, arms a little away from the body, as (x, y) to be normalised.
STANDING = {
    "nose": (0, -1), "right_shoulder": (-1, 0), "left_shoulder": (1, 0),
    "right_elbow": (-0.4, 1), "left_elbow": (0.4, 1), "right_wrist": (-0.3, 1), "left_wrist": (0.3, 1),
    "right_hip": (-0.22, 1), "left_hip": (0.22, 1), "right_knee": (-0.1, 1), "left_knee": (0.1, 1),
    "right_ankle": (0, 1), "left_ankle": (0, 1),
    "right_eye": (-0.7, -0.7), "left_eye": (0.7, -0.7), "right_ear": (-1, -0.2), "left_ear": (1, -0.2),
}  # fmt: skip
NAMES = list(STANDING)


def build(
    lengths: dict[str, float],
    turns: np.ndarray,
    neck_xy: np.ndarray,
    size_wh: tuple[int, int] = (640, 720),
    shrink: np.ndarray | None = None,
) -> Tracks:
    """A clip of a person by forward kinematics.

    Args:
        lengths: of each kind of bone, pixels.
        turns: [F, 17] angles, radians, added to the standing directions in the order of `NAMES`; the head's are 0.
        neck_xy: [F, 2] place of the neck.
        shrink: [F, 17] factors of the bones' lengths (foreshortening), 1 if not given.
    """
    tracks = Tracks.empty(len(turns), size_wh, fps=8.0)
    joints = tracks.joints_xy.astype(np.float64)
    joints[:, NECK] = neck_xy
    for joint, (parent, kind) in BONES.items():
        column = NAMES.index(JOINT_NAMES[joint])
        x, y = np.array(STANDING[JOINT_NAMES[joint]]) / np.hypot(*STANDING[JOINT_NAMES[joint]])
        turn = turns[:, column] if kind != "head" else np.zeros(len(turns))
        direction = np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], -1)
        factor = 1.0 if shrink is None or kind == "head" else shrink[:, column, None]
        joints[:, joint] = joints[:, parent] + lengths[kind] * factor * direction
    rng = np.random.default_rng(0)
    nose, wrists = joints[:, :1], joints[:, [7, 4], None]
    return replace(
        tracks,
        joints_xy=joints.astype(np.float32),
        joints_conf=np.ones((len(turns), NUM_JOINTS), np.float32),
        hands_xy=(wrists + rng.uniform(-8, 8, (1, 2, 21, 2)) * [[[[1, 1]]]]).astype(np.float32),
        hands_conf=np.ones((len(turns), 2, 21), np.float32),
        face_xy=(nose + rng.uniform(-12, 12, (1, 68, 2))).astype(np.float32),
        face_conf=np.ones(len(turns), np.float32),
    )


def still(lengths: dict[str, float], num_frames: int = 1, neck_xy: tuple[float, float] = (320, 200)) -> Tracks:
    return build(lengths, np.zeros((num_frames, len(NAMES))), np.tile(neck_xy, (num_frames, 1)))


def directions(tracks: Tracks) -> np.ndarray:
    bones = np.stack([tracks.joints_xy[:, joint] - tracks.joints_xy[:, parent] for joint, (parent, _) in BONES.items()])
    return bones / np.linalg.norm(bones, axis=-1, keepdims=True)


def spans(tracks: Tracks, kind: str) -> np.ndarray:
    """[F, bones of the kind] lengths, pixels."""
    return np.stack(
        [
            np.linalg.norm(tracks.joints_xy[:, joint] - tracks.joints_xy[:, parent], axis=-1)
            for joint, (parent, bone_kind) in BONES.items()
            if bone_kind == kind
        ],
        -1,
    )


scales = st.floats(0.6, 1.6)
proportions = st.fixed_dictionaries({kind: st.floats(0.75, 1.3) for kind in LENGTHS})


class Dance:
    """A driver and a generator to choose with (a class of its own keeps hypothesis from printing the arrays)."""

    def __init__(self, driving: Tracks, rng: np.random.Generator) -> None:
        self.driving, self.rng = driving, rng


@st.composite
def dances(draw: st.DrawFn) -> Dance:
    """A dancing driver of random proportions, bones always seen in full, in a frame that holds all of it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factors = draw(proportions)
    lengths = {kind: 0.5 * length * factors[kind] for kind, length in LENGTHS.items()}
    size_wh = draw(st.sampled_from([(640, 720), (900, 600), (700, 700)]))
    num_frames = draw(st.integers(1, 8))
    neck_xy = np.array([size_wh[0] / 2, 260.0]) + rng.uniform(-25, 25, (num_frames, 2))
    turns = rng.uniform(-0.6, 0.6, (num_frames, len(NAMES)))
    return Dance(build(lengths, turns, neck_xy, size_wh), rng)


@settings(max_examples=40, deadline=None)
@given(dances(), st.sampled_from(["affine", "bones"]))
def test_nothing_changes_when_the_bodies_agree(dance: Dance, mode: str) -> None:
    driving, rng = dance.driving, dance.rng
    reference = driving[[int(rng.integers(len(driving)))]]
    aligned = align_tracks(driving, reference, mode)
    for name in ("joints_xy", "hands_xy", "face_xy"):
        np.testing.assert_allclose(getattr(aligned, name), getattr(driving, name), atol=2e-3)
    assert aligned.size_wh == reference.size_wh
    assert aligned.fps == driving.fps


@settings(max_examples=40, deadline=None)
@given(dances(), proportions, scales)
def test_bones_take_the_references_lengths_and_keep_the_drivers_angles(
    dance: Dance, factors: dict[str, float], scale: float
) -> None:
    driving = dance.driving
    lengths = {kind: 0.6 * scale * length * factors[kind] for kind, length in LENGTHS.items()}
    reference = build(lengths, np.zeros((1, len(NAMES))), np.array([[400.0, 220.0]]), (800, 900))
    aligned = align_tracks(driving, reference, "bones")
    np.testing.assert_allclose(directions(aligned), directions(driving), atol=1e-3)
    for kind, length in lengths.items():
        np.testing.assert_allclose(spans(aligned, kind), length, rtol=1e-3)
    assert aligned.size_wh == (800, 900)


@settings(max_examples=25, deadline=None)
@given(dances(), scales)
def test_affine_is_one_scale_and_one_shift(dance: Dance, scale: float) -> None:
    driving, rng = dance.driving, dance.rng
    chosen = int(rng.integers(len(driving)))
    other = driving[[chosen]]
    shift = np.array([31.0, -17.0], np.float32)
    reference = replace(
        other,
        joints_xy=other.joints_xy * np.float32(scale) + shift,
        size_wh=(int(1.7 * other.size_wh[0]), int(1.7 * other.size_wh[1])),
    )
    aligned = align_tracks(driving, reference, "affine")
    np.testing.assert_allclose(aligned.joints_xy, driving.joints_xy * scale + shift, atol=5e-2)
    np.testing.assert_allclose(aligned.face_xy, driving.face_xy * scale + shift, atol=5e-2)


@settings(max_examples=25, deadline=None)
@given(dances(), st.sampled_from(["affine", "bones"]), st.integers(10, 200), st.integers(10, 200))
def test_the_empty_border_of_the_driving_frame_does_not_count(dance: Dance, mode: str, left: int, top: int) -> None:
    driving = dance.driving
    shift = np.array([left, top], np.float32)
    padded = replace(
        driving,
        joints_xy=driving.joints_xy + shift,
        hands_xy=driving.hands_xy + shift,
        face_xy=driving.face_xy + shift,
        size_wh=(driving.size_wh[0] + 2 * left, driving.size_wh[1] + top),
    )
    reference = still(LENGTHS)
    one, other = align_tracks(driving, reference, mode), align_tracks(padded, reference, mode)
    np.testing.assert_allclose(one.joints_xy, other.joints_xy, atol=1e-2)


def test_a_foreshortened_bone_stays_foreshortened() -> None:
    shrink = np.ones((6, len(NAMES)))
    forearm = NAMES.index("right_wrist")
    shrink[:, forearm] = [1, 1, 0.75, 0.5, 0.25, 1]
    driving = build(LENGTHS, np.zeros((6, len(NAMES))), np.tile([320.0, 200.0], (6, 1)), shrink=shrink)
    longer = still({**LENGTHS, "forearm": 75.0})
    aligned = align_tracks(driving, longer, "bones")
    np.testing.assert_allclose(spans(aligned, "forearm")[:, 0], 75.0 * shrink[:, forearm], rtol=1e-4)
    np.testing.assert_allclose(spans(aligned, "forearm")[:, 1], 75.0, rtol=1e-4)


def test_a_foreshortened_limb_of_the_photo_takes_the_other_sides_length() -> None:
    shrink = np.ones((1, len(NAMES)))
    shrink[0, NAMES.index("left_wrist")] = 0.3
    reference = build(LENGTHS, np.zeros((1, len(NAMES))), np.array([[320.0, 200.0]]), shrink=shrink)
    aligned = align_tracks(still(LENGTHS, 3), reference, "bones")
    np.testing.assert_allclose(spans(aligned, "forearm"), LENGTHS["forearm"], rtol=1e-4)


def test_feet_stay_on_the_references_ground_line() -> None:
    """A crouch with planted feet, then a jump; the reference's legs are half as long again."""
    bent, num_frames = np.zeros((8, len(NAMES))), 8
    for frame, angle in enumerate([0, 0.3, 0.6, 0.9, 0.4, 0, 0, 0]):
        bent[frame, [NAMES.index("right_knee"), NAMES.index("left_knee")]] = angle
        bent[frame, [NAMES.index("right_ankle"), NAMES.index("left_ankle")]] = -angle
    driving = build(LENGTHS, bent, np.tile([320.0, 200.0], (num_frames, 1)))
    feet = driving.joints_xy[:, ANKLES, 1].max(axis=1)
    jump = np.array([0, 0, 0, 0, 0, 30.0, 12.0, 0])
    lift = (feet[0] - feet - jump)[:, None]
    planted = driving.joints_xy.copy()
    planted[..., 1] += lift
    driving = replace(driving, joints_xy=planted)
    reference = still({**LENGTHS, "thigh": 1.5 * LENGTHS["thigh"], "shin": 1.5 * LENGTHS["shin"]}, neck_xy=(300, 150))
    aligned = align_tracks(driving, reference, "bones")
    ground = reference.joints_xy[0, ANKLES, 1].max()
    np.testing.assert_allclose(ground - aligned.joints_xy[:, ANKLES, 1].max(axis=1), 1.5 * jump, atol=0.05)
    # Feet that do not move sideways do not slide either.
    middle = aligned.joints_xy[:, ANKLES, 0].mean(axis=1)
    driver_middle = driving.joints_xy[:, ANKLES, 0].mean(axis=1)
    np.testing.assert_allclose(middle - middle[0], 1.5 * (driver_middle - driver_middle[0]), atol=0.05)


def test_hands_and_face_move_with_wrist_and_head() -> None:
    reference = still({**LENGTHS, "forearm": 75.0, "head": 21.0})
    driving = still(LENGTHS, 2)
    aligned = align_tracks(driving, reference, "bones")
    for hand, wrist in ((0, 7), (1, 4)):
        before = driving.hands_xy[:, hand] - driving.joints_xy[:, None, wrist]
        after = aligned.hands_xy[:, hand] - aligned.joints_xy[:, None, wrist]
        np.testing.assert_allclose(after, 1.5 * before, atol=1e-3)
    before, after = (t.face_xy - t.joints_xy[:, None, 0] for t in (driving, aligned))
    np.testing.assert_allclose(after, 1.5 * before, atol=1e-3)


def hide(tracks: Tracks, *names: str, frames: slice = slice(None)) -> Tracks:
    """The tracks without some joints: confidence 0 and a coordinate that must not be used."""
    xy, conf = tracks.joints_xy.copy(), tracks.joints_conf.copy()
    for name in names:
        xy[frames, JOINT_NAMES.index(name)], conf[frames, JOINT_NAMES.index(name)] = np.nan, 0
    return replace(tracks, joints_xy=xy, joints_conf=conf)


LEGS = ("right_knee", "left_knee", "right_ankle", "left_ankle")


def test_a_reference_without_legs_lends_its_scale_to_the_drivers_legs() -> None:
    reference = hide(still({kind: 1.4 * length for kind, length in LENGTHS.items()}), *LEGS)
    driving = still(LENGTHS, 3)
    aligned = align_tracks(driving, reference, "bones")
    np.testing.assert_allclose(spans(aligned, "thigh"), 1.4 * LENGTHS["thigh"], rtol=1e-3)
    np.testing.assert_allclose(aligned.joints_xy[0, NECK], reference.joints_xy[0, NECK], atol=1e-3)
    warnings = coverage_warnings(driving, reference)
    assert len(warnings) == 1
    assert "legs" in warnings[0]
    assert coverage_warnings(reference, driving) != warnings
    assert coverage_warnings(driving, still(LENGTHS)) == []


def test_missing_joints_stay_missing_and_disturb_nothing() -> None:
    reference = still({**LENGTHS, "torso": 140.0, "upper arm": 66.0})
    whole = still(LENGTHS, 5)
    partial = hide(whole, "right_elbow", frames=slice(1, 3))
    partial = hide(partial, "neck", frames=slice(2, 3))
    partial = hide(partial, "left_ankle", "right_ankle", frames=slice(3, 5))
    one, other = align_tracks(whole, reference, "bones", 0), align_tracks(partial, reference, "bones", 0)
    np.testing.assert_array_equal(other.joints_conf, partial.joints_conf)
    shown = partial.joints_conf > 0
    assert np.isfinite(other.joints_xy[shown]).all()
    shown[1:3, JOINT_NAMES.index("right_wrist")] = False  # hangs on the shoulder there: near, not equal
    np.testing.assert_allclose(one.joints_xy[shown], other.joints_xy[shown], atol=0.1)
    wrist = JOINT_NAMES.index("right_wrist")
    assert np.linalg.norm(one.joints_xy[1:3, wrist] - other.joints_xy[1:3, wrist], axis=-1).max() < 10


def test_a_doubtful_joint_moves_nothing_else() -> None:
    """A guessed neck or elbow far off is told by its confidence."""
    reference = still({**LENGTHS, "torso": 140.0, "forearm": 66.0})
    whole = still(LENGTHS, 5)
    xy, conf = whole.joints_xy.copy(), whole.joints_conf.copy()
    for name in ("neck", "right_elbow"):
        xy[2, JOINT_NAMES.index(name)], conf[2, JOINT_NAMES.index(name)] = (5, 700), 0.1
    one = align_tracks(whole, reference, "bones", 0)
    other = align_tracks(replace(whole, joints_xy=xy, joints_conf=conf), reference, "bones", 0)
    moved = np.linalg.norm(one.joints_xy[2] - other.joints_xy[2], axis=-1)
    doubtful = [JOINT_NAMES.index(name) for name in ("neck", "right_elbow", "right_wrist")]
    assert np.delete(moved, doubtful).max() < 0.1
    assert moved[JOINT_NAMES.index("right_wrist")] < 20


def test_none_cuts_the_driving_frame_to_the_references_shape() -> None:
    driving = replace(still(LENGTHS), size_wh=(1000, 500))
    aligned = align_tracks(driving, replace(still(LENGTHS), size_wh=(100, 100)), "none")
    np.testing.assert_allclose(aligned.joints_xy, (driving.joints_xy - [250, 0]) / 5, atol=1e-3)
    assert aligned.size_wh == (100, 100)


def test_best_start_is_the_pose_most_like_the_references() -> None:
    turns = np.random.default_rng(3).uniform(-1, 1, (12, len(NAMES)))
    driving = build({k: 0.5 * v for k, v in LENGTHS.items()}, turns, np.tile([320.0, 300.0], (12, 1)))
    other = {kind: 0.9 * length * (1.2 if kind == "thigh" else 1) for kind, length in LENGTHS.items()}
    for wanted in (0, 7, 11):
        reference = build(other, turns[[wanted]], np.array([[400.0, 350.0]]), (800, 800))
        assert best_start(driving, reference) == wanted
        assert best_start(hide(driving, *LEGS, frames=slice(wanted, wanted + 1)), reference) != wanted


def test_best_start_prefers_the_ground_to_a_leap() -> None:
    driving = still(LENGTHS, 9)
    driving.joints_xy[:4, :, 1] -= np.array([40, 60, 40, 15])[:, None]
    assert best_start(driving, still(LENGTHS)) == 4
    assert best_start(Tracks.empty(4, (10, 10), 8.0), still(LENGTHS)) == 0


@pytest.mark.parametrize("mode", ["affine", "bones"])
def test_bodies_that_cannot_be_compared_are_refused_by_name(mode: str) -> None:
    nobody = Tracks.empty(1, (640, 720), 8.0)
    with pytest.raises(UserError, match="photo shows neither neck nor shoulders"):
        align_tracks(still(LENGTHS, 2), nobody, mode)
    with pytest.raises(UserError, match="driving clip shows neither neck nor shoulders"):
        align_tracks(Tracks.empty(2, (640, 720), 8.0), still(LENGTHS), mode)
    arms = hide(still(LENGTHS), *(n for n in JOINT_NAMES if n not in ("neck", "left_wrist")))
    assert alignment_obstacle(still(LENGTHS, 2), arms) == "they show no bone in common"
    with pytest.raises(ValueError, match="wanted 1"):
        alignment_obstacle(still(LENGTHS, 2), still(LENGTHS, 2))
    with pytest.raises(ValueError, match="wanted 'none'"):
        align_tracks(still(LENGTHS, 2), still(LENGTHS), "both")


def test_ratios_are_kept_within_reason() -> None:
    """A photo whose forearms point at the camera does not give the dancer stumps."""
    ratios = bone_ratios(still(LENGTHS), still({**LENGTHS, "forearm": 1.0}))
    assert ratios is not None
    assert ratios.kinds["forearm"] == pytest.approx(0.4 * ratios.whole)
    assert full_lengths(Tracks.empty(3, (10, 10), 8.0)) == {}
