"""Clips of drawn people before drawn scenes, with everything known about them; a function of seed and index alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.body import Figure, place, random_body
from xdyna.data.synthetic.character import Character, random_character, stranger, with_head
from xdyna.data.synthetic.figure import paint
from xdyna.data.synthetic.framing import Camera, check_framings, random_camera
from xdyna.data.synthetic.motion import Motion, calmed, random_motion
from xdyna.data.synthetic.painter import Shape
from xdyna.data.synthetic.raster import Projection, draw_figures
from xdyna.data.synthetic.scenes import SCENES, Scene, build_scene
from xdyna.data.synthetic.soft import swing
from xdyna.errors import UserError, near_matches
from xdyna.preprocess.tracks import Tracks

LEAST_SIDE_PX = 16  # of frames; far smaller ones have no room for a scene
SMALL_HEAD_PX = 10.0  # half the height of heads below which faces are drawn simply


@dataclass(frozen=True)
class World:
    """What clips there are.

    Attributes:
        seed: clips of different seeds have nothing in common.
        size_wh: (width, height) of the frames, pixels.
        fps: frames per second.
        scenes: kinds of scenes, drawn with equal chance.
        framings: shares of clips that show the person `full`, `half` (from the thighs up) or as a `bust` (the face
            at least a third of the frame's height); only their ratios count, and what is left out does not occur.
        energy: how strongly people move, 1 being lively.
        loop_s: above 0, every scene repeats exactly after this many seconds, and direction and speed of its motion are
            fixed by its kind; 0, they vary and do not repeat.
        scene_only: share of clips that show the scene alone, without a person.
    """

    seed: int = 0
    size_wh: tuple[int, int] = (64, 96)
    fps: float = 12.0
    scenes: tuple[str, ...] = tuple(SCENES)
    framings: Mapping[str, float] = field(default_factory=lambda: {"full": 0.5, "half": 0.2, "bust": 0.3})
    energy: float = 1.0
    loop_s: float = 0.0
    scene_only: float = 0.0

    def __post_init__(self) -> None:
        check_framings(self.framings)
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}, wanted 0 or more")
        if min(self.size_wh) < LEAST_SIDE_PX:
            width, height = self.size_wh
            raise UserError(f"size_wh is {width}x{height}, wanted sides of {LEAST_SIDE_PX} pixels or more")
        if not 0 < self.fps < float("inf"):
            raise UserError(f"fps is {self.fps}, wanted frames per second, above 0")
        if not 0 <= self.energy < float("inf"):
            raise UserError(f"energy is {self.energy}, wanted 0 (arms and head alone move) or more; 1 is lively")
        if not 0 <= self.loop_s < float("inf"):
            raise UserError(f"loop_s is {self.loop_s}, wanted seconds, 0 for scenes that do not repeat")
        if not 0 <= self.scene_only <= 1:
            raise UserError(f"scene_only is {self.scene_only}, wanted the share of clips without a person, 0 to 1")
        if not self.scenes:
            raise UserError(f"scenes: none is named, wanted some of {', '.join(SCENES)}")
        for name in self.scenes:
            if name not in SCENES:
                raise UserError(f"unknown scene {name!r}{near_matches(name, SCENES)}")


@dataclass(frozen=True, eq=False)
class ClipSpec:
    """One clip before it is drawn. Swap a part (`dataclasses.replace`) to see another person dance the same dance."""

    character: Character
    motion: Motion
    camera: Camera
    scene: str
    scene_key: tuple[int, ...]
    loop_s: float = 0.0
    person: bool = True


@dataclass(frozen=True, eq=False)
class Clip:
    """A drawn clip.

    Attributes:
        frames: uint8 RGB [F, H, W, 3].
        masks: uint8 [F, H, W], how much of each pixel the person covers, 0..255; all 0 where there is no person.
        tracks: joints, hands and face points in pixels of these frames; all of confidence 0 where there is no person.
        expression: float32 [F, 4]: mouth opening, smile, brow height, eye opening.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    tracks: Tracks
    expression: NDArray[np.float32]


def clip_spec(world: World, index: int) -> ClipSpec:
    """Clip number `index` of a world."""
    rng = np.random.default_rng([world.seed, index])
    character = random_character(rng)
    return ClipSpec(
        character=character,
        motion=random_motion(rng, energy=world.energy),
        camera=random_camera(rng, world.framings, character.body),
        scene=str(rng.choice(world.scenes)),
        scene_key=(world.seed, index, 1),
        loop_s=world.loop_s,
        person=bool(np.random.default_rng([world.seed, index, 2]).random() >= world.scene_only),
    )


def render(spec: ClipSpec, times_s: NDArray[np.float64], size_wh: tuple[int, int], fps: float) -> Clip:
    """Draw a clip at the given times.

    Args:
        spec: what to draw.
        times_s: [F] seconds, in any order.
        size_wh: (width, height), pixels.
        fps: what the tracks call the rate of the frames.
    """
    scene = build_scene(spec.scene, np.random.default_rng(spec.scene_key), size_wh, spec.loop_s)
    if not spec.person:
        return _scene_alone(scene, times_s, size_wh, fps)
    staged = stage(spec, times_s, size_wh)
    frames = np.empty((len(times_s), size_wh[1], size_wh[0], 3), np.uint8)
    masks = np.empty(frames.shape[:3], np.uint8)
    figures = draw_figures(staged.shapes, staged.to_pixels, staged.fine, len(times_s))
    for index, (figure, time_s) in enumerate(zip(figures, times_s, strict=True)):
        backdrop = scene(float(time_s))
        if staged.shadows is not None:
            cast_shadow(backdrop := backdrop.copy(), staged.shadows[index])
        masks[index] = figure[..., 3]
        through = cv2.merge([255 - masks[index]] * 3)
        frames[index] = cv2.add(cv2.multiply(backdrop, through, scale=1 / 255), np.ascontiguousarray(figure[..., :3]))
    tracks = _tracks(staged.figure, staged.to_pixels, size_wh, fps)
    return Clip(frames, masks, tracks, staged.figure.expression.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Staged:
    """A person placed and ready to be drawn.

    Attributes:
        figure: where joints, hands and face are.
        shapes: what is drawn, from back to front.
        to_pixels: the view.
        fine: pictures are drawn this many times larger and averaged.
        shadows: [F, 4] middle (x, y) and half axes of the shadow, pixels; None where the ground is out of view.
    """

    figure: Figure
    shapes: list[Shape]
    to_pixels: Projection
    fine: int
    shadows: NDArray[np.float64] | None


def stage(spec: ClipSpec, times_s: NDArray[np.float64], size_wh: tuple[int, int]) -> Staged:
    """The person of a clip at the given times [F], seconds, for frames of (width, height) pixels."""
    motion = calmed(spec.motion, spec.camera.travel)
    figure = place(spec.character.body, motion, times_s)
    loose = swing(spec.character, motion, times_s)
    to_pixels = Projection(spec.camera, size_wh)
    small = to_pixels.scale_px * spec.character.body.head_ry < SMALL_HEAD_PX
    shapes = paint(spec.character, figure, loose, layers=3 if size_wh[1] <= 192 else 8, small=small)
    shadows = _shadows(figure, to_pixels) if to_pixels.ground_px < size_wh[1] else None
    return Staged(figure, shapes, to_pixels, max(1, round(192 / size_wh[1])), shadows)


def _scene_alone(scene: Scene, times_s: NDArray[np.float64], size_wh: tuple[int, int], fps: float) -> Clip:
    frames = np.stack([scene(float(time_s)) for time_s in times_s])
    count = len(frames)
    masks, expression = np.zeros(frames.shape[:3], np.uint8), np.zeros((count, 4), np.float32)
    return Clip(frames, masks, Tracks.empty(count, size_wh, fps), expression)


def render_index(world: World, index: int, num_frames: int) -> Clip:
    """The first `num_frames` frames of clip number `index`."""
    return render(clip_spec(world, index), np.arange(num_frames) / world.fps, world.size_wh, world.fps)


def dressed_as(motion: ClipSpec, looks: ClipSpec) -> ClipSpec:
    """The dance (and expressions) of one clip by the person, in the place and view of another: exact cross-driving."""
    return replace(looks, motion=motion.motion)


def face_swapped(spec: ClipSpec, other: ClipSpec | np.random.Generator) -> ClipSpec:
    """The same clip with another person's head: same dance, expressions, clothes, place and view.

    Args:
        spec: the clip.
        other: whose head; a generator draws a stranger of clearly other colours.
    """
    donor = other.character if isinstance(other, ClipSpec) else stranger(spec.character, other)
    return replace(spec, character=with_head(spec.character, donor))


def reshaped(spec: ClipSpec, rng: np.random.Generator) -> ClipSpec:
    """The same clip by a body of other, stranger proportions; face, colours and clothes stay."""
    body = replace(random_body(rng, variety=2.0), face=spec.character.body.face)
    return replace(spec, character=replace(spec.character, body=body))


def _shadows(figure: Figure, to_pixels: Projection) -> NDArray[np.float64]:
    """The shadow's middle (x, y) and half axes, pixels: [F, 4]."""
    feet = figure.joints[:, [10, 13], 0]
    half = np.maximum(np.ptp(feet, axis=1) / 2 + 0.07, 0.09)
    centre = to_pixels(np.stack([feet.mean(1), np.full(len(feet), 0.002)], -1))
    return np.concatenate([centre, np.stack([half, np.full(len(half), 0.02)], -1) * to_pixels.scale_px], -1)


def cast_shadow(image: NDArray[np.uint8], shadow: NDArray[np.float64]) -> None:
    """Darken a picture [H, W, 3] round the shadow's middle (x, y) with its half axes, pixels."""
    x, y, half_x, half_y = shadow
    height, width = image.shape[:2]
    top, bottom = int(max(0, y - 2 * half_y)), int(min(height, y + 2 * half_y + 1))
    rows = ((np.arange(top, bottom) + 0.5 - y) / half_y)[:, None] ** 2
    columns = ((np.arange(width) + 0.5 - x) / half_x)[None] ** 2
    dark = (1 - 0.45 * np.exp(-(rows + columns)))[..., None]
    image[top:bottom] = (image[top:bottom] * dark).astype(np.uint8)


def _tracks(figure: Figure, to_pixels: Projection, size_wh: tuple[int, int], fps: float) -> Tracks:
    def pixels(points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = to_pixels(points)
        inside = np.asarray(((found >= 0) & (found <= size_wh)).all(-1))
        return found.astype(np.float32), inside.astype(np.float32)

    joints, joints_conf = pixels(figure.joints)
    hands, hands_conf = pixels(figure.hands)
    face, face_conf = pixels(figure.face)
    return Tracks(
        joints_xy=joints,
        joints_conf=joints_conf,
        hands_xy=hands,
        hands_conf=hands_conf,
        face_xy=face,
        face_conf=(face_conf.mean(1) > 0.8).astype(np.float32),
        size_wh=size_wh,
        fps=fps,
    )
