"""ControlNet residuals of single frames, each evaluated once a step."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xdyna.controlnets.residuals import Residuals, condition_features, frame_residuals

if TYPE_CHECKING:
    from xdyna.denoise import Control

#: Residuals of one frame: [k, C_i, h_i, w_i] for each skip connection, then for the middle block; k texts.
FrameResiduals = list[Tensor]


class Features:
    """Embedded control maps of a job, kept from step to step as far as a budget goes; others are embedded again.

    Args:
        budget: bytes.
        device: where the ControlNets run.
    """

    def __init__(self, budget: int, device: torch.device) -> None:
        self.left, self._device = budget, device
        self._kept: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def fetch(self, number: int, control: Control, frames: tuple[int, ...]) -> Tensor:
        """[N, C, h, w] of some frames of control `number`."""
        kept = self._kept.get((number, frames))
        if kept is not None:
            return kept
        embedded = condition_features(control.net, control.condition(frames, self._device)[0].transpose(0, 1))
        size = embedded.numel() * embedded.element_size()
        if size <= self.left:
            self.left -= size
            self._kept[number, frames] = embedded
        return embedded


class StepResiduals:
    """The residuals of one step: computed in runs of neighbouring frames as windows ask for them, dropped after use.

    A ControlNet sees single frames, so what it says of one does not depend on the window it is seen in. Runs begin at
    every multiple of `run`, wherever the windows begin.

    Args:
        controls: those that are on, by their number in the job.
        latents: noisy frames [1, C, F, h, w], on any device.
        timestep: shape [].
        text: [k, T, D], different texts, where the ControlNets run.
        features: of the job.
        run: frames evaluated together.
        fixed: the last run, too, is that long: frames are repeated and the results of the repetitions dropped.
    """

    def __init__(
        self,
        controls: dict[int, Control],
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        features: Features,
        run: int,
        *,
        fixed: bool = False,
    ) -> None:
        self.controls, self.latents, self.timestep, self.text = controls, latents, timestep, text
        self.features, self.run, self.fixed = features, run, fixed
        self._frames: dict[int, FrameResiduals] = {}
        self._zero: FrameResiduals = []

    def window(self, group: Sequence[Sequence[int]], *, reference: bool) -> Residuals:
        """Residuals for W windows of one length n.

        Args:
            group: frames of each window.
            reference: a frame of zeros goes before each window.

        Returns:
            [k * W, C_i, n (+ 1), h_i, w_i].
        """
        for frame in sorted({frame for window in group for frame in window}):
            if frame not in self._frames:
                self._evaluate(frame - frame % self.run)
        shown = [[self._zero] * reference + [self._frames[frame] for frame in window] for window in group]
        flat = [frame for window in shown for frame in window]

        def stacked(level: int) -> Tensor:
            frames = torch.stack([frame[level] for frame in flat], dim=1)  # [k, W * n, C, h, w]
            return frames.reshape(-1, len(shown[0]), *frames.shape[2:]).transpose(1, 2)

        *down, mid = (stacked(level) for level in range(len(self._zero)))
        return Residuals(tuple(down), mid)

    def keep(self, needed: Container[int]) -> None:
        """Forget all frames but these."""
        self._frames = {frame: residuals for frame, residuals in self._frames.items() if frame in needed}

    def _evaluate(self, first: int) -> None:
        """Run the ControlNets on the frames from `first` on."""
        frames = range(first, min(first + self.run, self.latents.shape[2]))
        asked = [min(first + i, frames[-1]) for i in range(self.run)] if self.fixed else list(frames)
        levels = _summed(self._residuals(tuple(asked)))
        for i, frame in enumerate(frames):
            # A copy, so that a frame's memory is its own and goes when the frame is dropped.
            self._frames[frame] = [level[:, i].clone() for level in levels]
        if not self._zero:
            self._zero = [torch.zeros_like(level) for level in self._frames[first]]

    def _residuals(self, frames: tuple[int, ...]) -> Iterator[list[Tensor]]:
        """[k, N, C_i, h_i, w_i] of each control."""
        rows = self.latents[0, :, list(frames)].to(self.text.device).transpose(0, 1)
        for number, control in self.controls.items():
            net = control.net
            features = self.features.fetch(number, control, frames)
            text = self.text.to(net.dtype)
            levels = frame_residuals(net, rows.to(net.dtype), self.timestep, text, features, control.scale)
            yield [level.reshape(len(text), len(frames), *level.shape[1:]) for level in levels]


def _summed(parts: Iterator[list[Tensor]]) -> list[Tensor]:
    total = next(parts)
    for part in parts:
        total = [a + b for a, b in zip(total, part, strict=True)]
    return total


#: Called with the number of windows done in this step, and of all its windows.
OnWindow = Callable[[int, int], None]
