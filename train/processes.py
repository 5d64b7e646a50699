"""One process or many: `accelerate` opened from a recipe's settings, the model and optimiser prepared for it."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn

from xdyna.configs.train import TrainConfig
from xdyna.errors import UserError

_TAG = "pieces"


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
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        if stage == 3:
            raise UserError("accelerate's configuration: zero_stage 3; wanted 1 or 2, or FSDP to cut the weights too")
    return accelerator


def prepare(
    accelerator: Accelerator, cfg: TrainConfig, system: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """The system and its optimiser as `accelerator` wants them."""
    if accelerator.is_fsdp2:
        system._no_split_modules = block_classes(system)  # type: ignore[assignment]  # what accelerate looks for
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings |= {"train_micro_batch_size_per_gpu": cfg.batch, "gradient_clipping": cfg.grad_clip}
    prepared = accelerator.prepare(system, optimizer)
    return prepared[0], prepared[1]


def save_engine(engine: Any, folder: Path) -> None:
    """Have DeepSpeed write its pieces of optimiser and weights; every process takes part."""
    shutil.rmtree(folder, ignore_errors=True)
    engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True)


def load_engine(engine: Any, folder: Path) -> None:
    """Read what `save_engine` wrote, by as many processes.

    Raises:
        UserError: the checkpoint was not written by DeepSpeed, or by another number of processes.
    """
    pieces = len(list((folder / _TAG).glob("*optim_states.pt")))
    if pieces != torch.distributed.get_world_size():
        raise UserError(f"{folder.parent}: DeepSpeed pieces of {pieces} processes, wanted those of as many as now run")
    engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False, load_lr_scheduler_states=False)


def block_classes(system: nn.Module) -> list[str]:
    """Class names of the blocks that UNets, ControlNets and autoencoders are made of: units to gather one at a time."""
    names = set()
    for owner in system.modules():
        for key in ("down_blocks", "up_blocks"):
            names |= {type(block).__name__ for block in getattr(owner, key, None) or ()}
    return sorted(names)
