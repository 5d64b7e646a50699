"""Windows spread over processes: here over threads, each with networks of its own, that tell each other tensors."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_models import tiny_inputs, tiny_pipeline
from torch import Tensor

from xdyna import XDynaPipeline
from xdyna.infer.engine.fast import FastPredictor
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.engine.spread import Spread
from xdyna.infer.processes import Team

MOST = 3
MODELS: dict[str, dict[str, Any]] = {"pooled": {}, "per frame": {"pool_group_norm": False}}


class Threads(Team):
    """A team of threads."""

    def __init__(self, rank: int, size: int, table: list[Any], barrier: threading.Barrier) -> None:
        super().__init__()
        self.rank, self.size, self._table, self._barrier = rank, size, table, barrier

    def gather(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self._barrier.wait(60)
        values = list(self._table)
        self._barrier.wait(60)
        return values

    def broadcast_tensor(self, tensor: Tensor, source: int) -> Tensor:
        found: Tensor = self.gather(tensor)[source]
        assert found.shape == tensor.shape
        assert found.dtype == tensor.dtype
        return found


@pytest.fixture(scope="module")
def pipelines() -> dict[str, list[XDynaPipeline]]:
    made = {name: [tiny_pipeline(**settings) for _ in range(MOST)] for name, settings in MODELS.items()}
    assert torch.get_num_threads() == 1, "see conftest.py"
    return made


def run(pipe: XDynaPipeline, predictor: ExactPredictor, **settings: Any) -> Tensor:
    defaults = {
        "num_inference_steps": 3,
        "output_type": "latent",
        "window": 4,
        "overlap": 2,
        "num_frames": 8,
        "guidance_scale": 1.0,
    }
    call = {**defaults, **settings}
    inputs = tiny_inputs(call.pop("num_frames"), face=False)
    latents: Tensor = pipe(**inputs, **call, generator=torch.Generator().manual_seed(0), predictor=predictor).frames
    return latents


def together(pipes: list[XDynaPipeline], size: int, predictors: list[ExactPredictor], **settings: Any) -> list[Tensor]:
    """The latents that each of `size` processes comes to."""
    barrier, table = threading.Barrier(size), [None] * size

    def one(rank: int) -> Tensor:
        predictors[rank].spread = Spread(Threads(rank, size, table, barrier))
        try:
            return run(pipes[rank], predictors[rank], **settings)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(one, rank) for rank in range(size)]]


@pytest.mark.parametrize(
    ("model", "size", "switches", "settings"),
    [
        ("pooled", 2, {}, {"guidance_scale": 7.5}),
        ("per frame", 3, {"deterministic": True}, {"num_frames": 5, "schedule": "closed", "window_batch": 2}),
        ("pooled", 2, {"near_reference": True, "reuse_every": 2}, {}),
        ("pooled", 2, {"reuse_every": 2, "reuse_depth": 2, "residuals_every": 3}, {}),
        ("per frame", 2, {"residuals_every": 3}, {"schedule": "closed", "num_frames": 16}),
    ],
    ids=["two", "more processes than windows", "reference of the first window", "deep features", "residuals"],
)
def test_many_processes_give_the_bytes_of_one(
    pipelines: dict[str, list[XDynaPipeline]], model: str, size: int, switches: dict[str, Any], settings: Any
) -> None:
    """Windows move from step to step: a process needs residuals of frames that it did not see when they were kept."""
    pipes, kind = (
        pipelines[model],
        FastPredictor if {"reuse_every", "residuals_every"} & set(switches) else ExactPredictor,
    )
    alone = run(pipes[0], kind(**switches), **settings)
    for latents in together(pipes, size, [kind(**switches) for _ in range(size)], **settings):
        assert torch.equal(latents, alone)


def test_runs_share_the_windows() -> None:
    for size in (1, 2, 3, 8):
        for count in (1, 2, 5, 16):
            teams = [Threads(rank, size, [], threading.Barrier(1)) for rank in range(size)]
            runs = [Spread(team).run(count) for team in teams]
            assert [window for run in runs for window in run] == list(range(count))
            assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_few_frames_are_evaluated_twice(pipelines: dict[str, list[XDynaPipeline]]) -> None:
    """24 frames in windows of 4 that share none: each process sees half of them."""
    pipes, rows = pipelines["per frame"], [0] * 2
    handles = []
    for rank in range(2):

        def count(module: Any, args: Any, out: Any, rank: int = rank) -> None:
            rows[rank] += len(args[0])

        handles.append(pipes[rank].pose_controlnet.conv_in.register_forward_hook(count))
    try:
        settings = {"num_frames": 24, "overlap": 0, "schedule": "grid", "num_inference_steps": 1}
        together(pipes, 2, [ExactPredictor() for _ in range(2)], **settings)
    finally:
        for handle in handles:
            handle.remove()
    assert rows == [12, 12]
