"""All metrics by name, and which of them can be had here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xdyna.errors import UserError, near_matches
from xdyna.metrics import (
    clip_i,
    colour,
    drift,
    expression,
    face_cos,
    face_det,
    face_exp,
    fid,
    flicker,
    flow,
    flow_consistency,
    fvd,
    joints,
    l1,
    lpips,
    motion_energy,
    pose,
    psnr,
    seam,
    ssim,
    stillness,
    textures,
)
from xdyna.metrics.backbones import find_backbone
from xdyna.metrics.specs import ClipMetric, Metric, Region, Sample, SetMetric

__all__ = ["METRICS", "ClipMetric", "Metric", "Missing", "Region", "Sample", "SetMetric", "available", "find_metric"]

#: Every metric's file exports a tuple `SPECS`; the order here is that of tables.
_FILES = (
    l1,
    psnr,
    ssim,
    lpips,
    fid,
    fvd,
    textures,
    colour,
    motion_energy,
    flow,
    flow_consistency,
    flicker,
    stillness,
    seam,
    clip_i,
    face_cos,
    face_det,
    joints,
    pose,
    expression,
    face_exp,
    drift,
)

METRICS: Mapping[str, ClipMetric | SetMetric] = {spec.name: spec for file in _FILES for spec in file.SPECS}


@dataclass(frozen=True)
class Missing:
    """A metric that cannot be had, and why, in one line."""

    name: str
    reason: str


def find_metric(name: str) -> ClipMetric | SetMetric:
    """A metric by name.

    Raises:
        UserError: unknown; near names are given.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}{near_matches(name, METRICS)}")
    return METRICS[name]


def available(
    names: Iterable[str] | None = None, backbones: Path | None = None, *, trust_code: bool = False
) -> tuple[list[ClipMetric | SetMetric], list[Missing]]:
    """The metrics whose networks are here, and those that are left out.

    Args:
        names: of metrics; None is all.
        backbones: folder with networks' files, see `backbones.find_backbone`.
        trust_code: whether networks' files may hold code.

    Raises:
        UserError: an unknown name.
    """
    here: list[ClipMetric | SetMetric] = []
    missing: list[Missing] = []
    for metric in [find_metric(name) for name in names] if names is not None else METRICS.values():
        try:
            if metric.backbone is not None:
                find_backbone(metric.backbone, backbones, trust_code=trust_code)
        except UserError as error:
            missing.append(Missing(metric.name, str(error)))
        else:
            here.append(metric)
    return here, missing
