"""Memory is counted before it is taken, plans fit what there is, and running out of it costs a step, not the job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from animate_inputs import files_in, make_driver, make_photo
from diffusers import DDIMScheduler
from tiny_models import TINY_SCHEDULER, tiny_inputs, tiny_pipeline
from torch.profiler import ProfilerActivity, profile

from xdyna import XDynaPipeline, windows
from xdyna.cli import main
from xdyna.infer.engine.fit import Fitted, place
from xdyna.infer.engine.halves import HalvesApart
from xdyna.infer.engine.memory import Shapes, Work, clip_copies
from xdyna.infer.engine.plan import GAPS, RESERVE, Plan, fits, lower, make_plan
from xdyna.infer.engine.predict import DEFAULT_FEATURES_BYTES, ExactPredictor
from xdyna.infer.load import build_scheduler

CPU = torch.device("cpu")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def measured(run: Callable[[], Any]) -> int:
    """Most bytes that torch's allocator handed out at once while `run` ran."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert changes
    return int(np.max(np.cumsum(changes)))


def step_of(pipe: XDynaPipeline, work: Work, window_batch: int, *, apart: bool) -> Callable[[], Any]:
    """One step over two groups of windows, as the plan counts it, in earnest."""
    num_frames = work.window + (2 * window_batch - 1) * (work.window - work.overlap)
    clip = windows.make_windows("open", num_frames, work.window, work.overlap, 0)
    conditioning, latents = Shapes(pipe)._inputs(work, num_frames)

    def real(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.shape, dtype=x.dtype)

    conditioning = replace(
        conditioning,
        **{name: real(getattr(conditioning, name)) for name in ("reference_latents", "text", "negative_text")},
        image_tokens=real(conditioning.image_tokens),
        negative_image_tokens=real(conditioning.image_tokens),
        controls=[
            replace(control, net=net, clips=tuple(replace(maps, frames=real(maps.frames)) for maps in control.clips))
            for control, net in zip(conditioning.controls, (pipe.pose_controlnet, pipe.face_controlnet), strict=False)
        ],
    )
    weights, latents = windows.blend_weights(clip, num_frames, work.overlap, "open"), real(latents)
    unet: Any = HalvesApart(pipe.unet) if apart else pipe.unet
    predictor = ExactPredictor(features_bytes=0)
    step = torch.tensor(500)
    return lambda: predictor(unet, latents, step, conditioning, clip, weights, 7.5, window_batch=window_batch)


@pytest.mark.parametrize(
    ("pool", "size_wh", "batch", "apart"),
    [(True, (64, 64), 1, False), (True, (64, 64), 1, True), (False, (48, 64), 2, False)],
)
def test_counted_bytes_are_those_taken(pool: bool, size_wh: tuple[int, int], batch: int, apart: bool) -> None:
    pipe, work = tiny_pipeline(pool_group_norm=pool), Work(size_wh, 20, 4, 1)
    shapes, taken = Shapes(pipe), measured(step_of(pipe, work, batch, apart=apart))
    assert shapes.denoise_counted(work, batch, apart=apart) == pytest.approx(taken, rel=0.1)
    assert shapes.denoise(work, batch, apart=apart) == pytest.approx(taken, rel=0.1)


def test_counted_bytes_of_the_vae_are_those_taken() -> None:
    pipe, work = tiny_pipeline(), Work((128, 192), 20, 4, 1)
    shapes, latents = Shapes(pipe), torch.zeros(1, 4, 3, 48, 32)
    taken = measured(lambda: list(pipe.decode_frames(latents, 3)))
    assert shapes.decode(work, 3) == pytest.approx(taken, rel=0.1)
    taken = measured(lambda: pipe.encode_reference(torch.zeros(3, 192, 128), (128, 192)))
    assert 0.7 * taken < shapes.encode(work) < 1.1 * taken  # kernels for single pictures take space of their own


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pool"), [(None, True), ("dpm++", False)])
def test_the_counted_peak_of_a_whole_job_is_what_it_takes(name: str | None, pool: bool) -> None:
    """Encoding, denoising and decoding together."""
    pipe, size_wh, num_frames = tiny_pipeline(pool_group_norm=pool), (64, 96), 30
    pipe.scheduler = build_scheduler(name, pipe.scheduler)
    shapes, inputs = Shapes(pipe), tiny_inputs(num_frames, size_wh=size_wh)
    plan = make_plan(shapes, Work(size_wh, num_frames, 4, 1), CPU, features_bytes=DEFAULT_FEATURES_BYTES)
    fitted = Fitted(pipe, CPU, plan)

    def job() -> None:
        latents = pipe(**inputs, window=4, overlap=1, num_inference_steps=2, output_type="latent", vae_batch=1,
                       predictor=fitted.predictor(ExactPredictor()), generator=seeded()).frames  # fmt: skip
        for _ in fitted.decode(latents):
            pass

    assert plan.peak - sum(shapes.weights.values()) == pytest.approx(measured(job), rel=0.1)


@pytest.mark.parametrize(("name", "copies"), [("ddim", 2), ("euler", 3), ("dpm++", 4), ("unipc", 6), ("ddpm", 3)])
def test_copies_of_the_clip_are_those_of_the_scheduler(name: str, copies: int) -> None:
    assert clip_copies(build_scheduler(name, DDIMScheduler(**TINY_SCHEDULER))) == copies


def test_weights_are_counted_once_and_left_alone() -> None:
    pipe = tiny_pipeline(image_prompt=True)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    shapes = Shapes(pipe)
    distinct = {id(value): value for part in pipe.components.values() if isinstance(part, torch.nn.Module)
                for value in (*part.parameters(), *part.buffers())}  # fmt: skip
    assert sum(shapes.weights.values()) == sum(value.numel() * value.element_size() for value in distinct.values())
    assert not any(value.is_meta for value in pipe.unet.parameters())
    assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())


@pytest.mark.slow
def test_less_memory_gives_a_more_frugal_plan() -> None:
    shapes, work = Shapes(tiny_pipeline()), Work((64, 96), 40, 4, 1)
    gpu = torch.device("cuda")  # nothing runs there
    plans = [make_plan(shapes, work, gpu, budget=1 << 40)]
    assert (plans[0].window_batch, plans[0].vae_batch, plans[0].offload, plans[0].apart) == (4, 8, "none", False)
    while fits(plans[-1]):  # a little less than the last one needs
        plans.append(make_plan(shapes, work, gpu, budget=RESERVE + int(plans[-1].peak * (1 + GAPS)) - 1))
        assert plans[-1].peak < plans[-2].peak or not fits(plans[-1])
    assert len(plans) >= 5
    last = make_plan(shapes, work, gpu, budget=1)
    assert last.offload == "sequential"
    assert last.window_batch == 1
    assert not fits(last)
    assert "idle layers on the host" in last.line()
    assert make_plan(shapes, work, CPU).window_batch == 1
    assert make_plan(shapes, work, gpu, budget=1, window_batch=4, vae_batch=2).window_batch == 4
    long = replace(work, num_frames=4000)
    assert make_plan(shapes, long, CPU).peak - make_plan(shapes, work, CPU).peak == 3960 * shapes.clip(work) // 40
    (short_plan, long_plan) = (make_plan(shapes, job, gpu, budget=1 << 40) for job in (work, long))
    assert long_plan.counted == short_plan.counted  # the clip lies on the host
    assert long_plan.clip == 100 * short_plan.clip
    assert "the clip's latents on the host" in long_plan.line()


def test_notches() -> None:
    plan: Plan | None = Plan("cuda", "float16", 4, 2)
    lines = []
    while plan := lower(plan, "denoise"):
        lines.append((plan.window_batch, plan.apart, plan.offload))
    assert lines == [
        (2, False, "none"),
        (1, False, "none"),
        (1, True, "none"),
        (1, True, "model"),
        (1, True, "sequential"),
    ]
    assert lower(Plan("cuda", "float16", 4, 2), "decode") == Plan("cuda", "float16", 4, 1)
    assert lower(Plan("cpu", "float32"), "decode") == Plan("cpu", "float32", tiling=True)
    assert lower(Plan("cuda", "float16", 4, 2), "encode") == Plan("cuda", "float16", 4, 2, tiling=True)
    assert lower(Plan("cpu", "float32", tiling=True), "encode") is None
    assert lower(Plan("cpu", "float32", apart=True), "denoise") is None
    assert lower(Plan("cpu", "float32", 4), "denoise", guided=False, fixed=True) is None


class Short:
    """A predictor that runs out of memory while its batch is above a limit, and notes the steps it was asked for."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.steps, self.inner = most, error, [], ExactPredictor()

    def __call__(self, unet: Any, *args: Any, step: int, window_batch: int, **kwargs: Any) -> torch.Tensor:
        self.steps.append(step)
        if step == 1 and window_batch > self.most:
            raise self.error
        return self.inner(unet, *args, step=step, window_batch=window_batch, **kwargs)


def run(pipe: XDynaPipeline, predictor: Any) -> torch.Tensor:
    inputs = tiny_inputs(10)
    return pipe(**inputs, window=4, overlap=1, num_inference_steps=3, output_type="latent", predictor=predictor,
                generator=torch.Generator().manual_seed(0)).frames  # fmt: skip


@pytest.mark.parametrize(
    ("error", "most", "notches"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 2, 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), 1, 2),
        (torch.OutOfMemoryError("CUDA out of memory"), 0, 4),
    ],
)
def test_a_step_out_of_memory_is_done_again_a_notch_down(
    error: Exception, most: int, notches: int, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tiny_pipeline()
    exact = run(pipe, ExactPredictor())
    short = Short(most, error)
    fitted = Fitted(pipe, CPU, Plan("cpu", "float32", window_batch=4))
    with caplog.at_level(logging.WARNING, "xdyna"):
        if most == 0:  # nothing is left to lower: the error goes to whoever can tell the user
            with pytest.raises(torch.OutOfMemoryError):
                run(pipe, fitted.predictor(short))
        else:
            torch.testing.assert_close(run(pipe, fitted.predictor(short)), exact, atol=1e-4, rtol=1e-4)
            assert short.steps == [0, *[1] * (notches + 1), 2]
            assert fitted.plan.window_batch == most
    assert fitted.num_lowered == min(notches, 3)
    assert sum("out of memory at step 2 of 3: goes on from there" in line for line in caplog.messages) == min(
        notches, 3
    )


def test_other_errors_are_not_taken_for_it() -> None:
    fitted = Fitted(tiny_pipeline(), CPU, Plan("cpu", "float32", window_batch=4))
    with pytest.raises(RuntimeError, match="shape"):
        run(tiny_pipeline(), fitted.predictor(Short(1, RuntimeError("a shape is wrong"))))
    assert fitted.num_lowered == 0


def test_decoding_goes_on_with_the_frame_it_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    latents = torch.randn(1, 4, 7, 12, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat(list(pipe.decode_frames(latents)))
    decode, calls = pipe.vae.decode, []

    def short(x: torch.Tensor) -> Any:
        calls.append(len(x))
        if len(calls) in (2, 3):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(x)

    monkeypatch.setattr(pipe.vae, "decode", short)
    fitted = Fitted(pipe, CPU, Plan("cpu", "float32", vae_batch=4))
    torch.testing.assert_close(torch.cat(list(fitted.decode(latents))), wanted, atol=1e-5, rtol=1e-5)
    assert calls == [4, 3, 2, 1, 1, 1]
    assert fitted.plan.vae_batch == 1
    assert not pipe.vae.use_tiling


@pytest.mark.parametrize("pool", [True, False])
def test_what_waits_on_the_host_gives_the_same_numbers(pool: bool) -> None:
    """With the CPU as the device; `test_clip_on_host` has another."""
    pipe = tiny_pipeline(image_prompt=True, pool_group_norm=pool)
    exact = run(pipe, ExactPredictor())
    frames = torch.cat(list(pipe.decode_frames(exact)))
    for offload in ("model", "sequential"):
        fitted = Fitted(pipe, CPU, Plan("cpu", "float32", offload=offload))
        assert hasattr(pipe.pose_controlnet, "_hf_hook")
        assert pipe.unet.conv_in.weight.is_meta == (offload == "sequential")
        assert torch.equal(run(pipe, fitted.predictor(ExactPredictor())), exact)
        assert torch.equal(torch.cat(list(fitted.decode(exact))), frames)
    place(pipe, CPU, Plan("cpu", "float32"))
    assert not hasattr(pipe.pose_controlnet, "_hf_hook")
    assert torch.equal(run(pipe, ExactPredictor()), exact)


def test_encoding_is_done_again_a_notch_down() -> None:
    pipe, calls = tiny_pipeline(), []
    fitted = Fitted(pipe, CPU, Plan("cpu", "float32"))

    def encode() -> int:
        calls.append(pipe.vae.use_tiling)
        if not pipe.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 7

    assert fitted.attempt("the photo", encode) == 7
    assert calls == [False, True]
    with pytest.raises(MemoryError):
        fitted.attempt("the photo", lambda: (_ for _ in ()).throw(MemoryError))


def test_the_command_prints_a_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, driver = make_photo(tmp_path / "photo.png"), make_driver(tmp_path / "driver.mp4", 20)
    before = files_in(tmp_path)
    job = [
        "animate",
        "--ref",
        str(photo),
        "--pose-video",
        str(driver),
        "-o",
        str(tmp_path / "out.mp4"),
        "--model",
        "tiny",
    ]
    assert main([*job, "--plan", "--vram", "0.01", "--guidance", "3"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("plan: cpu, float32, 1 window and 1 frame at once, halves of guidance apart, about 0.0")
    assert "of 0.01 GiB" in line
    assert files_in(tmp_path) == before
    assert main([*job, "--vram", "much"]) == 2
    assert "wanted a number of GiB" in capsys.readouterr().err
