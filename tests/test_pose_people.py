"""Several people in one clip, with a finder that knows where they are."""

from collections.abc import Iterator

import numpy as np
import pytest
from test_pose_draw import standing

from xdyna.errors import UserError
from xdyna.preprocess.boxes import box_overlap, confident_boxes
from xdyna.preprocess.detect import PeopleDetector
from xdyna.preprocess.people import biggest_person, choose_person, detect_people, people_picture
from xdyna.preprocess.tracks import Tracks

SIZE_WH = (640, 360)
COLORS = ((200, 40, 40), (40, 60, 200), (60, 200, 60))


def figure(center_x: float, height: float) -> Tracks:
    """One frame of a person of some height whose feet are near the bottom."""
    tracks = standing()
    scale = height / 600
    tracks.joints_xy[:] = (tracks.joints_xy - (256, 750)) * scale + (center_x, 340)
    return Tracks(**{**vars(tracks), "size_wh": SIZE_WH})


class Stage:
    """People on lines through a clip; finds those in front, in an order that changes from frame to frame."""

    name = "stage"

    def __init__(self, paths: list[tuple[float, float, float]], num_frames: int, seed: int = 0) -> None:
        """`paths`: start x, end x and height of each, pixels; the first is in front of the second and so on."""
        self.paths, self.num_frames, self.rng = paths, num_frames, np.random.default_rng(seed)
        self.now = 0
        self.absent: dict[int, range] = {}
        self.searches = 0

    def at(self, person: int, frame: int) -> Tracks:
        start, end, height = self.paths[person]
        return figure(start + (end - start) * frame / max(1, self.num_frames - 1), height)

    def frames(self) -> Iterator[np.ndarray]:
        for index in range(self.num_frames):
            self.now = index
            image = np.full((SIZE_WH[1], SIZE_WH[0], 3), 120, np.uint8)
            for person in reversed(range(len(self.paths))):
                if index in self.absent.get(person, ()):
                    continue
                x0, y0, x1, y1 = np.clip(confident_boxes(self.at(person, index))[0], 0, 639).astype(int)
                image[y0:y1, x0:x1] = COLORS[person]
            yield image

    def reset(self) -> None:
        pass

    def find(self, frame: np.ndarray, max_people: int) -> list[Tracks]:
        self.searches += max_people > 1
        found: list[Tracks] = []
        for person in range(len(self.paths)):
            one = self.at(person, self.now)
            box = confident_boxes(one)[0]
            hidden = any(box_overlap(box, confident_boxes(other)[0]) > 0.4 for other in found)
            if not hidden and self.now not in self.absent.get(person, ()):
                found.append(one)
        found = found[:max_people]
        return [found[index] for index in self.rng.permutation(len(found))]


def center_x(person: Tracks, frame: int) -> float:
    return float(person.joints_xy[frame, 1, 0])


def test_people_are_numbered_left_to_right_in_the_first_frame() -> None:
    stage = Stage([(500, 520, 200), (100, 90, 200), (300, 310, 220)], 12)
    people = detect_people(stage.frames(), stage, fps=8.0)
    assert [round(center_x(person, 0)) for person in people] == [100, 300, 500]
    assert all((person.joints_conf > 0).all() for person in people)
    assert people[0].size_wh == SIZE_WH
    assert people[0].fps == 8.0


@pytest.mark.parametrize("seed", range(4))
def test_crossing_people_keep_their_numbers(seed: int) -> None:
    stage = Stage([(80, 560, 220), (560, 80, 220)], 40, seed)
    people = detect_people(stage.frames(), stage, fps=8.0)
    assert len(people) == 2
    for person, path in ((people[0], 0), (people[1], 1)):
        seen = np.flatnonzero(person.joints_conf.any(1))
        assert len(seen) > 30
        for frame in seen:
            assert center_x(person, frame) == pytest.approx(center_x(stage.at(path, frame), 0), abs=1)


def test_later_comer_is_numbered_after_those_of_the_first_frame() -> None:
    stage = Stage([(100, 100, 200), (300, 300, 200)], 20)
    stage.absent[0] = range(6)
    people = detect_people(stage.frames(), stage, fps=8.0)
    assert [round(center_x(person, 19)) for person in people] == [300, 100]
    assert not people[1].joints_conf[:6].any()


def test_one_person_alone_is_searched_around_now_and_then() -> None:
    stage = Stage([(100, 500, 200)], 24)
    people = detect_people(stage.frames(), stage, fps=8.0, look_every=8)
    assert len(people) == 1
    assert stage.searches == 3


def test_a_flash_is_no_person() -> None:
    stage = Stage([(100, 120, 200), (500, 500, 200)], 20)
    stage.absent[1] = range(2, 20)
    people = detect_people(stage.frames(), stage, fps=8.0)
    assert len(people) == 1


def test_who_comes_back_half_hidden_is_the_same_person() -> None:
    class Reappearing(Stage):
        def frames(self) -> Iterator[np.ndarray]:
            for index, image in enumerate(super().frames()):
                yield np.full_like(image, 60) if index in (25, 26) else image  # nothing of the colors is seen yet

    stage = Reappearing([(60, 580, 160)], 40)
    stage.absent[0] = range(10, 25)
    people = detect_people(stage.frames(), stage, fps=8.0)
    assert len(people) == 1
    assert np.flatnonzero(~people[0].joints_conf.any(1)).tolist() == list(range(10, 25))


def test_somebody_else_later_is_somebody_else() -> None:
    stage = Stage([(300, 300, 200), (310, 310, 200)], 30)
    stage.absent = {0: range(12, 30), 1: range(14)}
    people = detect_people(stage.frames(), stage, fps=8.0)
    assert len(people) == 2


def test_biggest_by_default_or_by_number() -> None:
    stage = Stage([(100, 100, 150), (400, 400, 280)], 6)
    detector = PeopleDetector(stage, label="clip.mp4")
    assert center_x(detector.detect(stage.frames(), fps=8.0), 0) == pytest.approx(400)
    first = PeopleDetector(stage, person=1, label="clip.mp4").detect(stage.frames(), fps=8.0)
    assert center_x(first, 0) == pytest.approx(100)
    assert biggest_person(detector.detect_all(stage.frames(), fps=8.0)) == 1


def test_wrong_number_names_file_and_range() -> None:
    stage = Stage([(100, 100, 150), (400, 400, 280)], 6)
    with pytest.raises(UserError, match=r"clip\.mp4: --person 3, but the people found are 1 to 2"):
        PeopleDetector(stage, person=3, label="clip.mp4").detect(stage.frames(), fps=8.0)
    with pytest.raises(UserError, match="--person 0"):
        choose_person([stage.at(0, 0)], 0, "clip.mp4")


def test_nobody_black_and_no_frames_are_told_apart() -> None:
    stage = Stage([], 5)
    with pytest.raises(UserError, match=r"^clip\.mp4: no person found in any frame"):
        PeopleDetector(stage, label="clip.mp4").detect(stage.frames(), fps=8.0)
    with pytest.raises(UserError, match=r"^clip\.mp4: no person found, every frame is black"):
        PeopleDetector(stage, label="clip.mp4").detect([np.zeros((36, 64, 3), np.uint8)] * 4, fps=8.0)
    with pytest.raises(UserError, match=r"^photo\.png: no person found; wanted a picture that shows a person"):
        PeopleDetector(Stage([], 1), label="photo.png").detect([np.full((36, 64, 3), 90, np.uint8)], fps=1.0)
    with pytest.raises(UserError, match=r"^clip\.mp4: has no frames"):
        PeopleDetector(stage, label="clip.mp4").detect([], fps=8.0)
    with pytest.raises(UserError, match="no person found"):
        PeopleDetector(stage, label="clip.mp4").detect_all(stage.frames(), fps=8.0)


def test_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="frame 1 has size 32x36, wanted 64x36"):
        detect_people([np.zeros((36, 64, 3), np.uint8), np.zeros((36, 32, 3), np.uint8)], Stage([], 2), fps=8.0)


def test_picture_numbers_everybody_seen() -> None:
    stage = Stage([(150, 150, 200), (450, 450, 200)], 6)
    frames = list(stage.frames())
    people = detect_people(iter(frames), Stage([(150, 150, 200), (450, 450, 200)], 1), fps=8.0)
    picture = people_picture(frames[0], people)
    changed = np.any(picture != frames[0], axis=-1)
    assert changed[:, :320].any()
    assert changed[:, 320:].any()
    people[1].joints_conf[:] = 0
    assert not np.any(people_picture(frames[0], people)[:, 320:] != frames[0][:, 320:])
