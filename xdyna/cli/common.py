"""What all commands share: options that mean the same everywhere, progress, notices and the --json report."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from xdyna.infer.time_left import Outlook

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
        self.prefix = ""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.prefix + " ".join(record.getMessage().split())
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


def follows() -> bool:
    """Whether a launcher started this process beside a first one, which does the talking."""
    from xdyna.infer.processes import launched_processes

    return launched_processes() > 1 and os.environ["RANK"] != "0"


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

    What is given is also a `xdyna.infer.time_left.ShowsOutlook`: told of it, it shows how the whole job stands.

    Args:
        quiet: show nothing (`--json`).
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stdout.isatty():
        with _rich_bar() as shown:
            yield shown
    else:
        yield PlainProgress()


@contextmanager
def _rich_bar() -> Iterator[RichProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console()) as bar:
        yield RichProgress(bar)


class RichProgress:
    """A bar for each stage, and under them one for the whole job once it can be told how that stands.

    Args:
        bar: a `rich.progress.Progress` whose columns show the field `left`.
    """

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._tasks: dict[str, Any] = {}
        self._whole: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total or None, left="")
        self._bar.update(self._tasks[stage], completed=done, total=total or None)
        if self._whole is None:
            remaining_s = self._bar.tasks[self._bar.task_ids.index(self._tasks[stage])].time_remaining
            left = "" if remaining_s is None or done >= total else f"{_shown_time(remaining_s)} left"
            self._bar.update(self._tasks[stage], left=left)

    def outlook(self, outlook: Outlook) -> None:
        if self._whole is None:
            self._whole = self._bar.add_task("whole job, %", total=100, left="")
            for task in self._tasks.values():
                self._bar.update(task, left="")
        self._bar.update(self._whole, completed=int(100 * outlook.share), left=_pace(outlook))


class PlainProgress:
    """Progress as lines of text: one at the end of each stage, and in between one in ten seconds."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self._stage = ""
        self._line = ""
        self._began_s = self._said_s = 0.0
        self._count = (0, 0)
        self._outlook: Outlook | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._began_s, self._said_s = stage, now_s, now_s
        self._count = done, total
        ended = total > 0 and done >= total
        if ended or now_s - self._said_s >= self.EVERY_S:
            self._say(now_s)

    def outlook(self, outlook: Outlook) -> None:
        self._outlook = outlook
        now_s = time.monotonic()
        if now_s - self._said_s >= self.EVERY_S:
            self._say(now_s)

    def _say(self, now_s: float) -> None:
        done, total = self._count
        line = f"{self._stage}: {done}/{total}" if total else f"{self._stage}: {done}"
        if self._outlook is not None and self._outlook.left_s > 0:
            line += f", {100 * self._outlook.share:.0f} % of the job, {_pace(self._outlook)}"
        elif self._outlook is None and 0 < done < total:
            line += f", {_shown_time((now_s - self._began_s) / done * (total - done))} left"
        if line != self._line:  # a stage may tell its end twice
            announce(line)
        self._line, self._said_s = line, now_s


def _pace(outlook: Outlook) -> str:
    return f"{outlook.frames_per_s:.3g} frames/s, {_shown_time(outlook.left_s)} left"


def _shown_time(seconds: float) -> str:
    from xdyna.infer.time_left import shown_time

    return shown_time(seconds)
