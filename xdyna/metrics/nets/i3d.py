"""Inflated Inception (Carreira and Zisserman 2017) with the names of the public PyTorch weights.

Two networks have this form: the one trained on Kinetics-400, by whose logits FVD is defined, and the one trained on
dynamic textures (DTDB), by whose pooled features DTFVD is. They differ in the batch norms' epsilon and in what is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xdyna.errors import UserError
from xdyna.metrics.nets.files import channels, filled, is_torchscript, read_tensors

#: Frames per feature vector, and the side to which they are brought, pixels.
NUM_FRAMES, SIDE_PX = 16, 224

#: Output channels of a module's branches: 1x1, 1x1 -> 3x3, 1x1 -> 3x3, pooling -> 1x1.
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_POOLS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}

Reads = Literal["logits", "pooled"]
Triple = tuple[int, int, int]


class I3D(nn.Module):
    """Features of clips.

    Args:
        num_classes: of the last layer, 400 or 18.
        reads: `logits`, their mean over time; or `pooled`, the features before the last layer.
        norm_eps: of the batch norms.
        narrow: every layer has this many times fewer channels (for tests).
    """

    num_frames = NUM_FRAMES

    def __init__(
        self, num_classes: int = 400, reads: Reads = "logits", norm_eps: float = 1e-3, narrow: int = 1
    ) -> None:
        super().__init__()
        self.reads: Reads = reads

        def unit(inside: int, outside: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> Unit:
            return Unit(inside, outside, kernel, stride, norm_eps)

        self.Conv3d_1a_7x7 = unit(3, 64 // narrow, (7, 7, 7), (2, 2, 2))
        self.Conv3d_2b_1x1 = unit(64 // narrow, 64 // narrow, (1, 1, 1))
        self.Conv3d_2c_3x3 = unit(64 // narrow, 192 // narrow, (3, 3, 3))
        width = 192 // narrow
        for name, branches in MIXED.items():
            sizes = [size // narrow for size in branches]
            self.add_module(name, Mixed(width, sizes, norm_eps))
            width = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        self.logits = Unit(width, num_classes, (1, 1, 1), (1, 1, 1), None)

    def forward(self, clips: Tensor) -> Tensor:
        """float [N, 3, T, H, W] in 0..1, T of 16 or more, any size -> [N, D]."""
        clips = fitted(clips, SIDE_PX, align_corners=self.reads == "pooled") * 2 - 1
        x = same_pool(self.Conv3d_1a_7x7(clips), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = same_pool(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name in _POOLS:
                x = same_pool(x, *_POOLS[name])
            x = getattr(self, name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        if self.reads == "logits":
            x = self.logits(x)
        return x.mean((2, 3, 4))


class Unit(nn.Module):
    """Convolution with TensorFlow's padding, batch norm, ReLU; with `norm_eps` None a bias and nothing after it."""

    def __init__(self, inside: int, outside: int, kernel: Triple, stride: Triple, norm_eps: float | None) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inside, outside, kernel, stride, bias=norm_eps is None)
        self.bn = None if norm_eps is None else nn.BatchNorm3d(outside, eps=norm_eps)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(F.pad(x, same_padding(x.shape[2:], self.kernel, self.stride)))
        return x if self.bn is None else F.relu(self.bn(x))


class Mixed(nn.Module):
    """An Inception module: four branches side by side."""

    def __init__(self, inside: int, sizes: list[int], norm_eps: float) -> None:
        super().__init__()
        one, three = (1, 1, 1), (3, 3, 3)
        self.b0 = Unit(inside, sizes[0], one, one, norm_eps)
        self.b1a = Unit(inside, sizes[1], one, one, norm_eps)
        self.b1b = Unit(sizes[1], sizes[2], three, one, norm_eps)
        self.b2a = Unit(inside, sizes[3], one, one, norm_eps)
        self.b2b = Unit(sizes[3], sizes[4], three, one, norm_eps)
        self.b3b = Unit(inside, sizes[5], one, one, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        pooled = same_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


def same_padding(shape: torch.Size, kernel: Triple, stride: Triple) -> list[int]:
    """Zeros before and after each axis, last axis first, so that a stride of s leaves 1/s of it, rounded up."""
    padding: list[int] = []
    for size, wide, step in reversed(list(zip(shape, kernel, stride, strict=True))):
        both = max(wide - (size % step or step), 0)
        padding += [both // 2, both - both // 2]
    return padding


def same_pool(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Largest value; the padding counts as 0, as in the networks' training."""
    return F.max_pool3d(F.pad(x, same_padding(x.shape[2:], kernel, stride)), kernel, stride)


def fitted(clips: Tensor, side_px: int, *, align_corners: bool = False) -> Tensor:
    """Frames of clips [N, 3, T, H, W] brought to squares, bilinearly and without a filter, as FVD is computed."""
    count, colours, length = clips.shape[:3]
    frames = clips.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=(side_px, side_px), mode="bilinear", align_corners=align_corners)
    return frames.reshape(count, length, colours, side_px, side_px).transpose(1, 2)


def load_kinetics(path: Path) -> I3D:
    """The network of FVD from a file of tensors."""
    return _load(path, "logits", 1e-3)


def load_textures(path: Path) -> I3D:
    """The network of DTFVD from a file of tensors."""
    return _load(path, "pooled", 1e-5)


def _load(path: Path, reads: Reads, norm_eps: float) -> I3D:
    tensors = read_tensors(path)
    narrow = 64 // channels(tensors, "Conv3d_1a_7x7.conv3d.weight", path)
    classes = channels(tensors, "logits.conv3d.weight", path)
    return filled(lambda: I3D(classes, reads, norm_eps, narrow), tensors, path)


class ScriptedI3D(nn.Module):
    """The Kinetics network as a TorchScript archive that takes clips in -1..1 and a flag for its features."""

    num_frames = NUM_FRAMES

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        """float [N, 3, T, H, W] in 0..1 -> [N, 400]."""
        inputs = fitted(clips, SIDE_PX) * 2 - 1
        features: Tensor = self.network(inputs, rescale=False, resize=False, return_features=True)
        return features


def load_scripted(path: Path) -> ScriptedI3D:
    """The network of FVD from a TorchScript archive. This runs the code in it.

    Raises:
        UserError: it is no such archive.
    """
    if not is_torchscript(path):
        raise UserError(f"{path}: not a TorchScript archive")
    network = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return ScriptedI3D(network.eval())
