"""Who measures videos: this thread, several threads, or Ray actors on any number of machines; results are the same."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdyna.configs.evaluate import ProtocolConfig
from xdyna.errors import UserError
from xdyna.infer.evaluate.features import FeatureCache
from xdyna.infer.evaluate.measure import Measured, Networks, Plan, measure
from xdyna.infer.evaluate.pairs import Pair
from xdyna.infer.evaluate.protocol import Protocol
from xdyna.infer.evaluate.results import ClipLine
from xdyna.metrics.registry import find_metric
from xdyna.metrics.specs import ClipMetric, SetMetric

Outcome = Measured | UserError
#: Has a video measured; the second function waits for what the first gave.
Submit = Callable[[Pair, str, Sequence[ClipLine]], Any]
Result = Callable[[Any], Outcome]


@dataclass(frozen=True)
class Order:
    """What to measure, in plain values: enough to make a plan of on another machine.

    Attributes:
        config: the protocol's.
        versions: of the libraries on the machine that gives the order.
        metrics: names.
        backbones: folder with weights, under the same path everywhere.
        cache: folder of features, likewise.
    """

    config: ProtocolConfig
    versions: Mapping[str, str]
    metrics: tuple[str, ...]
    backbones: Path | None
    cache: Path

    def plan(self) -> Plan:
        """The plan of this order, with networks that are not read yet."""
        metrics = [find_metric(name) for name in self.metrics]
        return Plan(
            Protocol(self.config, self.versions),
            [metric for metric in metrics if isinstance(metric, ClipMetric)],
            [metric for metric in metrics if isinstance(metric, SetMetric)],
            Networks(self.backbones),
            FeatureCache(self.cache),
        )


@dataclass(frozen=True)
class Crew:
    """Those who measure.

    Attributes:
        size: videos that are measured at once.
        submit: see `Submit`.
        result: see `Result`.
    """

    size: int
    submit: Submit
    result: Result

    def in_order(
        self, pairs: Iterable[Pair], method: str, done: Mapping[tuple[str, str], Sequence[ClipLine]]
    ) -> Iterator[tuple[Pair, Outcome]]:
        """Every pair with what came of it, in their order; no more wait than are measured at once and one."""
        waiting: deque[tuple[Pair, Any]] = deque()
        for pair in pairs:
            waiting.append((pair, self.submit(pair, method, done.get((method, pair.name), ()))))
            if len(waiting) >= (self.size + 1 if self.size > 1 else 1):
                first, handle = waiting.popleft()
                yield first, self.result(handle)
                del handle
        while waiting:
            first, handle = waiting.popleft()
            yield first, self.result(handle)


def outcome(pair: Pair, method: str, plan: Plan, done: Sequence[ClipLine]) -> Outcome:
    """`measure`, a user's mistake given back instead of raised."""
    try:
        return measure(pair, method, plan, done)
    except UserError as error:
        return error


@contextmanager
def threads(plan: Plan, workers: int) -> Iterator[Crew]:
    """So many threads of this process; one is the caller's own."""
    if workers == 1:
        yield Crew(1, lambda pair, method, done: (pair, method, plan, done), lambda handle: outcome(*handle))
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="xdyna-evaluate") as pool:
        try:
            yield Crew(
                workers,
                lambda pair, method, done: pool.submit(outcome, pair, method, plan, done),
                lambda handle: handle.result(),
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Actor:
    """Measures in a process of its own.

    Args:
        folder: current folder of the command, from which relative paths count.
        order: what to measure.
        threads: of torch and OpenCV.
    """

    def __init__(self, folder: str, order: Order, threads: int) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see `xdyna.cli.main`
        os.chdir(folder)
        import cv2
        import torch

        from xdyna.infer.evaluate.protocol import library_versions

        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._plan = order.plan()
        self._other = {name: version for name, version in library_versions().items() if version != order.versions[name]}

    def measure(self, pair: Pair, method: str, done: Sequence[ClipLine]) -> Measured | str:
        """What came of a pair, or the line that says what is wrong with it."""
        if self._other:
            return f"{os.uname().nodename}: has other versions ({self._other}) than where the command runs"
        found = outcome(pair, method, self._plan, done)
        return str(found) if isinstance(found, UserError) else found


@contextmanager
def ray_actors(order: Order, count: int, each_threads: int, address: str | None = None) -> Iterator[Crew]:
    """So many Ray actors, on this machine or on a cluster whose machines have the same files under the same paths.

    An actor that is lost is started again, and what it was measuring is measured again.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    from xdyna.infer.ray_fleet import ray_running

    with ray_running(address):
        import ray

        # A lost machine's videos are measured anew: features are kept by content, so nothing counts twice.
        options = {"num_cpus": each_threads, "max_restarts": 3, "max_task_retries": 3}
        made = ray.remote(Actor).options(**options)
        actors: list[Any] = [made.remote(str(Path.cwd()), order, each_threads) for _ in range(count)]
        given = 0

        def submit(pair: Pair, method: str, done: Sequence[ClipLine]) -> Any:
            nonlocal given
            given += 1
            return actors[given % count].measure.remote(pair, method, done)

        def result(handle: Any) -> Outcome:
            try:
                found: Measured | str = ray.get(handle)
            except ray.exceptions.RayActorError as error:
                raise UserError(f"Ray lost an actor again and again: {str(error).splitlines()[0]}") from None
            return UserError(found) if isinstance(found, str) else found

        yield Crew(count, submit, result)
