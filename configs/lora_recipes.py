"""Settings of the recipes that train LoRAs, and of the baselines that the Dynamics-Adapter is measured against."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from xdyna.configs.clips import ClipConfig, NewPart
from xdyna.configs.train import TrainConfig


class LoraConfig(ClipConfig):
    """What the LoRA recipes share.

    Attributes:
        rank: of the update of each projection.
        alpha: the update counts alpha / rank; null: as `rank`, so that it counts in full.
        targets: projections that get an update, by the names that diffusers gives them.
        renew: nothing: a LoRA is an update of the base as it is.
    """

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    targets: tuple[Literal["to_q", "to_k", "to_v", "to_out.0"], ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), min_length=1
    )
    renew: tuple[NewPart, ...] = Field((), max_length=0)


class MotionLoraConfig(LoraConfig):
    """Recipe `motion_lora`: a LoRA on the motion modules, from clips of one kind of motion."""

    out: Path = Path("runs/motion_lora")
    frames: int = Field(16, ge=1)
    batch: int = Field(2, gt=0)
    steps: int = Field(500, gt=0)
    warmup: int = Field(20, ge=0)


class CharacterLoraConfig(LoraConfig):
    """Recipe `character_lora`: a LoRA on the UNet's spatial attention, from 5 to 50 pictures of one person.

    Attributes:
        data: ``synthetic`` or a folder of photos.
        frames: pictures of a sample, besides the one that is its reference.
        character: number of the synthetic person, where `data` is synthetic.
        pictures: how many synthetic pictures of that person there are.
        detect: look for the person's pose in photos that have no tracks beside them; where none is found, or `detect`
            is off, a photo's pose map is blank.
    """

    out: Path = Path("runs/character_lora")
    frames: int = Field(3, ge=1)
    batch: int = Field(2, gt=0)
    steps: int = Field(500, gt=0)
    warmup: int = Field(20, ge=0)
    character: int = Field(0, ge=0)
    pictures: int = Field(20, ge=5, le=50)
    detect: bool = True


class ReferenceNetConfig(ClipConfig):
    """Recipe `reference_net`: a copy of the UNet reads the reference, in the place of a Dynamics-Adapter.

    Attributes:
        trains: the reference network, and any of the pose ControlNet and the motion modules.
        scene_share: share of clips of scenes without a person, which come with blank pose maps.
    """

    out: Path = Path("runs/reference_net")
    trains: tuple[Literal["reference_net", "pose_controlnet", "motion"], ...] = Field(
        ("reference_net", "pose_controlnet", "motion"), min_length=1
    )
    scene_share: float | None = Field(0.25, ge=0, le=1)
    reference_dropout: float = Field(0.1, ge=0, le=1)
    batch: int = Field(2, gt=0)

    @model_validator(mode="after")
    def _check_trains(self) -> ReferenceNetConfig:
        if "reference_net" not in self.trains:
            raise ValueError("trains leaves out reference_net, which no base has; wanted it among them")
        return self


class IpAdapterConfig(ClipConfig):
    """Recipe `ip_adapter`: image tokens of the reference in the cross-attention, in the place of a Dynamics-Adapter.

    Attributes:
        trains: any of the image prompt, the pose ControlNet and the motion modules.
        image_encoder: folder of a CLIP image encoder with its preprocessor's settings, which stays frozen; null: the
            base's, and where that has none a small one that trains along.
        tokens: image tokens, of a new image prompt.
        scene_share: share of clips of scenes without a person, which come with blank pose maps.
    """

    out: Path = Path("runs/ip_adapter")
    trains: tuple[Literal["image_prompt", "pose_controlnet", "motion"], ...] = Field(
        ("image_prompt", "pose_controlnet", "motion"), min_length=1
    )
    image_encoder: Path | None = None
    tokens: int = Field(16, ge=1)
    scene_share: float | None = Field(0.25, ge=0, le=1)
    reference_dropout: float = Field(0.1, ge=0, le=1)
    batch: int = Field(2, gt=0)


RECIPES: dict[str, type[TrainConfig]] = {
    "motion_lora": MotionLoraConfig,
    "character_lora": CharacterLoraConfig,
    "reference_net": ReferenceNetConfig,
    "ip_adapter": IpAdapterConfig,
}
