"""What a command with many jobs says of those that failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xdyna.cli.common import fail

#: As for one job: what the user can mend, and what is a defect.
MENDABLE, DEFECT = 2, 1


def list_failed(
    reports: Mapping[str, Mapping[str, Any]], total: int, hint: str = "--resume runs only what is not finished"
) -> None:
    """Say on stderr which jobs failed, and why.

    Args:
        reports: of failed jobs (`error` and `defect`), by the places that they come from.
        total: number of all jobs.
        hint: what to do next.
    """
    for origin, report in reports.items():
        fail(f"failed: {origin}: {report['error']}")
    if failed_status(reports.values()) == DEFECT:
        hint = "at least one by a defect; XDYNA_DEBUG=1 shows where"
        fail(f"{len(reports)} of {total} jobs failed, {hint}")
    else:
        fail(f"{len(reports)} of {total} jobs failed; {hint}")


def failed_status(reports: Iterable[Mapping[str, Any]]) -> int:
    """The exit status where these jobs failed."""
    return DEFECT if any(report["defect"] for report in reports) else MENDABLE
