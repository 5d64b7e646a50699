"""Settings of the training recipes: one frozen model per recipe holds every default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from xdyna.configs import Config

Framing = Literal["full", "half", "bust"]


def _framings() -> dict[Framing, float]:
    return {"full": 0.5, "half": 0.2, "bust": 0.3}


class WorldConfig(Config):
    """The synthetic world that clips are drawn from (see `xdyna.data.synthetic.clips.World`)."""

    seed: int = 0
    size_wh: tuple[int, int] = (64, 96)
    fps: float = Field(12.0, gt=0)
    scenes: tuple[str, ...] = ("studio", "sea", "waterfall", "fire", "snow", "meadow", "rain", "fireworks", "grass")
    framings: dict[Framing, float] = Field(default_factory=_framings)
    energy: float = Field(1.0, ge=0)
    loop_s: float = Field(0.0, ge=0)
    scene_only: float = Field(0.0, ge=0, le=1)


class TrainConfig(Config):
    """What every recipe takes.

    Attributes:
        out: run folder: resolved config, log, checkpoints, samples and the final weights.
        base: model that is trained on: ``tiny`` (the embedded one) or a pipeline folder.
        data: ``synthetic``, a folder of prepared videos, or shards (``clips-{000000..000009}.tar``); or several with
            their shares: ``dance=0.7,nature=0.3``.
        init: weights to start from: a safetensors file of one part, or a folder of parts. The optimiser starts fresh.
        seed: every random draw derives from the seed and the sample's number.
        steps: optimiser steps of the whole run, counted from its beginning also after a resume.
        batch: clips (or images) per process and pass.
        accumulate: passes per step. A step sees batch x accumulate x processes samples.
        reuse: steps that see the same clips, each with other noise and timesteps. Above 1 where drawing a clip costs
            more than a step.
        optimizer: ``adamw``, ``adamw8bit`` (needs bitsandbytes and a GPU) or ``sgd`` (no momentum).
        lr: learning rate after `warmup` steps.
        betas: decay of AdamW's two moments.
        weight_decay: of AdamW.
        schedule: how the rate falls over the last `cooldown` steps: ``constant`` (not), ``linear`` or ``cosine``.
        warmup: steps over which the rate rises linearly.
        cooldown: last steps over which the rate falls; null: all steps after `warmup`.
        ema: decay of the weights' moving average, which is what a run saves at its end; 0 turns it off.
        grad_clip: largest norm of the gradient.
        precision: ``no`` (float32), ``bf16`` or ``fp16`` arithmetic; weights and optimiser stay float32.
        checkpointing: compute activations again in the backward pass instead of keeping them: less memory, more time.
        prediction: what the network predicts; null: what the base's scheduler says.
        zero_snr: rescale the noise schedule so that the last timestep holds no signal.
        min_snr: cap of the signal-to-noise ratio in the loss weight (5 is usual); 0: every timestep weighs the same.
        noise_offset: standard deviation of noise that is constant over each channel of a clip, added to the noise.
        cache: folder in which encoded latents and embeddings are kept between epochs; null: encode every time.
        buckets: sizes (width, height) that filmed clips are brought to, each to the one nearest in shape; empty: all to
            `world.size_wh`.
        strides: distances between the driving frames of filmed clips; one is drawn for each sample.
        scene_share: share of clips without a person; null: as the data has them.
        threads: torch threads (one is fastest when cores are shared).
        workers: processes that draw clips ahead of time; 0 draws in the training process.
        save_every: steps between checkpoints.
        keep: how many of the last checkpoints stay; the best one stays besides.
        validate_clips: held-out clips whose loss is taken before each checkpoint, to know the best; 0: none.
        sample_every: steps between samples; 0 draws none.
        wandb: show the run in Weights & Biases as well (needs `pip install wandb`).
        held_out: index of the first clip of the validation set, which training never reaches.
        world: the synthetic world, where `data` is synthetic.
        dry_run: build and check everything, print what a run would take, and stop before the first step.
    """

    out: Path = Path("runs/train")
    base: Path = Path("tiny")
    data: str = "synthetic"
    init: Path | None = None
    seed: int = 0
    steps: int = Field(1000, gt=0)
    batch: int = Field(8, gt=0)
    accumulate: int = Field(1, gt=0)
    reuse: int = Field(1, ge=1)
    optimizer: Literal["adamw", "adamw8bit", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: int = Field(100, ge=0)
    cooldown: int | None = Field(300, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    precision: Literal["no", "fp16", "bf16"] = "no"
    checkpointing: bool = False
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = None
    zero_snr: bool = False
    min_snr: float = Field(0.0, ge=0)
    noise_offset: float = Field(0.0, ge=0)
    cache: Path | None = None
    buckets: tuple[tuple[int, int], ...] = ()
    strides: tuple[Annotated[int, Field(gt=0)], ...] = Field((1,), min_length=1)
    scene_share: float | None = Field(None, ge=0, le=1)
    threads: int = Field(1, gt=0)
    workers: int = Field(1, ge=0)
    save_every: int = Field(200, gt=0)
    keep: int = Field(2, gt=0)
    validate_clips: int = Field(8, ge=0)
    sample_every: int = Field(200, ge=0)
    wandb: bool = False
    held_out: int = 10_000_000
    world: WorldConfig = WorldConfig()
    dry_run: bool = False
