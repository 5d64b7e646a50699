"""Dynamic-texture features of a clip: a small network trained on the synthetic world, for Frechet distances.

The shipped weights (`textures-synth`) know drawn scenes only. They are not the dynamic-texture network (DTI3D) behind
the DTFVD of papers, and what they give compares with no published number.
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
from xdyna.metrics.clips import ALL_REGIONS, Frames, Region, check_clip, isolated
from xdyna.metrics.own_nets import read_net, save_net
from xdyna.metrics.specs import SetMetric

#: The shipped network.
WEIGHTS = Path(xdyna.__file__).resolve().parent / "weights" / "textures-synth.safetensors"
KIND = "xdyna.textures"

#: Kinds of scenes, and what can be wrong with the order of the frames: what the features were trained to tell.
SCENES = ("studio", "sea", "waterfall", "fire", "snow", "meadow", "rain", "fireworks", "grass")
ORDERS = ("natural", "reversed", "frozen", "shuffled", "held", "paused")
#: Amounts that they were trained to tell, in units of about one: pace (doublings), noise, blur, flicker, shake.
AMOUNTS = ("pace", "noise", "blur", "flicker", "shake")

#: Frames that the network was trained on, and the fewest that it can say anything of.
WINDOW, LEAST_FRAMES = 16, 8


@dataclass(frozen=True)
class TexturesShape:
    """What the network is built from.

    Attributes:
        size_wh: frames that it reads, pixels; others are resized. Multiples of 16.
        widths: channels at a quarter, an eighth and a sixteenth of that size, multiples of 8.
        features: length of the feature vector.
    """

    size_wh: tuple[int, int] = (64, 64)
    widths: tuple[int, int, int] = (16, 48, 96)
    features: int = 64


class TextureNet(nn.Module):
    """Space and time in turn: 2-D convolutions in frames, 1-D ones along time; means and spreads over the whole clip.

    What was trained are linear readings of the feature vector, so that distances between vectors mean something.
    """

    def __init__(self, shape: TexturesShape) -> None:
        super().__init__()
        quarter, eighth, sixteenth = shape.widths
        self.shape = shape
        self.stem = nn.Conv3d(6, quarter, (1, 8, 8), stride=(1, 4, 4), padding=(0, 2, 2))
        self.quarter = _Block(quarter)
        self.down8 = nn.Conv3d(quarter, eighth, 3, stride=2, padding=1)
        self.eighth = nn.Sequential(_Block(eighth), _Block(eighth))
        self.down16 = nn.Conv3d(eighth, sixteenth, 3, stride=2, padding=1)
        self.sixteenth = _Block(sixteenth)
        self.features = nn.Linear(2 * sum(shape.widths), shape.features)
        self.read = nn.Linear(shape.features, len(SCENES) + len(ORDERS) + len(AMOUNTS))

    def forward(self, clips: Tensor) -> Tensor:
        """float [N, 3, F, H, W] in -1..1, of `shape.size_wh` -> features [N, D]."""
        step = torch.diff(clips, dim=2, prepend=clips[:, :, 1:2])  # the first frame's is that of the second, backwards
        fine = self.quarter(self.stem(torch.cat([clips, 4 * step], 1)))
        middle = self.eighth(self.down8(fine))
        coarse = self.sixteenth(self.down16(middle))
        levels = [level.flatten(2) for level in (fine, middle, coarse)]
        spread = [(level.var(-1, correction=0) + 1e-4).sqrt() for level in levels]
        return torch.as_tensor(self.features(torch.cat([level.mean(-1) for level in levels] + spread, 1)))

    def readings(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [N, D] -> logits of the scene [N, 9] and of the order [N, 6], and amounts [N, 5]."""
        scene, order, amounts = self.read(features).split([len(SCENES), len(ORDERS), len(AMOUNTS)], -1)
        return scene, order, amounts

    def save(self, path: Path, **notes: Any) -> None:
        """Write a safetensors file in half precision; the shape and `notes` go into its metadata."""
        save_net(self, path, KIND, self.shape, notes)


def load_textures(path: Path = WEIGHTS) -> TextureNet:
    """Read a network; the shipped one by default.

    Raises:
        UserError: no such file, or it holds something else.
    """
    given, tensors = read_net(path, KIND, "the weights of a texture network (`xdyna train textures`)")
    shape = TexturesShape(tuple(given["size_wh"]), tuple(given["widths"]), given["features"])
    net = TextureNet(shape)
    net.load_state_dict(tensors)
    return net.requires_grad_(False).eval()


@torch.no_grad()
def texture_features(frames: Frames, net: TextureNet) -> NDArray[np.float32]:
    """Features of a clip, 16 frames at a time.

    Args:
        frames: uint8 RGB [F, H, W, 3], 8 or more frames, at about 12 per second, as the network was trained.
        net: see `load_textures`.

    Returns:
        float32 [n, D]: as many windows of 16 frames as it takes to cover the clip, evenly spread; a clip of 8 to 15
        frames is one.
    """
    check_clip(frames, least=LEAST_FRAMES)
    clips = as_clips(torch.as_tensor(np.ascontiguousarray(frames))[None], net.shape.size_wh)[0]
    return np.concatenate([net(clips[None, :, span]).numpy() for span in windows_of(len(frames))]).astype(np.float32)


def windows_of(num_frames: int) -> list[slice]:
    """The frames of each window; neighbours share some where the clip is no whole number of windows long."""
    length = min(WINDOW, num_frames)
    starts = np.linspace(0, num_frames - length, -(-num_frames // length)).round().astype(int)
    return [slice(int(start), int(start) + length) for start in starts]


def as_clips(frames: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """uint8 [N, F, H, W, 3] -> float [N, 3, F, h, w] in -1..1 at the network's size."""
    count, length = frames.shape[:2]
    pictures = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    small = resized(pictures, size_wh)
    return small.reshape(count, length, *small.shape[1:]).transpose(1, 2)


def resized(pictures: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """Pictures float [N, 3, H, W] brought to a size; the aspect is not kept."""
    size_hw = (size_wh[1], size_wh[0])
    if pictures.shape[2:] == size_hw:
        return pictures
    return F.interpolate(pictures, size=size_hw, mode="bilinear", antialias=True)


class _Block(nn.Module):
    """A residual step in space, then one in time; [N, C, F, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = nn.Sequential(
            nn.GroupNorm(channels // 8, channels),
            nn.SiLU(),
            nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1)),
        )
        self.time = nn.Sequential(
            nn.GroupNorm(channels // 8, channels),
            nn.SiLU(),
            nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.space(x)
        return torch.as_tensor(x + self.time(x))


def _features(frames: Frames, masks: NDArray[Any] | None, region: Region, net: TextureNet) -> NDArray[np.float32]:
    return texture_features(isolated(frames, masks, region), net)


SPECS = (
    SetMetric(
        name="dtfvd-synth", unit="", better="lower", needs=frozenset({"truth"}), regions=ALL_REGIONS,
        backbone="textures-synth", least_frames=LEAST_FRAMES, features=_features,
    ),
)  # fmt: skip
