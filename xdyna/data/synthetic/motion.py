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
#: What carries the body about.
TRAVEL = ("sway_x", "dip", "jump", "lean", "right_foot_lift", "left_foot_lift")
COLUMN = {name: index for index, name in enumerate(PARAMETERS)}

#: (a, b) of one arm: hanging, relaxed, hand on hip, out to the side, raised from the elbow, half up, straight up,
#: forearm up close to the body, across the belly, hand at the head.
ARM_POSES = (
    (0.15, 0.10), (0.35, -0.30), (0.90, -1.90), (1.50, 0.05), (1.30, 1.50),
    (2.20, 0.60), (2.75, 0.15), (0.60, 1.80), (0.50, -1.30), (2.00, 1.45),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Motion:
    """A dance.

    Attributes:
        keys: [K, P] one pose per beat, in `PARAMETERS` order; the dance repeats after K beats.
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

    def __call__(self, times_s: FloatArray) -> FloatArray:
        """Poses [F, P] at the given times [F]."""
        beats = (np.asarray(times_s, np.float64) + self.phase_s) / self.beat_s
        poses = between_keys(self.keys, beats)
        poses[:, COLUMN["dip"]] += self.bounce * np.sin(np.pi * beats) ** 2
        return poses


def calmed(motion: Motion, travel: float) -> Motion:
    """The same dance with sway, dips, jumps, leaning and steps scaled by `travel`; arms and head move as before."""
    keys = motion.keys.copy()
    keys[:, [COLUMN[name] for name in TRAVEL]] *= travel
    return replace(motion, keys=keys, bounce=motion.bounce * travel)


def random_motion(rng: np.random.Generator, *, energy: float = 1.0) -> Motion:
    """A dance of 4 to 8 key poses; `energy` scales sway, steps and turns."""
    count = int(rng.integers(4, 9))
    keys = np.stack([_key_pose(rng, energy) for _ in range(count)])
    beat_s = float(rng.uniform(0.42, 0.75))
    return Motion(
        keys=keys,
        beat_s=beat_s,
        phase_s=float(rng.uniform(0, count * beat_s)),
        bounce=float(rng.uniform(0.0, 0.03) * energy),
        expression=random_expression(rng),
    )


def _key_pose(rng: np.random.Generator, energy: float) -> FloatArray:
    pose = np.zeros(len(PARAMETERS))

    def put(**values: float) -> None:
        for name, value in values.items():
            pose[COLUMN[name]] = value

    put(
        sway_x=rng.normal(0, 0.035) * energy,
        dip=abs(rng.normal(0, 0.035)) * energy,
        lean=rng.normal(0, 0.07) * energy,
        yaw=float(np.clip(rng.normal(0, 0.3) * energy, -0.8, 0.8)),
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
        pose[COLUMN[f"{side}_arm_a"]] = max(0.05, angles[0])
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
        pose[COLUMN["jump"]] = rng.uniform(0.01, 0.05)
    elif step < 0.52 * energy:
        pose[COLUMN["dip"]] = rng.uniform(0.08, 0.14)
