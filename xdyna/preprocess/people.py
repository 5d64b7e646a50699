"""Several people in one clip: find them frame by frame, follow each over time, number them, choose one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.preprocess.boxes import box_area, box_overlap, confident_boxes, is_box
from xdyna.preprocess.tracks import FloatArray, Tracks

Image = NDArray[np.uint8]

#: As many people as are looked for in a frame.
MAX_PEOPLE = 6
# While one person is followed, the frame is searched for others this often.
LOOK_EVERY = 8

_MIN_OVERLAP = 0.1  # of a person's expected box with a found one, to be a candidate at all
_LOOKS_WEIGHT = 1.0
_MIN_LOOKS = 0.5  # likeness by which a lost person is known again
_MIN_LOST_LOOKS = 0.2  # the same, where the place agrees
_LOST_REACH = 1.5  # a lost person may come back up to this many box heights from where it is expected
_VELOCITY_DECAY = 0.9  # per frame without a sighting
_LOOKS_SCALE = 40.0  # a mean color difference of so much (0..255) brings the likeness to 1/e
_MIN_SIGHTINGS = 3  # fewer, in a clip that is longer, are no person


class PeopleFinder(Protocol):
    """Finds people in single frames."""

    name: str

    def reset(self) -> None:
        """Forget the frames seen so far."""

    def find(self, frame: Image, max_people: int) -> list[Tracks]:
        """One-frame tracks of up to `max_people` people in a uint8 RGB frame [H, W, 3]."""


@dataclass
class _Followed:
    """One person so far."""

    sightings: dict[int, Tracks]
    box: FloatArray
    looks: FloatArray
    velocity: FloatArray = field(default_factory=lambda: np.zeros(2, np.float32))
    last_seen: int = 0

    def expected_box(self, frame: int) -> FloatArray:
        ahead = sum(_VELOCITY_DECAY**step for step in range(min(frame - self.last_seen, 30)))
        return self.box + np.tile(self.velocity * ahead, 2).astype(np.float32)

    def add(self, frame: int, sighting: Tracks, box: FloatArray, looks: FloatArray, *, alone: bool) -> None:
        passed = frame - self.last_seen
        if passed and self.sightings:
            moved = ((box[:2] + box[2:]) - (self.box[:2] + self.box[2:])) / 2 / passed
            self.velocity = (0.5 * self.velocity + 0.5 * moved).astype(np.float32)
        if alone:  # somebody in front would lend his colors
            self.looks = (0.8 * self.looks + 0.2 * looks).astype(np.float32)
        self.sightings[frame], self.box, self.last_seen = sighting, box, frame


def detect_people(
    frames: Iterable[Image],
    finder: PeopleFinder,
    *,
    fps: float,
    max_people: int = MAX_PEOPLE,
    look_every: int = LOOK_EVERY,
) -> list[Tracks]:
    """Follow everybody in a clip.

    Args:
        frames: uint8 RGB [H, W, 3] each, all of one size; read once, as a stream.
        finder: finds people in a frame.
        fps: of the frames.
        max_people: at most so many at a time.
        look_every: while only one person is there, search for others in every so many frames; 1 searches them all.

    Returns:
        Tracks over all frames, one per person: first those of the first frame from left to right, then later comers.
        Empty when nobody was found.

    Raises:
        ValueError: frames of different sizes.
    """
    finder.reset()
    followed: list[_Followed] = []
    crowd_until, num_frames, size_wh = 0, 0, (0, 0)
    for index, frame in enumerate(frames):
        if index and size_wh != (frame.shape[1], frame.shape[0]):
            raise ValueError(
                f"frame {index} has size {frame.shape[1]}x{frame.shape[0]}, wanted {size_wh[0]}x{size_wh[1]}"
            )
        size_wh, num_frames = (frame.shape[1], frame.shape[0]), index + 1
        search = max_people > 1 and (index % look_every == 0 or index < crowd_until)
        people = finder.find(frame, max_people if search else 1)
        if search and len(people) > 1:
            crowd_until = index + 1 + look_every
        _link(followed, index, frame, people)
    _join(followed)
    kept = [person for person in followed if len(person.sightings) >= min(_MIN_SIGHTINGS, num_frames)]
    kept.sort(key=lambda person: _numbering(person, size_wh))
    return [_stack(person.sightings, num_frames, size_wh, fps) for person in kept]


def biggest_person(people: list[Tracks]) -> int:
    """Index of the person whose box, summed over the clip, is largest."""
    return int(np.argmax([float(box_area(confident_boxes(person)).sum()) for person in people]))


def choose_person(people: list[Tracks], person: int | None, label: str) -> Tracks:
    """The person with a number (1..), or the biggest.

    Raises:
        UserError: nobody was found, or nobody has that number; names `label`.
    """
    if not people:
        raise UserError(f"{label}: no person found in any frame; wanted a clip that shows a person")
    if person is None:
        return people[biggest_person(people)]
    if not 1 <= person <= len(people):
        raise UserError(f"{label}: --person {person}, but the people found are 1 to {len(people)}; see --list-people")
    return people[person - 1]


def people_picture(frame: Image, people: list[Tracks], index: int = 0) -> Image:
    """A copy of one frame in which every person of it is boxed and numbered.

    Args:
        frame: uint8 RGB [H, W, 3], of the size of the tracks.
        people: as from `detect_people`; the first has number 1.
        index: which frame of the tracks it is.

    Returns:
        uint8 RGB [H, W, 3].
    """
    import cv2

    from xdyna.preprocess.draw import wheel_color

    picture = frame.copy()
    thick = max(1, round(frame.shape[0] / 300))
    for number, person in enumerate(people, 1):
        box = confident_boxes(person)[index]
        if not is_box(box):
            continue
        color = wheel_color((number - 1) * 5 % 18)
        x0, y0, x1, y1 = (int(value) for value in np.rint(box))
        cv2.rectangle(picture, (x0, y0), (x1, y1), color, thick)
        scale = max(0.5, frame.shape[0] / 400)
        at = (max(0, x0), min(frame.shape[0] - 4, max(y0 - 2 * thick, round(24 * scale))))
        for ink, width in (((0, 0, 0), 4 * thick), (color, 2 * thick)):  # dark rim, then the number
            cv2.putText(picture, str(number), at, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, width, cv2.LINE_AA)
    return picture


def _link(followed: list[_Followed], index: int, frame: Image, people: list[Tracks]) -> None:
    """Give every found person to the one followed whom it fits best; who fits nobody is new."""
    people = [person for person in people if is_box(confident_boxes(person)).all()]
    boxes = [confident_boxes(person)[0] for person in people]
    looks = [_looks(frame, person) for person in people]
    pairs = sorted(
        (
            (_fit(one, index, boxes[found], looks[found]), known, found)
            for known, one in enumerate(followed)
            for found in range(len(people))
        ),
        reverse=True,
    )
    taken_known: set[int] = set()
    taken_found: set[int] = set()
    for fit, known, found in pairs:
        if fit > 0 and known not in taken_known and found not in taken_found:
            taken_known.add(known)
            taken_found.add(found)
            alone = all(box_overlap(boxes[found], other) < 0.2 for at, other in enumerate(boxes) if at != found)
            followed[known].add(index, people[found], boxes[found], looks[found], alone=alone)
    for found in range(len(people)):
        if found not in taken_found:
            new = _Followed({index: people[found]}, boxes[found], looks[found], last_seen=index)
            followed.append(new)


def _join(followed: list[_Followed]) -> None:
    """Give back to a person who was lost for a while what looked like a new one when it came out half hidden."""
    for later in sorted(followed, key=lambda person: min(person.sightings)):
        begin = min(later.sightings)
        ended = [
            (_likeness(person.looks, later.looks), -person.last_seen, at)
            for at, person in enumerate(followed)
            if person.last_seen < begin and _is_near(person, begin, confident_boxes(later.sightings[begin])[0])
        ]
        if ended and max(ended)[0] >= _MIN_LOOKS:
            earlier = followed[max(ended)[2]]
            earlier.sightings |= later.sightings
            earlier.box, earlier.looks, earlier.last_seen = later.box, later.looks, later.last_seen
            followed.remove(later)


def _likeness(one: FloatArray, other: FloatArray) -> float:
    """1 for the same colors, towards 0 for others."""
    return float(np.exp(-np.abs(one - other).mean() / _LOOKS_SCALE))


def _is_near(person: _Followed, index: int, box: FloatArray) -> bool:
    """Whether a person may have come from where it was lost, or expected, to a box."""
    reach = _LOST_REACH * float(person.box[3] - person.box[1])
    return any(
        float(np.linalg.norm((past[:2] + past[2:] - box[:2] - box[2:]) / 2)) <= reach
        for past in (person.box, person.expected_box(index))
    )


def _fit(person: _Followed, index: int, box: FloatArray, looks: FloatArray) -> float:
    """How well a found box continues a person, 0 for not at all: overlap with where it is expected, and likeness."""
    expected = person.expected_box(index)
    overlap = max(box_overlap(expected, box), box_overlap(person.box, box))
    likeness = _likeness(person.looks, looks)
    lost = index - person.last_seen > 1
    if overlap >= _MIN_OVERLAP and (likeness >= _MIN_LOST_LOOKS or not lost):
        return overlap + _LOOKS_WEIGHT * likeness
    back = lost and likeness >= _MIN_LOOKS and _is_near(person, index, box)
    return _LOOKS_WEIGHT * likeness * 0.5 if back else 0.0


def _looks(frame: Image, person: Tracks) -> FloatArray:
    """Mean colors of chest, belly and thighs, float32 [9], 0..255: tells people apart when boxes cross."""
    joints, shown = person.joints_xy[0], person.joints_conf[0] >= 0.3
    colors = []
    for upper, lower, share in (((2, 5), (8, 11), 0.25), ((2, 5), (8, 11), 0.7), ((8, 11), (9, 12), 0.5)):
        ends = joints[list(upper)], joints[list(lower)]
        spots = np.concatenate(
            [ends[0] * (1 - share) + ends[1] * share, [(1 - share) * ends[0].mean(0) + share * ends[1].mean(0)]]
        )
        if shown[list(upper + lower)].all():
            colors.append(np.median([_color_at(frame, spot) for spot in spots], axis=0))
    if not colors:
        colors = [_color_at(frame, joints[shown].mean(0))] if shown.any() else [np.zeros(3)]
    return np.concatenate((colors * 3)[:3]).astype(np.float32)


def _color_at(frame: Image, spot: FloatArray) -> NDArray[np.float64]:
    x = int(np.clip(spot[0], 0, frame.shape[1] - 1))
    y = int(np.clip(spot[1], 0, frame.shape[0] - 1))
    return np.asarray(frame[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].reshape(-1, 3).mean(0), np.float64)


def _numbering(person: _Followed, size_wh: tuple[int, int]) -> tuple[int, float]:
    """Order of numbers: first frame seen, then from left to right there."""
    first = min(person.sightings)
    box = confident_boxes(person.sightings[first])[0]
    return first, float(box[0] + box[2])


def _stack(sightings: dict[int, Tracks], num_frames: int, size_wh: tuple[int, int], fps: float) -> Tracks:
    """One person's one-frame tracks as tracks over all frames."""
    tracks = Tracks.empty(num_frames, size_wh, fps)
    for index, one in sightings.items():
        for name in ("joints_xy", "joints_conf", "hands_xy", "hands_conf", "face_xy", "face_conf"):
            getattr(tracks, name)[index] = getattr(one, name)[0]
    return tracks
