"""CLIP's image encoder (Radford et al. 2021) in transformers' class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xdyna.errors import UserError
from xdyna.metrics.nets.files import filled, read_tensors

#: Of the pictures that it was trained on.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipImages(nn.Module):
    """Directions of pictures.

    Args:
        config: transformers' `CLIPVisionConfig`.
    """

    def __init__(self, config: Any) -> None:
        from transformers import CLIPVisionModelWithProjection

        super().__init__()
        self.side_px: int = config.image_size
        self.model = CLIPVisionModelWithProjection(config)

    def forward(self, pictures: Tensor) -> Tensor:
        """float [N, 3, H, W] in 0..1 -> [N, D] of length 1: the middle square of the picture counts, as usual."""
        mean, deviation = (pictures.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        inputs = (middle_square(pictures, self.side_px) - mean) / deviation
        return F.normalize(self.model(inputs).image_embeds)


def middle_square(pictures: Tensor, side_px: int) -> Tensor:
    """The shorter side brought to `side_px` (bicubic, with a filter), the middle of the longer kept."""
    height, width = pictures.shape[2:]
    scale = side_px / min(height, width)
    size = (max(round(height * scale), side_px), max(round(width * scale), side_px))
    if size != (height, width):
        pictures = F.interpolate(pictures, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - side_px) // 2, (size[1] - side_px) // 2
    return pictures[:, :, top : top + side_px, left : left + side_px]


def load_clip(config_path: Path, weights_path: Path) -> ClipImages:
    """The encoder from a model's `config.json` and weights, of the whole CLIP or of its image half.

    Raises:
        UserError: files of something else.
    """
    from transformers import CLIPVisionConfig

    try:
        about = json.loads(config_path.read_text(encoding="utf-8"))
        whole = about["model_type"] == "clip"
        # A whole CLIP keeps the common width beside its halves' settings; some of its files have it in the half too.
        settings = {**about["vision_config"], "projection_dim": about["projection_dim"]} if whole else about
        config = CLIPVisionConfig(**{key: settings[key] for key in _SETTINGS if key in settings})
        if about["model_type"] not in ("clip", "clip_vision_model"):
            raise KeyError("model_type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config_path}: not the settings of a CLIP ({error}); wanted config.json of one") from None
    tensors = {f"model.{key}": value for key, value in read_tensors(weights_path).items()}
    network = filled(lambda: ClipImages(config), tensors, weights_path)
    # A table, not a weight: it was made where the empty network was.
    embeddings = network.model.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return network


_SETTINGS = (
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
