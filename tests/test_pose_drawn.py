"""Skeleton videos drawn elsewhere: our own drawing read back."""

import numpy as np
import pytest
from test_pose_draw import SIZE_WH, standing, with_hands

from xdyna.errors import UserError
from xdyna.preprocess.draw import DRAWN_JOINTS, HAND_DISC_COLOR, draw_pose_map, draw_pose_maps
from xdyna.preprocess.drawn import DrawnSkeletonDetector, decode_joints, read_pose_maps
from xdyna.preprocess.tracks import JOINT_NAMES


@pytest.mark.parametrize("size_wh", [SIZE_WH, (1024, 1792), (360, 630)])
def test_joints_are_read_back(size_wh: tuple[int, int]) -> None:
    tracks = standing(size_wh=size_wh)
    joints, conf = decode_joints(draw_pose_map(tracks, 0, size_wh, draw_width=size_wh[0]))
    assert (conf == 1).all()
    assert np.abs(joints - tracks.joints_xy[0, : len(DRAWN_JOINTS)]).max() <= 1.5


def test_joint_under_a_hand_is_read_from_its_limb() -> None:
    tracks = standing()
    wrist = JOINT_NAMES.index("left_wrist")
    image = draw_pose_map(tracks, 0, SIZE_WH)
    x, y = tracks.joints_xy[0, wrist].astype(int)
    image[y - 8 : y + 9, x - 8 : x + 9] = HAND_DISC_COLOR
    joints, conf = decode_joints(image)
    assert conf[wrist] == np.float32(0.7)
    assert np.linalg.norm(joints[wrist] - tracks.joints_xy[0, wrist]) <= 14


def test_hands_do_not_mislead() -> None:
    tracks = with_hands(standing())
    joints, conf = decode_joints(draw_pose_map(tracks, 0, SIZE_WH))
    assert (conf > 0).all()
    assert np.linalg.norm(joints - tracks.joints_xy[0, :14], axis=-1).max() <= 10


def test_missing_joint_is_not_invented() -> None:
    tracks = standing()
    ankle = JOINT_NAMES.index("right_ankle")
    tracks.joints_conf[0, ankle] = 0
    _, conf = decode_joints(draw_pose_map(tracks, 0, SIZE_WH))
    assert conf[ankle] == 0
    assert conf.sum() == 13


def test_detector_reads_a_clip() -> None:
    tracks = standing(3)
    tracks.joints_xy[:, :, 0] += 10 * np.arange(3)[:, None]
    found = DrawnSkeletonDetector("pose.mp4").detect(draw_pose_maps(tracks, SIZE_WH), fps=8.0)
    assert len(found) == 3
    assert np.abs(found.joints_xy[:, :14] - tracks.joints_xy[:, :14]).max() <= 1.5
    assert not found.joints_conf[:, 14:].any()


@pytest.mark.parametrize("frames", [[], [np.zeros((96, 64, 3), np.uint8)] * 2])
def test_detector_without_skeleton(frames: list[np.ndarray]) -> None:
    with pytest.raises(UserError, match=r"^pose\.mp4: no skeleton found"):
        DrawnSkeletonDetector("pose.mp4").detect(frames, fps=8.0)


def test_maps_are_fitted_and_ordinary_videos_refused() -> None:
    maps = list(read_pose_maps(draw_pose_maps(standing(2), SIZE_WH), (64, 112), "pose.mp4"))
    assert [image.shape for image in maps] == [(112, 64, 3)] * 2
    assert maps[0].any()
    same = next(draw_pose_maps(standing(), SIZE_WH))
    assert np.array_equal(next(read_pose_maps([same], SIZE_WH, "pose.mp4")), same)
    bright = np.full((96, 64, 3), 130, np.uint8)
    with pytest.raises(UserError, match=r"pose\.mp4: not a skeleton video"):
        next(read_pose_maps([bright], (64, 112), "pose.mp4"))
