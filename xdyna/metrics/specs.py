"""What a metric says of itself: its name, what it must know of a clip, and how to ask it.

Every metric's file ends in a tuple `SPECS` of these; `registry` gathers them. (Import from here, not from `registry`,
in a metric's own file: the registry imports those files.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xdyna.metrics.clips import ALL_REGIONS, Floats, Frames, Mask, Region, region_mask
from xdyna.preprocess.tracks import Tracks

__all__ = ["ALL_REGIONS", "Better", "ClipMetric", "Metric", "Region", "Sample", "SetMetric"]

#: Which values are good: large ones, small ones, those near the value of the truth itself, or it does not say.
Better = Literal["higher", "lower", "truth", "none"]


@dataclass(frozen=True, eq=False, repr=False)
class Sample:
    """Everything known of one generated clip; None for what is not.

    Attributes:
        name: of the clip.
        made: what was generated, uint8 RGB [F, H, W, 3].
        truth: what it should have been, of the same shape.
        masks: cover of the person in the truth, uint8 [F, H, W], 0..255.
        reference: the photo, uint8 RGB [h, w, 3].
        tracks: the driving person's joints in pixels of `made`, F frames.
        face_xy: true face points, float [F, 68, 2], pixels of `made`.
        fps: frames per second.
        borders: b for a border of context windows between frames b and b+1.
        scene: the kind of scene, for tables by scene.
    """

    name: str
    made: Frames
    truth: Frames | None = None
    masks: NDArray[np.uint8] | None = None
    reference: NDArray[np.uint8] | None = None
    tracks: Tracks | None = None
    face_xy: NDArray[Any] | None = None
    fps: float = 25.0
    borders: tuple[int, ...] = ()
    scene: str = ""

    def where(self, region: Region) -> Mask | None:
        """Bool [F, H, W] of a region; None is everywhere.

        Raises:
            ValueError: a part is asked for and the masks are unknown.
        """
        return region_mask(self.masks, region)

    @cached_property
    def flow_forth(self) -> Floats:
        """Flow of the generated clip from each frame to the next (`flow.optical_flow`), found once for all metrics."""
        from xdyna.metrics.flow import optical_flow

        return optical_flow(self.made)

    @cached_property
    def flow_back(self) -> Floats:
        """Flow from each frame but the first to the one before it: [F-1, H, W, 2], entry k from frame k + 1 to k."""
        from xdyna.metrics.flow import optical_flow

        return optical_flow(self.made[::-1])[::-1]

    def of_truth(self) -> Sample:
        """The truth in the place of the generated clip: what a metric gives for it is the value to come near to."""
        if self.truth is None:
            raise ValueError(f"clip {self.name!r} has no truth")
        return replace(self, made=self.truth)


KNOWN = tuple(field.name for field in fields(Sample))


@dataclass(frozen=True, eq=False, kw_only=True)
class Metric:
    """What clip and set metrics have in common.

    Attributes:
        name: in tables and results, lower case with hyphens; `-synth` ends those of our own networks.
        unit: of the values, "" for none.
        better: see `Better`.
        needs: fields of `Sample` that have to be known, beside `made`; a part of the picture needs `masks` as well.
        regions: where it can be measured.
        backbone: the network that it takes, by its name in `backbones.json`; None for none.
        least_frames: shorter clips have no value.
    """

    name: str
    unit: str
    better: Better
    needs: frozenset[str] = frozenset()
    regions: tuple[Region, ...] = ("all",)
    backbone: str | None = None
    least_frames: int = 1

    def __post_init__(self) -> None:
        if unknown := self.needs - set(KNOWN):
            raise ValueError(f"metric {self.name!r} needs {sorted(unknown)}, wanted some of {list(KNOWN)}")

    def lacks(self, sample: Sample, region: Region = "all") -> list[str]:
        """Which of the needed fields this clip does not have; empty if it can be measured."""
        needed = self.needs if region == "all" else self.needs | {"masks"}
        return [name for name in KNOWN if name in needed and _unknown(getattr(sample, name))]


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipMetric(Metric):
    """A metric with a value for every clip.

    Attributes:
        measure: (clip, region, loaded backbone or None) -> the value; NaN where it has no meaning. Called by `value`.
    """

    measure: Callable[[Sample, Region, Any], float]

    def value(self, sample: Sample, region: Region = "all", backbone: Any = None) -> float:
        """The value of a clip; NaN if it is too short or lacks something (see `lacks`)."""
        _check_region(self, region)
        if self.lacks(sample, region) or len(sample.made) < self.least_frames:
            return float("nan")
        return float(self.measure(sample, region, backbone))


@dataclass(frozen=True, eq=False, kw_only=True)
class SetMetric(Metric):
    """A metric of a set of clips: the Frechet distance between features of the generated and of the true ones.

    Attributes:
        features: (clip, masks or None, region, loaded backbone) -> float32 [n, D]: one row per clip, or per frame. The
            truth's masks serve for both.
    """

    features: Callable[[Frames, NDArray[Any] | None, Region, Any], NDArray[np.float32]]

    def pair(self, sample: Sample, region: Region, backbone: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features [n, D] of the generated clip and of its truth; no rows if it is too short or lacks something."""
        _check_region(self, region)
        if self.lacks(sample, region) or sample.truth is None or len(sample.made) < self.least_frames:
            return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
        made = self.features(sample.made, sample.masks, region, backbone)
        return made, self.features(sample.truth, sample.masks, region, backbone)


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and not value)


def _check_region(metric: Metric, region: Region) -> None:
    if region not in metric.regions:
        raise ValueError(f"{metric.name} has no region {region!r}, wanted one of {list(metric.regions)}")
