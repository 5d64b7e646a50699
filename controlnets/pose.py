"""The Pose ControlNet: a drawn skeleton, three condition channels."""

from __future__ import annotations

import functools
from typing import Any

from diffusers import ControlNetModel

from xdyna.attention import use_frame_attention


class PoseControlNet(ControlNetModel):
    """diffusers' `ControlNetModel` on pose maps [B, 3, H, W], 0..1 (RGB); see `xdyna.preprocess.draw`."""

    # `wraps` shows diffusers the parent's signature, so that saved configs load without a warning.
    @functools.wraps(ControlNetModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        use_frame_attention(self)
