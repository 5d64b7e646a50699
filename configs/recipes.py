"""Settings of the recipes that train the parts of the model, and the table of all recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from xdyna.configs import lora_recipes, metrics_recipes
from xdyna.configs.clips import ClipConfig
from xdyna.configs.train import TrainConfig

Part = Literal["unet", "motion", "dynamics_adapter", "pose_controlnet", "face_controlnet"]


class VaeConfig(TrainConfig):
    """Recipe `vae`: a small AutoencoderKL from nothing.

    Attributes:
        widths: channels at full, half, quarter .. resolution.
        layers, latent_channels, norm_groups: of the autoencoder.
        colour: weight of the squared error of 4x4-pixel means along three colour axes, the two opponent ones enlarged:
            without it reds and greens come hundreds of steps after light and dark.
        kl: weight of the KL term (mean per latent value, nats).
        edge: weight of the L1 distance between the pictures' horizontal and vertical differences.
        figure: extra weight of pixels that the person covers.
        jitter: noise on the latents, as a fraction of their spread, so that the decoder forgives a denoiser's errors.
        train_encoder: False freezes the encoder, so that latents keep their meaning while the decoder improves.
        init: folder of a VAE to start from instead of random weights.
    """

    out: Path = Path("runs/vae")
    widths: tuple[int, ...] = (12, 24, 48)
    layers: int = 1
    latent_channels: int = 8
    norm_groups: int = 1
    colour: float = 1.0
    kl: float = 1e-4
    edge: float = 0.5
    jitter: float = 0.05
    figure: float = 2.0
    train_encoder: bool = True


class ImageConfig(ClipConfig):
    """Recipe `image`: the UNet, adapter and ControlNets of a small model, all at once or some of them.

    Attributes:
        vae: folder of the trained autoencoder that a new model is built around (null: the base's), or that takes the
            place of the one in `init` (null: it stays).
        init: folder of a model to train further; null: a new one is built.
        trains: the parts that train; all others stay bit for bit as they are. `unet` means its spatial layers,
            `motion` its motion modules.
        consecutive: frames follow each other in time, and motion modules run; else they come from random moments of
            the clip, any of them is the reference, and motion modules are left out.
        start, start_keep, shared_noise, terminal_signal: the defaults make denoising set out from the reference itself,
            slightly noised: what stays where it is in the picture need not be looked up.
        face: feed face maps to the face ControlNet: those of the frames' own faces (true), or of other identities'
            faces that make the same expressions (``swapped``).
        widths, layers, heads, norm_groups: of a new UNet (and, but for heads, its ControlNets).
        attention: per level, whether it has spatial attention.
        prompt_tokens, prompt_dim: shape of a new model's stored prompt.
    """

    out: Path = Path("runs/image")
    vae: Path | None = None
    trains: tuple[Part, ...] = Field(("unet", "dynamics_adapter", "pose_controlnet"), min_length=1)
    frames: int = Field(4, ge=1)
    consecutive: bool = False
    reuse: int = Field(2, ge=1)
    start: float = Field(1.0, ge=0, le=1)
    start_keep: float = Field(1.0, ge=0, le=1)
    shared_noise: bool = True
    terminal_signal: float | None = Field(0.97, gt=0, lt=1)
    face: Literal[False, True, "swapped"] = False
    widths: tuple[int, ...] = (32, 64, 96)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    heads: int = 4
    norm_groups: int = 4
    prompt_tokens: int = 4
    prompt_dim: int = 32

    @model_validator(mode="after")
    def _check_together(self) -> ImageConfig:
        if "motion" in self.trains and not self.consecutive:
            raise ValueError(
                "trains names motion, which frames of random moments do not reach; wanted consecutive=true"
            )
        if "face_controlnet" in self.trains and not self.face:
            raise ValueError("trains names face_controlnet, which is not fed; wanted face=true or face=swapped")
        return self


class MotionModuleConfig(ClipConfig):
    """Recipe `motion_module`: the motion modules alone, on consecutive frames."""

    out: Path = Path("runs/motion_module")
    frames: int = Field(16, ge=1)
    batch: int = Field(2, gt=0)


class DynamicsAdapterConfig(ClipConfig):
    """Recipe `dynamics_adapter`: X-Dyna's first stage, on clips of people and of scenes.

    Attributes:
        trains: any of the adapter, the pose ControlNet and the motion modules.
        scene_share: share of clips of scenes without a person, which come with blank pose maps.
    """

    out: Path = Path("runs/dynamics_adapter")
    trains: tuple[Literal["dynamics_adapter", "pose_controlnet", "motion"], ...] = Field(
        ("dynamics_adapter", "pose_controlnet", "motion"), min_length=1
    )
    scene_share: float | None = Field(0.25, ge=0, le=1)
    reference_dropout: float = Field(0.1, ge=0, le=1)
    batch: int = Field(2, gt=0)


class PoseControlNetConfig(ClipConfig):
    """Recipe `pose_controlnet`: the pose ControlNet alone."""

    out: Path = Path("runs/pose_controlnet")
    batch: int = Field(2, gt=0)


class SFaceControlNetConfig(ClipConfig):
    """Recipe `s_face_controlnet`: X-Dyna's second stage, the face ControlNet alone.

    It sees the face maps of another identity with the same expression, and learns to take the expression only.
    """

    out: Path = Path("runs/s_face_controlnet")
    batch: int = Field(2, gt=0)
    early: float = Field(3.0, gt=0)
    scene_share: float = Field(0.0, ge=0, le=0)


#: Recipes by name; the module `xdyna.train.recipes.NAME` has `train(config, resume=.., quiet=..)`.
RECIPES: dict[str, type[TrainConfig]] = {
    "vae": VaeConfig,
    "image": ImageConfig,
    "motion_module": MotionModuleConfig,
    "dynamics_adapter": DynamicsAdapterConfig,
    "pose_controlnet": PoseControlNetConfig,
    "s_face_controlnet": SFaceControlNetConfig,
    **lora_recipes.RECIPES,
    **metrics_recipes.RECIPES,
}
