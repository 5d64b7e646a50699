"""The other ways to show a model its reference, in the place of a Dynamics-Adapter: parts to train, and saving them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.utils import logging

from xdyna.adapters.image_prompt import ImagePromptAdapter
from xdyna.adapters.reference_net import ReferenceNet
from xdyna.attention import spatial_sites
from xdyna.errors import UserError
from xdyna.files import written_whole
from xdyna.infer.load import INDEX
from xdyna.train.export import save_model
from xdyna.train.parts import Parts
from xdyna.train.system import ClipSystem

#: An image encoder for a base that has none, of the interface of CLIP's: 64x64 pixels, 65 hidden states.
SMALL_ENCODER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "image_size": 64, "patch_size": 8, "projection_dim": 64,
}  # fmt: skip
#: The Resampler behind it.
SMALL_RESAMPLER: dict[str, Any] = {"hidden_dims": 64, "depth": 2, "dim_head": 16, "heads": 4, "ffn_ratio": 2}


def with_reference_net(parts: Parts) -> Parts:
    """The same model with an untrained reference network where its Dynamics-Adapter was."""
    parts.dynamics_adapter.detach()
    return replace(parts, dynamics_adapter=cast(Any, ReferenceNet.from_unet(parts.unet)))


def with_image_prompt(parts: Parts, image_encoder: Path | None, tokens: int) -> Parts:
    """The same model with an image prompt and without a Dynamics-Adapter.

    Args:
        parts: of the base; its own image prompt is kept if there is one.
        image_encoder: folder of a CLIP image encoder; None takes a new small one, which has to be trained.
        tokens: n, of a new image prompt.

    Raises:
        UserError: an image encoder that cannot be read, or is not the one of the base's image prompt.
    """
    parts.dynamics_adapter.detach()
    if parts.image_prompt is not None:
        if image_encoder is not None:
            raise UserError(f"image_encoder={image_encoder}: the base has an image prompt with an encoder of its own")
        return replace(parts, dynamics_adapter=cast(Any, None))
    encoder, extractor = small_encoder() if image_encoder is None else read_encoder(image_encoder)
    shape = SMALL_RESAMPLER if image_encoder is None else {}
    adapter = new_image_prompt(parts, {**shape, "embed_dims": encoder.config.hidden_size, "num_queries": tokens})
    added = {"image_prompt": adapter, "image_encoder": encoder, "feature_extractor": extractor}
    return replace(parts, dynamics_adapter=cast(Any, None), new=parts.new | set(added), **added)


def new_image_prompt(parts: Parts, resampler: dict[str, Any]) -> ImagePromptAdapter:
    """An image prompt that says nothing yet: keys are the host's, values are zero."""
    adapter = ImagePromptAdapter.from_unet(parts.unet, resampler)
    for site, attn in spatial_sites(parts.unet, adapter.kind).items():
        layers = adapter.site_layers(site)
        layers["to_k_image"].load_state_dict(attn.to_k.state_dict())
        nn.init.zeros_(layers["to_v_image"].weight)
    return adapter


def small_encoder() -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessorPil]:
    """A new image encoder (torch's global seed decides its weights) that sees the whole picture, squeezed."""
    side = SMALL_ENCODER["image_size"]
    extractor = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL_ENCODER)), extractor


def read_encoder(folder: Path) -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessorPil]:
    """A CLIP image encoder and its preprocessing, from one folder as `save_pretrained` writes them."""
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        return encoder.float(), CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever lies in a user's folder can make transformers fail in any way
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise UserError(
            f"image_encoder={folder}: {reason}; wanted a folder with config.json, model.safetensors and "
            "preprocessor_config.json of a CLIP image encoder"
        ) from None


def freeze_unread(encoder: CLIPVisionModelWithProjection) -> None:
    """Freeze what comes after the penultimate hidden states: an image prompt does not read it."""
    vision = encoder.vision_model
    for part in (vision.encoder.layers[-1], vision.post_layernorm, encoder.visual_projection):
        part.requires_grad_(False)


def save_image_prompt_model(system: ClipSystem, folder: Path) -> None:
    """Write a pipeline folder as `save_model` does, without a Dynamics-Adapter and with what a new prompt needs."""
    with _without_bars():
        save_model(system, folder)
        _complete(system.parts, folder)


def _complete(parts: Parts, folder: Path) -> None:
    """Take the Dynamics-Adapter, which came along from the base, out of a pipeline folder; add what is new."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["dynamics_adapter"] = [None, None]
    shutil.rmtree(folder / "dynamics_adapter", ignore_errors=True)
    for name in ("image_prompt", "image_encoder", "feature_extractor"):
        if name in parts.new and not (folder / name).exists():
            part = getattr(parts, name)
            part.save_pretrained(folder / name)
            index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
            for path in (folder / name).glob("*.safetensors"):
                path.chmod(0o644)
    with written_whole(folder / INDEX) as file:
        file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars from transformers, which shows one for every file it writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
