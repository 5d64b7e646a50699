"""A clip goes through the scheduler a few frames at a time: the same numbers, and little memory beside the clip."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_pipeline_schedulers import SCHEDULERS, build
from torch import Tensor

from xdyna.alive import Alive
from xdyna.resume import DenoiseState
from xdyna.stepping import STEP_FRAMES, scale_clip, step_clip

CPU = torch.device("cpu")
FRAMES = 2 * STEP_FRAMES + 5
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' sigmas under numpy 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(latents: Tensor) -> Tensor:
    """A prediction that depends on the latents, frame by frame and element by element."""
    return (latents * 0.9).sin_()


def noise_of(scheduler: Any) -> dict[str, Any]:
    return {"generator": seeded(3)} if "generator" in scheduler.step.__code__.co_varnames else {}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction"}])
def test_frame_by_frame_is_all_at_once(kind: Any, settings: dict[str, Any]) -> None:
    whole, parts = build(kind, **settings), build(kind, **settings)
    whole.set_timesteps(6)
    parts.set_timesteps(6)
    start = torch.randn(1, 4, FRAMES, 6, 5, generator=seeded())
    a = b = start * whole.init_noise_sigma
    extra, other_extra = noise_of(whole), noise_of(parts)
    seen: list[tuple[Tensor, Tensor]] = []
    for t in whole.timesteps:
        shown, shown_in_parts = whole.scale_model_input(a, t), scale_clip(parts, b, t, CPU)
        assert torch.equal(shown, shown_in_parts)
        seen.append((b, b.clone()))
        a = whole.step(model(shown), t, a, **extra).prev_sample
        b = step_clip(parts, model(shown_in_parts), t, b, CPU, **other_extra)
        assert torch.equal(a, b)
        assert vars(whole).keys() == vars(parts).keys()
        differ = [name for name, value in vars(whole).items() if not same(value, vars(parts)[name])]
        assert not differ
    assert all(torch.equal(*pair) for pair in seen)  # whoever holds the latents of a step keeps them
    assert not torch.equal(a, start)
    DenoiseState.of(6, b, parts, seeded())


def test_noise_of_a_step_is_drawn_for_the_whole_clip() -> None:
    scheduler = build(SCHEDULERS[0])
    scheduler.set_timesteps(4)
    latents = torch.randn(1, 4, FRAMES, 6, 5, generator=seeded())
    t = scheduler.timesteps[1]
    wanted = scheduler.step(model(latents), t, latents, eta=1.0, generator=seeded(3)).prev_sample
    source = seeded(3)
    assert torch.equal(step_clip(scheduler, model(latents), t, latents, CPU, eta=1.0, generator=source), wanted)
    drawn = torch.randn(latents.shape, generator=(once := seeded(3)))
    assert drawn.shape == latents.shape
    assert torch.equal(source.get_state(), once.get_state())


def test_thresholds_over_the_clip_are_taken_over_the_clip() -> None:
    scheduler = build(SCHEDULERS[0], thresholding=True, dynamic_thresholding_ratio=0.6)
    scheduler.set_timesteps(4)
    latents = torch.randn(1, 4, FRAMES, 6, 5, generator=seeded())
    latents[:, :, -5:] *= 4
    t = scheduler.timesteps[2]
    wanted = scheduler.step(model(latents), t, latents).prev_sample
    assert torch.equal(step_clip(scheduler, model(latents), t, latents, CPU), wanted)


@pytest.mark.parametrize(("name", "copies"), [("DDIM", 1), ("DPMSolverMultistep", 3), ("UniPCMultistep", 4)])
def test_memory_beside_the_clip(name: str, copies: int) -> None:
    """`copies` of the clip beside the latents: what comes of the prediction, and what is kept of earlier steps."""
    (kind,) = (kind for kind in SCHEDULERS if kind.__name__ == f"{name}Scheduler")
    scheduler = build(kind)
    scheduler.set_timesteps(8)
    latents = torch.randn(1, 4, 40 * STEP_FRAMES, 3, 2, generator=seeded())
    size, known = latents.nbytes, [latents]
    with torch.no_grad(), Alive(known) as alive:
        for t in scheduler.timesteps:
            latents = step_clip(scheduler, model(latents), t, latents, CPU)
    assert alive.now < (copies + 0.1) * size
    assert alive.peak < (copies + 1.5) * size  # `model` above has one for itself


def test_a_prediction_that_cannot_be_overwritten_is_left_alone() -> None:
    scheduler = build(SCHEDULERS[0])
    scheduler.set_timesteps(4)
    latents = torch.randn(1, 4, FRAMES, 6, 5, generator=seeded())
    predicted = torch.ones(1, 4, 1, 1, 1).expand_as(latents)
    wanted = copy.deepcopy(scheduler).step(predicted, scheduler.timesteps[0], latents).prev_sample
    assert torch.equal(step_clip(scheduler, predicted, scheduler.timesteps[0], latents, CPU), wanted)
    assert predicted.eq(1).all()
