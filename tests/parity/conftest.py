"""The largest error of every set and item, printed after the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_sets import Check

ERRORS = pytest.StashKey[dict[tuple[str, str], tuple[float, float]]]()


@pytest.fixture(scope="session")
def check(pytestconfig: pytest.Config) -> Check:
    """`check(set, item, errors, tolerance)`: note the largest error and fail when it is above the tolerance."""
    noted = pytestconfig.stash.setdefault(ERRORS, {})

    def note(name: str, item: str, errors: dict[str, float], tolerance: float) -> None:
        assert errors
        noted[name, item] = (max(errors.values()), tolerance)
        assert all(error <= tolerance for error in errors.values()), errors

    return note


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where converted sets are kept while the tests run."""
    return tmp_path_factory.mktemp("converted")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    noted = config.stash.get(ERRORS, {})
    if noted:
        terminalreporter.section("largest absolute errors against the official code")
        for (name, item), (error, tolerance) in noted.items():
            terminalreporter.write_line(f"{name:12} {item:20} {error:.2e}  (allowed {tolerance:.0e})")
