"""Settings that the recipes on clips share; below the tables of recipes, which import each other's configs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from xdyna.configs.train import TrainConfig

#: Parts that can start anew on a trained UNet.
NewPart = Literal["motion", "dynamics_adapter", "pose_controlnet", "face_controlnet"]


class ClipConfig(TrainConfig):
    """What the recipes share that train on clips through the whole model.

    Attributes:
        frames: driving frames of a sample.
        figure: extra loss weight of latent pixels that the person covers.
        early: exponent of the timesteps' distribution; 1 is uniform, more draws noisier ones more often.
        start: share of clips whose noise also explains the way from the reference: their noisy latents are what the
            pipeline, which sets out from the downgraded and noised reference, meets at a timestep if it predicts well.
        start_keep: share of the reference's latent elements that such a start keeps; the others take their blur. Unless
            it is set, the base's own share.
        terminal_signal: share of signal power that the last timestep keeps, on a new linear noise schedule; null: the
            base's schedule.
        shared_noise: noise, and the mask of the start, are drawn once per clip and used for all its driving frames.
            Unless it is set, as the base has it.
        reference_dropout: share of clips whose reference is taken away: its latents are zero, its image tokens those of
            no picture. The pipeline's guidance compares with image tokens of no picture, and keeps the latents.
        renew: parts that start anew instead of from the base's weights.
        sample_steps: denoising steps of the samples.
    """

    frames: int = Field(8, ge=1)
    figure: float = Field(2.0, ge=0)
    early: float = Field(1.5, gt=0)
    start: float = Field(1.0, ge=0, le=1)
    start_keep: float = Field(0.5, ge=0, le=1)
    terminal_signal: float | None = Field(None, gt=0, lt=1)
    shared_noise: bool = False
    reference_dropout: float = Field(0.0, ge=0, le=1)
    renew: tuple[NewPart, ...] = ()
    sample_steps: int = Field(10, gt=0)
