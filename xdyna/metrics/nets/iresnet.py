"""The residual network of face recognition (IR-18 to IR-101), with the names of AdaFace's weights."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from xdyna.errors import UserError
from xdyna.metrics.nets.files import below, channels, filled, read_tensors

#: Blocks per stage; IR-50 and IR-101 are those whose weights are best known.
DEPTHS = {"ir_18": (2, 2, 2, 2), "ir_34": (3, 4, 6, 3), "ir_50": (3, 4, 14, 3), "ir_101": (3, 13, 30, 3)}
#: Side of the aligned faces, pixels.
SIDE_PX = 112


class IResNet(nn.Module):
    """Directions of aligned faces.

    Args:
        depths: blocks of the four stages, see `DEPTHS`.
        width: channels of the first stage; each stage doubles them.
        size: of the direction.
        bgr: whether the weights were trained on blue first, as AdaFace's own were.
    """

    def __init__(
        self, depths: tuple[int, ...] = DEPTHS["ir_50"], width: int = 64, size: int = 512, *, bgr: bool = True
    ) -> None:
        super().__init__()
        self.bgr = bgr
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        blocks, inside = [], width
        for stage, count in enumerate(depths):
            for index in range(count):
                blocks.append(Block(inside, width << stage, 1 if index else 2))
                inside = width << stage
        self.body = nn.Sequential(*blocks)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(inside * (SIDE_PX // 16) ** 2, size),
            nn.BatchNorm1d(size, affine=False),
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Aligned RGB faces, float [N, 3, 112, 112] in 0..1 -> [N, 512] of length 1."""
        pictures = faces.flip(1) if self.bgr else faces
        return F.normalize(self.output_layer(self.body(self.input_layer(pictures * 2 - 1))))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inside != outside:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.PReLU(outside),
            nn.Conv2d(outside, outside, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, x: Tensor) -> Tensor:
        beside: Tensor = self.shortcut_layer(x)
        new: Tensor = self.res_layer(x)
        return beside + new


def load_adaface(path: Path, *, bgr: bool = True) -> IResNet:
    """AdaFace's network of any depth, which is told from the file: a checkpoint of its training, or its weights alone.

    Args:
        path: safetensors or a torch file.
        bgr: see `IResNet`.

    Raises:
        UserError: the file holds something else.
    """
    tensors = below(read_tensors(path), "input_layer.0.weight", path)
    width = channels(tensors, "input_layer.0.weight", path)
    outputs: list[int] = []
    while (key := f"body.{len(outputs)}.res_layer.1.weight") in tensors:
        outputs.append(tensors[key].shape[0])
    depths = tuple(outputs.count(width << stage) for stage in range(4))
    if sum(depths) != len(outputs) or 0 in depths:
        raise UserError(f"{path}: its {len(outputs)} blocks are of {sorted(set(outputs))} channels, wanted 4 stages")
    size = channels(tensors, "output_layer.3.weight", path)
    return filled(lambda: IResNet(depths, width, size, bgr=bgr), tensors, path)
