"""FVD and its kin: the Frechet distance between features of clips, through one network or another.

FVD (Unterthiner et al. 2018) looks through I3D trained on Kinetics, cd-FVD (Ge et al. 2024) through VideoMAE, which
cares more for motion, DTFVD (Dorkenwald et al. 2021) through I3D trained on dynamic textures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xdyna.metrics.clips import Frames, Region, isolated
from xdyna.metrics.frames import as_pictures, device_of
from xdyna.metrics.specs import ALL_REGIONS, SetMetric

#: Frames in a window for the three networks of this file.
NUM_FRAMES = 16


@torch.no_grad()
def features(
    frames: Frames, masks: NDArray[Any] | None, region: Region, backbone: nn.Module, batch: int = 2
) -> NDArray[np.float32]:
    """Features of a clip, float32 [n, D]: one row for every window of as many frames as the network takes.

    Windows follow one another without overlap; frames that fill no window are left out, as is a clip without one.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        masks: cover of the person in the truth, [F, H, W]; needed for a part.
        region: what the network sees; the rest is mid grey.
        backbone: clips, float [N, 3, T, H, W] in 0..1, -> [N, D]. Its attribute `num_frames` says what T it wants;
            without one it gets the whole clip.
        batch: windows per call.
    """
    length = int(getattr(backbone, "num_frames", None) or len(frames))
    shown = isolated(frames, masks, region)
    count = len(frames) // length
    if not count:
        return np.zeros((0, 0), np.float32)
    windows = shown[: count * length].reshape(count, length, *shown.shape[1:])
    device, parts = device_of(backbone), []
    for start in range(0, count, batch):  # as floats only so many at once: they take four times the memory
        part = windows[start : start + batch]
        pictures = as_pictures(part.reshape(-1, *shown.shape[1:]))
        clips = pictures.reshape(*part.shape[:2], *pictures.shape[1:]).transpose(1, 2)
        parts.append(backbone(clips.to(device)))
    return np.asarray(torch.cat(parts).float().cpu().numpy())


def clip_features(name: str, backbone: str, least_frames: int = NUM_FRAMES) -> SetMetric:
    """The metric of one network, on all regions."""
    return SetMetric(
        name=name,
        unit="",
        better="lower",
        needs=frozenset({"truth"}),
        regions=ALL_REGIONS,
        backbone=backbone,
        least_frames=least_frames,
        features=features,
    )


SPECS = (
    clip_features("fvd", "i3d"),
    clip_features("cd-fvd", "videomae"),
    clip_features("dtfvd", "dti3d"),
)
