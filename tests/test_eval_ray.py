"""Measuring on Ray actors: what goes to them and comes back can be sent, and the numbers are the same."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eval_clips import put_set
from test_eval_score import numbers, run

from xdyna.infer.evaluate import crew

METRICS = ("psnr", "ssim", "joints-synth")


class Sent:
    """A class as `ray.remote` gives it back: arguments and results pass through pickle, calls are made at once."""

    def __init__(self, made: type) -> None:
        self._made = made

    def options(self, **options: Any) -> Sent:
        assert options["max_task_retries"] > 0, "a lost machine's videos are measured again"
        return self

    def remote(self, *arguments: Any) -> Any:
        actor = self._made(*pickle.loads(pickle.dumps(arguments)))  # noqa: S301 - our own
        names = [name for name in dir(self._made) if not name.startswith("_")]
        return SimpleNamespace(**{name: Sent.method(getattr(actor, name)) for name in names})

    @staticmethod
    def method(call: Any) -> Any:
        def remote(*arguments: Any) -> bytes:
            return pickle.dumps(call(*pickle.loads(pickle.dumps(arguments))))  # noqa: S301 - our own

        return SimpleNamespace(remote=remote)


@contextmanager
def running(address: str | None) -> Iterator[None]:
    assert address is None
    yield


def test_actors_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_set(tmp_path, "abc")
    (tmp_path / "made" / "b" / "000000.png").write_bytes(b"")
    here = run(tmp_path, "here.jsonl", metrics=METRICS)
    fleet = SimpleNamespace(ray_running=running)
    monkeypatch.setitem(sys.modules, "xdyna.infer.ray_fleet", fleet)
    exceptions = SimpleNamespace(RayActorError=RuntimeError)
    ray = SimpleNamespace(remote=Sent, get=pickle.loads, exceptions=exceptions)
    monkeypatch.setitem(sys.modules, "ray", ray)
    there = run(tmp_path, "there.jsonl", metrics=METRICS, actors=2)
    assert numbers(there) == numbers(here)
    assert [line.clip for line in there.results.clips] == ["a", "c"]
    assert there.problems == here.problems
    assert "b/000000.png: is empty" in there.problems[0]
    monkeypatch.setattr("xdyna.infer.evaluate.protocol.library_versions", lambda: {"av": "1.0"})
    order = crew.Order(*there_order(tmp_path))
    other = crew.Actor(str(tmp_path), order, 1)
    assert "has other versions ({'av': '1.0'})" in str(other.measure(None, "made", ()))  # type: ignore[arg-type]


def there_order(folder: Path) -> tuple[Any, ...]:
    from xdyna.infer.evaluate.protocol import load_protocol

    config = load_protocol("v1").config
    return config, {"av": "18.1.0"}, ("psnr",), None, folder / "cache"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_actors_give_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'xdyna[scale]'")
    put_set(tmp_path, "abc")
    here = run(tmp_path, "here.jsonl", metrics=METRICS)
    there = run(tmp_path, "there.jsonl", metrics=METRICS, actors=2, cache=tmp_path / "there")
    assert numbers(there) == numbers(here)
