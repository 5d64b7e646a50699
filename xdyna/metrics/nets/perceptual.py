"""LPIPS (Zhang et al. 2018), version 0.1: AlexNet's or VGG's layers and the learned weights of their channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from xdyna.errors import UserError
from xdyna.metrics.nets.files import channels, filled, read_tensors

#: What the networks were trained to expect, for pictures in -1..1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class Trunk:
    """Convolutions of an image classifier, as a list of layers numbered as in its published weights.

    Attributes:
        convs: layer number -> (channels in, channels out, kernel, stride, padding).
        pools: layer number -> (kernel, stride).
        taken: numbers of the ReLU layers that are compared.
    """

    convs: dict[int, tuple[int, int, int, int, int]]
    pools: dict[int, tuple[int, int]]
    taken: tuple[int, ...]


ALEX = Trunk(
    {
        0: (3, 64, 11, 4, 2), 3: (64, 192, 5, 1, 2), 6: (192, 384, 3, 1, 1),
        8: (384, 256, 3, 1, 1), 10: (256, 256, 3, 1, 1),
    },
    {2: (3, 2), 5: (3, 2)},
    (1, 4, 7, 9, 11),
)  # fmt: skip


def _vgg() -> Trunk:
    convs, pools, number, inside = {}, {}, 0, 3
    for stage, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        if stage:
            pools[number] = (2, 2)
            number += 1
        for _ in range(count):
            convs[number] = (inside, width, 3, 1, 1)
            inside, number = width, number + 2
    return Trunk(convs, pools, (3, 8, 15, 22, 29))


VGG = _vgg()


class Lpips(nn.Module):
    """Perceptual distance, pixel by pixel.

    Args:
        trunk: whose layers are compared.
        narrow: every layer has this many times fewer channels (for tests).
    """

    def __init__(self, trunk: Trunk, narrow: int = 1) -> None:
        super().__init__()
        self.trunk = trunk
        convs = {
            str(number): nn.Conv2d(inside // narrow if number else 3, outside // narrow, kernel, stride, padding)
            for number, (inside, outside, kernel, stride, padding) in trunk.convs.items()
        }
        self.features = nn.ModuleDict(convs)
        for index, number in enumerate(trunk.taken):
            lin = nn.Module()
            # Layer 0 is the dropout of the training.
            lin.model = nn.ModuleDict({"1": nn.Conv2d(convs[str(number - 1)].out_channels, 1, 1, bias=False)})
            self.add_module(f"lin{index}", lin)

    def layers(self, pictures: Tensor) -> list[Tensor]:
        """What is compared of pictures [N, 3, H, W] in 0..1: layers [N, C, h, w], each pixel of length 1."""
        shift, scale = (pictures.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        x = (pictures * 2 - 1 - shift) / scale
        found = []
        for number in range(self.trunk.taken[-1] + 1):
            if number in self.trunk.convs:
                x = self.features[str(number)](x)
            elif number in self.trunk.pools:
                x = F.max_pool2d(x, *self.trunk.pools[number])
            else:
                x = F.relu(x)
            if number in self.trunk.taken:
                found.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def forward(self, made: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
        """Distance of pictures [N, 3, H, W] in 0..1 to others: [N].

        Args:
            made: pictures.
            truth: of the same shape.
            where: share of each pixel that counts, [N, 1, H, W] in 0..1, not all 0; None counts all alike. It is
                averaged down to each layer's size.
        """
        total = made.new_zeros(len(made))
        for index, (a, b) in enumerate(zip(self.layers(made), self.layers(truth), strict=True)):
            weigh: nn.Conv2d = getattr(self, f"lin{index}").model["1"]
            apart = weigh((a - b) ** 2)  # [N, 1, h, w]
            if where is None:
                total = total + apart.mean((1, 2, 3))
            else:
                counts = F.adaptive_avg_pool2d(where, apart.shape[2:])
                total = total + (apart * counts).sum((1, 2, 3)) / counts.sum((1, 2, 3))
        return total


def load_alex(trunk_path: Path, weights_path: Path) -> Lpips:
    """LPIPS with AlexNet: its classifier's file and that of the channels' weights."""
    return _load(ALEX, trunk_path, weights_path)


def load_vgg(trunk_path: Path, weights_path: Path) -> Lpips:
    """LPIPS with VGG-16: its classifier's file and that of the channels' weights."""
    return _load(VGG, trunk_path, weights_path)


def _load(trunk: Trunk, trunk_path: Path, weights_path: Path) -> Lpips:
    tensors, weights = read_tensors(trunk_path), read_tensors(weights_path)
    narrow = 64 // channels(tensors, "features.0.weight", trunk_path)
    _check_weights(weights, len(trunk.taken), weights_path)
    return filled(lambda: Lpips(trunk, narrow), {**tensors, **weights}, trunk_path)


def _check_weights(weights: dict[str, Tensor], count: int, path: Path) -> None:
    wanted: Sequence[str] = [f"lin{index}.model.1.weight" for index in range(count)]
    if missing := [key for key in wanted if key not in weights]:
        raise UserError(f"{path}: lacks {missing[0]}; wanted LPIPS's weights of {count} layers (version 0.1)")
    if any(bool((weights[key] < 0).any()) for key in wanted):
        raise UserError(f"{path}: holds negative weights; wanted LPIPS's, which are 0 or more")
