"""The windows of a step spread over processes: the numbers of one process, added up in its order.

Each process predicts a run of neighbouring windows, so that few frames go through the ControlNets twice: those that two
runs share. Then the predictions go round, and every process adds up all of them, window by window from the first to
the last, as one process would. The steps that follow are the same everywhere, and so are their random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdyna.denoise import blend_windows
from xdyna.infer.processes import Team

Windows = Sequence[Sequence[int]]
Predict = Callable[[Windows], Tensor]


class Spread:
    """Which windows this process predicts, and how it comes to the predictions of all.

    Args:
        team: the processes.
    """

    def __init__(self, team: Team) -> None:
        self._team = team

    def run(self, num_windows: int, rank: int | None = None) -> range:
        """The windows of a process, by default of this one; there may be none."""
        rank, size = self._team.rank if rank is None else rank, self._team.size
        return range(num_windows * rank // size, num_windows * (rank + 1) // size)

    def everywhere(self, holds: bool) -> bool:
        """Whether something holds in every process."""
        return all(self._team.gather(holds))

    def groups(self, windows: Windows, size: int, *, first: bool) -> list[Windows]:
        """This process's windows in groups.

        Args:
            windows: of the step.
            size: windows in a group; fewer in the last.
            first: begin with the step's first window, whoever predicts it: the others read what it leaves behind.
        """
        run = self.run(len(windows))
        groups = [windows[at : min(at + size, run.stop)] for at in range(run.start, run.stop, size)]
        return [windows[:1], *groups] if first and run and run.start else groups

    def blend(
        self,
        predict: Predict,
        latents: Tensor,
        windows: Windows,
        weights: Sequence[NDArray[np.float32]],
        guidance_scale: float,
        groups: Sequence[Windows],
    ) -> Tensor:
        """What `xdyna.denoise.blend_windows` gives.

        Args:
            predict: for a group of windows, float32 [B, W, C, n, h, w].
            latents: of the clip.
            windows, weights, guidance_scale: of the step.
            groups: of `groups`.

        Returns:
            float32 [1, C, F, h, w].
        """
        run = self.run(len(windows))
        predicted = [predict(group).cpu() for group in groups]
        own = torch.cat(predicted, dim=1)[:, -len(run) :] if run else None
        # From here on every process counts on the others: a step that failed now could not be done again by one.
        try:
            found = self._all(own, latents, windows, guided=guidance_scale > 1)
            return blend_windows(lambda group: next(found), latents, windows, weights, guidance_scale, 1)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise RuntimeError("the predictions of all processes do not fit beside the clip") from error

    def _all(self, own: Tensor | None, latents: Tensor, windows: Windows, *, guided: bool) -> Iterator[Tensor]:
        """Every window's prediction in order, [B, 1, C, n, h, w], on the clip's device."""
        channels, (height, width), length = latents.shape[1], latents.shape[-2:], len(windows[0])
        for rank in range(self._team.size):
            count = len(self.run(len(windows), rank))
            if not count:
                continue
            mine = own is not None and rank == self._team.rank
            part = own if mine else torch.empty(1 + guided, count, channels, length, height, width)
            assert part is not None
            for window in torch.split(self._team.broadcast_tensor(part, rank), 1, dim=1):
                yield window.to(latents.device)
