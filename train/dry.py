"""What a run would take, told instead of running it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from xdyna.data.source import draw_batch
from xdyna.train.memory import estimate
from xdyna.train.modules import count_parameters, saved_parts

if TYPE_CHECKING:
    from xdyna.train.run import Run


class DryRun(Exception):
    """Raised by `Run` in the place of a run when its settings ask for a dry run.

    Attributes:
        report: plain values: recipe, trainable and all parameters, memory (bytes by kind), global batch, clips, steps
            per epoch (None where data has no end), problems of the data.
        lines: the same for people.
    """

    def __init__(self, report: dict[str, Any], lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.report, self.lines = report, lines


def dry_run(run: Run) -> DryRun:
    """Look at what a run has built; draws its first clips, so that they are known to be usable."""
    batch = draw_batch(run.source, run.plan.samples(0, 0))
    processes = run.accelerator.num_processes
    memory = estimate(run.cfg, run.raw, batch, processes=processes, device=run.device.type)
    trained, whole = count_parameters(run.raw, trainable=True), count_parameters(run.raw)
    clips, seen = run.source.num_clips, run.plan.global_batch
    # With `reuse`, several steps go by before new clips come.
    epoch = None if clips is None else max(1, -(-clips * run.plan.reuse // seen))
    lines = [
        f"{run.recipe}: {trained:,} of {whole:,} parameters train ({', '.join(saved_parts(run.raw))})",
        f"memory per process: {memory.describe()}",
        f"data: {_data_line(clips, seen, epoch, run.cfg.steps)}",
        f"first clips: {', '.join(batch.names)}; frames {'x'.join(map(str, batch.frames.shape[1:4]))} (FxHxW)",
        *(f"problem: {line}" for line in run.problems),
        "nothing was written; leave out --dry-run to train",
    ]
    report = {
        "recipe": run.recipe,
        "trainable_parameters": trained,
        "parameters": whole,
        "memory_bytes": {**asdict(memory), "total": memory.total},
        "global_batch": seen,
        "clips": clips,
        "steps_per_epoch": epoch,
        "problems": run.problems,
    }
    return DryRun(report, lines)


def _data_line(clips: int | None, seen: int, epoch: int | None, steps: int) -> str:
    if clips is None or epoch is None:
        return f"endless clips, {seen} per step, so no epochs"
    return f"{clips:,} clips, {seen} per step: {epoch:,} steps per epoch, {steps / epoch:.1f} epochs in {steps:,} steps"
