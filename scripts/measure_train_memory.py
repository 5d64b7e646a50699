"""Compare what `xdyna train --dry-run` says of memory with what training takes.

    python scripts/measure_train_memory.py

Each case runs in two processes of its own: one asks for the estimate, one trains a few steps. On a CPU the measure is
how far the resident memory grows from the loop's start to its highest point, on a GPU what torch has given out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

CASES: dict[str, list[str]] = {
    "adapter": ["dynamics_adapter", "batch=2"],
    "adapter, larger batch": ["dynamics_adapter", "batch=6"],
    "adapter, checkpointing": ["dynamics_adapter", "batch=6", "checkpointing=true"],
    "adapter, bf16": ["dynamics_adapter", "batch=4", "precision=bf16"],
    "motion, average": ["motion_module", "batch=2", "ema=0.99"],
    "new UNet, accumulated": ["image", "batch=4", "accumulate=2", "init=xdyna/weights/tiny", "widths=[32, 64, 96]"],
    "autoencoder": ["vae", "batch=48"],
}
COMMON = ["steps=3", "workers=0", "validate_clips=0", "sample_every=0", "reuse=1", "warmup=0"]
MIB = 2**20


def main() -> int:
    """Print a table; 1 if an estimate is off by more than 15 %."""
    worst = 0.0
    print(f"{'case':24}{'estimated':>12}{'measured':>12}{'off':>8}   (MB beyond weights and average)")
    for name, words in CASES.items():
        found = {kind: _child(kind, words) for kind in ("estimate", "measure")}
        off = found["estimate"] / found["measure"] - 1
        worst = max(worst, abs(off))
        print(f"{name:24}{found['estimate'] / MIB:12.1f}{found['measure'] / MIB:12.1f}{off:8.1%}", flush=True)
    return int(worst > 0.15)


def _child(kind: str, words: list[str]) -> float:
    done = subprocess.run([sys.executable, __file__, kind, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _one(kind: str, recipe: str, overrides: list[str]) -> float:
    """Bytes that a step takes beyond weights and average: estimated or measured."""
    from xdyna.configs import load_config
    from xdyna.configs.recipes import RECIPES
    from xdyna.train.dry import DryRun

    with tempfile.TemporaryDirectory() as out:
        given: dict[str, Any] = {"out": Path(out) / "run", "dry_run": kind == "estimate"}
        cfg = load_config(RECIPES[recipe], None, [*COMMON, *overrides], values=given)
        train = import_module(f"xdyna.train.recipes.{recipe}").train
        if kind == "measure":
            return _growth(lambda: train(cfg, quiet=True))
        try:
            train(cfg, quiet=True)
        except DryRun as done:
            memory = done.report["memory_bytes"]
            return float(memory["total"] - memory["weights"] - memory["average"])
    raise AssertionError("a dry run trained")


def _growth(train: Any) -> float:
    """Bytes by which memory grows from the loop's start to its peak."""
    import torch

    from xdyna.data.source import draw_batch
    from xdyna.train.run import Run

    steps, began = Run.steps, []

    def noted(run: Run) -> Any:
        draw_batch(run.source, run.plan.samples(0, 0))  # what is loaded to draw clips is no part of a step
        _warm_up()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            began.append(torch.cuda.memory_allocated())
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest point so far
            began.append(_resident("VmRSS"))
        yield from steps(run)

    Run.steps = noted  # type: ignore[method-assign]
    train()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")
    return float(peak - began[0])


def _warm_up() -> None:
    """Let torch load the code of common layers, which stays in memory ever after."""
    import torch
    from torch import nn

    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
    net(torch.ones(1, 8, 16, 16)).square().mean().backward()


def _resident(key: str) -> int:
    """A line of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status: this script measures on Linux")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        raise SystemExit(main())
    print(json.dumps(_one(sys.argv[1], sys.argv[2], sys.argv[3:])))
