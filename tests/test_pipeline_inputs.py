"""Guards of the pipeline: every mistaken input is refused with what was got and what was wanted."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from test_pipeline import LATENT_SHAPE, recorded, run
from tiny_models import tiny_clip, tiny_photo, tiny_pipeline

from xdyna import XDynaPipeline
from xdyna.inputs import SizeLimits

LIMITS = {"min_wh": [32, 40], "max_wh": [40, 64], "multiple": 8}


@pytest.fixture(scope="module")
def pipeline() -> XDynaPipeline:
    return tiny_pipeline(size_limits=LIMITS)


@pytest.fixture(scope="module")
def full_pipeline() -> XDynaPipeline:
    return tiny_pipeline(text=True, image_prompt=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": None}, "reference is None: pass a picture, or reference_latents"),
        ({"reference": "photo.jpg"}, "reference is a str; wanted a PIL image"),
        ({"reference": np.zeros((8, 8), np.uint8)}, r"reference is a ndarray \[8, 8\] of uint8; wanted"),
        ({"reference": np.zeros((48, 32, 3))}, r"of float64; wanted a PIL image, uint8 \[H, W, 3\]"),
        ({"reference": torch.zeros(3, 8, 8)}, r"\[3, 8, 8\] of torch.float32; wanted width, height \(32, 48\)"),
        ({"reference": torch.full((3, 48, 32), 2.0)}, r"reference spans 2 to 2, wanted 0..1"),
        ({"reference": torch.full((3, 48, 32), torch.nan)}, r"wanted 0..1"),
        ({"reference": torch.zeros(2, 3, 48, 32)}, r"wanted \[3, H, W\]"),
        ({"pose_maps": []}, "pose_maps is empty"),
        ({"pose_maps": np.zeros((0, 48, 32, 3), np.uint8)}, r"pose_maps has shape \[0, 48, 32, 3\]"),
        ({"pose_maps": np.zeros((4, 3, 48, 32), np.uint8)}, r"shape \[4, 3, 48, 32\] and type uint8; wanted uint8"),
        ({"face_maps": tiny_clip(5)}, r"face_maps is a ndarray \[5, 48, 32, 3\] of uint8, wanted a pair"),
        ({"face_maps": (tiny_clip(5), tiny_clip(4))}, "global face_maps have 4 frames, pose_maps 5"),
        ({"width": 36}, "width x height is 36x48, this model takes 32x40 to 40x64, both sides multiples of 8"),
        ({"width": 64, "height": 96}, "width x height is 64x96, this model takes 32x40 to 40x64"),
        ({"height": 32}, "width x height is 32x32, this model takes 32x40 to 40x64"),
        ({"height": 48.0}, "height is 48.0, wanted a whole number"),
        ({"prompt": "a dancer"}, "prompt is 'a dancer': this model has no tokenizer and knows only the empty prompt"),
        ({"negative_prompt": "blurry"}, "negative_prompt is 'blurry': this model has no tokenizer"),
        ({"prompt": ["", ""]}, "prompt is a list, wanted one string"),
        ({"prompt": "", "prompt_embeds": torch.zeros(1, 4, 16)}, "both prompt and prompt_embeds are given"),
        ({"prompt_embeds": torch.zeros(1, 77, 16)}, r"prompt_embeds .*\[1, 77, 16\].*wanted a tensor \[1, 4, 16\]"),
        ({"negative_prompt_embeds": torch.zeros(2, 4, 16)}, r"negative_prompt_embeds is a Tensor \[2, 4, 16\]"),
        ({"image_embeds": torch.zeros(1, 5, 24)}, "this model has no image prompt attached"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, wanted a whole number of at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5, wanted a whole number"),
        ({"guidance_scale": -1}, "guidance_scale is -1, wanted a finite number of at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan, wanted a finite number"),
        ({"eta": -0.5}, "eta is -0.5, wanted a finite number of at least 0"),
        ({"generator": 42}, "generator is a int, wanted one torch.Generator"),
        ({"generator": [torch.Generator()]}, "generator is a list, wanted one torch.Generator"),
        ({"latents": torch.zeros(1, 4, 6, 12, 8)}, r"latents is a Tensor \[1, 4, 6, 12, 8\].*\[1, 4, 5, 12, 8\]"),
        ({"noise": torch.zeros(1, 4, 9, 12, 8)}, r"noise is .*tensor \[1, 4, 5, 12, 8\] or, with the reference"),
        ({"mask": np.zeros((1, 4, 5, 12, 8))}, "mask is a ndarray"),
        ({"reference_latents": torch.zeros(1, 4, 12, 8)}, r"reference_latents .* a tensor \[1, 4, 1, 12, 8\]"),
        ({"pose_scale": "1"}, "pose_scale is '1', wanted a finite number"),
        ({"face_scale": float("inf")}, "face_scale is inf, wanted a finite number"),
        ({"controlnet_conditioning_scale": (1, 2, 3)}, "wanted a number or a pair"),
        ({"controlnet_conditioning_scale": 0.5, "pose_scale": 0.5}, "wanted one form"),
        ({"adapter_scale": None}, "adapter_scale is None, wanted a finite number"),
        ({"control_guidance_start": 0.8, "control_guidance_end": 0.2}, "pose control is on from 0.8 to 0.2"),
        ({"control_guidance_end": (1.0, 1.5)}, "face control is on from 0.0 to 1.5, wanted 0 <= start < end <= 1"),
        ({"control_guidance_start": (0.0,)}, r"control_guidance_start is \(0.0,\), wanted a number or a pair"),
        ({"window": 25}, "window is 25 frames, this model's motion modules take at most 24"),
        ({"window": 0}, "window is 0, wanted a whole number of at least 1"),
        ({"window": 4, "overlap": 4}, "windows of 4 frames that share 4: wanted 0 <= overlap < size"),
        ({"overlap": -1}, "overlap is -1, wanted a whole number of at least 0"),
        ({"schedule": "loop"}, "schedule is 'loop', wanted one of open, closed"),
        ({"window_batch": 0}, "window_batch is 0, wanted a whole number of at least 1"),
        ({"vae_batch": "2"}, "vae_batch is '2', wanted a whole number"),
        ({"window_offsets": [0]}, "1 window_offsets, wanted one for each of 2 timesteps"),
        ({"window_offsets": [0, -1]}, "a window offset is -1, wanted a whole number of at least 0"),
        ({"output_type": "mp4"}, "output_type is 'mp4', wanted one of pil, np, pt, latent"),
        ({"callback_on_step_end_tensor_inputs": ["sigma"]}, "names sigma, wanted some of latents, prompt_embeds"),
    ],
)  # fmt: skip
def test_refused(settings: dict[str, Any], message: str, pipeline: XDynaPipeline) -> None:
    with recorded(pipeline.unet) as calls, pytest.raises(ValueError, match=message):
        run(pipeline, **settings)
    assert not calls


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": None, "reference_latents": torch.zeros(1, *LATENT_SHAPE)[:, :, None]}, "pass prompt_image"),
        ({"image_embeds": torch.zeros(5, 24)}, r"image_embeds is a Tensor \[5, 24\].*wanted \[1, S, E\]"),
        ({"image_tokens": torch.zeros(1, 4, 16)}, r"image_tokens .*\[1, 4, 16\].*wanted a tensor \[1, 3, 16\]"),
        ({"prompt_image": "photo.jpg"}, "prompt_image is a str; wanted a PIL image"),
    ],
)  # fmt: skip
def test_refused_with_an_image_prompt(settings: dict[str, Any], message: str, full_pipeline: XDynaPipeline) -> None:
    with pytest.raises(ValueError, match=message):
        run(full_pipeline, **settings)


def test_what_a_model_lacks_is_said() -> None:
    bare = tiny_pipeline(face=False, adapter=False)
    with pytest.raises(ValueError, match="face_maps are given, but this model has no face ControlNet"):
        run(bare)
    with pytest.raises(ValueError, match=r"adapter_scale is 0\.5, but this model has no Dynamics-Adapter"):
        run(bare, face=False, adapter_scale=0.5)
    bare.stored_prompt = None
    with pytest.raises(ValueError, match="neither text encoder nor stored prompt: pass prompt_embeds"):
        run(bare, face=False)


def test_a_scheduler_of_another_kind_is_refused() -> None:
    pipeline = tiny_pipeline(face=False)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="scheduler is a FlowMatchEulerDiscreteScheduler, wanted one of those"):
        run(pipeline, face=False)


def test_a_long_prompt_is_cut_with_a_warning(full_pipeline: XDynaPipeline, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)  # diffusers' loggers do not pass on what they log
    try:
        long, short = full_pipeline.encode_prompt("abcdef"), full_pipeline.encode_prompt("ab")
    finally:
        logger.removeHandler(caplog.handler)
    assert long.shape == short.shape == (1, 4, 16)
    assert [record.getMessage() for record in caplog.records] == ["prompt is longer than 4 tokens: its end is not used"]


def test_an_image_prompt_without_an_encoder_needs_embeddings(full_pipeline: XDynaPipeline) -> None:
    embeds, zeros = full_pipeline.encode_image(tiny_photo())
    alone = tiny_pipeline(text=True, image_prompt=True)
    alone.image_encoder = None
    with pytest.raises(ValueError, match="no image encoder: pass image_embeds"):
        run(alone)
    with pytest.raises(ValueError, match="no image encoder: pass image_embeds"):  # the unconditional half's are missing
        run(alone, image_embeds=embeds)
    wanted = run(full_pipeline)
    assert torch.equal(run(alone, image_embeds=embeds, negative_image_embeds=zeros), wanted)


def test_without_guidance_the_negative_inputs_are_not_needed(full_pipeline: XDynaPipeline) -> None:
    alone = tiny_pipeline(text=True, image_prompt=True)
    embeds, _ = full_pipeline.encode_image(tiny_photo())
    alone.image_encoder = None
    got = run(alone, image_embeds=embeds, guidance_scale=1.0)
    assert torch.equal(got, run(full_pipeline, guidance_scale=1.0))


def test_sizes(pipeline: XDynaPipeline) -> None:
    pipeline.check_size(40, 64)
    with pytest.raises(ValueError, match="width x height is 512x896"):
        pipeline.check_size(512, 896)
    anything = SizeLimits.build(None, 8)
    anything.check((512, 896))
    assert str(anything) == "40x40 and up, both sides multiples of 8"
    assert anything.round_down((517, 903)) == (512, 896)
    with pytest.raises(ValueError, match="width x height is 32x64, this model takes 40x40 and up"):
        anything.check((32, 64))


def test_whole_numbers_of_numpy_are_numbers(pipeline: XDynaPipeline) -> None:
    plain = run(pipeline, face=False)
    same = run(
        pipeline, face=False, width=np.int64(32), num_inference_steps=np.int32(2), guidance_scale=np.float64(7.5)
    )
    assert torch.equal(plain, same)
