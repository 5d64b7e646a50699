"""The Pose ControlNet: a drawn skeleton, three condition channels."""

from diffusers import ControlNetModel


class PoseControlNet(ControlNetModel):
    """diffusers' `ControlNetModel` on pose maps [B, 3, H, W], 0..1 (RGB); see `xdyna.preprocess.draw`."""
