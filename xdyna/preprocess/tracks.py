"""What a detector found in a clip, or what a renderer knows of it: joints, hands, face points, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError

FloatArray = NDArray[np.float32]

#: OpenPose's 18 body points, in order; left and right are the person's own.
JOINT_NAMES = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
NUM_JOINTS = len(JOINT_NAMES)
NUM_HAND_POINTS = 21
NUM_FACE_POINTS = 68
SUFFIX = ".tracks.npz"


@dataclass(frozen=True, eq=False)
class Tracks:
    """One person over F frames. A confidence of 0 means 'not found'; its coordinates then mean nothing.

    Attributes:
        joints_xy: float32 [F, 18, 2], pixels of a frame of `size_wh`, origin top left, in `JOINT_NAMES` order.
        joints_conf: float32 [F, 18], 0..1.
        hands_xy: float32 [F, 2, 21, 2], pixels; [:, 0] the person's left hand, [:, 1] the right; wrist first.
        hands_conf: float32 [F, 2, 21], 0..1.
        face_xy: float32 [F, 68, 2], pixels, in the common 68-point order.
        face_conf: float32 [F], 0..1.
        size_wh: (width, height) of the frames, pixels.
        fps: frames per second.
    """

    joints_xy: FloatArray
    joints_conf: FloatArray
    hands_xy: FloatArray
    hands_conf: FloatArray
    face_xy: FloatArray
    face_conf: FloatArray
    size_wh: tuple[int, int]
    fps: float

    def __post_init__(self) -> None:
        num_frames = len(self.joints_xy)
        wanted = {
            "joints_xy": (num_frames, NUM_JOINTS, 2),
            "joints_conf": (num_frames, NUM_JOINTS),
            "hands_xy": (num_frames, 2, NUM_HAND_POINTS, 2),
            "hands_conf": (num_frames, 2, NUM_HAND_POINTS),
            "face_xy": (num_frames, NUM_FACE_POINTS, 2),
            "face_conf": (num_frames,),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, wanted {shape}")

    def __len__(self) -> int:
        return len(self.joints_xy)

    def __getitem__(self, frames: slice | list[int]) -> Tracks:
        """The same person over a slice or list of frames."""
        return replace(
            self,
            joints_xy=self.joints_xy[frames],
            joints_conf=self.joints_conf[frames],
            hands_xy=self.hands_xy[frames],
            hands_conf=self.hands_conf[frames],
            face_xy=self.face_xy[frames],
            face_conf=self.face_conf[frames],
        )

    @classmethod
    def empty(cls, num_frames: int, size_wh: tuple[int, int], fps: float) -> Tracks:
        """Tracks in which nothing was found."""
        return cls(
            joints_xy=np.zeros((num_frames, NUM_JOINTS, 2), np.float32),
            joints_conf=np.zeros((num_frames, NUM_JOINTS), np.float32),
            hands_xy=np.zeros((num_frames, 2, NUM_HAND_POINTS, 2), np.float32),
            hands_conf=np.zeros((num_frames, 2, NUM_HAND_POINTS), np.float32),
            face_xy=np.zeros((num_frames, NUM_FACE_POINTS, 2), np.float32),
            face_conf=np.zeros((num_frames,), np.float32),
            size_wh=size_wh,
            fps=fps,
        )

    def resized(self, size_wh: tuple[int, int]) -> Tracks:
        """The same tracks for frames stretched to another size."""
        scale = (np.asarray(size_wh) / np.asarray(self.size_wh)).astype(np.float32)
        return replace(
            self,
            joints_xy=self.joints_xy * scale,
            hands_xy=self.hands_xy * scale,
            face_xy=self.face_xy * scale,
            size_wh=size_wh,
        )

    def save(self, path: Path) -> None:
        """Write a `.tracks.npz` file."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(path, **arrays, size_wh=np.asarray(self.size_wh), fps=np.asarray(self.fps))

    @classmethod
    def load(cls, path: Path) -> Tracks:
        """Read a `.tracks.npz` file.

        Raises:
            UserError: the file is missing, is not such a file, or holds other shapes or numbers that make no sense.
        """
        try:
            if path.is_file() and not is_zipfile(path):  # of these numpy says that unsafe loading might help
                raise ValueError("another kind of file")
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name].astype(np.float32) for name in _ARRAYS}
                width, height = (int(side) for side in data["size_wh"])
                tracks = cls(**arrays, size_wh=(width, height), fps=float(data["fps"]))
            tracks._check_numbers()
            return tracks._without_unfound()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; wanted a tracks file ({SUFFIX})") from None
        except Exception as error:
            raise UserError(f"{path}: not a tracks file ({SUFFIX}): {error}") from error

    def _check_numbers(self) -> None:
        """Raise ValueError for what no clip can have."""
        if min(self.size_wh) < 1 or not 0 < self.fps < float("inf"):
            raise ValueError(f"frames of {self.size_wh[0]}x{self.size_wh[1]} px at {self.fps} frames/s")
        for points, conf in (("joints_xy", "joints_conf"), ("hands_xy", "hands_conf"), ("face_xy", "face_conf")):
            conf_values = getattr(self, conf)
            if not np.isfinite(conf_values).all():
                raise ValueError(f"{conf} holds values that are not finite")
            if not np.isfinite(getattr(self, points)[conf_values > 0]).all():
                raise ValueError(f"{points} holds values that are not finite where {conf} is above 0")

    def _without_unfound(self) -> Tracks:
        """With zeros for coordinates that are not finite: tools write NaN for what they did not find."""
        names = ("joints_xy", "hands_xy", "face_xy")
        return replace(self, **{name: np.nan_to_num(getattr(self, name), posinf=0, neginf=0) for name in names})


_ARRAYS = ("joints_xy", "joints_conf", "hands_xy", "hands_conf", "face_xy", "face_conf")
