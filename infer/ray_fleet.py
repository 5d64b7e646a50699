"""Workers as Ray actors, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from xdyna.errors import UserError
from xdyna.infer.animate import AnimateJob
from xdyna.infer.attempt import Report, run_job, tried
from xdyna.infer.batch import WorkerLost

#: How often Ray is started on this machine before that is given up.
_STARTS = 3
#: What passes through Ray's own store on this machine is a few kilobytes a job; by default it would take a third of
#: the memory.
_STORE_BYTES = 100 << 20

logger = logging.getLogger("xdyna")


@dataclass(frozen=True)
class Share:
    """What of the cluster is taken.

    Attributes:
        actors: number of workers.
        gpus: that each has; a fraction shares one.
        cpus: that each has, and so its number of threads.
    """

    actors: int
    gpus: float
    cpus: float


class Worker:
    """Holds a model, in a process of its own.

    Args:
        folder: current folder of the command, from which relative paths count.
        resume: see `xdyna.infer.session.Session.run`.
    """

    def __init__(self, folder: str, resume: bool) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see `xdyna.cli.main`
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.chdir(folder)
        from xdyna.infer.session import Session

        self._session, self._resume = Session(), resume
        self._warnings: list[str] = []
        logging.getLogger("xdyna").addHandler(_Collector(self._warnings))

    def process(self) -> int:
        """Its number."""
        return os.getpid()

    def run(self, job: AnimateJob) -> Report:
        """The report of a job, with the `warnings` that were given meanwhile."""
        self._warnings.clear()
        report = tried(
            job.output,
            lambda: run_job(job, self._session, lambda stage, done, total: None, resume=self._resume)[0],
        )
        return {**report, "warnings": list(self._warnings)}


class _Collector(logging.Handler):
    """Keeps warnings.

    Args:
        lines: takes them.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


class RayFleet:
    """A `Fleet` of Ray actors; Ray runs already.

    Args:
        share: what each takes.
        resume: see `Worker`.
    """

    def __init__(self, share: Share, *, resume: bool) -> None:
        self._ray = ray = _import_ray()
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_task_retries": 0}
        self._make = ray.remote(Worker).options(**options)
        self._resume = resume
        self._numbers = count()
        self._actors: dict[int, Any] = {}
        self._running: dict[Any, int] = {}  # by Ray's reference
        self._ended: dict[int, Any] = {}

    def start(self) -> int:
        """See `Fleet`."""
        number = next(self._numbers)
        actor = self._make.remote(str(Path.cwd()), self._resume)
        self._actors[number] = actor
        self._running[actor.process.remote()] = number
        return number

    def submit(self, worker: int, job: AnimateJob) -> int:
        """See `Fleet`."""
        number = next(self._numbers)
        self._running[self._actors[worker].run.remote(job)] = number
        return number

    def wait(self) -> int:
        """See `Fleet`.

        Raises:
            UserError: Ray itself is gone.
        """
        ready: list[Any] = []
        while not ready:  # a limit, so that signals are heard
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=1.0)
            if not ready and not any(node["Alive"] for node in self._ray.nodes()):
                raise UserError("Ray has stopped: none of its nodes is alive; the same command goes on")
        number = self._running.pop(ready[0])
        self._ended[number] = ready[0]
        return number

    def result(self, call: int) -> Any:
        """See `Fleet`."""
        reference = self._ended.pop(call)
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:
            raise  # the job's own error, which XDYNA_DEBUG lets through
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise WorkerLost(lines[0] if lines else type(error).__name__) from None

    def stop(self, worker: int) -> None:
        """See `Fleet`."""
        actor = self._actors.pop(worker, None)
        if actor is not None:
            self._ray.kill(actor)


def check_ray() -> None:
    """Refuse to go on without Ray, which takes long to import.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("ray") is None:
        raise UserError("xdyna batch needs Ray, which is not installed: pip install 'xdyna[scale]'")


def _import_ray() -> Any:
    """The package; its types are not looked at, for it may not be there."""
    check_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return import_module("ray")


class _NotFromRay:
    """Stands for a stream, and leaves out what Ray's own threads print: stdout is the command's.

    Args:
        stream: that it stands for.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See `TextIO`."""
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stream.write(text)


@contextmanager
def ray_running(address: str | None) -> Iterator[dict[str, float]]:
    """Ray for the time of a `with` block: a cluster that is there, or one of its own on this machine.

    Args:
        address: of the cluster; None: RAY_ADDRESS, or else this machine.
    Yields:
        The cluster's resources, such as `CPU` and `GPU`.
    Raises:
        UserError: no cluster there.
    """
    ray = _import_ray()
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    answer = signal.getsignal(signal.SIGTERM)
    for left in reversed(range(_STARTS if where == "local" else 1)):
        try:
            _start(ray, where)
            break
        except Exception as error:  # Ray raises that very class where its own parts take too long
            ray.shutdown()  # what came up of it
            line = " ".join(str(error).split()) or type(error).__name__
            if not left:
                raise UserError(f"Ray at {where} does not answer: {line[:300]}") from error
            logger.debug("Ray does not start, tried again: %s", line)
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer)  # Ray puts its own in place
        with redirect_stdout(_NotFromRay(sys.stdout)):
            yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _start(ray: Any, where: str) -> None:
    """Join a cluster, or start one; its parts give each other few seconds, which a busy machine may not have."""
    own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if where == "local" else {}
    with redirect_stderr(StringIO()):  # what it says of itself; what goes wrong is raised
        ray.init(address=where, log_to_driver=False, configure_logging=False, **own)


def choose_share(
    resources: dict[str, float], actors: int | None, gpus: float | None, cpus: float | None, jobs: int
) -> Share:
    """What to take of a cluster: what is not given follows from what is there.

    Args:
        resources: of the cluster.
        actors: wanted; by default one for each share of a GPU, or one where there is no GPU.
        gpus: for each; by default 1, or 0 where there is none.
        cpus: for each; by default 1 beside a GPU, else an equal share of all.
        jobs: to be done; more actors than that are not started.
    Raises:
        UserError: the cluster has no room for a single one.
    """
    there_gpus, there_cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
    gpus = float(there_gpus >= 1) if gpus is None else gpus
    if gpus > there_gpus:
        raise UserError(f"--gpus-per-actor: got {gpus:g}, the cluster has {there_gpus:g}")
    if actors is None:
        actors = max(1, int(there_gpus / gpus)) if gpus else 1
    actors = min(actors, jobs)
    if cpus is None:
        cpus = 1.0 if gpus else max(1.0, there_cpus // actors)
    if cpus > there_cpus:
        raise UserError(f"--cpus-per-actor: got {cpus:g}, the cluster has {there_cpus:g}")
    return Share(actors, gpus, cpus)


def room(resources: dict[str, float], share: Share) -> int:
    """How many such actors a cluster runs at once, by its sums."""
    by_cpu = resources.get("CPU", 0.0) / share.cpus if share.cpus else float("inf")
    by_gpu = resources.get("GPU", 0.0) / share.gpus if share.gpus else float("inf")
    return int(min(by_cpu, by_gpu, share.actors))
