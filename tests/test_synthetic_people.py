"""The drawn people: framings, faces, dances, looks, and one person's clip drawn with another's head or body."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from xdyna.data.synthetic.body import place
from xdyna.data.synthetic.character import BOTTOMS, HAIR_STYLES, HATS, PATTERNS, random_character
from xdyna.data.synthetic.clips import Clip, ClipSpec, World, clip_spec, dressed_as, face_swapped, render, reshaped
from xdyna.data.synthetic.expression import Expression, random_expression
from xdyna.data.synthetic.framing import FRAMINGS
from xdyna.data.synthetic.motion import COLUMN, TRAVEL, pausing, random_motion
from xdyna.errors import UserError

SIZE_WH = (64, 96)
FPS = 12.0


def draw(spec: ClipSpec, times_s: list[float] | np.ndarray, size_wh: tuple[int, int] = SIZE_WH) -> Clip:
    return render(spec, np.asarray(times_s, float), size_wh, FPS)


def world(framing: str, **options: object) -> World:
    return World(framings={framing: 1.0}, **options)  # type: ignore[arg-type]


def with_face(spec: ClipSpec, **values: float) -> ClipSpec:
    """The clip with a face that keeps one expression, and a body that stands in its first key pose."""
    calm = {"mouth_open": 0.0, "smile": 0.3, "brow": 0.0, "eye_open": 1.0, **values}
    expression = Expression(np.asarray([list(calm.values())]), step_s=1.0, phase_s=0.0, blink_s=1e9)
    return replace(spec, motion=replace(spec.motion, keys=spec.motion.keys[:1], expression=expression))


# -- framings


@pytest.mark.parametrize("size_wh", [SIZE_WH, (120, 90)])
def test_a_bust_shows_a_face_a_third_of_the_frame_high(size_wh: tuple[int, int]) -> None:
    seen, found = [], []
    for index in range(12):
        spec = clip_spec(world("bust", size_wh=size_wh), index)
        for shown in (spec, face_swapped(spec, np.random.default_rng(index))):
            clip = draw(shown, np.arange(8) / 4, size_wh)
            seen.append(np.ptp(clip.tracks.face_xy[..., 1], axis=1).min() / size_wh[1])
            found.append(clip.tracks.face_conf.mean())
    assert min(seen) >= 1 / 3
    assert max(seen) < 0.65
    assert np.mean(found) > 0.95


def test_framings_show_what_they_say() -> None:
    ankles, hips, faces = {}, {}, {}
    for framing in FRAMINGS:
        clips = [draw(clip_spec(world(framing), index), [0.3, 1.1]).tracks for index in range(10)]
        ankles[framing] = np.mean([clip.joints_conf[:, [10, 13]].mean() for clip in clips])
        hips[framing] = np.mean([clip.joints_conf[:, [8, 11]].mean() for clip in clips])
        faces[framing] = np.mean([clip.face_conf.mean() for clip in clips])
    assert ankles["full"] > 0.95
    assert ankles["half"] == ankles["bust"] == 0
    assert hips["full"] > 0.95
    assert hips["half"] > 0.6
    assert hips["bust"] == 0
    assert min(faces.values()) > 0.9


def test_shares_of_framings_are_kept() -> None:
    spaces = [clip_spec(World(framings={"full": 1, "bust": 3}), index).camera.body for index in range(200)]
    busts = np.mean(np.asarray(spaces) > 2)
    assert 0.66 < busts < 0.84
    assert max(space for space in spaces if space < 2) < 1


@pytest.mark.parametrize(
    ("framings", "message"),
    [
        ({"ful": 1.0}, "unknown framing 'ful'; did you mean full"),
        ({"full": -1.0}, "share -1, wanted 0 or more"),
        ({"full": float("nan")}, "share nan, wanted 0 or more"),
        ({"full": 0.0}, "no share is above 0"),
        ({}, "no share is above 0"),
    ],
)
def test_bad_framings_are_refused(framings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        World(framings=framings)


# -- truth and pictures


@pytest.mark.parametrize("framing", FRAMINGS)
def test_frames_do_not_depend_on_which_others_are_drawn(framing: str) -> None:
    for index in range(4):
        spec = clip_spec(world(framing), index)
        together = draw(spec, [0.1, 0.9, 2.0, 7.3])
        alone = draw(spec, [7.3])
        assert np.array_equal(together.frames[3:], alone.frames)
        assert np.array_equal(together.masks[3:], alone.masks)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_joints_and_limbs_lie_on_the_drawn_person(framing: str) -> None:
    hits, total = 0, 0
    limbs = [(2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (0, 1), (1, 8)]
    for index in range(10):
        clip = draw(clip_spec(world(framing, size_wh=(128, 192)), index), [0.2, 1.3], (128, 192))
        joints = clip.tracks.joints_xy[:, :14]
        middles = np.stack([joints[:, list(limb)].mean(1) for limb in limbs], 1)
        for frame, points in enumerate(np.concatenate([joints, middles], 1)):
            for x, y in points:
                if 0 <= x < 128 and 0 <= y < 192:
                    total += 1
                    hits += int(clip.masks[frame, int(y), int(x)] > 127)
    assert total > 60
    assert hits / total > 0.99


@pytest.mark.parametrize("framing", ["half", "bust"])
def test_mask_is_exactly_what_differs_from_the_empty_scene(framing: str) -> None:
    for index in range(4):
        spec = replace(clip_spec(world(framing), index), scene="meadow")
        clip, empty = draw(spec, [0.4, 1.0]), draw(replace(spec, person=False), [0.4, 1.0])
        outside = clip.masks == 0
        assert np.array_equal(clip.frames[outside], empty.frames[outside])
        assert 0.1 < (clip.masks == 255).mean() < 0.95
        assert (clip.frames != empty.frames).any(-1)[clip.masks > 127].mean() > 0.97


# -- faces


@pytest.mark.parametrize(
    ("name", "low", "high", "rows"),
    [
        ("mouth_open", 0.0, 1.0, slice(48, 68)),
        ("smile", -0.5, 1.0, slice(48, 68)),
        ("brow", -1.0, 1.2, slice(17, 27)),
        ("eye_open", 0.0, 1.0, slice(36, 48)),
    ],
)
def test_expressions_show_in_a_small_bust(name: str, low: float, high: float, rows: slice) -> None:
    """Round the part that moves many pixels change clearly; away from the face none do."""
    for index in range(6):
        spec = clip_spec(world("bust", scenes=("studio",)), index)
        first, second = (draw(with_face(spec, **{name: value}), [0.0]) for value in (low, high))
        points = np.concatenate([first.tracks.face_xy[0, rows], second.tracks.face_xy[0, rows]])
        (left, top), (right, bottom) = points.min(0).astype(int) - 2, points.max(0).astype(int) + 3
        change = np.abs(first.frames[0].astype(int) - second.frames[0]).max(-1)
        assert (change[max(top, 0) : bottom, max(left, 0) : right] > 40).sum() >= 12
        face = first.tracks.face_xy[0]
        below = int(max(face[:, 1].max(), second.tracks.face_xy[0, :, 1].max())) + 3
        assert (change[below:] == 0).all()


def test_a_wider_open_mouth_is_a_larger_dark_area() -> None:
    spec = clip_spec(world("bust", scenes=("studio",)), 3)
    dark = []
    for opening in (0.0, 0.35, 0.7, 1.05):
        frame = draw(with_face(spec, mouth_open=opening), [0.0], (256, 384)).frames[0].astype(int)
        dark.append(int((np.abs(frame - [84, 18, 28]).max(-1) < 12).sum()))
    assert dark[0] < dark[1] < dark[2] < dark[3]
    assert dark[3] > 300


def test_blinks_last_two_frames_and_come_often() -> None:
    for index in range(30):
        expression = random_expression(np.random.default_rng(index))
        for start_s in np.random.default_rng(index).uniform(0, 10, 5):
            eyes = expression(start_s + np.arange(36) / FPS)[:, 3]
            shut = "".join("x" if eye < 0.01 else "." for eye in eyes)
            runs = [len(run) for run in shut.strip("x").split(".") if run]
            assert runs
            assert min(runs) >= 2


def test_faces_are_lively_and_stay_in_range() -> None:
    values = np.concatenate([random_expression(np.random.default_rng(k))(np.arange(24) / FPS) for k in range(60)])
    assert values.min(0) == pytest.approx([0, -0.5, -1, 0], abs=0.1)
    assert values.max(0) == pytest.approx([1.1, 1, 1.2, 1.2], abs=0.1)
    assert (values.std(0) > 0.25).all()


# -- dances


def test_a_pausing_dance_stands_still_exactly_while_it_says() -> None:
    motion = random_motion(np.random.default_rng(4))
    moving = replace(motion, keys=motion.keys[:4] + np.arange(4)[:, None] * 1e-6, bounce=0.02)
    still = pausing(moving, 2, 3)
    assert moving.stops(20.0) == []
    assert still.period_s == pytest.approx(moving.period_s + 3 * moving.beat_s)
    stops = still.stops(3 * still.period_s)
    assert len(stops) >= 3
    inside = np.concatenate([np.linspace(start, end, 9) for start, end in stops])
    body = clip_spec(World(), 0).character.body
    joints = place(body, still, inside).joints
    assert np.abs(joints - joints[:1]).max() < 1e-12
    between = np.asarray([(a[1] + b[0]) / 2 for a, b in pairwise(stops)])
    assert np.abs(place(body, still, between).joints - joints[:1]).max() > 0.02


def test_the_repertoire_has_turns_crouches_jumps_pauses_and_crossing_arms() -> None:
    times_s = np.arange(0, 6, 0.1)
    counts: Counter[str] = Counter()
    for index in range(60):
        character, motion = clip_spec(World(), index).character, clip_spec(World(), index).motion
        figure, pose = place(character.body, motion, times_s), motion(times_s)
        counts["turn"] += bool((np.abs(figure.yaw) > 0.7).any())
        counts["crouch"] += bool((pose[:, COLUMN["dip"]] > 0.12).any())
        counts["jump"] += bool((figure.joints[:, [10, 13], 1].max(1) < -character.body.ankle - 0.03).any())
        counts["pause"] += bool(motion.stops(6.0))
        across = figure.joints[:, 4, 0] - figure.joints[:, 1, 0], figure.joints[:, 1, 0] - figure.joints[:, 7, 0]
        counts["cross"] += bool((np.stack(across) > 0.03).any())
    assert all(counts[name] >= 8 for name in ("turn", "crouch", "jump", "pause", "cross")), counts


def test_energy_scales_how_far_people_move() -> None:
    travel = [COLUMN[name] for name in TRAVEL]
    reach = {}
    for energy in (0.0, 0.5, 1.5):
        motions = [clip_spec(World(energy=energy), index).motion for index in range(20)]
        reach[energy] = np.mean([np.ptp(motion.keys[:, travel], axis=0).sum() + motion.bounce for motion in motions])
        assert all(np.ptp(motion.keys[:, COLUMN["right_arm_a"]]) > 0.3 for motion in motions)
    assert reach[0.0] == 0
    assert reach[1.5] > 2 * reach[0.5] > 0


def test_turned_away_arms_are_behind_the_trunk() -> None:
    """Both arms across the belly: seen from the front both hands show, turned far only the near one does."""
    spec = clip_spec(world("full", scenes=("studio",)), 0)
    person = replace(spec.character, sleeve="short", bottom_kind="trousers", cape=None, hair_style="short")
    person = replace(person, skin=(255, 0, 255), top=(0, 255, 0), bottom=(0, 0, 255), trim=(0, 255, 0))
    key = np.zeros((1, len(COLUMN)))
    for side in ("right", "left"):
        for name, value in (("arm_a", 0.15), ("arm_b", -0.9), ("arm_z", 1.0), ("foot_x", 0.08)):
            key[0, COLUMN[f"{side}_{name}"]] = value

    def bare(yaw: float) -> int:
        key[0, COLUMN["yaw"]] = yaw
        motion = replace(spec.motion, keys=key.copy(), bounce=0.0)
        clip = draw(replace(spec, character=person, motion=motion), [0.0], (256, 384))
        (_, top), (_, bottom) = clip.tracks.joints_xy[0, 1], clip.tracks.joints_xy[0, 8]
        frame = clip.frames[0, int(top + 0.3 * (bottom - top)) : int(bottom)].astype(int)
        return int(((frame[..., 0] > 100) & (frame[..., 2] > 100) & (frame[..., 1] < 90)).sum())

    assert bare(0.9) < 0.8 * bare(0.4)
    assert bare(-0.9) < 0.8 * bare(-0.4)


# -- looks


def test_people_wear_everything_there_is() -> None:
    people = [random_character(np.random.default_rng(index)) for index in range(300)]
    for field, kinds in (("hair_style", HAIR_STYLES), ("hat", HATS), ("bottom_kind", BOTTOMS), ("pattern", PATTERNS)):
        assert {getattr(person, field) for person in people} == set(kinds)
    assert 20 < sum(person.cape is not None for person in people) < 90
    assert all(person.top == person.bottom for person in people if person.bottom_kind == "dress")


@pytest.mark.parametrize(
    "change",
    [
        {"hat": "cap"},
        {"hat": "beanie"},
        {"hat": "brim"},
        {"cape": (20, 20, 200)},
        {"hair_style": "pigtails"},
        {"hair_style": "ponytail"},
        {"hair_style": "bun"},
        {"hair_style": "long"},
        {"pattern": "stripes"},
        {"pattern": "dots"},
        {"pattern": "band"},
        {"pattern": "vest"},
        {"bottom_kind": "skirt"},
        {"bottom_kind": "dress"},
        {"bottom_kind": "shorts"},
        {"sleeve": "none"},
    ],
)
def test_every_piece_shows_at_64x96(change: dict[str, object]) -> None:
    spec = clip_spec(world("full", scenes=("studio",)), 0)
    plain = replace(
        spec.character, hat="none", cape=None, hair_style="short", pattern="plain", bottom_kind="trousers",
        sleeve="long", trim=(250, 240, 60), hair=(224, 178, 88),
    )  # fmt: skip
    first = draw(replace(spec, character=plain), [0.5]).frames[0].astype(int)
    second = draw(replace(spec, character=replace(plain, **change)), [0.5]).frames[0]  # type: ignore[arg-type]
    assert (np.abs(first - second).max(-1) > 40).sum() >= 12


# -- one clip, another head, another body


def test_a_swapped_face_keeps_expression_and_place_and_changes_identity() -> None:
    for index in range(6):
        spec = clip_spec(world("bust", scenes=("studio",)), index)
        other = face_swapped(spec, np.random.default_rng(index))
        times_s = np.arange(6) / 6
        own, swapped = draw(spec, times_s), draw(other, times_s)
        assert np.array_equal(own.expression, swapped.expression)
        assert other.camera is spec.camera
        assert other.motion is spec.motion
        body = slice(1, 14)
        assert np.array_equal(own.tracks.joints_xy[:, body], swapped.tracks.joints_xy[:, body])
        assert not np.array_equal(own.tracks.face_xy, swapped.tracks.face_xy)
        for part in ("skin", "hair"):
            assert np.linalg.norm(np.subtract(getattr(spec.character, part), getattr(other.character, part))) > 50
        for part in ("top", "bottom", "shoes", "sleeve", "pattern", "cape"):
            assert getattr(spec.character, part) == getattr(other.character, part)
        nose = own.tracks.joints_xy[:, 0].astype(int)
        change = [np.abs(own.frames[k, y, x].astype(int) - swapped.frames[k, y, x]).max() for k, (x, y) in
                  enumerate(nose)]  # fmt: skip
        assert min(change) > 15


def test_a_face_can_be_swapped_for_that_of_another_clip() -> None:
    spec, donor = (clip_spec(world("bust"), index) for index in (1, 2))
    other = face_swapped(spec, donor)
    assert other.character.skin == donor.character.skin
    assert other.character.body.face == donor.character.body.face
    assert other.character.body.leg == spec.character.body.leg
    again = [face_swapped(spec, np.random.default_rng(5)).character for _ in range(2)]
    assert again[0] == again[1]


def test_another_body_dances_the_same_dance_in_its_own_proportions() -> None:
    ratios = []
    for index in range(12):
        spec = clip_spec(world("full"), index)
        other = reshaped(spec, np.random.default_rng(index))
        assert other.motion is spec.motion
        assert other.character.skin == spec.character.skin
        assert other.character.top == spec.character.top
        first, second = (place(clip.character.body, clip.motion, np.asarray([0.0])).joints[0] for clip in (spec, other))
        legs = [np.linalg.norm(joints[[8, 9]] - joints[[9, 10]], axis=-1).sum() for joints in (first, second)]
        trunks = [np.linalg.norm(joints[1] - joints[[8, 11]].mean(0)) for joints in (first, second)]
        ratios.append((legs[1] / trunks[1]) / (legs[0] / trunks[0]))
    assert np.std(ratios) > 0.08


def test_a_lively_dance_stays_in_a_close_view() -> None:
    """Cross-driving a bust with the dance of a whole body: the head stays in the picture."""
    found = []
    for index in range(12):
        spec = dressed_as(clip_spec(world("full"), index), clip_spec(world("bust"), index + 50))
        found.append(draw(spec, np.arange(8) / 2).tracks.face_conf.mean())
    assert np.mean(found) > 0.95
