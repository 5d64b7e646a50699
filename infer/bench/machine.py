"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xdyna

_PACKAGES = ("torch", "diffusers", "transformers", "numpy")


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, memory, device, versions, threads."""
    import torch

    described: dict[str, Any] = {
        "processor": _from_proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(_total_memory_bytes() / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "device": device,
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {"xdyna": xdyna.__version__, **{name: _version(name) for name in _PACKAGES}},
        "commit": _commit(),
    }
    if device.startswith("cuda"):
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


def _from_proc(file: str, field: str) -> str:
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _total_memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _commit() -> str:
    """The checkout's commit, marked where the code has changed since; empty for an installed package."""
    root = Path(xdyna.__file__).resolve().parents[1]
    if not (root / "constraints.txt").is_file():
        return ""
    try:
        found = [
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{found[0]} with changes" if found[1] else found[0]
