"""What `xdyna info` shows: what would run here, on what, and with what."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xdyna

if TYPE_CHECKING:
    import torch

#: Libraries that decide what a run gives, and those that extras bring.
LIBRARIES = (
    "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "av", "opencv-contrib-python",
    "mediapipe", "onnxruntime", "insightface", "decord", "ray", "tensorboard", "bitsandbytes", "deepspeed",
    "torchvision", "torchao",
)  # fmt: skip
GIB = 1 << 30


def collect(device_name: str = "auto", dtype_name: str = "auto") -> dict[str, Any]:
    """The facts, in plain values.

    Args:
        device_name: as `--device`.
        dtype_name: as `--dtype`.

    Raises:
        UserError: a device that is not here.
    """
    from xdyna.infer.load import choose_device, choose_dtype

    device = choose_device(device_name)
    return {
        "xdyna": xdyna.__version__,
        "folder": Path(xdyna.__file__).resolve().parent,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": _device(device),
        "dtype": str(choose_dtype(dtype_name, device)).removeprefix("torch."),
        "attention": attention_backends(device),
        "memory": _memory(device),
        "versions": versions(),
        "models": _models(),
    }


def versions() -> dict[str, str | None]:
    """Version of each library; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def attention_backends(device: torch.device) -> list[str]:
    """Backends that torch's fused attention may choose from on a device, best first."""
    import torch

    if device.type != "cuda":
        return ["flash (CPU)" if device.type == "cpu" else device.type, "math"]
    cuda: Any = torch.backends.cuda  # its functions have no types
    enabled = {
        "cudnn": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "memory-efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    return [name for name, is_on in enabled.items() if is_on]


def _device(device: torch.device) -> dict[str, Any]:
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"name": str(device), "model": properties.name, "capability": f"{properties.major}.{properties.minor}"}
    return {
        "name": str(device),
        "model": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _memory(device: torch.device) -> dict[str, float]:
    """GiB of the machine and of the device, as far as they can be told."""
    found = {}
    if hasattr(os, "sysconf") and sys.platform != "darwin":
        page = os.sysconf("SC_PAGE_SIZE")
        found["host_total"] = os.sysconf("SC_PHYS_PAGES") * page / GIB
        found["host_free"] = os.sysconf("SC_AVPHYS_PAGES") * page / GIB
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        found |= {"device_total": total / GIB, "device_free": free / GIB}
    return {name: round(value, 2) for name, value in found.items()}


def _models() -> list[dict[str, Any]]:
    """The models that `xdyna animate --model` finds by name; which of them `auto` takes."""
    from xdyna.errors import UserError
    from xdyna.infer.load import choose_model

    found: list[dict[str, Any]] = []
    auto = choose_model("auto").folder
    for name in ("x-dyna", "tiny"):
        try:
            choice = choose_model(name)
        except UserError as error:
            found.append({"name": name, "found": False, "about": str(error)})
        else:
            found.append(
                {
                    "name": name,
                    "found": True,
                    "about": choice.reason,
                    "folder": choice.folder,
                    "auto": choice.folder == auto,
                }
            )
    return found
