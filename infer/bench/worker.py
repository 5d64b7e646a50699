"""A process that runs one plan at one length, as often as its parent asks; so its peak of memory is that plan's own.

Started as ``python -m xdyna.infer.bench.worker TASK`` with a task in JSON. Says ``{"ready": ..}`` on stdout, then
answers each line on stdin with what a run took, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from xdyna.errors import UserError


@dataclass(frozen=True)
class Task:
    """What a worker is to run.

    Attributes:
        plan: name of the plan.
        folder: of the model.
        device: for torch.
        dtype: of torch, such as `float32`.
        work: fields of `Work`.
        latents: where the final latents go, an NPY file.
    """

    plan: str
    folder: str
    device: str
    dtype: str
    work: dict[str, Any]
    latents: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def serve(task: Task, answers: TextIO) -> None:
    """Load, warm up, then run once for every line on stdin."""
    import numpy as np
    import torch

    from xdyna.infer.bench.models import load_model
    from xdyna.infer.bench.plans import Work, make_plan

    device = torch.device(task.device)
    pipe = load_model(Path(task.folder), device, getattr(torch, task.dtype))
    work = Work(**task.work)
    # One frame touches all weights; on a GPU kernels are chosen by shape, which takes a whole window.
    few = 1 if device.type == "cpu" else min(work.num_frames, 32)
    make_plan(task.plan, pipe, Work(few, work.size_wh, 1, work.guidance, work.schedule)).run()
    plan = make_plan(task.plan, pipe, work)
    memory = Memory(device)
    _say(answers, {"ready": True, "resident_bytes": memory.now()})
    for _ in sys.stdin:
        memory.restart()
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        latents = plan.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = {"seconds": time.perf_counter() - began_s, "cpu_seconds": time.process_time() - cpu_began_s}
        np.save(task.latents, latents.float().cpu().numpy())
        finite = bool(torch.isfinite(latents).all())
        _say(answers, {**took, "peak_bytes": memory.peak(), "finite": finite})


class Memory:
    """Memory of this process: on a GPU what torch has allocated there, else what is resident."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"

    def now(self) -> int:
        """Bytes in use."""
        if self.on_gpu:
            import torch

            return int(torch.cuda.memory_allocated(self.device))
        return _status_bytes("VmRSS") or _peak_of_all_time()

    def restart(self) -> None:
        """Forget earlier peaks, where the system can."""
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return  # the peak is then that of the process's whole life

    def peak(self) -> int:
        """Most bytes in use since `restart`."""
        if self.on_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated(self.device))
        return _status_bytes("VmHWM") or _peak_of_all_time()


def _status_bytes(field: str) -> int:
    """A field of Linux's account of this process; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 if values else 0


def _peak_of_all_time() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def main() -> None:
    """Serve the task of the command line; what goes wrong is the last answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print must not get between the answers
    try:
        serve(Task(**json.loads(sys.argv[1])), answers)
    except UserError as error:
        _say(answers, {"error": str(error), "user": True})
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        _say(answers, {"error": f"{type(error).__name__}: {text}", "user": False})


if __name__ == "__main__":
    main()
