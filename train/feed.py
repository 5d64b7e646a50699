"""Batches for a run: which samples this process sees at which step, drawn ahead by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import numpy as np
import torch

from xdyna.data.source import Batch, ClipSource, draw_batch


@dataclass(frozen=True)
class Plan:
    """Who sees what.

    Step s sees samples s*G .. (s+1)*G-1, G the global batch. Every micro-batch is an aligned block of `batch`
    consecutive numbers, so a source can give each block one size. With `reuse`, groups of steps see the same clips,
    under sample numbers of their own.

    Attributes:
        batch: samples per micro-batch.
        accumulate: micro-batches per step and process.
        processes: how many there are.
        rank: which one this is.
        reuse: steps that see the same clips.
    """

    batch: int
    accumulate: int = 1
    processes: int = 1
    rank: int = 0
    reuse: int = 1

    @property
    def global_batch(self) -> int:
        """Samples per step over all processes."""
        return self.batch * self.accumulate * self.processes

    def samples(self, step: int, part: int) -> range:
        """Sample numbers of micro-batch `part` of a step in this process."""
        first = step * self.global_batch + (part * self.processes + self.rank) * self.batch
        return range(first, first + self.batch)


def micro_batches(source: ClipSource, plan: Plan, start: int, steps: int, workers: int) -> Iterator[list[Batch]]:
    """Per step from `start` on, this process's micro-batches.

    Args:
        source: of the clips.
        plan: which samples to draw.
        start: first step.
        steps: steps of the whole run.
        workers: processes that draw ahead; 0 draws here.
    """
    groups = range(start // plan.reuse, -(-steps // plan.reuse))
    blocks = [plan.samples(group, part) for group in groups for part in range(plan.accumulate)]
    loader = torch.utils.data.DataLoader(
        _Drawn(source),
        batch_size=None,
        sampler=blocks,  # a `range` of sample numbers stands for one item
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=_as_drawn,
        worker_init_fn=_go_on_at_sigterm,
    )
    drawn = iter(loader)
    for group in groups:
        batches = [next(drawn) for _ in range(plan.accumulate)]
        for step in range(max(start, group * plan.reuse), min(steps, (group + 1) * plan.reuse)):
            yield [
                replace(batch, indices=np.asarray(plan.samples(step, part), np.int64))
                for part, batch in enumerate(batches)
            ]


class _Drawn(torch.utils.data.Dataset[Batch]):
    """Item: the batch of a block of sample numbers."""

    def __init__(self, source: ClipSource) -> None:
        self.source = source

    def __getitem__(self, block: Any) -> Batch:
        import cv2

        cv2.setNumThreads(1)
        return draw_batch(self.source, block)


def _go_on_at_sigterm(worker: int) -> None:
    """Let a worker pass over the first SIGTERM.

    The training process decides when to stop: who stops a job may send the signal to all its processes, and a run whose
    worker has gone cannot end its step. A second one ends the worker, so that nobody waits for it at the end.
    """

    def pass_over(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, pass_over)


def _as_drawn(batch: Any) -> Any:
    return batch
