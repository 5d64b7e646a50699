"""What all commands share: options that mean the same everywhere, progress, notices and the --json report."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

#: Called with the stage's name, how much of it is done, and of how much.
OnProgress = Callable[[str, int, int], None]

SHARED = "Shared options"

ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="NAME|FILE", help="Preset or YAML file of settings.", rich_help_panel=SHARED),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.", rich_help_panel=SHARED),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of every random draw [default: 42].", rich_help_panel=SHARED),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=SHARED),
]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="auto, float32, float16 or bfloat16.", rich_help_panel=SHARED),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout, and no progress.", rich_help_panel=SHARED),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Skip what an earlier run has finished.", rich_help_panel=SHARED),
]


def announce(line: str) -> None:
    """Tell the user one thing on stderr, so that stdout stays clean for results."""
    print(f"xdyna: {' '.join(line.split())}", file=sys.stderr, flush=True)


def emit_json(report: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; paths become text."""
    print(json.dumps(report, default=_plain, ensure_ascii=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[OnProgress]:
    """Show how far the work is: a bar with stage, count and time left, or plain lines where stderr is not a terminal.

    Args:
        quiet: show nothing (`--json`).
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _rich_bar() as on_progress:
            yield on_progress
    else:
        yield PlainProgress()


@contextmanager
def _rich_bar() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield on_progress


class PlainProgress:
    """Progress as lines of text: one when a stage begins, at most one in ten seconds, one when it ends."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self._stage = ""
        self._began_s, self._said_s = 0.0, -math.inf

    def __call__(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._began_s, self._said_s = stage, now_s, -math.inf
        ended = total > 0 and done >= total
        if not ended and now_s - self._said_s < self.EVERY_S:
            return
        self._said_s = now_s
        left = ""
        if 0 < done < total:
            left = f", {(now_s - self._began_s) / done * (total - done):.0f} s left"
        announce(f"{stage}: {done}/{total}{left}" if total else f"{stage}: {done}")
