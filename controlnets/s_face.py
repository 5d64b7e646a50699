"""The S-Face ControlNet: face patches of the driving video, six condition channels.

Trained on face-swapped patches, so that it carries expression and not identity.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from xdyna.attention import use_frame_attention


class SFaceControlNet(ControlNetModel):
    """diffusers' `ControlNetModel` on [B, 6, H, W], 0..1: the local face map, then the global one."""

    # `wraps` shows diffusers the parent's signature, so that saved configs load without a warning.
    @functools.wraps(ControlNetModel.__init__)
    def __init__(self, *args: Any, conditioning_channels: int = 6, **kwargs: Any) -> None:
        if conditioning_channels != 6:
            raise ValueError(f"conditioning_channels is {conditioning_channels}, an S-Face ControlNet has 6")
        super().__init__(*args, conditioning_channels=conditioning_channels, **kwargs)
        use_frame_attention(self)

    @staticmethod
    def condition(local_map: Tensor, global_map: Tensor) -> Tensor:
        """Two face maps [B, 3, F, H, W] -> the condition [B, 6, F, H, W]."""
        return torch.cat([local_map, global_map], dim=1)
