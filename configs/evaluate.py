"""Settings of an evaluation: the protocol, which is part of every number, and how the work is done, which is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from xdyna.configs import Config
from xdyna.configs.animate import SizeWH


class ProtocolConfig(Config):
    """How clips are read before anything is measured; `configs/protocol/v1.yaml` says what each key means.

    A protocol file states every key: there are no defaults that a later version could change.
    """

    version: Annotated[str, Field(min_length=1)]
    fps: Annotated[float, Field(gt=0.0, le=240.0)]
    frames: Annotated[int, Field(ge=1, le=10_000)]
    clips: Annotated[int, Field(ge=1, le=10_000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    lengths: Literal["equal", "shortest"]
    size: SizeWH | None
    crop: Literal["centre", "stretch", "refuse"]
    filter: Literal["area", "bilinear", "bicubic", "lanczos"]
    masks: Literal["files", "none"]
    gif: Literal["refuse", "frames"]
    av: str


def _split(value: Any) -> Any:
    """``"psnr,ssim"`` becomes ``("psnr", "ssim")``; anything else is left for pydantic to judge."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class EvaluateConfig(Config):
    """How an evaluation is run. Nothing here changes a number, except that `metrics` says which there are."""

    metrics: Annotated[tuple[str, ...] | None, BeforeValidator(_split)] = None  # None: all that can be had
    backbones: Path | None = None  # folder with networks' weights
    cache: Path | None = None  # folder of features; None: beside the results
    workers: Annotated[int, Field(ge=1, le=256)] = 1  # videos measured at once
    actors: Annotated[int, Field(ge=1, le=10_000)] | None = None  # Ray actors in the workers' place
    threads: Annotated[int, Field(ge=1, le=256)] | None = None  # of torch and OpenCV; None: as they are
    allow_failed: bool = False  # pairs that cannot be measured are listed, and that is all

    @model_validator(mode="after")
    def _check_together(self) -> EvaluateConfig:
        if self.actors is not None and self.workers > 1:
            raise ValueError("wanted --workers (threads here) or --actors (Ray), one of them")
        if self.metrics is not None and not self.metrics:
            raise ValueError("wanted at least one metric")
        return self
