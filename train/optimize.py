"""The optimiser, its rate over time, and the moving average of what it trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xdyna.configs.train import TrainConfig
from xdyna.errors import UserError
from xdyna.train.sharding import local


def build_optimizer(cfg: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that a recipe's settings name.

    Raises:
        UserError: the 8-bit one without bitsandbytes.
    """
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=cfg.lr)
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)
    try:
        from importlib import import_module

        bitsandbytes: Any = import_module("bitsandbytes")
    except ImportError:
        raise UserError(
            "optimizer=adamw8bit: needs bitsandbytes; pip install bitsandbytes, or set optimizer=adamw"
        ) from None
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        parameters, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay
    )
    return optimizer


def rate_factor(step: int, steps: int, warmup: int, cooldown: int | None, schedule: str = "linear") -> float:
    """Learning rate as a fraction, 0..1, of step number `step` (0 the first) of `steps`.

    Args:
        step: 0 the first.
        steps: of the whole run.
        warmup: steps of the linear rise.
        cooldown: last steps, over which the rate falls; None: all after `warmup`.
        schedule: how it falls: ``constant`` (not), ``linear`` or ``cosine``.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    if schedule == "constant":
        return rise
    length = max(1, steps - warmup if cooldown is None else cooldown)
    left = min(1.0, (steps - step) / length)
    return rise * (left if schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


class Average:
    """Moving average of parameters, kept beside them.

    Args:
        parameters: by name; of sharded ones, this process's part is averaged.
        decay: how slowly it follows, 0..1; the first steps follow faster.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.values = {key: local(value).detach().clone() for key, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the parameters after optimiser step number `step` (0 the first)."""
        decay = min(self.decay, (step + 1) / (step + 10))
        current = [local(self.parameters[key]).detach() for key in self.values]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters hold their average inside this block."""
        current = {key: local(value).detach().clone() for key, value in self.parameters.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(current)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for key, parameter in self.parameters.items():
            local(parameter).copy_(values[key])
