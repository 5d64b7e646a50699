"""A manifest of jobs over workers that come and go: who does what, what is tried again, and the table of results."""

from __future__ import annotations

import csv
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from xdyna.errors import UserError
from xdyna.files import remove_parts, writing_error
from xdyna.infer.animate import AnimateJob
from xdyna.infer.attempt import Report, failed

#: Workers may be lost this often over one job before the job itself is held to be what ends them.
MOST_LOST = 3
#: Workers may fail to start this often, one after the other.
MOST_UNSTARTED = 3
COLUMNS = ("job", "status", "seconds", "attempts", "reason", "output")


class WorkerLost(Exception):
    """A worker is gone, and what it was given with it."""


class Fleet(Protocol):
    """Workers that each do one job after the other, whoever runs them. Workers and calls are told apart by number."""

    def start(self) -> int:
        """Ask for another worker; `wait` tells when it is there. Returns the call's number, which is the worker's."""
        ...

    def submit(self, worker: int, job: AnimateJob) -> int:
        """Give a worker a job, which it does after those it was given before. Returns the call's number."""
        ...

    def wait(self) -> int:
        """The number of a call that has ended; each is told once."""
        ...

    def result(self, call: int) -> Any:
        """What a call gave: of a start the worker's process id, of a job its report.

        Raises:
            WorkerLost: nothing, because the worker is gone.
        """
        ...

    def stop(self, worker: int) -> None:
        """Let a worker go."""
        ...


@dataclass
class Outcome:
    """How a job went.

    Attributes:
        report: see `xdyna.infer.attempt`; empty before it ends.
        attempts: how often it was tried; a lost worker's try counts.
        lost: workers that were lost over it.
        seconds: of its last attempt.
    """

    report: Report = field(default_factory=dict)
    attempts: int = 0
    lost: int = 0
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """``done``, ``skipped`` or ``failed``."""
        return "failed" if "error" in self.report else "skipped" if self.report.get("skipped") else "done"

    def row(self, origin: str, output: Path) -> dict[str, Any]:
        """Of the table."""
        known = ("num_frames", "fps", "size_wh", "seed", "model", "model_sha256")
        return {
            "job": origin,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
            "reason": self.report.get("error", ""),
            "output": str(output),
            **{name: self.report[name] for name in known if name in self.report},
        }


#: Called with a job's number and how it went, once for each job that has ended.
OnOutcome = Callable[[int, Outcome], None]


class Batch:
    """Runs jobs on a fleet.

    Jobs are given out as workers get done, at most `in_flight` at a time to each, so that neither the manifest's length
    nor a slow worker fills anything up. A job that fails is tried again after all others. The jobs of a worker that is
    lost go to others, before anything else.

    Args:
        fleet: runs workers.
        jobs: by number.
        workers: how many.
        in_flight: jobs that a worker holds at a time, the one it works at among them.
        retries: how often a job that failed is tried again.
    """

    def __init__(
        self, fleet: Fleet, jobs: Mapping[int, AnimateJob], *, workers: int, in_flight: int = 2, retries: int = 0
    ) -> None:
        self._fleet, self._jobs, self._in_flight, self._retries = fleet, jobs, in_flight, retries
        self._wanted_workers = workers
        self._todo, self._again = deque(jobs), deque[int]()
        self._outcomes = {number: Outcome() for number in jobs}
        self._starting: set[int] = set()
        self._processes: dict[int, int] = {}  # of workers that are there
        self._given: dict[int, dict[int, int]] = {}  # by worker, jobs by call, in the order they were given
        self._workers: dict[int, int] = {}  # by call
        self._began_s: dict[int, float] = {}  # by worker, when it began with the first of its jobs
        self._unstarted = 0
        self.num_lost = 0

    def run(self, on_outcome: OnOutcome = lambda number, outcome: None) -> dict[int, Outcome]:
        """Do all jobs; returns how each went.

        Raises:
            UserError: no worker starts.
        """
        try:
            while self._todo or self._again or self._workers:
                self._fill()
                call = self._fleet.wait()
                if call in self._starting:
                    self._started(call)
                elif (worker := self._workers.pop(call, None)) is not None:
                    self._ended(worker, call, on_outcome)
            return self._outcomes
        finally:
            for worker in [*self._processes, *self._starting]:
                self._fleet.stop(worker)
            for worker in list(self._processes):
                self._clean_up(worker)

    def _fill(self) -> None:
        """Keep as many workers as can have something to do, and each of them supplied."""
        idle = sum(not given for given in self._given.values()) + len(self._starting)
        room = self._wanted_workers - len(self._processes) - len(self._starting)
        for _ in range(min(room, self._num_waiting() - idle)):
            self._starting.add(self._fleet.start())
        for depth in range(self._in_flight):  # first a job for each, then a second, if the workers to come need none
            for worker, given in self._given.items():
                if len(given) == depth and self._num_waiting() > (len(self._starting) if depth else 0):
                    self._give(worker, (self._todo or self._again).popleft())

    def _num_waiting(self) -> int:
        return len(self._todo) + len(self._again)

    def _give(self, worker: int, number: int) -> None:
        given = self._given[worker]
        if not given:
            self._began_s[worker] = time.monotonic()
        call = self._fleet.submit(worker, self._jobs[number])
        given[call] = number
        self._workers[call] = worker

    def _started(self, worker: int) -> None:
        self._starting.discard(worker)
        try:
            process = self._fleet.result(worker)
        except WorkerLost as error:
            self._unstarted += 1
            if self._unstarted >= MOST_UNSTARTED:
                if not self._processes:
                    raise UserError(f"no worker starts, {self._unstarted} were tried: {error}") from None
                self._wanted_workers = len(self._processes)  # those that are there do it alone
            return
        self._unstarted = 0
        self._processes[worker], self._given[worker] = process, {}

    def _ended(self, worker: int, call: int, on_outcome: OnOutcome) -> None:
        """A job has come to an end, or its worker."""
        try:
            report = self._fleet.result(call)
        except WorkerLost as error:
            self._lost(worker, str(error), on_outcome)
            return
        number = self._given[worker].pop(call)
        now_s = time.monotonic()
        outcome = self._outcomes[number]
        outcome.report, outcome.seconds = report, now_s - self._began_s[worker]
        outcome.attempts += 1
        self._began_s[worker] = now_s
        if "error" in report and outcome.attempts - outcome.lost <= self._retries:
            self._again.append(number)
        else:
            on_outcome(number, outcome)

    def _lost(self, worker: int, reason: str, on_outcome: OnOutcome) -> None:
        """Its jobs go to others; the first of them is the one that it was at."""
        self.num_lost += 1
        self._clean_up(worker)
        calls, _ = self._given.pop(worker), self._processes.pop(worker)
        for call in calls:
            self._workers.pop(call, None)
        self._fleet.stop(worker)
        first, *others = calls.values()
        outcome = self._outcomes[first]
        outcome.attempts, outcome.lost = outcome.attempts + 1, outcome.lost + 1
        outcome.seconds = time.monotonic() - self._began_s.pop(worker)
        self._todo.extendleft(reversed(others))
        if outcome.lost < MOST_LOST:
            self._todo.appendleft(first)
            return
        text = f"{outcome.lost} workers were lost while they were at it (out of memory?); the last: {reason}"
        outcome.report = failed(self._jobs[first].output, text)
        on_outcome(first, outcome)

    def _clean_up(self, worker: int) -> None:
        """Remove the unfinished files of a worker that ended without being able to."""
        for number in self._given.get(worker, {}).values():
            for path in (*self._jobs[number].outputs, self._jobs[number].record):
                remove_parts(path, self._processes[worker])


@contextmanager
def results_table(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that adds a row to a table, which is on the disk at once; `.csv`, else JSON lines.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            lines: Any = csv.DictWriter(file, COLUMNS, extrasaction="ignore") if path.suffix == ".csv" else None
            if lines is not None:
                lines.writeheader()

            def add(row: Mapping[str, Any]) -> None:
                if lines is not None:
                    lines.writerow(row)
                else:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()

            file.flush()
            yield add
    except OSError as error:
        raise writing_error(path, error) from error


def check_table(path: Path, outputs: Sequence[Path]) -> None:
    """Refuse a table that no reader would know, or that would be written over.

    Raises:
        UserError: its suffix is another than .csv or .jsonl, or a job has it as its output.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--results {path}: wanted a .csv or .jsonl file")
    if path in outputs:
        raise UserError(f"--results {path}: is the output of a job; wanted another name")
