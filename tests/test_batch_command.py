"""`xdyna batch` from end to end, with a stand-in for Ray that runs actors in this process, one call at a time."""

import csv
import json
import logging
import os
import pickle
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from animate_inputs import files_in, make_driver, make_photo

from xdyna.cli import main
from xdyna.infer import ray_fleet
from xdyna.infer.session import Session


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class ActorDiedError(RayError):
    pass


class Killed(BaseException):
    """What kills a process that stands for an actor's."""


class Call:
    """A call of an actor's method, made when it is waited for."""

    def __init__(self, actor: "Actor", name: str, args: tuple[Any, ...]) -> None:
        self.actor, self.name, self.args = actor, name, args
        self.value: Any = None
        self.error: Exception | None = None

    def make(self) -> None:
        if not self.actor.alive:
            self.error = ActorDiedError("The actor died.\nIts process was killed.")
            return
        try:
            self.actor.begin()
            args = pickle.loads(pickle.dumps(self.args))  # noqa: S301 (what we made ourselves)
            value = getattr(self.actor.instance, self.name)(*args)
            self.value = pickle.loads(pickle.dumps(value))  # noqa: S301
        except Killed:
            self.actor.alive = False
            thread = threading.Thread(target=print, args=("(raylet) A worker died",), name="ray_listen_error_messages")
            thread.start()
            thread.join()
            self.error = ActorDiedError("The actor died.\nIts process was killed.")
        except Exception as error:
            self.error = RayTaskError(str(error))


class Actor:
    """Any class as an actor."""

    def __init__(self, kind: type, args: tuple[Any, ...]) -> None:
        self._kind, self._args = kind, args
        self.instance: Any = None
        self.alive = True

    def begin(self) -> None:
        self.instance = self.instance or self._kind(*self._args)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: Call(self, name, args))


class Ray:
    """As much of Ray as is used."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.options: list[dict[str, Any]] = []
        self.refuse = 0
        self.stopped = 0
        self.alive = True

    def init(self, **options: Any) -> None:
        self.started.append(options)
        if len(self.started) <= self.refuse:
            raise Exception("The current node timed out during startup.")

    def shutdown(self) -> None:
        self.stopped += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "memory": 1e9}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": self.alive}]

    def remote(self, kind: type) -> Any:
        def options(**options: Any) -> Any:
            self.options.append(options)
            return SimpleNamespace(remote=lambda *args: Actor(kind, args))

        return SimpleNamespace(options=options)

    def wait(self, calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        assert num_returns == 1
        if not self.alive:
            return [], calls
        calls[0].make()
        return calls[:1], calls[1:]

    def get(self, call: Call) -> Any:
        if call.error is not None:
            raise call.error
        return call.value

    def kill(self, actor: Actor) -> None:
        actor.alive = False


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    fake = Ray()
    monkeypatch.setattr(ray_fleet, "check_ray", lambda: None)
    monkeypatch.setattr(ray_fleet, "_import_ray", lambda: fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("OMP_WAIT_POLICY", "DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # a worker sets them
    yield fake
    logger = logging.getLogger("xdyna")
    for handler in [handler for handler in logger.handlers if isinstance(handler, ray_fleet._Collector)]:
        logger.removeHandler(handler)


@pytest.fixture
def manifest(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two jobs that can be done, one whose photo is missing, one with a setting that does not exist."""
    monkeypatch.chdir(tmp_path)
    make_photo(Path("photo.png"))
    make_driver(Path("dance.mp4"), 2)
    shared = {"pose_video": "dance.mp4", "model": str(tiny_folder), "frames": 1, "steps": 1, "deterministic": True}
    entries = [
        {"ref": "photo.png", "output": "0.gif"},
        {"ref": "photo.png", "output": "1.gif", "seed": 1},
        {"ref": "none.png", "output": "2.gif"},
        {"ref": "photo.png", "output": "3.gif", "stepz": 1},
    ]
    Path("jobs.json").write_text(json.dumps({"defaults": shared, "jobs": entries}))
    return Path("jobs.json")


def test_a_batch(manifest: Path, ray: Ray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An actor is killed over the second job; two jobs cannot be done until they are mended."""
    assert main(["animate", "--jobs", str(manifest), "-o", "local", "--json"]) == 2
    capsys.readouterr()
    true_run, tries = Session.run, deque(["well", "killed"])

    def run(self: Session, job: Any, *args: Any, **options: Any) -> Any:
        if job.output.name != "2.gif" and tries and tries.popleft() == "killed":
            part = job.output.with_name(f".{job.output.stem}.{os.getpid()}-0.part.gif")
            part.touch()
            raise Killed
        return true_run(self, job, *args, **options)

    monkeypatch.setattr(Session, "run", run)
    assert main(["batch", str(manifest), "-o", "out", "--actors", "1", "--retries", "1", "--json"]) == 2
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert [(row["status"], row["attempts"]) for row in report["jobs"]] == [
        ("done", 1), ("done", 2), ("failed", 2), ("failed", 1),
    ]  # fmt: skip
    assert (report["done"], report["skipped"], report["failed"]) == (2, 0, 2)
    assert "1 actors were lost and replaced" in report["notices"]
    lines = output.err.splitlines()
    assert len(lines) == 3
    assert "job 3: none.png: no such file" in lines[0]
    assert "unknown setting" in lines[1] or "stepz" in lines[1]
    assert "2 of 4 jobs failed; the same command runs only what is not finished" in lines[2]
    rows = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert sorted(rows, key=lambda row: row["job"]) == report["jobs"]
    for name in ("0.gif", "0.gif.json", "1.gif", "1.gif.json"):
        assert Path("out", name).read_bytes() == Path("local", name).read_bytes()
    assert files_in(Path("out")) == ["0.gif", "0.gif.json", "1.gif", "1.gif.json", "results.jsonl"]
    assert ray.options[0] == {"num_cpus": 2.0, "num_gpus": 0.0, "max_restarts": 0, "max_task_retries": 0}
    assert ray.stopped == 1

    make_photo(Path("none.png"))
    manifest.write_text(manifest.read_text().replace("stepz", "steps"))
    assert main(["batch", str(manifest), "-o", "out", "--results", "table.csv"]) == 0
    assert "table.csv: 2 done, 2 skipped, 0 failed" in capsys.readouterr().out
    with Path("table.csv").open(newline="") as file:
        assert sorted(row["status"] for row in csv.DictReader(file)) == ["done", "done", "skipped", "skipped"]
    started = len(ray.started)
    assert main(["batch", str(manifest), "-o", "out"]) == 0
    assert len(ray.started) == started, "nothing to do needs no Ray"


def test_ray_that_does_not_start_or_stops(
    manifest: Path, ray: Ray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["batch", str(manifest), "-o", "out"]
    ray.refuse = 99
    assert main([*command, "--address", "ray://10.0.0.1:10001"]) == 2
    assert [options["address"] for options in ray.started] == ["ray://10.0.0.1:10001"]
    assert "Ray at ray://10.0.0.1:10001 does not answer: The current node timed out" in capsys.readouterr().err
    assert main(command) == 2
    assert [options["address"] for options in ray.started[1:]] == ["local"] * 3, "tried again on this machine"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    ray.refuse, ray.alive = 0, False
    capsys.readouterr()
    assert main(command) == 2
    assert ray.started[-1]["address"] == "10.0.0.2:6379"
    assert "Ray has stopped: none of its nodes is alive" in capsys.readouterr().err
    assert main([*command, "--gpus-per-actor", "1"]) == 2
    assert "--gpus-per-actor: got 1, the cluster has 0" in capsys.readouterr().err
    assert main([*command, "--results", "out/table.txt"]) == 2
    assert "wanted a .csv or .jsonl file" in capsys.readouterr().err
