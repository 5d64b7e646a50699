"""A whole pipeline of small seeded models, and inputs for it; nothing comes from a hub."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from numpy.typing import NDArray
from small_models import SMALL_RESAMPLER, randomised, small_controlnet, small_unet
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from xdyna import DynamicsAdapter, ImagePromptAdapter, PoseControlNet, SFaceControlNet, StoredPrompt, XDynaPipeline

#: Width and height of the tiny clips, pixels; latents are a quarter of it.
TINY_WH = (32, 48)
#: The official sampler's settings.
TINY_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "steps_offset": 1, "clip_sample": False,
}  # fmt: skip


def tiny_vae(seed: int = 2) -> AutoencoderKL:
    """A VAE that halves twice: latents [4, H/4, W/4]."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    return randomised(vae, seed)


def tiny_stored_prompt(num_tokens: int = 4, dim: int = 16, seed: int = 3) -> StoredPrompt:
    prompt = StoredPrompt(num_tokens, dim)
    prompt.embedding.data = torch.randn(prompt.embedding.shape, generator=torch.Generator().manual_seed(seed))
    return prompt


def tiny_tokenizer() -> CLIPTokenizer:
    """One token per letter."""
    words = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def tiny_text_encoder(dim: int = 16, seed: int = 4) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=dim, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return randomised(CLIPTextModel(config), seed)


def tiny_image_encoder(dim: int = SMALL_RESAMPLER["embed_dims"], seed: int = 5) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=dim, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    return randomised(CLIPVisionModelWithProjection(config), seed)


def tiny_feature_extractor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def tiny_components(
    *, face: bool = True, adapter: bool = True, image_prompt: bool = False, text: bool = False, **unet_settings: Any
) -> dict[str, Any]:
    """Components of an `XDynaPipeline`.

    Args:
        face: with a face ControlNet.
        adapter: with a Dynamics-Adapter.
        image_prompt: with image tokens and an image encoder.
        text: with a text encoder and a tokenizer; else with a stored prompt.
        **unet_settings: of `XDynaUNet`.
    """
    unet = small_unet(**unet_settings)
    embedding = {"conditioning_embedding_out_channels": (8, 8, 16)}
    return {
        "vae": tiny_vae(),
        "unet": unet,
        "scheduler": DDIMScheduler(**TINY_SCHEDULER),
        "pose_controlnet": small_controlnet(PoseControlNet, 6, **embedding),
        "face_controlnet": small_controlnet(SFaceControlNet, 7, **embedding) if face else None,
        "dynamics_adapter": randomised(DynamicsAdapter.from_unet(unet), 8) if adapter else None,
        "image_prompt": randomised(ImagePromptAdapter.from_unet(unet, SMALL_RESAMPLER), 9) if image_prompt else None,
        "image_encoder": tiny_image_encoder() if image_prompt else None,
        "feature_extractor": tiny_feature_extractor() if image_prompt else None,
        "text_encoder": tiny_text_encoder() if text else None,
        "tokenizer": tiny_tokenizer() if text else None,
        "stored_prompt": None if text else tiny_stored_prompt(),
    }


def tiny_pipeline(*, size_limits: dict[str, Any] | None = None, **settings: Any) -> XDynaPipeline:
    """An `XDynaPipeline` of `tiny_components`, without a progress bar."""
    pipeline = XDynaPipeline(**tiny_components(**settings), size_limits=size_limits)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_photo(size_wh: tuple[int, int] = TINY_WH, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured noise, uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)


def tiny_clip(num_frames: int, size_wh: tuple[int, int] = TINY_WH, seed: int = 1) -> NDArray[np.uint8]:
    """Maps for tests, uint8 [F, H, W, 3]: each frame is drawn by itself, so longer clips begin alike."""
    clip = np.stack([tiny_photo(size_wh, seed + 1000 * i) for i in range(num_frames)])
    clip[0, 0, 0], clip[0, 0, 1] = 0, 255  # the same extremes whatever the length
    return clip


def tiny_inputs(num_frames: int = 5, face: bool = True, size_wh: tuple[int, int] = TINY_WH) -> dict[str, Any]:
    """Keyword arguments of a pipeline call."""
    inputs: dict[str, Any] = {"reference": tiny_photo(size_wh), "pose_maps": tiny_clip(num_frames, size_wh)}
    if face:
        inputs["face_maps"] = (tiny_clip(num_frames, size_wh, seed=2), tiny_clip(num_frames, size_wh, seed=3))
    return inputs
