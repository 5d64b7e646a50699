"""Settings of a conversion: what checkpoints do not say about themselves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from xdyna.configs import Config
from xdyna.configs.animate import read_dtype


class ConvertConfig(Config):
    """What the shapes in a checkpoint leave open; empty sections mean the official model.

    Attributes:
        dtype: of the floating point weights; `auto` keeps them as they are stored.
        unet: settings of `XDynaUNet`, in our words or the official config's.
        pose_controlnet: settings of diffusers' `ControlNetModel`.
        face_controlnet: likewise.
        image_prompt: settings of the Resampler, in diffusers' words or the official ones.
    """

    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"], BeforeValidator(read_dtype)] = "auto"
    unet: dict[str, Any] = Field(default_factory=dict)
    pose_controlnet: dict[str, Any] = Field(default_factory=dict)
    face_controlnet: dict[str, Any] = Field(default_factory=dict)
    image_prompt: dict[str, Any] = Field(default_factory=dict)

    def sections(self) -> dict[str, dict[str, Any]]:
        """The settings by component."""
        return {name: value for name, value in self if isinstance(value, dict)}
