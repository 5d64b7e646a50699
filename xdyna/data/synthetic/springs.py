"""Masses on springs that swing behind a moving root: hair, skirts and capes.

The dance repeats, so the swinging that it settles into does, too, and is found at once in Fourier space: each
harmonic of the root's motion comes back from the springs with a gain and a delay. That is exact, needs no steps and no
run-up, and the state at one time does not depend on which other times are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

GRAVITY = 5.8  # body heights per square second, of a person of 1.7 m


@dataclass(frozen=True, eq=False)
class Springs:
    """A row of equal masses: each is pulled to the one before it, the first to the root; air slows them.

    Attributes:
        pull: [N] strength of the spring before each mass, 1/s^2 (squared angular frequency of the mass alone).
        drag: speed lost to the air, 1/s.
    """

    pull: FloatArray
    drag: float

    def response(self, omega: FloatArray) -> NDArray[np.complex128]:
        """What each mass makes of a root that moves as exp(i omega t): [W, N] of angular frequencies [W], rad/s."""
        after = np.append(self.pull[1:], 0.0)
        matrix = np.diag(self.pull + after) - np.diag(after[:-1], 1) - np.diag(after[:-1], -1)
        system = matrix + (omega * (1j * self.drag - omega))[:, None, None] * np.eye(len(self.pull))
        driven = np.zeros((len(omega), len(self.pull), 1), np.complex128)
        driven[:, 0] = self.pull[0]
        return np.asarray(np.linalg.solve(system, driven)[..., 0])

    def energy(self, root: FloatArray, places: FloatArray, speeds: FloatArray) -> FloatArray:
        """Motion's and springs' energy [F] of roots [F, D], masses' places and speeds [F, N, D], per unit of mass."""
        stretch = np.diff(places, axis=1, prepend=root[:, None])
        return np.asarray((speeds**2).sum((1, 2)) / 2 + (self.pull[:, None] * stretch**2).sum((1, 2)) / 2)


def hanging(length: float, links: int, drag: float) -> Springs:
    """A chain of a length (body heights) that hangs from its root, for small angles: a link's pull is the weight of
    all that hangs below it."""
    weights = np.arange(links, 0, -1, dtype=np.float64)  # of the links below each joint
    return Springs(weights * (GRAVITY * links / length), drag)


def follow(
    springs: Springs, root: FloatArray, period_s: float, times_s: FloatArray, *, speeds: bool = False
) -> FloatArray:
    """Where the masses are while the root repeats its motion for ever.

    Args:
        springs: the masses.
        root: [T, D] coordinates of the root at T even steps from t = 0 over one period.
        period_s: length of the period, seconds.
        times_s: [F] seconds, any.
        speeds: return speeds (per second) instead of places.
    Returns:
        [F, N, D] for N masses.
    """
    spectrum = np.fft.rfft(root, axis=0)[: (len(root) + 1) // 2] / len(root)  # the root's harmonics, [W, D]
    spectrum[1:] *= 2
    omega = 2 * np.pi / period_s * np.arange(len(spectrum), dtype=np.float64)
    waves = springs.response(omega)[:, :, None] * spectrum[:, None]  # [W, N, D]
    if speeds:
        waves = waves * (1j * omega)[:, None, None]
    turns = np.exp(1j * np.asarray(times_s, np.float64)[:, None] * omega)  # [F, W]
    return np.asarray((turns @ waves.reshape(len(omega), -1)).real.reshape(-1, *waves.shape[1:]))


def hang(root: FloatArray, sideways: FloatArray, length: float) -> FloatArray:
    """A chain of fixed length from how far its masses have swung sideways.

    Args:
        root: [F, D, 2] where D chains hang.
        sideways: [F, N, D] horizontal places of the masses.
        length: of the chain.
    Returns:
        [F, D, N + 1, 2] root and masses: each link has its length and points down, more or less.
    """
    link = length / sideways.shape[1]
    across = np.diff(sideways, axis=1, prepend=root[:, None, :, 0])
    across = 0.92 * link * np.tanh(across / (0.92 * link))  # no link comes to lie level
    steps = np.stack([across, np.sqrt(link**2 - across**2)], -1).swapaxes(1, 2)  # [F, D, N, 2]
    return np.asarray(root[:, :, None] + np.concatenate([np.zeros_like(steps[:, :, :1]), steps.cumsum(2)], 2))
