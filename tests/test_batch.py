"""Who does which job of a manifest when workers fail and are lost; the table; the command without Ray."""

import csv
import json
from collections import Counter, deque
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest

from xdyna.cli import main
from xdyna.errors import UserError
from xdyna.infer import ray_fleet
from xdyna.infer.animate import AnimateJob
from xdyna.infer.attempt import failed
from xdyna.infer.batch import MOST_LOST, Batch, Outcome, WorkerLost, check_table, results_table
from xdyna.infer.ray_fleet import Share, choose_share, room


class FakeFleet:
    """Workers that take turns, a job at a time.

    Args:
        script: for a job's output name what its attempts come to, in order: `fail`, `lost`, else it is done.
        dead: which workers do not start, counted from 1.
    """

    def __init__(self, script: dict[str, list[str]] | None = None, dead: Container[int] = ()) -> None:
        self.script, self.dead, self.starts = script or {}, dead, 0
        self.queues: dict[int, deque[tuple[int, AnimateJob]]] = {}
        self.ended: deque[int] = deque()
        self.results: dict[int, Any] = {}
        self.done: list[tuple[int, str]] = []
        self.most_held: Counter[int] = Counter()
        self.stopped: list[int] = []
        self.number = 0

    def start(self) -> int:
        self.number += 1
        self.starts += 1
        self.ended.append(self.number)
        is_dead = self.starts in self.dead
        self.results[self.number] = WorkerLost("no such module") if is_dead else 10_000 + self.number
        return self.number

    def submit(self, worker: int, job: AnimateJob) -> int:
        self.number += 1
        queue = self.queues.setdefault(worker, deque())
        queue.append((self.number, job))
        self.most_held[worker] = max(self.most_held[worker], len(queue))
        return self.number

    def wait(self) -> int:
        if self.ended:
            return self.ended.popleft()
        worker = next(worker for worker, queue in self.queues.items() if queue)
        self.queues[worker] = queue = self.queues.pop(worker)  # its turn is over
        call, job = queue.popleft()
        fate = self.script.get(job.output.name, [])
        what = fate.pop(0) if fate else "done"
        self.done.append((worker, f"{job.output.name} {what}"))
        if what == "lost":
            for number in [call, *(number for number, _ in queue)]:
                self.results[number] = WorkerLost("killed")
            self.ended.extend(number for number, _ in queue)
            queue.clear()
        else:
            self.results[call] = failed(job.output, "no") if what == "fail" else {"output": job.output, "num_frames": 3}
        return call

    def result(self, call: int) -> Any:
        found = self.results.pop(call)
        if isinstance(found, WorkerLost):
            raise found
        return found

    def stop(self, worker: int) -> None:
        self.stopped.append(worker)


def jobs(count: int, folder: Path = Path()) -> dict[int, AnimateJob]:
    return {number: AnimateJob(Path("a.png"), Path("b.mp4"), folder / f"{number}.mp4") for number in range(count)}


def run(fleet: FakeFleet, todo: dict[int, AnimateJob], **settings: Any) -> tuple[dict[int, Outcome], list[int]]:
    """How each went, and the order in which they ended."""
    told: list[int] = []
    outcomes = Batch(fleet, todo, **{"workers": 2, **settings}).run(lambda number, outcome: told.append(number))
    assert sorted(told) == sorted(todo), "each is told once"
    return outcomes, told


def test_jobs_are_given_out_as_workers_get_done() -> None:
    fleet = FakeFleet()
    outcomes, _ = run(fleet, jobs(20), workers=3, in_flight=2)
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    assert fleet.most_held == {1: 2, 2: 2, 3: 2}
    assert Counter(worker for worker, _ in fleet.done).keys() == {1, 2, 3}
    assert sorted(fleet.stopped) == [1, 2, 3]


def test_no_more_workers_than_jobs() -> None:
    fleet = FakeFleet()
    run(fleet, jobs(2), workers=8)
    assert [worker for worker, _ in fleet.done] == [1, 2], "one each, though each may hold two"
    assert run(FakeFleet(), {})[0] == {}


def test_failed_jobs_are_tried_again_after_the_others() -> None:
    fleet = FakeFleet({"0.mp4": ["fail", "fail"], "1.mp4": ["fail"] * 9})
    outcomes, _ = run(fleet, jobs(5), workers=1, retries=2)
    assert [what for _, what in fleet.done][:5] == [
        "0.mp4 fail",
        "1.mp4 fail",
        "2.mp4 done",
        "3.mp4 done",
        "4.mp4 done",
    ]
    assert [outcome.attempts for outcome in outcomes.values()] == [3, 3, 1, 1, 1]
    assert [outcome.status for outcome in outcomes.values()] == ["done", "failed", "done", "done", "done"]


def test_jobs_of_a_lost_worker_go_to_another() -> None:
    fleet = FakeFleet({"1.mp4": ["lost"]})
    batch = Batch(fleet, jobs(6), workers=1, in_flight=3)
    outcomes = batch.run()
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    assert [outcome.attempts for outcome in outcomes.values()] == [1, 2, 1, 1, 1, 1], "only one job was begun"
    assert [what for _, what in fleet.done] == [
        "0.mp4 done", "1.mp4 lost", "1.mp4 done", "2.mp4 done", "3.mp4 done", "4.mp4 done", "5.mp4 done",
    ]  # fmt: skip
    assert batch.num_lost == 1


def test_a_job_that_ends_every_worker_is_given_up() -> None:
    fleet = FakeFleet({"1.mp4": ["lost"] * 9})
    outcomes, _ = run(fleet, jobs(4))
    assert outcomes[1].status == "failed"
    assert outcomes[1].attempts == MOST_LOST
    assert "3 workers were lost while they were at it" in outcomes[1].report["error"]
    assert [outcomes[number].status for number in (0, 2, 3)] == ["done"] * 3


def test_losses_are_no_failures() -> None:
    """A lost worker does not use up a job's retries."""
    outcomes, _ = run(FakeFleet({"0.mp4": ["lost", "fail", "done"]}), jobs(1), retries=1)
    assert (outcomes[0].status, outcomes[0].attempts, outcomes[0].lost) == ("done", 3, 1)


def test_workers_that_do_not_start() -> None:
    some = FakeFleet(dead=range(2, 99))
    for fleet, workers in ((FakeFleet(dead=[1, 2]), 2), (some, 3)):
        outcomes, _ = run(fleet, jobs(30), workers=workers)
        assert {outcome.status for outcome in outcomes.values()} == {"done"}
    assert some.starts <= 6, "one is there, and after three that are not nobody asks for more"
    with pytest.raises(UserError, match="no worker starts, 3 were tried: no such module"):
        Batch(FakeFleet(dead=range(99)), jobs(3), workers=1).run()


def test_unfinished_files_of_a_lost_worker_are_removed(tmp_path: Path) -> None:
    """Those of the process that is gone, for the jobs it had; whatever else lies there stays."""
    gone = [".0.10001-0.part.mp4", ".0.mp4.10001-0.part.json", ".1.10001-3.part.mp4"]
    stays = [".0.10002-0.part.mp4", ".0.part.mp4", ".00.10001-0.part.mp4", "0.10001-0.mp4"]
    for name in gone + stays:
        (tmp_path / name).touch()
    run(FakeFleet({"0.mp4": ["lost"]}), jobs(2, tmp_path), workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)


def test_the_table_has_a_row_as_soon_as_a_job_ends(tmp_path: Path) -> None:
    outcome = Outcome({"num_frames": 3}, attempts=2, seconds=1.23456)
    for name in ("a.csv", "a.jsonl"):
        with results_table(tmp_path / name) as add:
            add(outcome.row("m job 1", Path("é, x.mp4")))
            add(Outcome(failed(Path("y.mp4"), "no\nway"), attempts=1).row("m job 2", Path("y.mp4")))
            before = (tmp_path / name).read_text()
        assert (tmp_path / name).read_text() == before
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert first == {
        "job": "m job 1", "status": "done", "seconds": 1.235, "attempts": 2, "reason": "", "output": "é, x.mp4",
        "num_frames": 3,
    }  # fmt: skip
    assert (second["status"], second["reason"]) == ("failed", "no\nway")
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    assert [row["output"] for row in rows] == ["é, x.mp4", "y.mp4"]
    assert [row["reason"] for row in rows] == ["", "no\nway"]
    with pytest.raises(UserError, match="its folder does not exist"), results_table(tmp_path / "none" / "a.csv"):
        pass
    with pytest.raises(UserError, match=r"wanted a \.csv or \.jsonl file"):
        check_table(Path("a.txt"), [])
    with pytest.raises(UserError, match="is the output of a job"):
        check_table(Path("a.csv"), [Path("a.csv")])


def test_what_is_taken_of_a_cluster() -> None:
    gpus = {"CPU": 64.0, "GPU": 8.0}
    assert choose_share(gpus, None, None, None, 1000) == Share(8, 1.0, 1.0)
    assert choose_share(gpus, None, 0.5, None, 1000) == Share(16, 0.5, 1.0)
    assert choose_share(gpus, None, None, None, 3) == Share(3, 1.0, 1.0)
    assert choose_share(gpus, 4, 0, None, 1000) == Share(4, 0.0, 16.0)
    assert choose_share({"CPU": 2.0}, None, None, None, 1000) == Share(1, 0.0, 2.0)
    assert choose_share({"CPU": 2.0}, 2, None, None, 1000) == Share(2, 0.0, 1.0)
    assert room(gpus, Share(16, 1.0, 1.0)) == 8
    assert room(gpus, Share(16, 0.0, 8.0)) == 8
    with pytest.raises(UserError, match="--gpus-per-actor: got 1, the cluster has 0"):
        choose_share({"CPU": 2.0}, 2, 1, None, 10)
    with pytest.raises(UserError, match="--cpus-per-actor: got 4, the cluster has 2"):
        choose_share({"CPU": 2.0}, 1, None, 4, 10)


def test_without_ray_the_command_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_fleet, "find_spec", lambda name: None)
    assert main(["batch", str(tmp_path / "jobs.json")]) == 2
    assert "pip install 'xdyna[scale]'" in capsys.readouterr().err
