"""What hangs loosely from a person: hair, skirt and cape, driven through springs by the dance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.body import Trunk, flat_on_head, place, stand
from xdyna.data.synthetic.character import SKIRTS, Character
from xdyna.data.synthetic.motion import Motion
from xdyna.data.synthetic.springs import Springs, follow, hang, hanging

FloatArray = NDArray[np.float64]

LINKS = 4
CAPE_LENGTH = 0.40  # body heights
#: The hem as four masses: quick enough to stay with the legs, slow enough to be seen swinging on.
HEM = Springs(np.asarray([70.0]), drag=4.0)
_HAIR_DRAG, _CAPE_DRAG = 2.8, 3.0  # 1/s
_SAMPLES = 192  # of the root's motion in one round of the dance
_HEM_REACH = 0.09  # body heights that the hem swings at most
#: Where strands hang from the head, in head radii.
_ROOTS = {
    "long": ((-0.96, -0.05), (0.96, -0.05)),
    "pigtails": ((-1.1, -0.35), (1.1, -0.35)),
    "ponytail": ((0.98, -0.62),),
}


@dataclass(frozen=True, eq=False)
class Soft:
    """Loose parts over F frames, on the stage; None for what the person does not wear.

    Attributes:
        hair: [F, D, LINKS + 1, 2] strands from root to tip.
        cape: [F, 2, LINKS + 1, 2] its edges from the shoulders down, the image's left one first.
        hem: [F, 4, 2] the skirt's hem from left to right.
    """

    hair: FloatArray | None
    cape: FloatArray | None
    hem: FloatArray | None


def swing(character: Character, motion: Motion, times_s: FloatArray) -> Soft:
    """The loose parts of a dancing person at the given times [F]."""
    round_s = motion.period_s * np.arange(_SAMPLES) / _SAMPLES
    around, now = (stand(character.body, motion, t) for t in (round_s, times_s))

    def strands(roots: tuple[FloatArray, FloatArray], springs: Springs, length: float) -> FloatArray:
        sideways = follow(springs, roots[0][..., 0], motion.period_s, times_s)
        return hang(roots[1], sideways, length)

    hair = cape = hem = None
    if character.hair_style in _ROOTS:
        roots = hair_roots(around, character), hair_roots(now, character)
        hair = strands(roots, _hair_springs(character), character.hair_length)
    if character.cape:
        roots = _cape_roots(around), _cape_roots(now)
        cape = strands(roots, hanging(CAPE_LENGTH, LINKS, _CAPE_DRAG), CAPE_LENGTH)
    if character.bottom_kind in SKIRTS:
        rest = hem_rest(now, character)
        swung = follow(HEM, _flat(hem_rest(around, character)), motion.period_s, times_s).reshape(rest.shape) - rest
        hem = rest + _HEM_REACH * np.tanh(swung / _HEM_REACH)
    return Soft(hair, cape, hem)


def hair_roots(trunk: Trunk, character: Character) -> FloatArray:
    """Where a swinging hair style hangs from the head: [F, D, 2]."""
    return flat_on_head(trunk, character.body, np.asarray(_ROOTS[character.hair_style]))


def hem_rest(trunk: Trunk, character: Character) -> FloatArray:
    """Where the hem would be if the skirt were stiff: [F, 4, 2]."""
    share = SKIRTS[character.bottom_kind]  # of the way from hip to ankle
    corners = []
    for hip, sign in ((8, -1), (11, 1)):
        start, knee, ankle = (trunk.joints[:, hip + k] for k in range(3))
        leg = start + (ankle - start) * share
        corners.append(0.5 * leg + 0.5 * (start + (knee - start) * 2 * share) + [0.064 * sign, 0.0])
    right, left = corners
    along = np.asarray([0.0, 0.36, 0.64, 1.0])[:, None]
    droop = np.asarray([[0, 0], [0, 0.014], [0, 0.014], [0, 0]])
    return np.asarray(right[:, None] * (1 - along) + left[:, None] * along + droop)


@dataclass(frozen=True, eq=False)
class Speeds:
    """How fast things move over F frames, body heights per second; None for what the person does not wear.

    Attributes:
        body: [F] mean over the joints.
        hair, cape, hem: [F] mean over the masses.
    """

    body: FloatArray
    hair: FloatArray | None
    cape: FloatArray | None
    hem: FloatArray | None


def speeds(character: Character, motion: Motion, times_s: FloatArray) -> Speeds:
    """The truth about lag: after the body has stopped (`Motion.stops`), hair, cape and hem still have a speed."""
    step_s = 1e-3
    before, after = (np.asarray(times_s, np.float64) + shift for shift in (-step_s, step_s))

    def rate(early: FloatArray, late: FloatArray) -> FloatArray:
        distance = np.linalg.norm(late - early, axis=-1)
        return np.asarray(distance.reshape(len(distance), -1).mean(1) / (2 * step_s))

    def soft_rate(early: FloatArray | None, late: FloatArray | None) -> FloatArray | None:
        return None if early is None or late is None else rate(early, late)

    old, new = (swing(character, motion, t) for t in (before, after))
    joints = [place(character.body, motion, t).joints for t in (before, after)]
    return Speeds(
        rate(joints[0], joints[1]), soft_rate(old.hair, new.hair), soft_rate(old.cape, new.cape),
        soft_rate(old.hem, new.hem),
    )  # fmt: skip


def _hair_springs(character: Character) -> Springs:
    return hanging(character.hair_length, LINKS, _HAIR_DRAG)


def _cape_roots(trunk: Trunk) -> FloatArray:
    """[F, 2, 2] just outside the shoulders."""
    right, left = trunk.joints[:, 2], trunk.joints[:, 5]
    return np.asarray([[-0.012, -0.015], [0.012, -0.015]]) + np.stack([right, left], 1)


def _flat(points: FloatArray) -> FloatArray:
    return points.reshape(len(points), -1)
