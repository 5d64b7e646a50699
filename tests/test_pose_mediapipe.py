"""MediaPipe on nothing, and on real clips where they are at hand (folder XDYNA_MEDIA)."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from xdyna.errors import UserError
from xdyna.preprocess.boxes import confident_boxes, is_box
from xdyna.preprocess.detect import build_detector
from xdyna.preprocess.mediapipe_pose import MediaPipeFinder, guess_hand, paint_over, to_openpose
from xdyna.preprocess.people import detect_people
from xdyna.preprocess.smooth import fill_gaps, smooth_tracks
from xdyna.preprocess.tracks import JOINT_NAMES, Tracks
from xdyna.video import VideoReader

pytest.importorskip("mediapipe")

ROOT = Path(__file__).resolve().parent.parent
MEDIA = Path(os.environ.get("XDYNA_MEDIA", ROOT.parent / "shared" / "media"))
needs_media = pytest.mark.skipif(
    not (MEDIA / "driving_1.mp4").is_file(), reason=f"no clips in {MEDIA} (set XDYNA_MEDIA to a folder of them)"
)


@pytest.fixture(scope="module")
def finder() -> MediaPipeFinder:
    return MediaPipeFinder(hands=False)


def clip(number: int, num_frames: int, stride: int = 1) -> Iterator[np.ndarray]:
    return islice(iter(VideoReader(MEDIA / f"driving_{number}.mp4", stride=stride)), num_frames)


def measure_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_pose_match", ROOT / "scripts" / "measure_pose_match.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_starting_and_running_writes_nothing() -> None:
    code = (
        "import numpy as np; from xdyna.preprocess.mediapipe_pose import MediaPipeFinder\n"
        "finder = MediaPipeFinder(); frame = np.zeros((96, 64, 3), np.uint8)\n"
        "for _ in range(2):\n    print(finder.find(frame, 6), finder.find(frame, 1)); finder.reset()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "[] []\n[] []\n"


def test_black_clip_is_one_line_that_names_the_file() -> None:
    detector, line = build_detector("mediapipe", video=Path("night.mp4"))
    assert line == "pose: detector mediapipe (asked for)"
    with pytest.raises(UserError, match=r"^night\.mp4: no person found, every frame is black"):
        detector.detect([np.zeros((128, 96, 3), np.uint8)] * 3, fps=8.0)


def test_openpose_order_neck_and_points_outside() -> None:
    points = np.stack([10 + np.arange(33.0), 5 + np.arange(33.0), np.full(33, 0.9)], axis=1).astype(np.float32)
    points[12, 2] = 0.4
    points[28, 0] = 700.0
    joints, conf = to_openpose(points, (640, 480))
    wanted = [0, 11.5, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7]
    wanted_x = [10 + index if index != 28 else 700 for index in wanted]
    assert joints[:, 0].tolist() == wanted_x
    assert conf[1] == np.float32(0.4)
    assert conf[JOINT_NAMES.index("right_ankle")] == 0
    assert conf[0] == np.float32(0.9)


def test_guessed_hand_continues_the_arm() -> None:
    arm = np.array([[0, 0], [0, 100], [-10, 125], [10, 125], [18, 112]], np.float32)
    hand = guess_hand(arm)
    assert hand[0].tolist() == [0, 100]
    assert hand[5].tolist() == [10, 125]
    assert hand[17].tolist() == [-10, 125]
    assert (np.diff(hand[5:].reshape(4, 4, 2)[..., 1], axis=1) > 0).all()  # every finger points on
    assert np.ptp(hand, axis=0).max() < 60


def test_paint_over_hides_and_leaves_the_rest() -> None:
    frame = np.tile(np.linspace(50, 200, 64).astype(np.uint8)[None, :, None], (96, 1, 3))
    mask = np.zeros((96, 64), bool)
    mask[30:60, 20:40] = True
    marked = frame.copy()
    marked[mask] = 255
    painted = paint_over(marked, mask)
    assert np.array_equal(painted[~mask], frame[~mask])
    assert np.abs(painted[mask].astype(int) - frame[mask]).max() < 25


@needs_media
@pytest.mark.parametrize("number", [1, 2])
def test_maps_match_the_official_ones(number: int) -> None:
    measure = measure_script()
    detector, _ = build_detector("mediapipe", hands=False)
    found = detector.detect(clip(number, 32), fps=8.0)
    tracks = smooth_tracks(fill_gaps(found)[0])
    distances, overlaps = measure.compare(tracks, MEDIA / f"pose_{number}.mp4")
    assert len(distances) == 32
    assert np.nanmedian(distances) <= 2.0
    assert (overlaps >= 0.5).mean() >= 0.9


@needs_media
def test_hands_hang_on_the_wrists() -> None:
    people = MediaPipeFinder().find(next(clip(2, 1)), 1)
    assert len(people) == 1
    for side, wrist in enumerate(("left_wrist", "right_wrist")):
        hand, joint = people[0].hands_xy[0, side], people[0].joints_xy[0, JOINT_NAMES.index(wrist)]
        assert (people[0].hands_conf[0, side] >= 0.3).all()
        assert np.linalg.norm(hand - joint, axis=1).max() < 90
        assert np.ptp(hand, axis=0).max() > 10


@needs_media
def test_large_frames_give_the_same_places(finder: MediaPipeFinder) -> None:
    frame = next(clip(2, 1))
    large = np.kron(frame, np.ones((2, 2, 1), np.uint8))
    (one,), (other,) = finder.find(frame, 6), finder.find(large, 6)
    assert other.size_wh == (1024, 1792)
    assert np.abs(other.joints_xy / 2 - one.joints_xy).max() < 15
    assert np.median(np.abs(other.joints_xy / 2 - one.joints_xy)) < 3


def side_by_side(num_frames: int) -> Iterator[np.ndarray]:
    for left, right in zip(clip(1, num_frames, 8), clip(2, num_frames, 8), strict=True):
        yield np.concatenate([left, right], axis=1)[::2, ::2]


def crossing(num_frames: int) -> Iterator[np.ndarray]:
    """The first clip slides to the right, the second, cut out and in front, to the left: for a while one hides one."""
    for index, (behind, front) in enumerate(zip(clip(1, num_frames, 4), clip(2, num_frames, 4), strict=True)):
        scene = np.full((448, 512, 3), 128, np.uint8)
        share = index / (num_frames - 1)
        scene[:, round(256 * share) : round(256 * share) + 205] = behind[::2, :410:2]
        at = round(256 * (1 - share)) + 40
        scene[65:380, at : at + 175] = front[130:760:2, 70:420:2]
        yield scene


def center_x(person: Tracks, frame: int) -> float:
    return float(person.joints_xy[frame, 1, 0])


@needs_media
def test_two_people_side_by_side(finder: MediaPipeFinder) -> None:
    people = detect_people(side_by_side(12), finder, fps=8.0, look_every=1)
    assert len(people) == 2
    for person, low, high in ((people[0], 0, 256), (people[1], 256, 512)):
        seen = is_box(confident_boxes(person))
        assert seen.mean() > 0.8
        assert all(low < center_x(person, frame) < high for frame in np.flatnonzero(seen))


@needs_media
def test_two_people_cross_and_keep_their_numbers(finder: MediaPipeFinder) -> None:
    people = detect_people(crossing(32), finder, fps=8.0, look_every=1)
    assert len(people) == 2
    behind, front = people
    assert is_box(confident_boxes(front)).all()
    assert not is_box(confident_boxes(behind)).all()  # hidden for a while
    for person, path in ((behind, lambda share: 256 * share + 100), (front, lambda share: 296 - 256 * share + 88)):
        seen = np.flatnonzero(is_box(confident_boxes(person)))
        assert seen[0] <= 1
        assert seen[-1] >= 30
        assert all(abs(center_x(person, frame) - path(frame / 31)) < 80 for frame in seen)
