"""The one interface through which clips, drawn or filmed, reach the recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from xdyna.configs.train import TrainConfig

#: Which face maps a clip brings: none, those of its own frames, or those of another identity's face that makes the
#: same expressions.
Face = Literal[False, True, "swapped"]

FACE_CHANNELS = 6  # local RGB, global RGB
SKIPPED = "skipped.txt"  # in a run's folder: a line for everything that was left out


@dataclass(frozen=True, eq=False)
class TrainingClip:
    """One sample: a reference and F driving frames of one video.

    Attributes:
        name: where it comes from, for messages: "synthetic 12", "synthetic scene 12", a file's path.
        frames: uint8 RGB [1+F, H, W, 3], 0..255; frame 0 is the reference.
        masks: uint8 [1+F, H, W], how much of each pixel the person covers, 0..255; all 0 in scene clips, all 255 where
            it is not known.
        pose_maps: uint8 RGB [1+F, H, W, 3]; blank in scene clips.
        face_maps: uint8 [1+F, H, W, 6], local map then global map; None when they were not asked for.
        is_scene: nobody is in it.

    Raises:
        ValueError: arrays that do not belong together.
    """

    name: str
    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    pose_maps: NDArray[np.uint8]
    face_maps: NDArray[np.uint8] | None
    is_scene: bool

    def __post_init__(self) -> None:
        shape = self.frames.shape[:3]
        if self.frames.ndim != 4 or self.frames.shape[3] != 3 or shape[0] < 2:
            raise ValueError(f"{self.name}: frames have shape {self.frames.shape}, wanted [1+F, H, W, 3] with F > 0")
        wanted = {"masks": shape, "pose_maps": (*shape, 3), "face_maps": (*shape, FACE_CHANNELS)}
        for key, value in (("masks", self.masks), ("pose_maps", self.pose_maps), ("face_maps", self.face_maps)):
            if value is not None and value.shape != wanted[key]:
                raise ValueError(f"{self.name}: {key} have shape {value.shape}, wanted {wanted[key]}")
        for key in ("frames", *wanted):
            value = getattr(self, key)
            if value is not None and value.dtype != np.uint8:
                raise ValueError(f"{self.name}: {key} are {value.dtype}, wanted uint8")

    @property
    def size_wh(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.frames.shape[2], self.frames.shape[1]


@dataclass(frozen=True, eq=False)
class Batch:
    """B clips of one size and length.

    Attributes:
        names: of the clips, B of them.
        indices: int64 [B], their sample numbers. Every random draw of a sample is a function of the seed and this
            number alone, so it does not matter which process or which place in the batch it falls on.
        frames: uint8 [B, 1+F, H, W, 3].
        masks: uint8 [B, 1+F, H, W].
        pose_maps: uint8 [B, 1+F, H, W, 3].
        face_maps: uint8 [B, 1+F, H, W, 6] or None.
        is_scene: bool [B].
    """

    names: tuple[str, ...]
    indices: NDArray[np.int64]
    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    pose_maps: NDArray[np.uint8]
    face_maps: NDArray[np.uint8] | None
    is_scene: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.names)


@runtime_checkable
class ClipSource(Protocol):
    """Where clips come from. Sources can be pickled, so that worker processes can draw ahead.

    Attributes:
        fingerprint: hash of what the data is; kept in checkpoints, where a resume with other data is refused.
        num_clips: distinct clips; None where there is no end of them.
    """

    fingerprint: str
    num_clips: int | None

    def draw(self, index: int) -> TrainingClip:
        """Sample number `index` (0 and up, also beyond `num_clips`: further epochs in another order).

        A function of the index alone. Numbers from the settings' `held_out` on are the validation set's.
        """

    def check(self) -> list[str]:
        """Look at the data before the first step.

        Returns:
            One line per thing that is left out or wrong but does not stop training.
        Raises:
            UserError: nothing is left to train on.
        """


def stack(indices: Sequence[int], clips: Sequence[TrainingClip]) -> Batch:
    """Put clips together.

    Args:
        indices: their sample numbers.
        clips: B clips of one size and length, all with or all without face maps.
    Raises:
        ValueError: clips that differ in size, length or face maps.
    """
    if len(indices) != len(clips) or not clips:
        raise ValueError(f"got {len(indices)} sample numbers and {len(clips)} clips, wanted as many, one at least")
    first = clips[0]
    for clip in clips[1:]:
        if clip.frames.shape != first.frames.shape or (clip.face_maps is None) != (first.face_maps is None):
            raise ValueError(
                f"{clip.name} has frames {clip.frames.shape}{_faces(clip)}, "
                f"{first.name} has {first.frames.shape}{_faces(first)}; wanted clips that fit one batch"
            )
    faces = [clip.face_maps for clip in clips if clip.face_maps is not None]
    return Batch(
        names=tuple(clip.name for clip in clips),
        indices=np.asarray(indices, np.int64),
        frames=np.stack([clip.frames for clip in clips]),
        masks=np.stack([clip.masks for clip in clips]),
        pose_maps=np.stack([clip.pose_maps for clip in clips]),
        face_maps=np.stack(faces) if faces else None,
        is_scene=np.asarray([clip.is_scene for clip in clips]),
    )


def draw_batch(source: ClipSource, indices: Sequence[int]) -> Batch:
    """Draw samples and put them together."""
    return stack(indices, [source.draw(index) for index in indices])


def build_source(cfg: TrainConfig, *, frames: int, consecutive: bool = True, face: Face = False) -> ClipSource:
    """The source that a recipe's settings name.

    Args:
        cfg: `data` says where clips come from, `scene_share` how many of them show nobody; `world` what synthetic
            clips are; `buckets` and `strides` how filmed ones are cut.
        frames: driving frames per sample.
        consecutive: driving frames follow each other in time; else they are random moments of the clip.
        face: whether face maps come along, and whose.
    Raises:
        UserError: data that is not there or not usable.
    """
    from xdyna.data.build import build

    return build(cfg, frames=frames, consecutive=consecutive, face=face)


def _faces(clip: TrainingClip) -> str:
    return " without face maps" if clip.face_maps is None else " with face maps"
