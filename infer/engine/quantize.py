"""Weights of the UNet and of the ControlNets in 8 bits, through torchao (extra `quant`).

Only weights: each is turned back into the networks' own type where it is used, so this saves memory, not time. Every
output channel has a scale of its own. What is small or where errors show (first and last layers, norms, the embedding
of time and of the maps, LoRAs) stays as it is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from xdyna.errors import UserError

if TYPE_CHECKING:
    from xdyna.pipeline import XDynaPipeline

Kind = Literal["int8", "fp8"]
#: Parts of a pipeline whose weights are turned; what adapters share with the UNet is turned once.
PARTS = ("unet", "pose_controlnet", "face_controlnet", "dynamics_adapter")
#: Where in them: not the first and last layers, nor embeddings.
_INSIDE = frozenset({"down_blocks", "mid_block", "up_blocks", "layers"})
_LORA = frozenset({"lora_A", "lora_B"})


@dataclass(frozen=True)
class Quantized:
    """What became of the weights.

    Attributes:
        kind: `int8` or `fp8`.
        num_layers: turned.
        bytes_before: of all weights of the parts.
        bytes_after: likewise, with scales.
    """

    kind: Kind
    num_layers: int
    bytes_before: int
    bytes_after: int

    def line(self) -> str:
        """For the user."""
        before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
        return (
            f"quantize: {self.num_layers} layers in {self.kind}; the networks take {after:.1f} MB, not {before:.1f} MB"
        )


def check_quantize(kind: Kind, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse, before a model is loaded, what cannot be done here: by doing it to one layer of each kind.

    Args:
        kind: of the weights.
        device: that the model will run on.
        dtype: of the networks.
    Raises:
        UserError: no torchao, or a device that lacks the numbers or their arithmetic.
    """
    _store(kind)  # told apart from what the device lacks
    try:
        with torch.no_grad():
            for layer, shape in ((nn.Linear(16, 16), (1, 16)), (nn.Conv2d(16, 16, 3), (1, 16, 4, 4))):
                quantize_layer(layer.to(dtype), kind)
                if not layer.to(device)(torch.ones(shape, device=device, dtype=dtype)).isfinite().all():
                    raise RuntimeError("its result is not finite")
    except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"--quantize {kind}: does not run on {device} in {str(dtype).removeprefix('torch.')} with torch"
            f" {torch.__version__} ({reason}); leave it out, or take another --dtype"
            + (" or --quantize int8" if kind == "fp8" else "")
        ) from error


@torch.no_grad()
def quantize_pipeline(pipe: XDynaPipeline, kind: Kind) -> Quantized:
    """Turn a pipeline's weights, in place. LoRAs must be loaded before: later ones would not fit.

    Raises:
        UserError: no torchao.
    """
    parts = [part for name in PARTS if (part := getattr(pipe, name)) is not None]
    before = _bytes_of(parts)
    layers = {layer: None for part in parts for layer in quantizable(part)}
    for layer in layers:
        quantize_layer(layer, kind)
    return Quantized(kind, len(layers), before, _bytes_of(parts))


def quantizable(part: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """The layers of a network that are turned."""
    for name, module in part.named_modules():
        path = set(name.split("."))
        if isinstance(module, (nn.Linear, nn.Conv2d)) and path & _INSIDE and not path & _LORA:
            yield module


def quantize_layer(layer: nn.Module, kind: Kind) -> None:
    """Turn the weight of a linear layer or a convolution, in place.

    Raises:
        UserError: no torchao.
    """
    stored = _store(kind)(layer.weight.data)
    layer.weight = nn.Parameter(stored, requires_grad=False)
    if isinstance(layer, nn.Conv2d):
        # torchao multiplies matrices with such weights, but has no convolution for them.
        layer.__class__ = StoredConv2d


class StoredConv2d(nn.Conv2d):
    """A convolution whose weight is turned back for each call."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if hasattr(weight, "qdata"):
            weight = weight.dequantize()
        out: Tensor = super()._conv_forward(input, weight, bias)
        return out


def refuse_layer_by_layer(pipe: XDynaPipeline) -> None:
    """Refuse to let a pipeline's layers wait on the host one by one where their weights are turned.

    Raises:
        UserError: they are.
    """
    if any(hasattr(value, "qdata") for value in pipe.unet.parameters()):
        raise UserError(
            "--quantize: what memory there is asks for layers that wait on the host one by one, which weights in 8 bits"
            " cannot; leave --quantize out, raise --vram, or lower --size or --window"
        )


def stored_bytes(value: Any) -> int:
    """Bytes that a tensor takes, of a turned one those of its numbers and scales."""
    if not hasattr(value, "qdata"):
        return int(value.numel() * value.element_size())
    names = (*value.tensor_data_names, *getattr(value, "optional_tensor_data_names", ()))
    held = (getattr(value, name, None) for name in names)
    return sum(stored_bytes(part) for part in held if part is not None)


def _bytes_of(parts: list[nn.Module]) -> int:
    values = {id(value): value for part in parts for value in part.parameters()}
    return sum(map(stored_bytes, values.values()))


def _store(kind: Kind) -> Any:
    """A function from a weight [O, ..] to the tensor that stores it, with one scale for each of O.

    Raises:
        UserError: no torchao, or one that lacks what is wanted.
    """
    try:
        with _quiet():
            from torchao.quantization import Float8Tensor, Int8Tensor, PerAxis
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("torchao")
        reason = "torchao is not installed" if absent else f"torchao cannot be used ({error})"
        raise UserError(f"--quantize {kind}: {reason}: pip install 'xdyna[quant]'") from None
    stored = Int8Tensor if kind == "int8" else Float8Tensor
    return lambda weight: stored.from_hp(weight, granularity=PerAxis(0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torchao says while it is imported: of kernels for other hardware, and of its own future."""
    names = ("torchao", "torch.utils._pytree")
    loggers = [logging.getLogger(name) for name in names]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
