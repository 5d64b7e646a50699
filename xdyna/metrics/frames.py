"""Frames as networks take them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xdyna.metrics.clips import Frames

#: Pictures per call of a network.
BATCH = 16


def as_pictures(frames: NDArray[np.uint8]) -> Tensor:
    """uint8 [F, H, W, 3] -> float [F, 3, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def device_of(network: nn.Module) -> torch.device:
    """Where a network computes; the CPU for one without weights."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


@torch.no_grad()
def rows_of(frames: Frames, network: nn.Module, batch: int = BATCH) -> NDArray[np.float32]:
    """What a network of pictures gives for every frame, float32 [F, D].

    Args:
        frames: uint8 RGB [F, H, W, 3].
        network: float [N, 3, H, W] in 0..1 -> [N, D].
        batch: pictures per call.
    """
    device = device_of(network)
    starts = range(0, len(frames), batch)
    parts = [network(as_pictures(frames[start : start + batch]).to(device)) for start in starts]
    return np.asarray(torch.cat(parts).float().cpu().numpy())
