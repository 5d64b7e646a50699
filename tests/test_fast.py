"""Approximations: what each leaves out, that it is near, that it is refused where it does nothing, and presets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import tiny_inputs, tiny_pipeline
from torch import Tensor, nn

from xdyna import XDynaPipeline
from xdyna.infer.engine.deep_cache import deep_output, most_depth, run_outermost
from xdyna.infer.engine.fast import FastPredictor
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.engine.token_merge import match, merging_sites

MODELS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "per frame": {"pool_group_norm": False},
    "fixed reference": {"pool_group_norm": False, "reference_timestep": "zero"},
    "no adapter": {"pool_group_norm": False, "adapter": False},
    "no attention above": {
        "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
        "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"),
    },
}


@pytest.fixture(scope="module")
def pipelines() -> dict[str, XDynaPipeline]:
    return {name: tiny_pipeline(text=True, **settings) for name, settings in MODELS.items()}


def run(pipeline: XDynaPipeline, predictor: Any, num_frames: int = 6, **settings: Any) -> Tensor:
    """Final latents of a short call."""
    defaults = {"num_inference_steps": 4, "output_type": "latent", "window": 4, "overlap": 2}
    generator = torch.Generator().manual_seed(0)
    latents: Tensor = pipeline(
        **{**tiny_inputs(num_frames), **defaults, **settings}, generator=generator, predictor=predictor
    ).frames
    return latents


#: Guidance between halves that differ, and windows that move from step to step.
GUIDED: dict[str, Any] = {"window_batch": 2, "guidance_scale": 1.5, "schedule": "open", "negative_prompt": "a"}


@pytest.fixture(scope="module")
def exact(pipelines: dict[str, XDynaPipeline]) -> Tensor:
    return run(pipelines["pooled"], ExactPredictor(), **GUIDED)


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """Rows that a module is called with, call by call."""
    rows: list[int] = []
    handle = module.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


def off(a: Tensor, b: Tensor) -> float:
    """Error of `a` against `b`, as a share of its spread."""
    return float((a - b).pow(2).mean().sqrt() / b.std())


def test_without_switches_it_is_exact(pipelines: dict[str, XDynaPipeline], exact: Tensor) -> None:
    assert torch.equal(exact, run(pipelines["pooled"], FastPredictor(), **GUIDED))


@pytest.mark.parametrize(
    "switches",
    [
        {"reuse_every": 2},
        {"reuse_every": 2, "reuse_depth": 2},
        {"residuals_every": 2},
        {"guidance_from": 0.25, "guidance_to": 0.75},
        {"merge_tokens": 0.25},
        {"reuse_every": 2, "residuals_every": 4, "guidance_to": 0.6, "merge_tokens": 0.25},
    ],
    ids=["features", "two layers", "residuals", "guidance", "tokens", "all"],
)
def test_each_switch_changes_a_little(
    pipelines: dict[str, XDynaPipeline], exact: Tensor, switches: dict[str, Any]
) -> None:
    predictor = FastPredictor(**switches)
    fast = run(pipelines["pooled"], predictor, **GUIDED)
    assert 1e-6 < off(fast, exact) < 0.5
    assert torch.equal(fast, run(pipelines["pooled"], predictor, **GUIDED))  # nothing is left of the job before


@pytest.mark.parametrize("model", ["fixed reference", "no adapter", "no attention above"])
def test_switches_go_together_on_every_model(pipelines: dict[str, XDynaPipeline], model: str) -> None:
    switches = {"reuse_every": 2, "reuse_depth": 2, "residuals_every": 4, "guidance_to": 0.6, "merge_tokens": 0.25}
    results = [
        run(pipelines[model], predictor, **GUIDED) for predictor in (ExactPredictor(), FastPredictor(**switches))
    ]
    assert 1e-6 < off(results[1], results[0]) < 0.5


@pytest.mark.parametrize(
    ("model", "depth"), [("pooled", 2), ("per frame", 1), ("fixed reference", 2), ("no attention above", 1)]
)
def test_the_outermost_layers_on_fresh_features_are_the_whole(
    pipelines: dict[str, XDynaPipeline], model: str, depth: int
) -> None:
    """Reuse within the very step changes nothing: the two ways of running the UNet agree."""
    pipeline = pipelines[model]

    class Twice(FastPredictor):
        worst = 0.0

        def _run(self, unet: Any, rows: Any, timestep: Any, context: Any, group: Any, added: Any, keys: Any) -> Tensor:
            with deep_output(unet, depth) as found:
                whole = ExactPredictor._run(self, unet, rows, timestep, context, group, added, keys)
            down = added.down[:depth]
            outer = run_outermost(unet, rows, timestep, context, found[0], depth, down, keys[0])
            self.worst = max(self.worst, float((outer - whole).abs().max()))
            return whole

    predictor = Twice()
    run(pipeline, predictor, num_inference_steps=2, window_batch=2)
    assert most_depth(pipeline.unet) == 2
    assert predictor.worst < 1e-5
