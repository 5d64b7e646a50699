"""A device that is not there: its tensors lie on the CPU, but mix with the CPU's no more than a GPU's would.

What runs on it shows where tensors lie, and how many bytes lie there at once: weights, inputs, results and what lies
between. Its numbers are those of the CPU, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from xdyna.alive import Alive

DEVICE = torch.device("ipu:0")  # a name that torch knows and nobody has
#: What goes from device to device.
_MOVING = {Tensor.to, Tensor.cpu, Tensor.copy_, torch._has_compatible_shallow_copy_type}
#: Indices may come from the host.
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}


class Elsewhere(Tensor):
    """A tensor of the device.

    Args:
        data: on the CPU.
        requires_grad: of a parameter.
    """

    @staticmethod
    def __new__(cls, data: Tensor, requires_grad: bool = False) -> Any:
        if data.is_meta:  # accelerate makes parameters of the type that was there before
            return nn.Parameter(data, requires_grad=requires_grad)
        if isinstance(data, Elsewhere):
            return nn.Parameter(data, requires_grad=requires_grad)
        return Tensor._make_wrapper_subclass(
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=DEVICE,
        )

    def __init__(self, data: Tensor, requires_grad: bool = False) -> None:
        self.on_cpu = data

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of the block that the device is there in")


class Device(TorchDispatchMode):
    """The device, while a `with` block lasts; see `pretended`.

    Attributes:
        alive: follows the bytes on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = Alive()

    @property
    def peak(self) -> int:
        """Most bytes that lay on it at once."""
        return self.alive.peak

    def forget_peak(self) -> None:
        self.alive.peak = self.alive.now

    def put(self, data: Any) -> Any:
        """CPU tensors as the device's."""
        if not isinstance(data, Tensor) or isinstance(data, Elsewhere) or data.is_meta:
            return data
        self.alive._add(data.untyped_storage())
        return Elsewhere(data)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What moves tensors, or makes them out of nothing; all else is caught before."""
        kwargs = dict(kwargs or {})
        here = [value for value in tree_iter((args, kwargs)) if isinstance(value, Elsewhere)]
        to = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if here and to is not None and to.type == "meta":
            like = here[0]
            return torch.empty_strided(like.shape, like.stride(), dtype=kwargs.get("dtype") or like.dtype, device=to)
        if to is not None and to.type == DEVICE.type:
            kwargs["device"] = "cpu"
        own_args, own_kwargs = tree_map(_taken_off, (args, kwargs))
        out = func(*own_args, **own_kwargs)
        stays = bool(here) if to is None else to.type == DEVICE.type
        if func is torch.ops.aten.copy_.default:
            return args[0]
        return tree_map(self.put, out) if stays else out


class _Functions(TorchFunctionMode):
    """Runs functions on the device's tensors as the CPU would."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        here = {id(value.on_cpu): value for value in tensors if isinstance(value, Elsewhere)}
        named = "device" in kwargs or getattr(func, "__name__", "") in ("__get__", "__set__")
        if not here or func in _MOVING or named:
            return func(*args, **kwargs)
        first = tensors[0]
        strange = [value for value in tensors if not isinstance(value, Elsewhere) and value.ndim]
        if func in _INDEXING:
            strange = [first] * (not isinstance(first, Elsewhere))
            strange += [value for value in args[2:] if isinstance(value, Tensor) and not isinstance(value, Elsewhere)]
        if strange:
            raise RuntimeError(f"{func}: tensors on two devices")
        own_args, own_kwargs = tree_map(_taken_off, (args, kwargs))
        with torch._C._DisableTorchDispatch():
            out = func(*own_args, **own_kwargs)
        return tree_map(lambda value: here[id(value)] if id(value) in here else self._device.put(value), out)


def _taken_off(value: Any) -> Any:
    return value.on_cpu if isinstance(value, Elsewhere) else value


@contextmanager
def pretended() -> Iterator[Device]:
    """The device is there in a `with` block."""
    device = Device()
    torch.ipu = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: None)  # type: ignore[attr-defined]
    try:
        with torch.no_grad(), device, _Functions(device):
            yield device
    finally:
        del torch.ipu  # type: ignore[attr-defined]
