"""Watchers that show a run to people: TensorBoard's event files, Weights & Biases, and the page `report.html`.

None of them ends a run once it goes: what they cannot write is told in one line, and training goes on.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import torch

from xdyna import __version__
from xdyna.errors import UserError
from xdyna.files import written_whole
from xdyna.train.report import ABOUT, flat, write_report
from xdyna.train.sample_files import Sample, read_samples

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")


class Page:
    """`report.html` in the run folder, written at the start, at every sample and checkpoint, and at the end."""

    def __init__(self) -> None:
        self.run: Any = None
        self.told = False

    def on_start(self, run: Any) -> None:
        self.run = run
        with self._guarded(), written_whole(run.folder / ABOUT) as path:
            path.write_text(json.dumps(about(run), indent=2) + "\n", encoding="utf-8")
        self._write("running")

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        if "validation" in values:
            self._write("running")

    def on_sample(self, step: int, folder: Path) -> None:
        self._write("running")

    def on_end(self, step: int) -> None:
        if self.run is not None:  # else the run ended before it began
            self._write("finished" if step >= self.run.cfg.steps else "stopped")

    def _write(self, state: str) -> None:
        with self._guarded():
            write_report(self.run.folder, state)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A page that cannot be written is told of once."""
        try:
            yield
        except (UserError, OSError) as error:
            if not self.told:
                self.run.say(f"{error}; training goes on without it")
            self.told = True


class TensorBoard:
    """Event files in `RUN/tensorboard`: every value of the log, what was measured on the samples, and their sheets."""

    def __init__(self) -> None:
        self.run: Any = None
        self.writer: Any = None

    def on_start(self, run: Any) -> None:
        self.run = run
        try:
            from torch.utils.tensorboard import SummaryWriter

            # After a resume, what a killed run wrote of later steps is passed over.
            purged = run.step + 1 if run.step else None
            self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purged, flush_secs=20)
            settings = (run.folder / "config.json").read_text(encoding="utf-8")
            self.writer.add_text("settings", f"```json\n{settings}```", run.step)
        except ImportError as error:
            run.say(f"tensorboard: no event files are written ({error}); pip install 'xdyna[train]'")
        except Exception as error:  # a broken installation can fail in any way
            self._give_up(error)

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is None:
            return
        try:
            for key, value in values.items():
                if key != "time":
                    self.writer.add_scalar(_log_tag(key), value, step, walltime=values["time"])
        except OSError as error:
            self._give_up(error)

    def on_sample(self, step: int, folder: Path) -> None:
        sample = _sample_of(folder, step)
        if self.writer is None or sample is None:
            return
        try:
            for tag, value in _figures(sample):
                self.writer.add_scalar(tag, value, step)
            picture = cv2.imread(str(sample.sheet)) if sample.sheet else None
            if picture is not None:
                self.writer.add_image("samples/sheet", picture[..., ::-1].copy(), step, dataformats="HWC")
        except OSError as error:
            self._give_up(error)

    def on_end(self, step: int) -> None:
        if self.writer is not None:
            try:
                self.writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self.run.say(f"tensorboard: {reason}; training goes on without event files")
        self.writer = None


class WeightsAndBiases:
    """The same for Weights & Biases, where the settings ask for it (`wandb=true`); a resumed run goes on in its page.

    Raises:
        UserError: it is asked for and not installed, or refuses to start (no key).
    """

    def __init__(self) -> None:
        self.page: Any = None

    def on_start(self, run: Any) -> None:
        if not run.cfg.wandb:
            return
        try:
            package: Any = import_module("wandb")
            init, self.picture, self.video = package.init, package.Image, package.Video
        except (ImportError, AttributeError) as error:  # of a mere folder called wandb an attribute is missing
            text = f"wandb=true: wandb cannot be imported ({error}); pip install wandb, or set wandb=false"
            raise UserError(text) from None
        self._begin(run, init)

    def _begin(self, run: Any, init: Callable[..., Any]) -> None:
        known = run.folder / "wandb.txt"
        try:
            self.page = init(
                project="xdyna",
                name=f"{run.recipe} {run.folder.resolve().name}",
                dir=str(run.folder),
                config=json.loads((run.folder / "config.json").read_text(encoding="utf-8")),
                id=known.read_text(encoding="utf-8").strip() if known.is_file() else None,
                resume="allow" if known.is_file() else None,
                settings={"console": "off", "silent": run.quiet},
            )
        except Exception as error:  # without a key, a network, or with settings of its own that it refuses
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"wandb=true: {reason}; run `wandb login`, set WANDB_MODE=offline, or wandb=false"
            ) from None
        known.write_text(f"{self.page.id}\n", encoding="utf-8")

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        if self.page is not None:
            self.page.log({_log_tag(key): value for key, value in values.items() if key != "time"}, step=step)

    def on_sample(self, step: int, folder: Path) -> None:
        sample = _sample_of(folder, step)
        if self.page is None or sample is None:
            return
        entry: dict[str, Any] = dict(_figures(sample))
        if sample.sheet:
            entry["samples/sheet"] = self.picture(str(sample.sheet), caption=sample.caption)
        if sample.video:
            entry["samples/video"] = self.video(str(sample.video), format="mp4")
        self.page.log(entry, step=step)

    def on_end(self, step: int) -> None:
        if self.page is not None:
            self.page.finish()


def about(run: Any) -> dict[str, Any]:
    """What a page tells of a run besides its settings: the environment, what trains, and what is not default.

    Args:
        run: `xdyna.train.run.Run`, ready to go.
    """
    from xdyna.train.modules import count_parameters, saved_parts

    parts = []
    for name, part in saved_parts(run.raw).items():
        own = [value for key, value in run.trained.items() if key.partition("/")[0] == name]
        trained = sum(value.numel() for value in own)
        parts.append({"name": name, "tensors": len(own), "trained": trained, "all": count_parameters(part)})
    whole = {"trained": count_parameters(run.raw, trainable=True), "all": count_parameters(run.raw)}
    parts.append({"name": "the whole system", "tensors": len(run.trained), **whole})
    values, defaults = flat(run.cfg.model_dump(mode="json")), flat(_defaults(type(run.cfg)))
    changed = [key for key in values if key not in defaults or values[key] != defaults[key]]
    return {"environment": _environment(run), "parts": parts, "changed": changed}


def _environment(run: Any) -> dict[str, str]:
    """Where and how the run goes, as text by name."""
    device = str(run.device)
    if run.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(run.device)})"
    clips = "endless" if run.source.num_clips is None else f"{run.source.num_clips:,} clips"
    known = {"xdyna": __version__, "Python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known | {
        "device": device,
        "processes": f"{run.plan.processes}; torch threads of each: {torch.get_num_threads()}",
        "samples per step": f"{run.plan.global_batch}",
        "data": f"{run.cfg.data}, {clips}, fingerprint {run.source.fingerprint}",
        "command": shlex.join(sys.argv),
        "started": f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}, after step {run.step}",
    }


def _defaults(settings: type[Any]) -> dict[str, Any]:
    """The defaults of a settings class, as plain values; what has no default is left out."""
    blank = settings.model_construct()  # fields without a default stay away
    dumped: dict[str, Any] = blank.model_dump(mode="json")
    return dumped


def _sample_of(folder: Path, step: int) -> Sample | None:
    """The sample of a step; None where the recipe's sampler has left none."""
    return next((sample for sample in read_samples(folder, step) if sample.step == step), None)


def _log_tag(key: str) -> str:
    return "validation/loss" if key == "validation" else f"train/{key}"


def _figures(sample: Sample) -> Iterator[tuple[str, float]]:
    """What was measured on a sample: (tag, value)."""
    for chart, lines in sample.figures.items():
        for name, value in lines.items():
            yield "samples/" + "/".join(re.sub(r"[^\w.]+", "_", text).strip("_") for text in (chart, name)), value
