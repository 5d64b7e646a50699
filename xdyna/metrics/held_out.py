"""Held-out clips of the synthetic world as test cases: what a model is given, and what it should have made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.character import SKIRTS
from xdyna.data.synthetic.clips import (
    Clip,
    ClipSpec,
    World,
    clip_spec,
    dressed_as,
    face_swapped,
    render,
    reshaped,
)
from xdyna.data.synthetic.regions import region_masks
from xdyna.metrics.clips import Frames, Mask
from xdyna.preprocess.draw import draw_pose_maps
from xdyna.preprocess.face import face_maps
from xdyna.preprocess.prepare import prepare
from xdyna.preprocess.tracks import Tracks

#: Training draws clips from index 0 on, and what a run validates on and shows from `TrainConfig.held_out` on. Test
#: clips begin beyond both, so that nobody has chosen a setting by looking at them; those of close-ups, of people who
#: stop, and long ones further on. People who only lend their motion or their face lie `LENDER` clips behind.
FIRST, FIRST_BUST, FIRST_STOP, FIRST_LONG, LENDER = 20_000_000, 21_000_000, 22_000_000, 23_000_000, 500_000
#: Moments of a clip are drawn from its first seconds.
SPAN_S = 6.0
SWINGING_HAIR = ("long", "ponytail", "pigtails")

Mode = Literal["self", "cross", "other body"]
MODES: tuple[Mode, ...] = ("self", "cross", "self", "other body")


@dataclass(frozen=True, eq=False)
class Case:
    """One test clip of F driving frames.

    Attributes:
        name: mode and number, for tables.
        mode: `self`: the person's own motion; `cross`: another's motion and face, exactly on this body; `other body`:
            another's motion by a body of other proportions, brought over by the alignment.
        spec: what the truth shows.
        times_s: [1+F] seconds, the reference's first.
        reference: one frame.
        truth: F frames. With `other body` the person stands where the alignment puts them, and the joints are near the
            wanted ones, not equal to them.
        wanted: the joints that the model was asked for, F frames.
        pose_maps: uint8 [F, H, W, 3].
        face_maps: local and global maps, uint8 [F, H, W, 3] each; None where no face is seen.
        regions: bool [1+F, H, W] by name, of the reference and the truth.
    """

    name: str
    mode: Mode
    spec: ClipSpec
    times_s: NDArray[np.float64]
    reference: Clip
    truth: Clip
    wanted: Tracks
    pose_maps: Frames
    face_maps: tuple[Frames, Frames] | None
    regions: dict[str, Mask]

    def scene_alone(self) -> Frames:
        """The true scene without the person, uint8 [1+F, H, W, 3]."""
        return render(replace(self.spec, person=False), self.times_s, self.wanted.size_wh, self.wanted.fps).frames


def held_out_cases(world: World, count: int, num_frames: int) -> Iterator[Case]:
    """`count` cases: of four, two are self-driven, one is cross-driven and one driven by another body."""
    for number in range(count):
        yield build_case(world, FIRST + number, num_frames, MODES[number % len(MODES)])


def build_case(world: World, index: int, num_frames: int, mode: Mode = "self") -> Case:
    """The case of clip number `index` of a world; somebody dances in every one.

    Another body drives in no close-up: these show too little of a body to lay one on the other.
    """
    if mode == "other body":
        wider = {name: share for name, share in world.framings.items() if name != "bust"}
        world = replace(world, framings=wider if sum(wider.values()) > 0 else {"full": 1.0})
    spec = replace(clip_spec(world, index), person=True)
    times_s = case_times_s(world, index, num_frames)
    if mode == "self":
        return _case(world, mode, spec, spec, times_s, f"self {index}")
    lender = replace(clip_spec(world, index + LENDER), camera=spec.camera, person=True)
    shown = dressed_as(lender, spec)
    case = _case(world, mode, spec, shown, times_s, f"{mode} {index}")
    if mode == "cross":
        return replace(case, face_maps=_face_maps(_drawn(world, face_swapped(shown, lender), times_s[1:])))
    return _aligned(world, case, spec, reshaped(lender, np.random.default_rng([world.seed, index, 17])))


def swapped_case(world: World, case: Case, seed: int) -> Case:
    """The same case, its face maps taken from a stranger's face that plays the same."""
    other = face_swapped(case.spec, np.random.default_rng([world.seed, seed, 19]))
    face = _face_maps(_drawn(world, other, case.times_s[1:]))
    return replace(case, name=f"swapped {case.name}", face_maps=face)


def stopped_cases(world: World, count: int, num_frames: int) -> Iterator[tuple[Case, int]]:
    """Cases of people with something loose about them who stop dancing, and the first driving frame that stands still.

    Fewer than `count` when so many are not found among 3,000 clips.
    """
    stop = num_frames // 2 - 1
    rest_s, found = (num_frames - 1 - stop) / world.fps, 0
    for index in range(FIRST_STOP, FIRST_STOP + 3000):
        spec = replace(clip_spec(world, index), person=True)
        pauses = [start for start, end in spec.motion.stops(SPAN_S) if start > 1 and end - start >= 0.8 * rest_s]
        if found == count:
            return
        if pauses and loose_regions(spec):
            found += 1
            moments = pauses[0] + (np.arange(num_frames) - stop) / world.fps
            reference_s = moments[0] - 1 / world.fps + (world.loop_s or SPAN_S)
            times_s = np.concatenate([[reference_s], moments])
            yield _case(world, "self", spec, spec, times_s, f"stop {index}"), stop


def loose_regions(spec: ClipSpec) -> tuple[str, ...]:
    """The regions of a person that swing."""
    hair = ("hair",) if spec.character.hair_style in SWINGING_HAIR else ()
    return hair + (("bottom",) if spec.character.bottom_kind in SKIRTS else ())


def case_times_s(world: World, index: int, num_frames: int) -> NDArray[np.float64]:
    """[1+F] seconds. In a looping world the scene of the reference is one frame before the first driving frame's, some
    loops later, where the dance is elsewhere; else the reference is any moment."""
    rng = np.random.default_rng([world.seed, index, 3])
    start_s, reference_s = rng.uniform(0, SPAN_S, 2)
    if world.loop_s > 0:
        loops = int(rng.integers(1, 1 + max(1, int(SPAN_S / world.loop_s))))
        reference_s = start_s - 1 / world.fps + loops * world.loop_s
    return np.concatenate([[reference_s], start_s + np.arange(num_frames) / world.fps])


def _case(world: World, mode: Mode, still: ClipSpec, shown: ClipSpec, times_s: NDArray[np.float64], name: str) -> Case:
    """A case whose reference is a moment of `still` and whose truth is `shown`."""
    reference, truth = _drawn(world, still, times_s[:1]), _drawn(world, shown, times_s[1:])
    before = region_masks(still, times_s[:1], world.size_wh)
    after = region_masks(shown, times_s[1:], world.size_wh)
    return Case(
        name=name,
        mode=mode,
        spec=shown,
        times_s=times_s,
        reference=reference,
        truth=truth,
        wanted=truth.tracks,
        pose_maps=np.stack(list(draw_pose_maps(truth.tracks, world.size_wh))),
        face_maps=_face_maps(truth),
        regions={key: np.concatenate([before[key], after[key]]) for key in after},
    )


def _aligned(world: World, case: Case, still: ClipSpec, driver: ClipSpec) -> Case:
    """The case driven by the clip of `driver`, prepared as the command prepares it; its reference is of `still`.

    The alignment puts the dance where the person of the reference is, several pixels from where the driver is. The
    truth is brought there too, else it would not show what the model is asked for.
    """
    clip = _drawn(world, driver, case.times_s[1:])
    ready = prepare(
        case.reference.frames[0],
        world.size_wh,
        _Drawn(clip, Fraction(world.fps).limit_denominator(1001)),
        tracks=clip.tracks,
        reference_tracks=case.reference.tracks,
        align="bones",
        smooth=False,
    )
    assert ready.tracks is not None
    xy = ready.tracks.joints_xy
    inside = ((xy >= 0) & (xy <= np.asarray(world.size_wh))).all(-1)
    wanted = replace(ready.tracks, joints_conf=np.where(inside, ready.tracks.joints_conf, 0).astype(np.float32))
    truth, camera = case.truth.tracks, case.spec.camera
    both = (wanted.joints_conf > 0) & (truth.joints_conf > 0)
    right, down = (wanted.joints_xy[both] - truth.joints_xy[both]).mean(0) / np.asarray(world.size_wh)
    camera = replace(camera, middle=camera.middle + float(right), ground=camera.ground + float(down))
    placed = _case(world, case.mode, still, replace(case.spec, camera=camera), case.times_s, case.name)
    face = None if ready.face_maps is None else (np.asarray(ready.face_maps[0]), np.asarray(ready.face_maps[1]))
    return replace(placed, wanted=wanted, pose_maps=np.asarray(ready.pose_maps), face_maps=face)


def _drawn(world: World, spec: ClipSpec, times_s: NDArray[np.float64]) -> Clip:
    return render(spec, times_s, world.size_wh, world.fps)


def _face_maps(clip: Clip) -> tuple[Frames, Frames]:
    pairs = list(face_maps(clip.frames, clip.tracks))
    return np.stack([local for local, _ in pairs]), np.stack([whole for _, whole in pairs])


class _Drawn:
    """A drawn clip in the form that `prepare` reads."""

    def __init__(self, clip: Clip, fps: Fraction) -> None:
        self.clip, self.fps, self.size_wh = clip, fps, clip.tracks.size_wh

    @property
    def num_expected(self) -> int:
        return len(self.clip.frames)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return iter(self.clip.frames)
