"""FID (Heusel et al. 2017): the Frechet distance between Inception's features of frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from xdyna.metrics.clips import Frames, Region, isolated
from xdyna.metrics.frames import rows_of
from xdyna.metrics.specs import ALL_REGIONS, SetMetric


def features(frames: Frames, masks: NDArray[Any] | None, region: Region, network: nn.Module) -> NDArray[np.float32]:
    """Features of every frame, float32 [F, D].

    Args:
        frames: uint8 RGB [F, H, W, 3].
        masks: cover of the person in the truth, [F, H, W]; needed for a part.
        region: what the network sees; the rest is mid grey.
        network: pictures, float [N, 3, H, W] in 0..1, -> [N, D].
    """
    return rows_of(isolated(frames, masks, region), network)


SPECS = (
    SetMetric(
        name="fid", unit="", better="lower", needs=frozenset({"truth"}), regions=ALL_REGIONS, backbone="inception",
        features=features,
    ),
)  # fmt: skip
