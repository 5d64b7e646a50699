"""The clip on the host, the networks on a device: the same numbers, and no more of the device for a longer clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend_device import DEVICE, Device, pretended
from tiny_models import TINY_WH, tiny_inputs, tiny_pipeline
from torch import Tensor

from xdyna import XDynaPipeline
from xdyna.infer.engine.fit import Fitted
from xdyna.infer.engine.memory import Shapes, Work
from xdyna.infer.engine.plan import Plan, _Counter
from xdyna.infer.engine.predict import DEFAULT_FEATURES_BYTES, ExactPredictor
from xdyna.infer.load import build_scheduler


def denoise(pipe: XDynaPipeline, predictor: Any, num_frames: int, **settings: Any) -> Tensor:
    latents: Tensor = pipe(
        **tiny_inputs(num_frames), window=4, overlap=1, num_inference_steps=2, output_type="latent",
        generator=torch.Generator().manual_seed(0), predictor=predictor, **settings,
    ).frames  # fmt: skip
    return latents


def worst(a: Tensor, b: Tensor) -> float:
    return float((a.cpu() - b.cpu()).abs().max())


def test_tensors_of_two_devices_do_not_mix() -> None:
    with pretended() as device:
        here, there = torch.ones(3), torch.ones(3).to(DEVICE)
        assert there.device == DEVICE
        assert device.peak == 12
        assert torch.equal((there + there).cpu(), here + here)
        with pytest.raises(RuntimeError, match="two devices"):
            here + there
        del there
        assert device.alive.now == 0


def test_the_device_holds_no_more_of_a_longer_clip() -> None:
    pipe = tiny_pipeline(pool_group_norm=False)
    pipe.scheduler = build_scheduler("dpm++", pipe.scheduler)
    predictor = ExactPredictor(features_bytes=0)
    exact = denoise(pipe, predictor, 7)
    frames = torch.cat(list(pipe.decode_frames(exact)))

    def peak(device: Device, **settings: Any) -> tuple[Tensor, int]:
        device.forget_peak()
        return denoise(pipe, predictor, **settings), device.peak

    with pretended() as device:
        fitted = Fitted(pipe, DEVICE, Plan(DEVICE.type, "float32"))
        on_host, low = peak(device, num_frames=7, latents_device="cpu")
        on_device, high = peak(device, num_frames=7)
        _, longer = peak(device, num_frames=19, latents_device="cpu")
        decoded = torch.cat(list(fitted.decode(on_host))).cpu()
        assert (on_host.device.type, on_device.device) == ("cpu", DEVICE)
        assert torch.equal(on_host, on_device.cpu())
    assert worst(on_host, exact) < 1e-5
    assert worst(decoded, frames) < 1e-5
    assert high > low + exact.nbytes
    assert longer <= 1.002 * low  # each window's weights and the like


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_a_job_takes_as_much_of_the_device_as_its_plan_says(offload: Any) -> None:
    pipe = tiny_pipeline(pool_group_norm=False, image_prompt=True)
    exact = denoise(pipe, ExactPredictor(), 7)
    counter = _Counter(Shapes(pipe), Work(TINY_WH, 7, 4, 1), DEFAULT_FEATURES_BYTES)
    plan = counter.counted(Plan(DEVICE.type, "float32", offload=offload))
    with pretended() as device:
        fitted = Fitted(pipe, DEVICE, plan)
        latents = denoise(pipe, fitted.predictor(ExactPredictor()), 7, latents_device="cpu")
        for frames in fitted.decode(latents):
            assert frames.device == DEVICE
    assert worst(latents, exact) < 1e-4
    assert plan.peak == pytest.approx(device.peak, rel=0.1)
