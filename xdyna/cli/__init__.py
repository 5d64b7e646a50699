"""The command `xdyna`. Sub-commands live in modules of their own, imported only when they are asked for."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import xdyna
from xdyna.cli.common import fail, follows, start_talk
from xdyna.errors import UserError

#: Sub-commands in the order of the help: each is a module of this package with `app` (a Typer) or a function of its
#: own name.
COMMANDS = ("animate", "preprocess", "convert", "models", "info", "train", "data", "bench", "batch", "eval")

EXIT_DEFECT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class LazyGroup(TyperGroup):
    """Lists the sub-commands whose modules are there, and imports one on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if find_spec(f"{__name__}.{name}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        if cmd_name not in self.commands:
            self.add_command(_load_command(cmd_name), cmd_name)
        return self.commands[cmd_name]


def _load_command(name: str) -> Any:
    module = import_module(f"{__name__}.{name}")
    sub_app = getattr(module, "app", None)
    if sub_app is None:
        sub_app = typer.Typer(add_completion=False)
        sub_app.command(name)(getattr(module, name))
    command = typer.main.get_command(sub_app)
    command.name = name
    return command


app = typer.Typer(cls=LazyGroup, add_completion=False, invoke_without_command=True)


def _print_version(value: bool) -> None:
    if value:
        print(f"xdyna {xdyna.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Animate a photo of a person with a video of another: X-Dyna on diffusers."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(args: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0; 2 for a user's mistake; 130 after Ctrl-C, 143 after SIGTERM,
    both of which remove what was half written; 1 for a defect.

    Everything that goes wrong is one line on stderr; with XDYNA_DEBUG=1 a defect shows its traceback.
    """
    start_talk()
    # Idle OpenMP threads that spin make everything 10 to 30 times slower where other processes want the cores too;
    # sleeping ones cost nothing measurable. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _stopped_once(), _quiet_libraries():
            status = typer.main.get_command(app).main(args=args, prog_name="xdyna", standalone_mode=False)
    except BrokenPipeError:
        # Whoever read our stdout has gone; point it elsewhere so that the interpreter's last flush does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        message, status = describe(error)
        if status == EXIT_DEFECT and os.environ.get("XDYNA_DEBUG"):
            raise
        if isinstance(error, typer.TyperException) and follows():
            return status  # the first process of the launch says it
        return _fail(message, status)
    if status == EXIT_INTERRUPTED:
        _fail("interrupted", EXIT_INTERRUPTED)
    return status if isinstance(status, int) else 0


def describe(error: BaseException) -> tuple[str, int]:
    """What to tell of an error, and the exit status after it."""
    if isinstance(error, UserError):
        return str(error), EXIT_USER_ERROR
    if isinstance(error, typer.TyperException):
        return error.format_message(), error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted", EXIT_INTERRUPTED
    if isinstance(error, _Terminated):
        return "terminated", EXIT_TERMINATED
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"unexpected {text} (a defect; XDYNA_DEBUG=1 shows where)", EXIT_DEFECT


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _stopped_once() -> Iterator[None]:
    """Let SIGTERM unwind the command as Ctrl-C does, so that nothing half written stays.

    A second one, as `timeout` and impatient users send, does not disturb the clean-up. Training puts an answer of its
    own in this one's place while it runs. A caller's own answer stays.
    """
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    in_main_thread = threading.current_thread() is threading.main_thread()  # others may not set signals
    ours = [number for number, answer in usual.items() if in_main_thread and signal.getsignal(number) is answer]

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt if signum == signal.SIGINT else _Terminated

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, usual[number])


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep other libraries' warnings off the user's terminal; XDYNA_DEBUG=1 shows them."""
    if os.environ.get("XDYNA_DEBUG"):
        yield
        return
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read when they are imported
        os.environ.setdefault(name, "error")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells stderr of its beginning and end
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _fail(message: str, status: int) -> int:
    fail(message)
    return status
