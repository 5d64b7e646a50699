"""The drawn skeleton: what is shown, in which colours, at which size."""

import numpy as np
import pytest

from xdyna.preprocess import draw
from xdyna.preprocess.boxes import box_overlap, confident_boxes, head_box, is_box
from xdyna.preprocess.tracks import JOINT_NAMES, Tracks

SIZE_WH = (512, 896)


def standing(num_frames: int = 1, size_wh: tuple[int, int] = SIZE_WH) -> Tracks:
    """A person with arms out, seen from the front, every joint certain; no hands."""
    tracks = Tracks.empty(num_frames, SIZE_WH, fps=8.0)
    right = {"shoulder": (-60, 250), "elbow": (-110, 330), "wrist": (-140, 400), "hip": (-40, 450), "knee": (-45, 600)}
    right |= {"ankle": (-50, 750), "eye": (-12, 170), "ear": (-30, 175)}
    for index, name in enumerate(JOINT_NAMES):
        side, _, part = name.partition("_")
        x, y = {"nose": (0, 185), "neck": (0, 250)}.get(name) or right[part]
        tracks.joints_xy[:, index] = (256 + (-x if side == "left" else x), y)
    tracks.joints_conf[:] = 1
    return tracks.resized(size_wh)


def with_hands(tracks: Tracks) -> Tracks:
    """Fingers spread below each wrist."""
    for side, wrist in enumerate(("left_wrist", "right_wrist")):
        root = tracks.joints_xy[:, None, JOINT_NAMES.index(wrist)]
        spread = np.array([(0, 0)] + [((finger - 2) * 12, step * 12) for finger in range(5) for step in range(1, 5)])
        tracks.hands_xy[:, side] = root + spread
    tracks.hands_conf[:] = 1
    return tracks


def test_joints_and_limbs_have_openpose_colors() -> None:
    tracks = standing()
    image = draw.draw_pose_map(tracks, 0, SIZE_WH)
    assert image.shape == (896, 512, 3)
    assert image.dtype == np.uint8
    for joint in draw.DRAWN_JOINTS:
        x, y = np.rint(tracks.joints_xy[0, joint]).astype(int)
        assert tuple(image[y, x]) == draw.wheel_color(joint), JOINT_NAMES[joint]
    for limb, ends in enumerate(draw.LIMBS):
        x, y = np.rint(tracks.joints_xy[0, list(ends)].mean(0)).astype(int)
        assert tuple(image[y, x]) == draw.limb_color(limb), ends


def test_eyes_and_ears_are_not_drawn() -> None:
    tracks = standing()
    with_head = draw.draw_pose_map(tracks, 0, SIZE_WH)
    tracks.joints_conf[:, 14:] = 0
    assert np.array_equal(draw.draw_pose_map(tracks, 0, SIZE_WH), with_head)


@pytest.mark.parametrize("joint", range(14))
def test_uncertain_joint_takes_its_limbs_away(joint: int) -> None:
    tracks = standing()
    tracks.joints_conf[0, joint] = 0.1
    colors = {tuple(color) for color in draw.draw_pose_map(tracks, 0, SIZE_WH).reshape(-1, 3)}
    assert draw.wheel_color(joint) not in colors
    for limb, ends in enumerate(draw.LIMBS):
        assert (draw.limb_color(limb) in colors) == (joint not in ends)


def test_hands_are_rainbow_edges_under_blue_discs() -> None:
    tracks = with_hands(standing())
    without = draw.draw_pose_map(tracks, 0, SIZE_WH, hands=False)
    image = draw.draw_pose_map(tracks, 0, SIZE_WH)
    x, y = np.rint(tracks.hands_xy[0, 0, 8]).astype(int)
    assert tuple(image[y, x]) == draw.HAND_DISC_COLOR
    colors = {tuple(color) for color in image[np.any(image != without, axis=-1)]}
    assert {draw.hand_edge_color(edge) for edge in range(20)} <= colors


@pytest.mark.parametrize(("height", "wide"), [(896, 8), (448, 4), (1792, 16)])
def test_stroke_follows_height(height: int, wide: int) -> None:
    size_wh = (height * 4 // 7, height)
    image = draw.draw_pose_map(standing(), 0, size_wh, draw_width=size_wh[0])
    row = image[int(height * 675 / 896)]  # half way down the shins
    assert abs((row.any(-1).sum() / 2) - wide) <= 1.5


def test_small_maps_keep_limb_energy_and_place() -> None:
    tracks = with_hands(standing())
    large = draw.draw_pose_map(tracks, 0, SIZE_WH).astype(float)
    small = draw.draw_pose_map(tracks, 0, (64, 112)).astype(float)
    assert small.shape == (112, 64, 3)
    blocks = large.reshape(112, 8, 64, 8, 3).mean((1, 3))
    assert np.abs(blocks - small).max() <= 0.51  # rounding
    cheap = draw.draw_pose_map(tracks, 0, (64, 112), draw_width=128).astype(float)
    assert np.corrcoef(cheap.ravel(), small.ravel())[0, 1] > 0.9


def test_points_outside_the_frame_and_degenerate_limbs_draw() -> None:
    tracks = standing()
    tracks.joints_xy[0, 4] = (-300, 2000)
    tracks.joints_xy[0, 3] = tracks.joints_xy[0, 2]
    assert draw.draw_pose_map(tracks, 0, SIZE_WH).any()


def test_nothing_found_draws_black_and_stream_covers_frames() -> None:
    maps = list(draw.draw_pose_maps(Tracks.empty(3, SIZE_WH, 8.0), (64, 96)))
    assert len(maps) == 3
    assert not np.any(maps)


def test_bad_size_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted positive"):
        draw.draw_pose_map(standing(), 0, (0, 5))


def test_boxes() -> None:
    tracks = standing(2)
    tracks.joints_conf[1] = 0
    boxes = confident_boxes(tracks)
    assert boxes[0].tolist() == [256 - 140, 170, 256 + 140, 750]
    assert is_box(boxes).tolist() == [True, False]
    assert box_overlap(boxes[0], boxes[0]) == 1
    assert box_overlap(boxes[0], boxes[1]) == 0


def test_head_box_holds_the_head_and_little_else() -> None:
    box = head_box(standing())[0]
    assert box[2] - box[0] == box[3] - box[1]
    assert 60 <= box[2] - box[0] <= 180
    assert box[0] < 256 - 30
    assert box[2] > 256 + 30
    assert box[1] < 150
    assert 210 < box[3] < 270


def test_head_box_without_a_head_is_empty_and_profile_keeps_its_size() -> None:
    tracks = standing(3)
    tracks.joints_conf[1] = 0
    tracks.joints_xy[2] = tracks.joints_xy[2, 0]  # everything in one point: no length left to measure
    boxes = head_box(tracks)
    assert not boxes[1].any()
    assert boxes[2, 2] - boxes[2, 0] > 0.5 * (boxes[0, 2] - boxes[0, 0])
