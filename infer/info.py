"""What `xdyna info` shows: what would run here, on what, and with what."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
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
    dtype = choose_dtype(dtype_name, device)
    return {
        "xdyna": xdyna.__version__,
        "folder": Path(xdyna.__file__).resolve().parent,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": _device(device),
        "dtype": str(dtype).removeprefix("torch."),
        "attention": attention_backends(device),
        "attention_taken": attention_taken(device, dtype),
        "memory": _memory(device),
        "versions": versions(),
        "built_with": built_with(),
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


def built_with() -> dict[str, str | None]:
    """Versions of what torch and av bring along; None where they were built without."""
    import av
    import torch

    cudnn: Any = torch.backends.cudnn
    codec = av.library_versions.get("libavcodec")
    return {
        "CUDA": torch.version.cuda,
        "cuDNN": str(cudnn.version()) if cudnn.is_available() else None,
        "ROCm": getattr(torch.version, "hip", None),
        "libavcodec": ".".join(map(str, codec)) if codec else None,
    }


def attention_taken(device: torch.device, dtype: torch.dtype) -> str | None:
    """The backend that torch takes for attention like the UNet's; None where it does not tell."""
    import torch
    from torch.nn.attention import SDPBackend

    q = torch.zeros(1, 8, 64, 40, device=device, dtype=dtype)
    try:
        number = torch._fused_sdp_choice(q, q, q)
        name = str(SDPBackend(number).name)
    except (AttributeError, RuntimeError, ValueError, NotImplementedError):
        return None
    return name.removesuffix("_ATTENTION").lower().replace("_", "-")


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
        "model": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor's name; its kind where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> dict[str, int]:
    """Bytes of memory of the machine, or of the container that it is divided into, and of them those to be had.

    Args:
        proc, cgroup: where Linux tells them.
    """
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError):
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
        found = {"host_total": kib["MemTotal"] * 1024, "host_free": kib.get("MemAvailable", kib["MemFree"]) * 1024}
    with suppress(OSError, ValueError, KeyError):
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        if limit < found["host_total"]:
            found = {"host_total": limit, "host_free": min(found["host_free"], max(0, limit - used))}
    return found


def _memory(device: torch.device) -> dict[str, float]:
    """GiB of the machine and of the device, as far as they can be told."""
    found = host_memory()
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        found |= {"device_total": total, "device_free": free}
    return {name: round(value / GIB, 2) for name, value in found.items()}


def _models() -> list[dict[str, Any]]:
    """The models that `xdyna animate --model` finds by name, which of them `auto` takes, and others that lie there."""
    from xdyna.errors import UserError
    from xdyna.infer.load import choose_model, is_model
    from xdyna.models import converted_folder

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
    official = converted_folder("x-dyna")
    for folder in sorted(official.parent.glob("*")):
        if is_model(folder) and folder != official:
            about = f"--model {folder}"
            found.append({"name": folder.name, "found": True, "about": about, "folder": folder, "auto": False})
    return found
