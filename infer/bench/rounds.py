"""Taking the plans in turns, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any

from xdyna.errors import UserError
from xdyna.infer.bench.worker import Task


@dataclass(frozen=True)
class Run:
    """One run of one plan.

    Attributes:
        plan: name of the plan.
        num_frames: driving frames.
        turn: number of the round.
        seconds: on the wall.
        cpu_seconds: of the process, all threads together.
        peak_bytes: of memory.
        resident_bytes: of memory before the run, the model loaded and warm.
    """

    plan: str
    num_frames: int
    turn: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    resident_bytes: int


@dataclass
class Taken:
    """What came of the rounds at one length.

    Attributes:
        runs: in the order in which they ran.
        failed: plan -> why it could not run.
    """

    runs: list[Run] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def turns(plans: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(round, plan) in the order of running: A B C, C B A, A B C ..

    So a machine that gets slower or faster as time goes on favours none of them.
    """
    for turn in range(repeats):
        for plan in plans if turn % 2 == 0 else reversed(plans):
            yield turn, plan


class Worker:
    """A process that runs one plan; see `xdyna.infer.bench.worker`."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.resident_bytes = 0
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "xdyna.infer.bench.worker", task.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._log.close()

    def wait_until_ready(self) -> None:
        """Raise `WorkerFailed` where the plan cannot run, `UserError` where the model cannot be loaded."""
        self.resident_bytes = int(self._answer()["resident_bytes"])

    def run(self) -> dict[str, Any]:
        """Run once; what it took.

        Raises:
            WorkerFailed: out of memory, or a defect.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, or its absence, tells
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"its process ended with status {self._process.wait()}{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"]) if answer["user"] else WorkerFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""


class WorkerFailed(Exception):
    """A plan could not run, or not to its end."""


def take_turns(tasks: Sequence[Task], repeats: int, on_run: Callable[[], None]) -> Taken:
    """Run the plans of one length in turns.

    Args:
        tasks: one for each plan.
        repeats: rounds.
        on_run: called after each run, also one that failed.
    """
    taken = Taken()
    with ExitStack() as stack:
        workers = {task.plan: stack.enter_context(Worker(task)) for task in tasks}
        for plan, worker in workers.items():
            try:
                worker.wait_until_ready()
            except WorkerFailed as error:
                taken.failed[plan] = str(error)
        for turn, plan in turns(list(workers), repeats):
            if plan not in taken.failed:
                try:
                    taken.runs.append(_run(workers[plan], turn))
                except WorkerFailed as error:
                    taken.failed[plan] = str(error)
            on_run()
    return taken


def _run(worker: Worker, turn: int) -> Run:
    answer = worker.run()
    if not answer["finite"]:
        raise WorkerFailed("its latents are not finite")
    return Run(
        worker.task.plan,
        worker.task.work["num_frames"],
        turn,
        answer["seconds"],
        answer["cpu_seconds"],
        answer["peak_bytes"],
        worker.resident_bytes,
    )
