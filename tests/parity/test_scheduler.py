"""DDIM with the converter's settings against the official scheduler's values."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from golden_sets import shared_file

from xdyna.checkpoints.convert import SCHEDULER

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(shared_file("scheduler.json").read_text())
    return values


def test_settings(recorded: dict[str, Any]) -> None:
    config = DDIMScheduler(**SCHEDULER).config
    for key, value in recorded["config"].items():
        if not key.startswith("_"):
            assert config[key] == value, key


def test_timesteps_are_exact(recorded: dict[str, Any]) -> None:
    scheduler = DDIMScheduler(**SCHEDULER)
    for steps, timesteps in recorded["timesteps"].items():
        scheduler.set_timesteps(int(steps))
        assert scheduler.timesteps.tolist() == timesteps
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == recorded["timesteps_25"]


def test_noise_levels(recorded: dict[str, Any]) -> None:
    scheduler = DDIMScheduler(**SCHEDULER)
    for timestep, alpha in recorded["alphas_cumprod_at"].items():
        assert abs(float(scheduler.alphas_cumprod[int(timestep)]) - alpha) <= 1e-6
    assert torch.as_tensor(scheduler.final_alpha_cumprod) == recorded["final_alpha_cumprod"]
    assert scheduler.init_noise_sigma == recorded["init_noise_sigma"]
