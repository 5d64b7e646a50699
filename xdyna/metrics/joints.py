"""Where the joints of a drawn person are: a small network trained on the synthetic world, and errors against the truth.

The shipped weights (`joints-synth`) know drawn people only; they say nothing about photos.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import xdyna
from xdyna.metrics.clips import Floats, Frames, check_clip
from xdyna.metrics.own_nets import read_net, save_net
from xdyna.metrics.specs import ClipMetric, Region, Sample
from xdyna.preprocess.tracks import NUM_JOINTS, Tracks

#: The shipped regressor.
WEIGHTS = Path(xdyna.__file__).resolve().parent / "weights" / "joints-synth.safetensors"
KIND = "xdyna.joints"
#: Right and left change places in a mirrored picture: what joint each one becomes.
MIRRORED = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)


@dataclass(frozen=True)
class JointsShape:
    """What the regressor is built from.

    Attributes:
        size_wh: frames that it reads, pixels; others are resized. Multiples of 16.
        widths: channels at a half, a quarter, an eighth and a sixteenth of that size.
    """

    size_wh: tuple[int, int] = (64, 96)
    widths: tuple[int, int, int, int] = (24, 32, 48, 56)


class JointRegressor(nn.Module):
    """Heatmaps at a quarter of the frame's size, read by a soft argmax.

    A person in the frame is taken for granted. Left and right are the person's own.
    """

    def __init__(self, shape: JointsShape) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = shape.widths
        self.shape = shape
        self.stem = nn.Sequential(nn.Conv2d(12, half, 3, padding=1), _norm(half), nn.SiLU())
        self.down4 = nn.Sequential(_down(half, quarter), _Residual(quarter))
        self.down8 = nn.Sequential(_down(quarter, eighth), _Residual(eighth))
        self.down16 = nn.Sequential(_down(eighth, sixteenth), _Residual(sixteenth))
        self.narrow8 = nn.Conv2d(sixteenth, eighth, 1)
        self.up8 = _Residual(eighth)
        self.narrow4 = nn.Conv2d(eighth, quarter, 1)
        self.up4 = _Residual(quarter)
        self.heat = nn.Conv2d(quarter, NUM_JOINTS, 1)
        self.shown = nn.Linear(sixteenth, NUM_JOINTS)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """float [N, 3, H, W] in -1..1 -> heatmap logits [N, 18, H/4, W/4], in-frame logits [N, 18]."""
        fine = self.down4(self.stem(F.pixel_unshuffle(pictures, 2)))
        middle = self.down8(fine)
        coarse = self.down16(middle)
        middle = self.up8(middle + F.interpolate(self.narrow8(coarse), scale_factor=2.0))
        fine = self.up4(fine + F.interpolate(self.narrow4(middle), scale_factor=2.0))
        return self.heat(fine), self.shown(coarse.mean((2, 3)))

    def points(self, heat: Tensor) -> Tensor:
        """Expected place under each heatmap: logits [N, 18, h, w] -> (x, y) [N, 18, 2], pixels of `shape.size_wh`."""
        rows, columns = heat.shape[-2:]
        share = heat.flatten(2).softmax(-1).reshape(heat.shape)
        x = (share.sum(2) * cell_middles(columns, self.shape.size_wh[0]).to(share)).sum(-1)
        y = (share.sum(3) * cell_middles(rows, self.shape.size_wh[1]).to(share)).sum(-1)
        return torch.stack([x, y], -1)

    @torch.no_grad()
    def find(self, frames: Frames, batch: int = 64) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Joints of every frame: the mean of what is found in the picture and in its mirror image.

        Args:
            frames: uint8 RGB [F, H, W, 3] of any size.
            batch: frames per call of the network.

        Returns:
            (x, y) float32 [F, 18, 2] in pixels of `frames`, and the chance that each is inside the frame, [F, 18].
        """
        check_clip(frames)
        points, shown = [], []
        for start in range(0, len(frames), batch):
            part = torch.as_tensor(np.ascontiguousarray(frames[start : start + batch]))
            pictures = _pictures(part, self.shape.size_wh)
            (place, inside), (other, other_inside) = self._places(pictures), self._places(pictures.flip(-1))
            other = torch.stack([self.shape.size_wh[0] - other[..., 0], other[..., 1]], -1)[:, list(MIRRORED)]
            points.append((place + other) / 2)
            shown.append((inside + other_inside[:, list(MIRRORED)]) / 2)
        scale = np.asarray([frames.shape[2], frames.shape[1]]) / np.asarray(self.shape.size_wh)
        return (torch.cat(points).numpy() * scale).astype(np.float32), torch.cat(shown).numpy()

    def _places(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Places [N, 18, 2] and chances [N, 18] in pictures of the network's own size."""
        heat, inside = self(pictures)
        return self.points(heat), inside.sigmoid()

    def save(self, path: Path, **notes: Any) -> None:
        """Write a safetensors file in half precision; the shape and `notes` go into its metadata."""
        save_net(self, path, KIND, self.shape, notes)


def load_regressor(path: Path = WEIGHTS) -> JointRegressor:
    """Read a regressor; the shipped one by default.

    Raises:
        UserError: no such file, or it holds something else.
    """
    given, tensors = read_net(path, KIND, "the weights of a joint regressor (`xdyna train joints`)")
    regressor = JointRegressor(JointsShape(**{key: tuple(value) for key, value in given.items()}))
    regressor.load_state_dict(tensors)
    return regressor.requires_grad_(False).eval()


def joints(frames: Frames, truth: Tracks, regressor: JointRegressor) -> float:
    """Mean distance of the joints found in a clip to the true ones inside the frame.

    Args:
        frames: uint8 RGB [F, H, W, 3].
        truth: F frames of tracks, of any size; brought to the frames' pixels.
        regressor: finds the joints.

    Returns:
        Pixels of `frames`; NaN if no true joint is inside.
    """
    distances = joint_distances(frames, truth, regressor)
    return float(np.nanmean(distances)) if not np.isnan(distances).all() else float("nan")


def joint_pck(frames: Frames, truth: Tracks, regressor: JointRegressor, share: float = 0.1) -> float:
    """Share of the true joints inside the frame that are found within `share` of the person's height.

    The height is that of the box round all true joints inside the frame: its median over the clip.
    """
    distances = joint_distances(frames, truth, regressor)
    known = ~np.isnan(distances)
    limit = share * person_height(truth.resized((frames.shape[2], frames.shape[1])))
    return float((distances[known] <= limit).mean()) if known.any() else float("nan")


def joint_distances(frames: Frames, truth: Tracks, regressor: JointRegressor) -> Floats:
    """Distance of each joint to the true one, pixels: [F, 18], NaN for true joints outside the frame."""
    if len(truth) != len(frames):
        raise ValueError(f"truth has {len(truth)} frames, the clip {len(frames)}: wanted as many")
    wanted = truth.resized((frames.shape[2], frames.shape[1]))
    found, _ = regressor.find(frames)
    distances = np.linalg.norm(found - wanted.joints_xy, axis=-1)
    return np.where(wanted.joints_conf > 0, distances, np.nan)


def person_height(tracks: Tracks) -> float:
    """Median over frames of the height of the box round the joints inside the frame, pixels; NaN without any."""
    y = np.where(tracks.joints_conf > 0, tracks.joints_xy[..., 1], np.nan)
    shown = (~np.isnan(y)).sum(1) >= 2
    return float(np.median(np.nanmax(y[shown], 1) - np.nanmin(y[shown], 1))) if shown.any() else float("nan")


def cell_middles(count: int, side_px: int) -> Tensor:
    """Middles of `count` equal cells along a side, pixels."""
    return (torch.arange(count) + 0.5) * (side_px / count)


def _pictures(frames: Tensor, size_wh: tuple[int, int]) -> Tensor:
    pictures = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    size_hw = (size_wh[1], size_wh[0])
    if pictures.shape[2:] != size_hw:
        pictures = F.interpolate(pictures, size=size_hw, mode="bilinear", antialias=True)
    return pictures.contiguous(memory_format=torch.channels_last)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8, channels)


def _down(channels: int, wider: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, wider, 3, stride=2, padding=1), _norm(wider), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), _norm(channels), nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1), _norm(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


def _measure_joints(sample: Sample, _: Region, regressor: JointRegressor) -> float:
    assert sample.tracks is not None
    return joints(sample.made, sample.tracks, regressor)


def _measure_pck(sample: Sample, _: Region, regressor: JointRegressor) -> float:
    assert sample.tracks is not None
    return joint_pck(sample.made, sample.tracks, regressor)


SPECS = (
    ClipMetric(
        name="joints-synth", unit="px", better="lower", needs=frozenset({"tracks"}), backbone="joints-synth",
        measure=_measure_joints,
    ),
    ClipMetric(
        name="pck-synth", unit="share", better="higher", needs=frozenset({"tracks"}), backbone="joints-synth",
        measure=_measure_pck,
    ),
)  # fmt: skip
