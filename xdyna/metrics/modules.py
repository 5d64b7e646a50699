"""The metrics as torchmetrics' `Metric`s, for loops that are built of those: the same numbers, states that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdyna.errors import UserError
from xdyna.metrics.backbones import load_backbone
from xdyna.metrics.clips import Region
from xdyna.metrics.frechet import Moments, frechet_distance
from xdyna.metrics.registry import find_metric
from xdyna.metrics.specs import ClipMetric, Sample, SetMetric

try:
    from torchmetrics import Metric
except ImportError:
    raise UserError("metrics as modules need torchmetrics: pip install 'xdyna[eval]'") from None

#: A clip to ask a network for the length of its features, pixels.
PROBE_PX = 64


def metric_module(
    name: str,
    region: Region = "all",
    *,
    backbone: Any = None,
    backbones: Path | None = None,
    trust_code: bool = False,
) -> ClipModule | SetModule:
    """A metric by name, as a torchmetrics `Metric`.

    Args:
        name: in `registry.METRICS`.
        region: where to measure.
        backbone: its network, if it is loaded already.
        backbones: folder with networks' files otherwise, see `backbones.find_backbone`.
        trust_code: whether those may hold code.

    Raises:
        UserError: an unknown metric, or its weights are not here.
        ValueError: it is not measured in that region.
    """
    metric = find_metric(name)
    if region not in metric.regions:
        raise ValueError(f"{name} has no region {region!r}, wanted one of {list(metric.regions)}")
    if backbone is None and metric.backbone is not None:
        backbone = load_backbone(metric.backbone, backbones, trust_code=trust_code)
    if isinstance(metric, ClipMetric):
        return ClipModule(metric, region, backbone)
    return SetModule(metric, region, backbone)


class ClipModule(Metric):
    """Mean of a metric's values over the clips that have one.

    Args:
        metric: of single clips.
        region: where to measure.
        backbone: the loaded network, if the metric takes one.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, metric: ClipMetric, region: Region = "all", backbone: Any = None) -> None:
        super().__init__()
        self.metric, self.region, self._backbone = metric, region, [backbone]  # in a list: no part of the state
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # a constant elsewhere
        """None where neither is."""
        return {"higher": True, "lower": False}.get(self.metric.better)

    def update(self, made: Any, truth: Any = None, **known: Any) -> None:
        """Measure one clip.

        Args:
            made: uint8 RGB [F, H, W, 3], a tensor or an array.
            truth: likewise.
            known: other fields of `specs.Sample`.
        """
        value = self.metric.value(as_sample(made, truth, known), self.region, self._backbone[0])
        if not np.isnan(value):
            self.total = self.total + value
            self.count = self.count + 1

    def compute(self) -> Tensor:
        """Float64; NaN if no clip had a value."""
        return self.total / self.count


class SetModule(Metric):
    """Frechet distance between the features of the generated and of the true clips.

    Args:
        metric: of sets of clips.
        region: what the network sees.
        backbone: the loaded network.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, metric: SetMetric, region: Region = "all", backbone: Any = None) -> None:
        super().__init__()
        self.metric, self.region, self._backbone = metric, region, [backbone]
        # Every process has to have sums of one length, also one that never sees a clip.
        length = max(metric.least_frames, int(getattr(backbone, "num_frames", None) or 1))
        probe = np.zeros((length, PROBE_PX, PROBE_PX, 3), np.uint8)
        size = metric.features(probe, None, "all", backbone).shape[1]
        for whose in ("made", "true"):
            self.add_state(f"{whose}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{whose}_total", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{whose}_outer", torch.zeros((size, size), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, made: Any, truth: Any, **known: Any) -> None:
        """Take in the features of one clip and of its truth.

        Args:
            made: uint8 RGB [F, H, W, 3], a tensor or an array.
            truth: likewise.
            known: other fields of `specs.Sample`; a part of the picture needs `masks`.

        Raises:
            UserError: features that are not finite.
        """
        sample = as_sample(made, truth, known)
        pair = self.metric.pair(sample, self.region, self._backbone[0])
        for whose, rows in zip(("made", "true"), pair, strict=True):
            moments = Moments()
            moments.add(rows, f"{sample.name}: {self.metric.name}/{self.region}")
            if not moments.count:
                continue
            self._add(f"{whose}_count", torch.tensor(moments.count))
            self._add(f"{whose}_total", torch.from_numpy(moments.total))
            self._add(f"{whose}_outer", torch.from_numpy(moments.outer))

    def _add(self, name: str, value: Tensor) -> None:
        state: Tensor = getattr(self, name)
        setattr(self, name, state + value.to(state.device))

    def moments(self, whose: str) -> Moments:
        """The sums of the `made` or the `true` clips."""
        count, total, outer = (getattr(self, f"{whose}_{part}").cpu().numpy() for part in ("count", "total", "outer"))
        return Moments(int(count), total, outer)

    def compute(self) -> Tensor:
        """Float64; NaN with fewer than two feature vectors on a side."""
        return torch.tensor(frechet_distance(self.moments("made"), self.moments("true")), dtype=torch.float64)


def as_sample(made: Any, truth: Any, known: dict[str, Any]) -> Sample:
    """A sample from tensors or arrays."""
    given: dict[str, Any] = {"name": "clip", "made": made, "truth": truth, **known}
    arrays: dict[str, Any] = {
        key: _as_array(value) if isinstance(value, Tensor) else value for key, value in given.items()
    }
    return Sample(**arrays)


def _as_array(value: Tensor) -> NDArray[Any]:
    return np.asarray(value.detach().cpu().numpy())
