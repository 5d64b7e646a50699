"""One job of a manifest tried: run, left out where it is done, or failed with a reason, so that the others go on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdyna.errors import UserError
from xdyna.files import make_folder
from xdyna.infer.animate import AnimateJob, OnProgress, finished

if TYPE_CHECKING:
    from xdyna.infer.session import Session

Report = dict[str, Any]


def run_job(
    job: AnimateJob, session: Session, on_progress: OnProgress, *, resume: bool | None, restart: bool = False
) -> tuple[Report, str]:
    """Run a job, or leave it out where an earlier run has finished it.

    Args:
        job: what to do.
        session: that runs it.
        on_progress: see `Session.run`, like what follows.
        resume: true also leaves out what is finished.
        restart: see `Session.run`.
    Returns:
        Its report, with `skipped` where it was left out, and a line for the user.
    """
    if resume and (done := finished(job)):
        return {**done, "skipped": True}, f"{job.output}: finished by an earlier run"
    result = session.run(job, on_progress, resume=resume, restart=restart)
    return result.report(), result.summary()


def tried(output: Path, run: Callable[[], Report]) -> Report:
    """The report that `run` gives; where it fails the reason as `error`, and whether it is xdyna's own as `defect`."""
    try:
        make_folder(output.parent)
        return run()
    except UserError as error:
        return failed(output, str(error))
    except Exception as error:  # the other jobs may be well
        if os.environ.get("XDYNA_DEBUG"):
            raise
        return failed(output, f"unexpected {type(error).__name__}: {error}", defect=True)


def failed(output: Path, reason: str, *, defect: bool = False) -> Report:
    """The report of a job that failed."""
    return {"output": output, "error": reason, "defect": defect}
