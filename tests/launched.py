"""Run the command in several processes at once, as a launcher starts them. They are forked, so nothing loads anew."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xdyna.cli import main


@dataclass(frozen=True)
class Ended:
    """What a process left.

    Attributes:
        status: exit status, or minus the signal that ended it.
        out: what it printed.
        err: what the command said on stderr, line by line; torch, loaded by now, cannot be told to be quiet.
    """

    status: int
    out: str
    err: list[str]


def launch(
    folder: Path, commands: Sequence[Sequence[str]], prepare: Callable[[int], None] | None = None
) -> list[Ended]:
    """Run a command line in each of as many processes as there are lines.

    Args:
        folder: for what they print.
        commands: arguments of `xdyna`, by rank.
        prepare: called in each process, with its rank.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(commands))}
    running: list[int] = []
    statuses: list[int] = []
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        for rank, command in enumerate(commands):
            pid = os.fork()
            if not pid:
                os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
                _run(rank, command, folder, prepare)
            running.append(pid)
        statuses += [os.waitstatus_to_exitcode(_wait(pid)) for pid in running]
    finally:
        if len(statuses) < len(running):
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    texts = [[(folder / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(len(commands))]
    return [
        Ended(status, out, [line for line in err.splitlines() if line.startswith("xdyna: ")])
        for status, (out, err) in zip(statuses, texts, strict=True)
    ]


def _wait(pid: int, most_s: float = 240) -> int:
    end_s = time.monotonic() + most_s
    while time.monotonic() < end_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _run(rank: int, command: Sequence[str], folder: Path, prepare: Callable[[int], None] | None) -> None:
    """The forked process; it does not come back."""
    status = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin, sys.stdout, sys.stderr = open(os.devnull), open(1, "w"), open(2, "w")  # noqa: SIM115
        if prepare is not None:
            prepare(rank)
        status = main(list(command))
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
