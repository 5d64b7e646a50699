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


class TexturesConfig(TrainConfig):
    """Recipe `textures`: the network whose features tell how the scenes of a generated clip move.

    Attributes:
        init: weights of such a network (safetensors) to start from; its shape is then the file's.
        size_wh: frames that it reads, pixels, multiples of 16.
        widths: channels at a quarter, an eighth and a sixteenth of that size, multiples of 8.
        features: length of the feature vector.
        loops_s: clips come in turn from worlds whose scenes repeat after so many seconds, 0 for not at all (in the
            place of `world.loop_s`).
    """

    out: Path = Path("runs/textures")
    size_wh: tuple[int, int] = (64, 64)
    widths: tuple[int, int, int] = (16, 48, 96)
    features: int = Field(64, gt=0)
    loops_s: tuple[float, ...] = Field((0.0, 1.0), min_length=1)
    batch: int = Field(16, gt=0)
    steps: int = Field(1500, gt=0)
    reuse: int = Field(3, ge=1)
    lr: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    warmup: int = Field(50, ge=0)
    cooldown: int | None = Field(None, ge=0)
    ema: float = Field(0.99, ge=0, lt=1)
    sample_every: int = Field(500, ge=0)
    validate_clips: int = Field(64, ge=0)
    world: WorldConfig = WorldConfig(scene_only=0.6)


#: Recipes of this file by name.
RECIPES: dict[str, type[TrainConfig]] = {"joints": JointsConfig, "textures": TexturesConfig}
