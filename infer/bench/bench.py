"""`xdyna bench`: count and time the plans, and write down what was found."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdyna.configs.bench import RANDOM_MODELS, BenchConfig
from xdyna.errors import UserError
from xdyna.infer.bench.figures import Cost, Growth, Spread, by_cell, cost, growth, ratio
from xdyna.infer.bench.machine import describe_machine
from xdyna.infer.bench.plans import Work, make_plan
from xdyna.infer.bench.rounds import Run, Taken, take_turns
from xdyna.infer.bench.worker import Task
from xdyna.infer.load import ModelChoice, choose_device, choose_dtype, choose_model

if TYPE_CHECKING:
    import torch

    from xdyna.pipeline import XDynaPipeline

#: Called with the stage's name, how much of it is done, and of how much.
OnProgress = Callable[[str, int, int], None]

OURS = "ours"


@dataclass
class Record:
    """Everything that one benchmark found.

    Attributes:
        date: when it began, local time with its offset.
        command: what was typed.
        settings: resolved.
        machine: see `describe_machine`.
        num_windows: frames -> windows a step, as the official schedule has them.
        flops: plan -> frames -> stretch of the run -> operations; `total` is the whole run.
        runs: every run, in the order of running.
        failed: plan -> frames -> why there are no runs.
        latents_apart: frames -> greatest difference of the final latents, official against ours.
    """

    date: str
    command: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    num_windows: dict[int, int]
    flops: dict[str, dict[int, dict[str, int]]]
    runs: list[Run] = field(default_factory=list)
    failed: dict[str, dict[int, str]] = field(default_factory=dict)
    latents_apart: dict[int, float] = field(default_factory=dict)

    @property
    def plans(self) -> tuple[str, ...]:
        return tuple(self.settings["plans"])

    @property
    def frames(self) -> tuple[int, ...]:
        return tuple(self.settings["frames"])

    def costs(self) -> dict[tuple[str, int], Cost]:
        """By plan and number of frames, where there are runs."""
        return {cell: cost(runs) for cell, runs in by_cell(self.runs).items()}

    def times_ours(self, plan: str, num_frames: int) -> Spread | None:
        """How many times as long a plan takes as ours."""
        cells = by_cell(self.runs)
        mine, ours = cells.get((plan, num_frames)), cells.get((OURS, num_frames))
        shared = {run.turn for run in mine or ()} & {run.turn for run in ours or ()}
        return ratio(mine, ours) if mine and ours and shared else None

    def flops_ratio(self, plan: str, num_frames: int) -> float | None:
        """How many times as many operations a plan takes as ours."""
        if OURS not in self.flops:
            return None
        return self.flops[plan][num_frames]["total"] / self.flops[OURS][num_frames]["total"]

    def growths(self) -> dict[str, dict[str, Growth | None]]:
        """Of time, memory and operations, by plan."""
        found = {}
        for plan in self.plans:
            costs = {frames: c for (name, frames), c in self.costs().items() if name == plan}
            found[plan] = {
                "seconds": growth({frames: c.seconds.median for frames, c in costs.items()}),
                "working_bytes": growth({frames: float(c.working_bytes) for frames, c in costs.items()}),
                "flops": growth({frames: float(counts["total"]) for frames, counts in self.flops[plan].items()}),
            }
        return found

    def to_json(self) -> dict[str, Any]:
        """With the figures that the runs come to."""
        record = asdict(self)
        record["costs"] = [{"plan": p, "num_frames": n, **asdict(c)} for (p, n), c in self.costs().items()]
        record["times_ours"] = {
            plan: {
                n: {"flops": self.flops_ratio(plan, n), "seconds": asdict(spread) if spread else None}
                for n in self.frames
                for spread in [self.times_ours(plan, n)]
            }
            for plan in self.plans
            if plan != OURS
        }
        record["growth"] = {
            plan: {name: asdict(g) if g else None for name, g in found.items()}
            for plan, found in self.growths().items()
        }
        return record


def bench(config: BenchConfig, command: str, on_progress: OnProgress) -> Record:
    """Count the operations of every plan, then time the plans in turns.

    Args:
        config: what to measure.
        command: what was typed, for the record.
        on_progress: told of runs and counts done.

    Raises:
        UserError: no such model or device, or a size that the model does not take.
    """
    choice = None if config.model in RANDOM_MODELS else choose_model(config.model)
    device = choose_device(config.device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {config.device}: wanted cpu or cuda, whose memory can be measured")
    dtype = choose_dtype(config.dtype, device)
    empty = _empty_pipeline(config, choice)
    size_wh = _size(config, choice, empty)
    works = {n: Work(n, size_wh, config.steps, config.guidance, config.schedule) for n in config.frames}
    resolved = {"size": list(size_wh), "device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    record = Record(
        datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        command,
        {**config.model_dump(mode="json"), **resolved},
        describe_machine(str(device)),
        {n: len(work.windows()) for n, work in works.items()},
        _count(config.plans, works, empty, on_progress),
    )
    del empty
    if not config.flops_only:
        _measure(config, record, choice, works, device, dtype, on_progress)
    return record


def _empty_pipeline(config: BenchConfig, choice: ModelChoice | None) -> XDynaPipeline:
    import torch

    from xdyna.infer.bench.models import emptied, empty_model, load_model

    if choice is None:
        return emptied(empty_model(config.model))
    return emptied(load_model(choice.folder, torch.device("cpu"), torch.float32))


def _size(config: BenchConfig, choice: ModelChoice | None, pipe: XDynaPipeline) -> tuple[int, int]:
    from xdyna.infer.bench.models import RANDOM_SIZES

    size_wh = config.size
    if size_wh is None:
        size_wh = RANDOM_SIZES[config.model].size_wh if choice is None else choice.defaults().size or (512, 896)
    try:
        pipe.check_size(*size_wh)
    except ValueError as error:
        raise UserError(f"--size {size_wh[0]}x{size_wh[1]}: {error}") from None
    return size_wh


def _count(
    plans: Sequence[str], works: dict[int, Work], empty: XDynaPipeline, on_progress: OnProgress
) -> dict[str, dict[int, dict[str, int]]]:
    """Operations of every plan at every length; steps after the second are as the second and are not run through."""
    from xdyna.infer.bench.flops import count_flops, flops_of_steps

    counts: dict[str, dict[int, dict[str, int]]] = {plan: {} for plan in plans}
    done = 0
    for num_frames, work in works.items():
        for plan in plans:
            stretches = count_flops(make_plan(plan, empty, replace(work, steps=min(work.steps, 2))))
            counts[plan][num_frames] = {**stretches, "total": flops_of_steps(stretches, work.steps)}
            done += 1
            on_progress("count", done, len(works) * len(plans))
    return counts


def _measure(
    config: BenchConfig,
    record: Record,
    choice: ModelChoice | None,
    works: dict[int, Work],
    device: torch.device,
    dtype: torch.dtype,
    on_progress: OnProgress,
) -> None:
    done, total = 0, len(config.frames) * len(config.plans) * config.repeats

    def on_run() -> None:
        nonlocal done
        done += 1
        on_progress("measure", done, total)

    with _model_folder(config, choice, dtype) as folder, tempfile.TemporaryDirectory() as kept:
        for num_frames, work in works.items():
            tasks = [
                Task(
                    plan,
                    str(folder),
                    str(device),
                    str(dtype).removeprefix("torch."),
                    asdict(work),
                    str(Path(kept) / f"{plan}.npy"),
                )
                for plan in config.plans
            ]
            taken = take_turns(tasks, config.repeats, on_run)
            _keep(record, num_frames, taken, Path(kept))


def _keep(record: Record, num_frames: int, taken: Taken, latents: Path) -> None:
    import numpy as np

    record.runs += taken.runs
    for plan, reason in taken.failed.items():
        record.failed.setdefault(plan, {})[num_frames] = reason
    pair = [latents / f"{plan}.npy" for plan in ("official", OURS)]
    if all(file.exists() for file in pair):
        official, ours = (np.load(file) for file in pair)
        record.latents_apart[num_frames] = float(np.abs(official - ours).max())
    for file in latents.glob("*.npy"):
        file.unlink()


@contextmanager
def _model_folder(config: BenchConfig, choice: ModelChoice | None, dtype: torch.dtype) -> Iterator[Path]:
    """The model's folder; a random model is written for the duration."""
    from xdyna.infer.bench.models import write_random_model

    if choice is not None:
        yield choice.folder
        return
    folder = Path(tempfile.mkdtemp(prefix="xdyna-bench-"))
    try:
        write_random_model(config.model, folder, dtype)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
