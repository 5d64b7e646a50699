"""The pipeline against the official one: start, every step, decoded frames; weights through the converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from golden_sets import Check, converted, facts, set_names, tensors, worst
from torch import Tensor

from xdyna.denoise import Predictor, predict_clip
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.latents import downgrade_input, initial_latents
from xdyna.pipeline import XDynaPipeline
from xdyna.windows import closed_windows

pytestmark = pytest.mark.parity

LATENTS_TOLERANCE = 2e-3
FRAMES_TOLERANCE = 2e-4
START_TOLERANCE = 1e-6

sets = pytest.mark.parametrize("name", set_names())


class RecordingDDIM(DDIMScheduler):
    """Keeps what it is given and returns, step by step."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.predicted: list[Tensor] = []
        self.samples: list[Tensor] = []

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        out = super().step(model_output, timestep, sample, **kwargs)
        self.predicted.append(model_output.clone())
        self.samples.append(out.prev_sample.clone())
        return out


def load_pipeline(name: str, folder: Path) -> XDynaPipeline:
    pipe = XDynaPipeline.from_pretrained(converted(name, folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@sets
def test_init_latents(name: str, folder: Path, check: Check) -> None:
    """Mix of the reference with its blur, then noise at the first timestep."""
    golden, recorded = tensors(name, "pipeline"), facts(name, "pipeline")
    scheduler = load_pipeline(name, folder).scheduler
    scheduler.set_timesteps(recorded["pipe"]["steps"])
    for key, value in recorded["scheduler"].items():
        assert scheduler.config[key] == value, key
    mask = golden["downgrade.mask"].bool()
    # Recorded for one frame more: the reference, which stays clean.
    mixed = downgrade_input(golden["downgrade.in_frame"], mask[:, :, 1:])
    start = initial_latents(
        golden["ref_latents"], golden["noise"][:, :, 1:], mask[:, :, 1:], scheduler, scheduler.timesteps[0]
    )
    errors = {
        "mixed": worst(mixed, golden["downgrade.out"][:, :, 1:]),
        "start": worst(start, golden["init_latents"]),
    }
    check(name, "init_latents", errors, START_TOLERANCE)


@sets
def test_pipeline_face(name: str, folder: Path, check: Check) -> None:
    """As the command runs it: tests/test_engine.py compares this way with the plain one."""
    run_and_compare(name, "face", folder, check, ExactPredictor())


@sets
def test_pipeline_noface(name: str, folder: Path, check: Check) -> None:
    """As the pipeline runs by itself."""
    run_and_compare(name, "noface", folder, check, predict_clip)


@sets
def test_decode(name: str, folder: Path, check: Check) -> None:
    """The recorded final latents through the VAE."""
    golden, recorded = tensors(name, "pipeline"), facts(name, "pipeline")
    pipe = load_pipeline(name, folder)
    errors = {}
    for kind in ("face", "noface"):
        latents = golden[f"{kind}.latents_after_step.{recorded['pipe']['steps'] - 1}"]
        with torch.no_grad():
            frames = torch.cat(list(pipe.decode_frames(latents)))
        errors |= frame_errors(frames, golden, recorded, kind)
    check(name, "decode", errors, FRAMES_TOLERANCE)


def run_and_compare(name: str, kind: str, folder: Path, check: Check, predictor: Predictor) -> None:
    golden, recorded = tensors(name, "pipeline"), facts(name, "pipeline")
    run, settings = recorded[kind], recorded["pipe"]
    pipe = load_pipeline(name, folder)
    pipe.scheduler = RecordingDDIM.from_config(pipe.scheduler.config)
    _, _, num_frames, size, stride, overlap, closed = next(
        value for key, value in run.items() if key.startswith("context_args")
    )
    assert (stride, closed) == (1, True)
    for offset, windows in zip(run["offsets"], run["windows"], strict=True):
        assert closed_windows(num_frames, size, overlap, offset) == windows

    face_maps = (control_maps(golden, "face_local"), control_maps(golden, "face_global")) if kind == "face" else None
    frames = pipe(
        reference=None,
        reference_latents=golden["ref_latents"],
        pose_maps=control_maps(golden, "pose"),
        face_maps=face_maps,
        prompt_embeds=golden["emb.text_cond"],
        negative_prompt_embeds=golden["emb.text_uncond"],
        image_tokens=golden["emb.image_cond"],
        negative_image_tokens=golden["emb.image_uncond"],
        num_inference_steps=settings["steps"],
        guidance_scale=settings["cfg"],
        window=size,
        overlap=overlap,
        schedule="closed",
        window_offsets=run["offsets"],
        predictor=predictor,
        noise=golden["noise"],
        mask=golden["downgrade.mask"].bool(),
        output_type="pt",
    ).frames

    assert pipe.scheduler.timesteps.tolist() == run["timesteps"]
    assert len(pipe.scheduler.samples) == settings["steps"]
    errors = {
        f"after step {i}": worst(latents, golden[f"{kind}.latents_after_step.{i}"])
        for i, latents in enumerate(pipe.scheduler.samples)
    }
    errors["prediction of step 0"] = worst(pipe.scheduler.predicted[0], golden[f"{kind}.guided_noise_pred.0"])
    check(name, f"pipeline_{kind}", errors, LATENTS_TOLERANCE)
    check(name, f"pipeline_{kind} frames", frame_errors(frames[0], golden, recorded, kind), FRAMES_TOLERANCE)


def control_maps(golden: dict[str, Tensor], kind: str) -> Tensor:
    """uint8 [F, H, W, 3]: stored at a quarter of the size, every pixel repeated."""
    return golden[f"control_blocks.{kind}"].repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def frame_errors(frames: Tensor, golden: dict[str, Tensor], recorded: dict[str, Any], kind: str) -> dict[str, float]:
    """Decoded frames [F, 3, H, W] against the recorded first and last frame and every frame's mean."""
    assert [1, 3, *frames[:, 0].shape] == recorded[kind]["video_shape"]
    video = frames.transpose(0, 1)[None]
    errors = {}
    if kind == "face":
        errors["face, first and last"] = worst(video[:, :, [0, -1]], golden["face.video_frames_first_last"])
    else:
        errors["noface, last"] = worst(video[:, :, -1:], golden["noface.video_frame_last"])
    means = torch.tensor(recorded[kind]["video_mean_per_frame"])
    return {**errors, f"{kind}, means": worst(frames.mean(dim=(1, 2, 3)), means)}
