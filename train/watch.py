"""Who looks on while a run trains: the log file, the progress bar, and whatever else is given to `Run`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from xdyna.files import written_whole


class Watcher(Protocol):
    """Called on the main process only. What a watcher raises ends the run, so it guards itself where it should not."""

    def on_start(self, run: Any) -> None:
        """The run (`xdyna.train.run.Run`) is ready: see its `folder`, `cfg`, `recipe` and `step` (above 0: resumed)."""

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps are done; the values of the last one: loss, lr, grad (norm), time (seconds since 1970), and what
        the system returned besides. Every so often ``validation`` as well."""

    def on_sample(self, step: int, folder: Path) -> None:
        """The recipe's sampler has written samples of step `step` into the run folder."""

    def on_end(self, step: int) -> None:
        """No more steps follow, finished or stopped."""


class Log:
    """`log.jsonl` in the run folder: one JSON object per step, in order, also after a kill and a resume."""

    def on_start(self, run: Any) -> None:
        self.path: Path = run.folder / "log.jsonl"
        if self.path.is_file():
            _drop_lines_after(self.path, run.step)

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **values}) + "\n")

    def on_sample(self, step: int, folder: Path) -> None:
        pass

    def on_end(self, step: int) -> None:
        pass


class Bar:
    """Progress on the terminal: loss, steps per second, time left. Where stdout is no terminal, a line now and then."""

    EVERY_S = 30.0

    def on_start(self, run: Any) -> None:
        self.total = run.cfg.steps
        self.first, self.began_s, self.said_s = run.step, time.monotonic(), time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self.task = self.progress.add_task(run.recipe, total=self.total, completed=run.step, note="")
        self.progress.start()

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        pace = (step - self.first) / max(now_s - self.began_s, 1e-9)
        note = f"loss {values['loss']:.4f}  {pace:.2f} it/s"
        self.progress.update(self.task, completed=step, note=note)
        if self.progress.disable and (now_s - self.said_s >= self.EVERY_S or step == self.total):
            self.said_s = now_s
            print(f"step {step}/{self.total}  {note}  {(self.total - step) / pace:.0f} s left", flush=True)

    def on_sample(self, step: int, folder: Path) -> None:
        pass

    def on_end(self, step: int) -> None:
        self.progress.stop()


def standard_watchers(*, quiet: bool) -> list[Watcher]:
    """What every run has: the log, TensorBoard, W&B (if asked for), the page, and unless `quiet` the progress bar."""
    from xdyna.train.live import Page, TensorBoard, WeightsAndBiases

    shown: list[Watcher] = [Log(), WeightsAndBiases(), TensorBoard(), Page()]
    return shown if quiet else [*shown, Bar()]


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines up to a step: a killed run has logged steps that its resume takes again."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off by the kill
            continue
        if entry["step"] <= step:
            kept.append(line + "\n")
    with written_whole(path) as part:
        part.write_text("".join(kept), encoding="utf-8")
