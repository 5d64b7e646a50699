"""Inception v3 as FID is defined by it, with the names of the public PyTorch weights.

It differs from the usual Inception v3: average pooling leaves the padding out, and the last module takes the largest
value where the others take the mean.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xdyna.metrics.nets.files import channels, filled, read_tensors

SIDE_PX = 299


class InceptionV3(nn.Module):
    """Features of pictures.

    Args:
        narrow: every layer has this many times fewer channels (for tests).
    """

    def __init__(self, narrow: int = 1) -> None:
        super().__init__()
        n = narrow
        self.Conv2d_1a_3x3 = Conv(3, 32 // n, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32 // n, 32 // n, 3)
        self.Conv2d_2b_3x3 = Conv(32 // n, 64 // n, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64 // n, 80 // n, 1)
        self.Conv2d_4a_3x3 = Conv(80 // n, 192 // n, 3)
        self.Mixed_5b = Fives(192, 32, n)
        self.Mixed_5c = Fives(256, 64, n)
        self.Mixed_5d = Fives(288, 64, n)
        self.Mixed_6a = Shrink(288, n)
        self.Mixed_6b = Sevens(128, n)
        self.Mixed_6c = Sevens(160, n)
        self.Mixed_6d = Sevens(160, n)
        self.Mixed_6e = Sevens(192, n)
        self.Mixed_7a = ShrinkSevens(n)
        self.Mixed_7b = Spread(1280, n, most=False)
        self.Mixed_7c = Spread(2048, n, most=True)

    def forward(self, pictures: Tensor) -> Tensor:
        """float [N, 3, H, W] in 0..1, any size -> [N, 2048]."""
        size = (SIDE_PX, SIDE_PX)
        x = F.interpolate(pictures, size=size, mode="bilinear", align_corners=False) * 2 - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return torch.mean(x, (2, 3))


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean_of_nine(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Fives(nn.Module):
    """Modules 5b to 5d."""

    def __init__(self, inside: int, pooled: int, narrow: int) -> None:
        super().__init__()
        n, inside = narrow, inside // narrow
        self.branch1x1 = Conv(inside, 64 // n, 1)
        self.branch5x5_1 = Conv(inside, 48 // n, 1)
        self.branch5x5_2 = Conv(48 // n, 64 // n, 5, padding=2)
        self.branch3x3dbl_1 = Conv(inside, 64 // n, 1)
        self.branch3x3dbl_2 = Conv(64 // n, 96 // n, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96 // n, 96 // n, 3, padding=1)
        self.branch_pool = Conv(inside, pooled // n, 1)

    def forward(self, x: Tensor) -> Tensor:
        fives = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), fives, threes, self.branch_pool(_mean_of_nine(x))], 1)


class Shrink(nn.Module):
    """Module 6a."""

    def __init__(self, inside: int, narrow: int) -> None:
        super().__init__()
        n, inside = narrow, inside // narrow
        self.branch3x3 = Conv(inside, 384 // n, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inside, 64 // n, 1)
        self.branch3x3dbl_2 = Conv(64 // n, 96 // n, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96 // n, 96 // n, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), threes, F.max_pool2d(x, 3, stride=2)], 1)


class Sevens(nn.Module):
    """Modules 6b to 6e."""

    def __init__(self, inner: int, narrow: int) -> None:
        super().__init__()
        inside, inner, out = 768 // narrow, inner // narrow, 192 // narrow

        def flat(out: int) -> Conv:
            return Conv(inner, out, (1, 7), padding=(0, 3))

        def tall(out: int) -> Conv:
            return Conv(inner, out, (7, 1), padding=(3, 0))

        self.branch1x1 = Conv(inside, out, 1)
        self.branch7x7_1 = Conv(inside, inner, 1)
        self.branch7x7_2 = flat(inner)
        self.branch7x7_3 = tall(out)
        self.branch7x7dbl_1 = Conv(inside, inner, 1)
        self.branch7x7dbl_2 = tall(inner)
        self.branch7x7dbl_3 = flat(inner)
        self.branch7x7dbl_4 = tall(inner)
        self.branch7x7dbl_5 = flat(out)
        self.branch_pool = Conv(inside, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean_of_nine(x))], 1)


class ShrinkSevens(nn.Module):
    """Module 7a."""

    def __init__(self, narrow: int) -> None:
        super().__init__()
        inside, width, out = 768 // narrow, 192 // narrow, 320 // narrow
        self.branch3x3_1 = Conv(inside, width, 1)
        self.branch3x3_2 = Conv(width, out, 3, stride=2)
        self.branch7x7x3_1 = Conv(inside, width, 1)
        self.branch7x7x3_2 = Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3_2(self.branch3x3_1(x))
        sevens = self.branch7x7x3_2(self.branch7x7x3_1(x))
        sevens = self.branch7x7x3_4(self.branch7x7x3_3(sevens))
        return torch.cat([threes, sevens, F.max_pool2d(x, 3, stride=2)], 1)


class Spread(nn.Module):
    """Modules 7b and 7c; `most`: the last branch takes the largest value, not the mean."""

    def __init__(self, inside: int, narrow: int, *, most: bool) -> None:
        super().__init__()
        n, inside = narrow, inside // narrow
        self.most = most
        self.branch1x1 = Conv(inside, 320 // n, 1)
        self.branch3x3_1 = Conv(inside, 384 // n, 1)
        self.branch3x3_2a = Conv(384 // n, 384 // n, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384 // n, 384 // n, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(inside, 448 // n, 1)
        self.branch3x3dbl_2 = Conv(448 // n, 384 // n, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384 // n, 384 // n, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384 // n, 384 // n, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(inside, 192 // n, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.most else _mean_of_nine(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


def load_inception(path: Path) -> InceptionV3:
    """The network of FID from a file of tensors; its classes (`fc`) are left aside."""
    tensors = read_tensors(path)
    narrow = 32 // channels(tensors, "Conv2d_1a_3x3.conv.weight", path)
    return filled(lambda: InceptionV3(narrow), tensors, path)
