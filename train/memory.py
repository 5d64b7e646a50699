"""How much memory a training step takes, found out without taking it; and what to say when there was not enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from xdyna.alive import Alive
from xdyna.configs.train import TrainConfig
from xdyna.data.source import Batch
from xdyna.errors import UserError

#: Resident memory per byte alive on a CPU, as scripts/measure_train_memory.py finds it: the allocator keeps freed
#: blocks, and kernels have scratch space of their own.
CPU_KEEPS = 1.2
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes in one process, without sharding.

    Attributes:
        weights: parameters and buffers, frozen ones too.
        gradients: of what trains, as they stand before the optimiser's step.
        optimizer: what the optimiser remembers.
        average: the moving average.
        step: activations, temporaries and those gradients that exist beside them, where they are most.
        total: of the moment that takes most.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    step: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.average + max(self.step, self.gradients)

    def describe(self) -> str:
        """One line in megabytes."""
        parts = {
            "weights": self.weights,
            "optimiser": self.optimizer,
            "average": self.average,
            "activations and gradients": max(self.step, self.gradients),
        }
        listed = ", ".join(f"{name} {value / 2**20:,.0f}" for name, value in parts.items())
        return f"about {self.total / 2**20:,.0f} MB ({listed})"


def estimate(cfg: TrainConfig, system: nn.Module, batch: Batch, *, processes: int = 1, device: str = "cpu") -> Memory:
    """Memory that training takes at its peak.

    Weights, optimiser and average are counted. For the rest one step runs on fake tensors, which have shapes but no
    numbers, and the bytes alive are followed; a system that needs the numbers runs once in earnest instead.

    Args:
        cfg: settings of the run.
        system: as `Run` takes it; may lie on the meta device.
        batch: one micro-batch.
        processes: more than one keep their gradients twice (once in the buckets that are sent).
        device: where the run will train.
    Raises:
        UserError: the run in earnest took more memory than there is.
    """
    trained = sum(_bytes(value) for value in system.parameters() if value.requires_grad)
    copies = {"adamw": 2.0, "adamw8bit": 0.5, "sgd": 0.0}[cfg.optimizer]
    gradients = trained * (2 if processes > 1 else 1)
    # AdamW on a GPU works on all tensors at once, with one temporary copy; on a CPU, saving copies what it writes.
    beside = trained * (1 if copies else 0) if device != "cpu" else int(trained * (copies + 1 + bool(cfg.ema)))
    step = max(step_peak(cfg, system, batch, device) + gradients - trained, beside + gradients * (device != "cpu"))
    if device == "cpu":
        step = int(step * CPU_KEEPS)
    return Memory(
        weights=sum(map(_bytes, [*system.parameters(), *system.buffers()])),
        gradients=gradients,
        optimizer=int(trained * copies),
        average=trained if cfg.ema else 0,
        step=step,
    )


def step_peak(cfg: TrainConfig, system: nn.Module, batch: Batch, device: str = "cpu") -> int:
    """Bytes alive at the worst moment of forward and backward passes, beyond weights."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            stand_ins = {name: _stand_in(value, device) for name, value in _tensors(system)}
            return _follow(cfg, system, batch, stand_ins, device)
    except Exception as error:
        if any(value.is_meta for value in system.parameters()):
            raise ValueError("the system's forward needs numbers, and its weights lie on the meta device") from error
        with out_of_memory_explained(cfg):
            peak = _follow(cfg, system, batch, {}, device)
        system.zero_grad(set_to_none=True)
        return peak


def _follow(cfg: TrainConfig, system: nn.Module, batch: Batch, tensors: Mapping[str, Tensor], device: str) -> int:
    dtype = _AUTOCAST.get(cfg.precision)
    with Alive() as alive:
        for _ in range(min(cfg.accumulate, 2)):  # from the second pass on, gradients are there from the start
            with torch.autocast(torch.device(device).type, dtype) if dtype else nullcontext():
                loss = functional_call(system, dict(tensors), (batch,))["loss"]
            loss.backward()
            del loss
    return alive.peak


def _tensors(system: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from system.named_parameters()
    yield from system.named_buffers()


def _stand_in(value: Tensor, device: str) -> Tensor:
    """A tensor of the same shape, layout and kind; to be called in a fake mode."""
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return made.requires_grad_(value.requires_grad)


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


@contextmanager
def out_of_memory_explained(cfg: TrainConfig) -> Iterator[None]:
    """Turn running out of memory inside the block into one line that says which settings to lower.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "the machine"
        raise UserError(f"out of memory on {where}; to lower it: {', or '.join(ways_to_save(cfg))}") from error


def ways_to_save(cfg: TrainConfig) -> list[str]:
    """Settings that lower the memory of a run, the most useful first, as they would be set."""
    ways = []
    if cfg.batch > 1:
        less = next(count for count in range(cfg.batch // 2, 0, -1) if cfg.batch % count == 0)  # the same step in all
        ways.append(f"batch={less} accumulate={cfg.accumulate * cfg.batch // less}")
    if not cfg.checkpointing:
        ways.append("checkpointing=true")
    if cfg.precision == "no":
        ways.append("precision=bf16")
    if getattr(cfg, "frames", 1) > 1:
        ways.append(f"fewer frames (now {getattr(cfg, 'frames', 1)})")
    if cfg.optimizer == "adamw":
        ways.append("optimizer=adamw8bit")
    if cfg.ema:
        ways.append("ema=0")
    width, height = max(cfg.buckets, default=cfg.world.size_wh, key=lambda size: size[0] * size[1])
    return [*ways, f"smaller frames (now {width}x{height})"]


def _is_out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "allocate memory" in str(error) or "out of memory" in str(error)
