"""Dancing as key poses on a beat: every pose parameter is a smooth, periodic function of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.expression import Expression, between_keys, random_expression

FloatArray = NDArray[np.float64]

#: Columns of a pose. Angles in radians, lengths in body heights. Arm angle `a` is measured from straight down
#: outwards, `b` bends the elbow (positive: onwards and up, negative: inwards), `z` shortens a forearm that points
#: at the camera.
PARAMETERS = (
    "sway_x", "dip", "jump", "lean", "yaw", "tilt", "head_tilt", "head_turn",
    "right_arm_a", "right_arm_b", "right_arm_z", "left_arm_a", "left_arm_b", "left_arm_z",
    "right_foot_x", "right_foot_lift", "left_foot_x", "left_foot_lift",
)  # fmt: skip
#: What carries the body about, or away from the camera.
TRAVEL = ("sway_x", "dip", "jump", "lean", "yaw", "right_foot_lift", "left_foot_lift")
COLUMN = {name: index for index, name in enumerate(PARAMETERS)}

#: (a, b) of one arm: hanging, relaxed, hand on hip, out to the side, raised from the elbow, half up, straight up,
#: forearm up close to the body, across the belly, hand at the head, across the chest, reaching over to the other side.
ARM_POSES = (
    (0.15, 0.10), (0.35, -0.30), (0.90, -1.90), (1.50, 0.05), (1.30, 1.50), (2.20, 0.60), (2.75, 0.15),
    (0.60, 1.80), (0.50, -1.30), (2.00, 1.45), (-0.25, -1.60), (-0.35, -1.00),
)  # fmt: skip
PAUSE_SHARE = 0.3  # of random dances that stand still for a while in every round


@dataclass(frozen=True, eq=False)
class Motion:
    """A dance.

    Attributes:
        keys: [K, P] one pose per beat, in `PARAMETERS` order; the dance repeats after K beats. Where the same pose
            follows itself, the body stands still.
        beat_s: seconds per beat.
        phase_s: time within the dance at t = 0, seconds.
        bounce: how far the hips sink between beats, body heights.
        expression: the face's play, at its own pace.
    """

    keys: FloatArray
    beat_s: float
    phase_s: float
    bounce: float
    expression: Expression

    @property
    def period_s(self) -> float:
        """Seconds until the dance repeats; the face keeps its own time."""
        return len(self.keys) * self.beat_s

    def __call__(self, times_s: FloatArray) -> FloatArray:
        """Poses [F, P] at the given times [F]."""
        beats = (np.asarray(times_s, np.float64) + self.phase_s) / self.beat_s
        poses = between_keys(self.keys, beats)
        moves = self._moves()[np.floor(beats).astype(int) % len(self.keys)]
        poses[:, COLUMN["dip"]] += self.bounce * moves * np.sin(np.pi * beats) ** 2
        return poses

    def _moves(self) -> NDArray[np.bool_]:
        """Whether the body moves in each beat, [K]."""
        return np.asarray((self.keys != np.roll(self.keys, -1, 0)).any(1))

    def stops(self, until_s: float) -> list[tuple[float, float]]:
        """(start, end) in seconds of the times from 0 to `until_s` through which the body stands still."""
        moves = self._moves()
        stops: list[tuple[float, float]] = []
        first, last = (int(np.floor((t + self.phase_s) / self.beat_s)) for t in (0.0, until_s))
        for beat in range(first, last + 1):
            if moves[beat % len(moves)]:
                continue
            start, end = (float(k * self.beat_s - self.phase_s) for k in (beat, beat + 1))
            if stops and abs(stops[-1][1] - start) < 1e-9:
                start = stops.pop()[0]
            stops.append((start, end))
        return [(max(start, 0.0), min(end, until_s)) for start, end in stops if end > 0 and start < until_s]


def pausing(motion: Motion, beat: int, beats: int) -> Motion:
    """The same dance that, having reached key pose `beat`, stands still for some beats in every round."""
    keys = np.insert(motion.keys, [beat] * beats, motion.keys[beat], axis=0)
    return replace(motion, keys=keys)


def calmed(motion: Motion, travel: float) -> Motion:
    """The same dance with sway, dips, jumps, leans, turns and steps scaled; arms and head move as before."""
    keys = motion.keys.copy()
    keys[:, [COLUMN[name] for name in TRAVEL]] *= travel
    return replace(motion, keys=keys, bounce=motion.bounce * travel)


def random_motion(rng: np.random.Generator, *, energy: float = 1.0) -> Motion:
    """A dance of 4 to 8 key poses; `energy` scales sway, steps, jumps and turns. Some turn far, some pause."""
    count = int(rng.integers(4, 9))
    turns = 0.75 if rng.random() < 0.3 else 0.25
    keys = np.stack([_key_pose(rng, energy, turns) for _ in range(count)])
    beat_s = float(rng.uniform(0.42, 0.75))
    motion = Motion(
        keys=keys,
        beat_s=beat_s,
        phase_s=float(rng.uniform(0, count * beat_s)),
        bounce=float(rng.uniform(0.0, 0.03) * energy),
        expression=random_expression(rng),
    )
    if rng.random() < PAUSE_SHARE:
        motion = pausing(motion, int(rng.integers(count)), int(rng.integers(2, 4)))
    return motion


def _key_pose(rng: np.random.Generator, energy: float, turns: float) -> FloatArray:
    pose = np.zeros(len(PARAMETERS))

    def put(**values: float) -> None:
        for name, value in values.items():
            pose[COLUMN[name]] = value

    put(
        sway_x=rng.normal(0, 0.035) * energy,
        dip=abs(rng.normal(0, 0.035)) * energy,
        lean=rng.normal(0, 0.07) * energy,
        yaw=float(np.clip(rng.normal(0, turns) * energy, -1.2, 1.2)),
        tilt=rng.normal(0, 0.05) * energy,
        head_tilt=rng.normal(0, 0.08),
        head_turn=float(np.clip(rng.normal(0, 0.25), -0.6, 0.6)),
    )
    _arms(rng, pose)
    _feet(rng, pose, energy)
    return pose


def _arms(rng: np.random.Generator, pose: FloatArray) -> None:
    mirrored = rng.random() < 0.4
    angles = None
    for side in ("right", "left"):
        if angles is None or not mirrored:
            angles = np.asarray(ARM_POSES[int(rng.integers(len(ARM_POSES)))]) + rng.normal(0, 0.15, 2)
        pose[COLUMN[f"{side}_arm_a"]] = max(-0.4, angles[0])
        pose[COLUMN[f"{side}_arm_b"]] = angles[1]
        pose[COLUMN[f"{side}_arm_z"]] = rng.uniform(0.8, 1.0)


def _feet(rng: np.random.Generator, pose: FloatArray, energy: float) -> None:
    width = rng.uniform(0.05, 0.14)
    pose[COLUMN["right_foot_x"]], pose[COLUMN["left_foot_x"]] = width, width
    step = rng.random()
    side = "right" if rng.random() < 0.5 else "left"
    if step < 0.3 * energy:  # a step or a kick to the side
        pose[COLUMN[f"{side}_foot_x"]] = rng.uniform(0.12, 0.24)
        pose[COLUMN[f"{side}_foot_lift"]] = rng.uniform(0.02, 0.16)
    elif step < 0.42 * energy:
        pose[COLUMN["jump"]] = rng.uniform(0.04, 0.10)
        pose[COLUMN["dip"]] = 0.0
    elif step < 0.55 * energy:
        pose[COLUMN["dip"]] = rng.uniform(0.10, 0.22)
