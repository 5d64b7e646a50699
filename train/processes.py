"""One process or many: `accelerate` opened from a recipe's settings, the model and optimiser prepared for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn

from xdyna.configs.train import TrainConfig
from xdyna.errors import UserError


def open_accelerator(cfg: TrainConfig, system: nn.Module) -> Accelerator:
    """An `Accelerator` for the settings and for how the process was started (`accelerate launch`, or alone).

    Raises:
        UserError: arithmetic or a kind of sharding that is not possible here.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != cfg.precision:
        AcceleratorState._reset_state()  # an earlier run of this process had another precision
    handlers = [
        DistributedDataParallelKwargs(
            broadcast_buffers=False, find_unused_parameters=bool(getattr(system, "may_skip", False))
        ),
        InitProcessGroupKwargs(timeout=timedelta(hours=2)),  # others wait while the main process samples
    ]
    try:
        accelerator = Accelerator(
            mixed_precision=cfg.precision, gradient_accumulation_steps=cfg.accumulate, kwargs_handlers=handlers
        )
    except ValueError as error:
        raise UserError(f"precision={cfg.precision}: not possible here ({error}); use precision=no") from None
    if cfg.precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would quietly compute in float32
        raise UserError("precision=fp16: needs a GPU, training runs on the CPU here; use precision=bf16 or no")
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("accelerate's configuration: FSDP of version 1; set fsdp_version: 2 (see configs/accelerate)")
    return accelerator


def prepare(
    accelerator: Accelerator, cfg: TrainConfig, system: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """The system and its optimiser as `accelerator` wants them."""
    prepared = accelerator.prepare(system, optimizer)
    return prepared[0], prepared[1]
