"""A command that several processes run at once: one of them talks, and one way out for all."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from xdyna.cli.common import current_talk, fail, follows

if TYPE_CHECKING:
    from xdyna.infer.processes import Team


@contextmanager
def launched(*, all_talk: bool = False) -> Iterator[Team]:
    """The processes that run this command, to be used in a `with` statement; without a launcher it is one.

    The first process alone prints. Where one fails, the first to fail tells why, and all end with its exit status.

    Args:
        all_talk: notices of the others are printed too, with their process's number.
    """
    from xdyna.infer.processes import Team, launched_processes

    if launched_processes() == 1:
        yield Team()
        return
    if follows() and (talk := current_talk()) is not None:
        talk.setLevel(logging.INFO if all_talk else logging.CRITICAL)
        talk.prefix = f"process {os.environ['RANK']}: "
    if not os.environ.get("XDYNA_DEBUG"):
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else it says in many lines what we say in one
    with Team.launched() as team:
        try:
            yield team
        except BaseException as error:
            if os.environ.get("XDYNA_DEBUG") or isinstance(error, typer.Exit):
                raise  # whatever it is, it tells itself
            _end(team, error)


def _end(team: Team, error: BaseException) -> None:
    """Tell what went wrong, or leave it to the process that tells it; then end."""
    from xdyna.cli import describe

    try:
        if team.fails_first():
            message, status = describe(error)
            fail(message if team.leads else f"process {team.rank}: {message}")
            team.told(status)
        else:
            status = team.status_told()
    except BaseException:  # the launcher stops a process while it waits
        status = 1
    sys.exit(status)
