"""What every recipe's loop needs: checkpoints, exact resume, schedules, progress, and a stop when the loss is NaN."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xdyna.configs.train import TrainConfig
from xdyna.errors import UserError


class Run:
    """One training run and its folder.

    The folder holds `config.json` (resolved), `log.jsonl` (one line per step) and `checkpoints/step-NNNNNN`.
    A checkpoint is written beside its final name and renamed, so a kill at any moment leaves whole ones only.

    Args:
        cfg: the recipe's settings.
        recipe: its name; a folder of another recipe is refused.
        modules: what is trained, by name. Frozen parameters inside them are saved as well.
        optimizer: over the trainable parameters.
        accelerator: used for backward and clipping.
        resume: go on from the folder's last checkpoint, if it has one.
        quiet: print nothing.

    Raises:
        UserError: the folder belongs to another recipe, or holds a run and `resume` is off.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        recipe: str,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        *,
        resume: bool = False,
        quiet: bool = False,
    ) -> None:
        self.cfg, self.recipe, self.modules = cfg, recipe, dict(modules)
        self.optimizer, self.accelerator = optimizer, accelerator
        self.folder = cfg.out
        self.quiet = quiet
        self.step = 0
        self._loss = float("nan")
        self._stop = False
        self.average = {key: value.detach().clone() for key, value in self._trainable()} if cfg.ema else {}
        self._open(resume)

    # -- the loop ------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """Step numbers from where the run stands up to `cfg.steps`; call `update` once per step.

        SIGTERM ends the iteration after the step in hand, with a checkpoint.
        """
        with self._graceful_stop(), _progress(self.quiet) as progress:
            task = progress.add_task(self.recipe, total=self.cfg.steps, completed=self.step, loss="")
            while self.step < self.cfg.steps and not self._stop:
                before = self.step
                yield self.step
                if self.step != before + 1:
                    raise RuntimeError("a recipe must call Run.update once per step")
                progress.update(task, completed=self.step, loss=f"loss {self._loss:.4f}")
                if self.step % self.cfg.save_every == 0:
                    self.save()
            self.save()

    def update(self, loss: Tensor, **values: float) -> None:
        """Backward pass, clipped optimiser step, moving average and a line in the log.

        Raises:
            UserError: the loss is not a finite number.
        """
        self._loss = float(loss.detach())
        if not math.isfinite(self._loss):
            last = self.last_checkpoint()
            raise UserError(
                f"{self.folder}: the loss became {self._loss} at step {self.step} (batch {self.step} of seed "
                f"{self.cfg.seed}); last good checkpoint: {last or 'none'}; lower lr (now {self.cfg.lr:g}) and --resume"
            )
        rate = self.cfg.lr * rate_factor(self.step, self.cfg.steps, self.cfg.warmup, self.cfg.cooldown)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_([p for _, p in self._trainable()], self.cfg.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        line = {"step": self.step, "loss": self._loss, "lr": rate, "grad": float(norm), "time": time.time(), **values}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def say(self, line: str) -> None:
        """Tell the user one thing."""
        if not self.quiet:
            print(line, flush=True)

    # -- weights -------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules hold their moving average inside this block (nothing changes when `ema` is 0)."""
        current = {key: value.detach().clone() for key, value in self._trainable()} if self.average else {}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(current)

    def save(self) -> Path:
        """Write checkpoint `step-NNNNNN`, then drop all but the last `cfg.keep`."""
        final = self.folder / "checkpoints" / f"step-{self.step:06d}"
        if final.exists():
            return final
        partial = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, module in self.modules.items():
            _save_tensors(module.state_dict(), partial / f"{name}.safetensors")
        _save_tensors(self.average, partial / "average.safetensors")
        torch.save(self.optimizer.state_dict(), partial / "optimizer.pt")
        (partial / "state.json").write_text(json.dumps({"recipe": self.recipe, "step": self.step}))
        partial.rename(final)
        for old in self._checkpoints()[: -self.cfg.keep]:
            shutil.rmtree(old)
        return final

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        return next(iter(reversed(self._checkpoints())), None)

    # -- inside --------------------------------------------------------------------------------------------------

    def _open(self, resume: bool) -> None:
        last = self.last_checkpoint()
        if last and not resume:
            raise UserError(f"{self.folder}: holds a run already (step {last.name[5:]}); use --resume or another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(describe(self.cfg, self.recipe))
        if last:
            self._load(last)

    def _load(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        if state["recipe"] != self.recipe:
            raise UserError(f"{folder}: a checkpoint of recipe {state['recipe']!r}, wanted {self.recipe!r}")
        for name, module in self.modules.items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        average = load_file(folder / "average.safetensors")
        self.average = {key: average[key].to(value.device) for key, value in self.average.items()}
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self.step = int(state["step"])

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, module in self.modules.items():
            for key, value in module.named_parameters():
                if value.requires_grad:
                    yield f"{name}.{key}", value

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.average:
            return
        decay = min(self.cfg.ema, (self.step + 1) / (self.step + 10))
        pairs = [(self.average[key], value.detach()) for key, value in self._trainable()]
        torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - decay)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        if values:
            for key, parameter in self._trainable():
                parameter.copy_(values[key])

    @contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        def stop(signum: int, frame: FrameType | None) -> None:
            self._stop = True

        try:
            previous = signal.signal(signal.SIGTERM, stop)
        except ValueError:  # not in the main thread: signals stay with whoever owns them
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def rate_factor(step: int, steps: int, warmup: int, cooldown: int) -> float:
    """Learning rate as a fraction: a linear rise over `warmup` steps, flat, a linear fall over the last `cooldown`."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = min(1.0, (steps - step) / max(1, cooldown))
    return rise * fall


def generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random source of one step; equal seeds and steps give equal numbers, so a resume needs no saved state."""
    mixed = (seed * 1_000_003 + step * 7_919 + 12_345) % (1 << 63)
    return torch.Generator(device).manual_seed(mixed)


def batches(draw: Callable[[int], Any], start: int, steps: int, workers: int) -> Iterator[Any]:
    """`draw(step)` for the steps from `start` on, drawn ahead by worker processes when there are any."""
    loader = torch.utils.data.DataLoader(
        _Drawn(draw, steps),
        batch_size=None,
        sampler=range(start, steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


class _Drawn(torch.utils.data.Dataset[Any]):
    def __init__(self, draw: Callable[[int], Any], steps: int) -> None:
        self.draw, self.steps = draw, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Any:
        import cv2

        cv2.setNumThreads(1)
        return self.draw(step)


def describe(cfg: BaseModel, recipe: str) -> str:
    """The resolved settings as JSON text."""
    return json.dumps({"recipe": recipe, **cfg.model_dump(mode="json")}, indent=2) + "\n"


def count_parameters(*modules: nn.Module, trainable: bool = False) -> int:
    """Parameters of the modules, all of them or those that train."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad or not trainable)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        disable=quiet,
    )
