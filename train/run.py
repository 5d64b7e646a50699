"""The loop that every recipe shares: one process or many, exact resume, checkpoints, a stop when the loss is NaN."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from xdyna.configs.train import TrainConfig
from xdyna.data.source import SKIPPED, Batch, ClipSource, draw_batch
from xdyna.errors import UserError
from xdyna.train.checkpoints import (
    Checkpoints,
    check_same_tensors,
    check_state,
    load_tensors,
    read_parts,
    read_state,
    save_tensors,
    write_aside,
    write_parts,
)
from xdyna.train.dry import dry_run
from xdyna.train.feed import Plan, micro_batches
from xdyna.train.modules import count_parameters, enable_checkpointing, saved_buffers, saved_parts, trained_parameters
from xdyna.train.noise import sample_seed
from xdyna.train.optimize import Average, build_optimizer, rate_factor
from xdyna.train.processes import load_engine, open_accelerator, prepare, save_engine
from xdyna.train.sharding import cut_like, gathered, load_optimizer_state, local, make_whole, optimizer_state, reshard
from xdyna.train.watch import Watcher, standard_watchers

Sampler = Callable[[Path, int], None]


class Run:
    """One training run and its folder.

    The folder holds `config.json` (resolved settings), `log.jsonl` (one line per step), `checkpoints/step-NNNNNN` and,
    after `finish`, `model/`. A recipe's loop reads::

        run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=sampler)
        for _ in run.steps():
            for batch in run.batches():
                run.backward(run.system(batch))
            run.update()
        return run.finish(lambda folder: part.save_pretrained(folder / "part"))

    Args:
        cfg: the recipe's settings.
        recipe: its name; a folder of another recipe is refused.
        system: called with a `Batch`, gives a dict of tensors: "loss", the mean over the batch, and the same further
            entries every time, which are logged. `system.saved` names the parts (modules inside it) that checkpoints
            hold; every parameter that trains is in one of them. `system.may_skip` (False when absent) says that some
            of them may be left out of a step. Frozen parts may be inside it.
        source: of the clips.
        resume: go on from the folder's last checkpoint, if it has one.
        quiet: print nothing.
        sampler: writes samples of the weights in place into the folder it is given, for the step it is given.
        watchers: further `Watcher`s besides the log and the progress bar.
        validation: source of held-out clips; without it, what `source` gives from sample `cfg.held_out` on.

    Attributes:
        system: the system as prepared for one or many processes; call it in the loop.
        folder: of the run.
        step: optimiser steps done.
        stopped: the run was asked to stop before its last step.
        accelerator: `accelerate.Accelerator`; `device` says where tensors belong.

    Raises:
        UserError: the folder belongs to another recipe or other data, or holds a run and `resume` is off; bad data.
        DryRun: the settings ask for a dry run; it tells what the run would take.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        recipe: str,
        system: nn.Module,
        source: ClipSource,
        *,
        resume: bool = False,
        quiet: bool = False,
        sampler: Sampler | None = None,
        watchers: Sequence[Watcher] = (),
        validation: ClipSource | None = None,
    ) -> None:
        torch.set_num_threads(cfg.threads)
        self.cfg, self.recipe, self.source, self.sampler = cfg, recipe, source, sampler
        self.raw, self.folder = system, cfg.out
        self.step, self.stopped = 0, False
        self._asked = self._stop = False  # this process got SIGTERM; all processes know that one of them did
        self._names: list[tuple[str, ...]] = []
        self._values: list[dict[str, Tensor]] = []
        self.accelerator = open_accelerator(cfg, system)
        self.quiet = quiet or not self.accelerator.is_main_process
        self.plan = Plan(
            cfg.batch, cfg.accumulate, self.accelerator.num_processes, self.accelerator.process_index, cfg.reuse
        )
        self.validation = validation or source
        self._first_held_out = 0 if validation else cfg.held_out
        self._held_out: list[Batch] | None = None
        self._check_data()
        self.checkpoints = Checkpoints(self.folder, cfg.keep)
        self._prepare(system)
        if cfg.dry_run:
            raise dry_run(self)
        count, whole = count_parameters(system, trainable=True), count_parameters(system)
        self.say(f"{recipe}: {count:,} of {whole:,} parameters train ({', '.join(saved_parts(system))})")
        if self.accelerator.is_fsdp2 and sampler is not None and cfg.sample_every:
            self.say(f"{recipe}: no samples while training, since FSDP leaves no process with whole weights")
        self._open(resume)
        self.watchers = [*standard_watchers(quiet=self.quiet), *watchers] if self.accelerator.is_main_process else []

    # -- the loop ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where tensors belong."""
        device: torch.device = self.accelerator.device
        return device

    def steps(self) -> Iterator[int]:
        """Step numbers from where the run stands up to `cfg.steps`; call `update` once per step.

        SIGTERM ends the iteration with a checkpoint, after the step in hand or, once that has its gradients, after the
        next one: all processes stop after the same step.
        """
        self._feed = micro_batches(self.source, self.plan, self.step, self.cfg.steps, self.cfg.workers)
        with self._graceful_stop():
            self._tell(lambda watcher: watcher.on_start(self))
            try:
                while self.step < self.cfg.steps and not self._stop:
                    before = self.step
                    self._set_rate()
                    yield before
                    if self.step != before + 1:
                        raise RuntimeError("a recipe must call Run.update once per step")
                    self._after_step()
            finally:
                self._close()
        self.stopped = self.step < self.cfg.steps

    def batches(self) -> Iterator[Batch]:
        """This process's micro-batches of the step; call the system and `backward` once for each."""
        for batch in next(self._feed):
            self._names.append(batch.names)
            # What modules draw from torch's own source (dropout) repeats after a resume.
            torch.manual_seed(sample_seed(self.cfg.seed, int(batch.indices[0])))
            with self.accelerator.accumulate(self.system):
                yield batch

    def backward(self, values: Mapping[str, Tensor]) -> None:
        """Backward pass from what the system returned for one micro-batch."""
        self._values.append({key: value.detach().float().mean() for key, value in values.items()})
        self.accelerator.backward(values["loss"])

    def update(self) -> None:
        """Clipped optimiser step, moving average, and the values of the step for the log.

        Raises:
            UserError: the loss or the gradient is not finite; the weights are left as they were.
        """
        values = self._step_values()
        if not math.isfinite(values["loss"]):
            self._fail("loss", values["loss"])
        norm = self._clip()
        if norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None:
            self._fail("gradient's norm", norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.step)
        self.step += 1
        values |= {"lr": self.rate, "time": time.time()}
        if norm is not None and math.isfinite(norm):
            values["grad"] = norm
        self.values = values
        self._names, self._values = [], []

    def finish(self, write: Callable[[Path], Any]) -> Path:
        """Write the final weights.

        Args:
            write: called on the main process with an empty folder, the averaged weights in place.
        Returns:
            the folder of the weights; of a run that was stopped, its last checkpoint.
        Raises:
            UserError: the disk is full.
        """
        final = self.folder / "model"
        if self.stopped:
            last = self.checkpoints.last()
            self.say(f"{self.recipe}: stopped after step {self.step} of {self.cfg.steps}; --resume goes on from {last}")
            return last or self.folder
        with self.averaged():
            if self.accelerator.is_fsdp2:
                make_whole(self.raw)
            self._on_main(lambda: write_aside(final, write, "the checkpoints are whole: make room and --resume"))
        return final

    def say(self, line: str) -> None:
        """Tell the user one thing."""
        if not self.quiet:
            print(line, flush=True)

    # -- weights -------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The system holds its moving average inside this block (nothing changes when `ema` is 0)."""
        with self.average.in_place() if self.average else nullcontext():
            yield

    def save(self, validation: float | None = None) -> None:
        """Write checkpoint `step-NNNNNN`, then drop all but the last `cfg.keep` and the best."""
        values = {name: gathered(value) for name, value in {**self.trained, **saved_buffers(self.raw)}.items()}
        averages = {}
        if self.average:
            with self.average.in_place():
                averages = {name: gathered(value) for name, value in self.trained.items()}
        pieces = self.checkpoints.folder / ".pieces"
        if self._deepspeed:
            save_engine(self.system, pieces)
        optimizer = {} if self._deepspeed else optimizer_state(self.optimizer, self.trained)
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

        def fill(folder: Path) -> None:
            write_parts(values, folder)
            write_parts(averages, folder / "average")
            save_tensors({"optimizer": optimizer, "scaler": scaler}, folder / "optimizer.pt")
            if self._deepspeed:
                pieces.rename(folder / "pieces")

        self._on_main(lambda: self.checkpoints.write(self._state(validation), fill))

    def validate(self) -> float | None:
        """Mean loss of the averaged weights on the held-out clips; None where there are none."""
        if not self.cfg.validate_clips:
            return None
        if self._held_out is None:
            self._held_out = self._draw_held_out()
        self.raw.eval()
        with self.averaged(), torch.no_grad():
            losses = [self.system(batch)["loss"].detach().float() for batch in self._held_out]
        reshard(self.raw)
        self._train_mode()
        return float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))

    # -- opening -------------------------------------------------------------------------------------------------

    def _check_data(self) -> None:
        self.problems = self.source.check()
        for line in self.problems[:20]:
            self.say(f"data: {line}")
        if len(self.problems) > 20:
            self.say(f"data: and {len(self.problems) - 20} more, see {self.folder / SKIPPED}")

    def _prepare(self, system: nn.Module) -> None:
        self._train_mode()
        parameters = [value for value in system.parameters() if value.requires_grad]
        if not parameters:
            raise ValueError(f"nothing in the system of recipe {self.recipe} trains")
        if self.cfg.checkpointing:
            enable_checkpointing(system)
        self.system, self.optimizer = prepare(self.accelerator, self.cfg, system, build_optimizer(self.cfg, parameters))
        self.trained = trained_parameters(system)
        self.average = Average(self.trained, self.cfg.ema) if self.cfg.ema else None

    def _open(self, resume: bool) -> None:
        last = self.checkpoints.last()
        if last and not resume:
            raise UserError(f"{self.folder}: holds a run already (step {last.name[5:]}); use --resume or another --out")
        if last:
            self._load(last)  # before config.json becomes this run's: what it was tells how to resume
            self.say(f"{self.recipe}: goes on after step {self.step}")
        self._on_main(self._make_folder)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.json").write_text(describe(self.cfg, self.recipe), encoding="utf-8")
            if self.problems:
                skipped = self.folder / SKIPPED  # sources add to it what turns out unreadable later
                known = skipped.read_text(encoding="utf-8").splitlines() if skipped.exists() else []
                lines = dict.fromkeys([*known, *self.problems])
                skipped.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {self.folder}: cannot be written: {error.strerror or error}") from None
        self.checkpoints.clear_partial()

    def _load(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        check_state(checkpoint, state, self._state(None))
        wanted: dict[str, Tensor] = {**self.trained, **saved_buffers(self.raw)}
        values = read_parts(checkpoint)
        check_same_tensors(checkpoint, values, wanted)
        with torch.no_grad():
            for name, value in wanted.items():
                value.copy_(cut_like(values[name], value))
            if self.average:
                averages = read_parts(checkpoint / "average") or values
                for name, value in self.trained.items():
                    self.average.values[name].copy_(local(cut_like(averages[name], value)))
        kept = load_tensors(checkpoint / "optimizer.pt")
        if self._deepspeed:
            load_engine(self.system, checkpoint / "pieces")
        elif not kept["optimizer"]:
            raise UserError(f"{checkpoint}: was written by DeepSpeed; resume with accelerate's deepspeed configuration")
        else:
            load_optimizer_state(self.optimizer, self.trained, kept["optimizer"])
        if self.accelerator.scaler is not None and kept["scaler"]:
            self.accelerator.scaler.load_state_dict(kept["scaler"])
        self.step = int(state["step"])

    def _state(self, validation: float | None) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "step": self.step,
            "seed": self.cfg.seed,
            "data": self.source.fingerprint,
            "global_batch": self.plan.global_batch,
            "reuse": self.plan.reuse,
            "validation": validation,
        }

    @property
    def _deepspeed(self) -> bool:
        return str(self.accelerator.distributed_type.value) == "DEEPSPEED"

    # -- inside --------------------------------------------------------------------------------------------------

    def _set_rate(self) -> None:
        cfg = self.cfg
        self.rate = cfg.lr * rate_factor(self.step, cfg.steps, cfg.warmup, cfg.cooldown, cfg.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def _step_values(self) -> dict[str, float]:
        """Means over micro-batches and processes of what the system returned; learns of a stop on any process."""
        if not self._values:
            raise RuntimeError("a recipe must call Run.backward for every batch before Run.update")
        keys = list(self._values[0])
        rows = torch.stack([torch.stack([row[key] for key in keys]) for row in self._values])
        stop = torch.tensor([float(self._asked)], device=rows.device)
        *means, stop_share = self.accelerator.reduce(torch.cat([rows.mean(0), stop]), "mean").tolist()
        self._stop = stop_share > 0
        return dict(zip(keys, means, strict=True))

    def _clip(self) -> float | None:
        """Clip the gradient; its norm before, where it is known."""
        norm = self.accelerator.clip_grad_norm_(list(self.trained.values()), self.cfg.grad_clip)
        if norm is None:
            return None
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _fail(self, what: str, value: float) -> None:
        """Stop because of a number that is not finite; name the step, the clips and the last good checkpoint."""
        from accelerate.utils import gather_object

        own = [
            name
            for row, names in zip(self._values, self._names, strict=True)
            if not math.isfinite(float(row["loss"]))
            for name in names
        ]
        every = [name for names in self._names for name in names]
        clips = gather_object(own) or gather_object(every)
        self._close()
        raise UserError(
            f"{self.folder}: the {what} became {value} at step {self.step} (clips: {', '.join(clips)}); last good "
            f"checkpoint: {self.checkpoints.last() or 'none'}; lower lr (now {self.cfg.lr:g}) and --resume"
        )

    def _after_step(self) -> None:
        """Log, sample and save what is due after a step."""
        ended = self.step == self.cfg.steps
        saving = ended or self._stop or self.step % self.cfg.save_every == 0
        # Whoever sends SIGTERM will not wait for a validation.
        validation = self.validate() if saving and not self._stop else None
        if validation is not None:
            self.values["validation"] = validation
        self._tell(lambda watcher: watcher.on_log(self.step, self.values))
        if self.cfg.sample_every and (ended or self.step % self.cfg.sample_every == 0) and not self._stop:
            self._sample()
        if saving:
            self.save(validation)

    def _sample(self) -> None:
        if self.sampler is None or self.accelerator.is_fsdp2:  # with FSDP no process holds whole weights
            return
        sampler = self.sampler
        self.raw.eval()
        with self.averaged(), torch.no_grad():
            self._on_main(lambda: sampler(self.folder, self.step))
        self._train_mode()
        self._tell(lambda watcher: watcher.on_sample(self.step, self.folder))

    def _draw_held_out(self) -> list[Batch]:
        # As a step of one pass each: the same clips for any number of processes, in aligned blocks.
        plan = replace(self.plan, accumulate=1, reuse=1)
        first = math.ceil(self._first_held_out / plan.global_batch)
        rounds = math.ceil(self.cfg.validate_clips / plan.global_batch)
        return [draw_batch(self.validation, plan.samples(first + turn, 0)) for turn in range(rounds)]

    def _train_mode(self) -> None:
        for part in saved_parts(self.raw).values():
            part.train()

    def _on_main(self, work: Callable[[], Any]) -> None:
        """Do something on the main process while the others wait; its mistakes are everyone's."""
        from accelerate.utils import broadcast_object_list

        message: list[str | None] = [None]
        if self.accelerator.is_main_process:
            try:
                work()
            except UserError as error:
                if self.accelerator.num_processes == 1:
                    self._close()
                    raise
                message = [str(error)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(message)
        if message[0] is not None:
            self._close()
            raise UserError(message[0])

    def _tell(self, call: Callable[[Watcher], None]) -> None:
        try:
            for watcher in self.watchers:
                call(watcher)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror or error}) at step {self.step}; last good "
                f"checkpoint: {self.checkpoints.last() or 'none'}; make room and --resume"
            ) from error

    def _close(self) -> None:
        """Let the watchers go, once."""
        watchers, self.watchers = getattr(self, "watchers", []), []
        for watcher in watchers:
            watcher.on_end(self.step)

    @contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        def stop(signum: int, frame: FrameType | None) -> None:
            self._asked = True

        try:
            previous = signal.signal(signal.SIGTERM, stop)
        except ValueError:  # not in the main thread: signals stay with whoever owns them
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def describe(cfg: BaseModel, recipe: str) -> str:
    """The resolved settings as JSON text."""
    return json.dumps({"recipe": recipe, **cfg.model_dump(mode="json")}, indent=2) + "\n"
