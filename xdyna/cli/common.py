"""What all commands share: options that mean the same everywhere, progress, notices and the --json report."""

from __future__ import annotations

import json
import logging
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


class Talk(logging.Handler):
    """Prints what the library logs under the name `xdyna`.

    Notices (INFO) go to stdout and warnings to stderr, so that stderr holds nothing but what is wrong. With `--json`
    stdout belongs to the one object: notices are kept and go into it.
    """

    def __init__(self, *, json_mode: bool = False) -> None:
        super().__init__()
        self.json_mode = json_mode
        self.notices: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        if record.levelno >= logging.WARNING:
            print(f"xdyna: {record.levelname.lower()}: {line}", file=sys.stderr, flush=True)
        if self.json_mode:
            self.notices.append(line)
        elif record.levelno < logging.WARNING:
            print(line, flush=True)


def start_talk() -> Talk:
    """Put a fresh `Talk` on the library's logger; `main` does it once for every command line."""
    logger = logging.getLogger("xdyna")
    for handler in [handler for handler in logger.handlers if isinstance(handler, Talk)]:
        logger.removeHandler(handler)
    talk = Talk()
    logger.addHandler(talk)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return talk


def current_talk() -> Talk | None:
    """The `Talk` on the library's logger, when a command is running."""
    handlers = logging.getLogger("xdyna").handlers
    return next((handler for handler in handlers if isinstance(handler, Talk)), None)


def _set_json_mode(value: bool) -> bool:
    talk = current_talk()
    if talk is not None:
        talk.json_mode = value
    return value


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
    typer.Option("--seed", help="Seed of every random draw (default 42).", rich_help_panel=SHARED),
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
    typer.Option(
        "--json",
        help="Print one JSON object on stdout, and no progress.",
        is_eager=True,
        callback=_set_json_mode,
        rich_help_panel=SHARED,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Skip what an earlier run has finished.", rich_help_panel=SHARED),
]


def announce(line: str) -> None:
    """Tell the user one thing: a line on stdout, or with `--json` an entry of its `notices`."""
    logging.getLogger("xdyna").info("%s", line)


def fail(message: str) -> None:
    """Say in one line on stderr what went wrong."""
    print(f"xdyna: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def emit_json(report: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, with the notices so far as its last key; paths become text."""
    talk = current_talk()
    full = {**report, "notices": list(talk.notices) if talk else []}
    print(json.dumps(full, default=_plain, ensure_ascii=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[OnProgress]:
    """Show how far the work is: a bar with stage, count and time left, or plain lines where stdout is not a terminal.

    Args:
        quiet: show nothing (`--json`).
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stdout.isatty():
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
    with Progress(*columns, console=Console()) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield on_progress


class PlainProgress:
    """Progress as lines of text: one at the end of each stage, and in between one in ten seconds."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self._stage = ""
        self._line = ""
        self._began_s = self._said_s = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._began_s, self._said_s = stage, now_s, now_s
        ended = total > 0 and done >= total
        if not ended and now_s - self._said_s < self.EVERY_S:
            return
        left = f", {(now_s - self._began_s) / done * (total - done):.0f} s left" if 0 < done < total else ""
        line = f"{stage}: {done}/{total}{left}" if total else f"{stage}: {done}"
        if line != self._line:  # a stage may tell its end twice
            announce(line)
        self._line, self._said_s = line, now_s
