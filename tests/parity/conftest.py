"""What the comparisons with the official code share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from golden_sets import Check


@pytest.fixture
def check(record_property: Callable[[str, object], None]) -> Check:
    """`check(set, item, errors, tolerance)`: note the largest error and fail when it is above the tolerance.

    `tests/conftest.py` prints what was noted after the tests.
    """

    def note(name: str, item: str, errors: dict[str, float], tolerance: float) -> None:
        assert errors
        record_property("largest error", (name, item, max(errors.values()), tolerance))
        assert all(error <= tolerance for error in errors.values()), errors

    return note


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where converted sets are kept while the tests run."""
    return tmp_path_factory.mktemp("converted")
