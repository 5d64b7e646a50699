"""Settings of the recipes that train what measures clips."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from xdyna.configs.train import TrainConfig, WorldConfig


class JointsConfig(TrainConfig):
    """Recipe `joints`: the joint regressor that says where the limbs in a generated clip are.

    Attributes:
        init: weights of a regressor (safetensors) to start from; `widths` are then the file's.
        widths: channels at a half, a quarter, an eighth and a sixteenth of the frames' size, multiples of 8.
        moments: frames of every clip that a step sees.
        vae: folder of the autoencoder that spoils some of the pictures; null: that of `base`.
        vae_share: share of the pictures that go through it.
    """

    out: Path = Path("runs/joints")
    widths: tuple[int, int, int, int] = (24, 32, 48, 56)
    moments: int = Field(4, ge=2)
    vae: Path | None = None
    vae_share: float = Field(0.08, ge=0, le=1)
    batch: int = Field(4, gt=0)
    reuse: int = Field(2, ge=1)
    lr: float = Field(2e-3, gt=0)
    warmup: int = Field(50, ge=0)
    cooldown: int | None = Field(None, ge=0)
    ema: float = Field(0.995, ge=0, lt=1)
    sample_every: int = Field(500, ge=0)
    validate_clips: int = Field(32, ge=0)
    world: WorldConfig = WorldConfig(
        scenes=("studio", "sea", "waterfall", "fire", "snow", "meadow", "rain", "fireworks", "grass"),
        framings={"full": 0.6, "half": 0.3, "bust": 0.1},
    )


#: Recipes of this file by name.
RECIPES: dict[str, type[TrainConfig]] = {"joints": JointsConfig}
