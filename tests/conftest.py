"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest

# Several threads per process beside other busy processes are many times slower than one; and one gives the same bytes
# on every machine. Set before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts pytest in the background has it, and so every command that a test starts, ignore Ctrl-C. The tests
# that press it need the usual answer.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline of tiny seeded models with face control, native size 32x48 to 64x96."""
    from tiny_models import tiny_pipeline

    folder = tmp_path_factory.mktemp("models") / "tiny-random"
    limits = {"min_wh": [32, 48], "max_wh": [64, 96], "multiple": 8}
    tiny_pipeline(size_limits=limits).save_pretrained(folder)
    (folder / "animate.yaml").write_text("size: 32x48\nsteps: 2\nguidance: 1.0\nwindow: 8\noverlap: 2\n")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest error of every set and item that parity tests noted, whichever process ran them."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    noted = [value for report in reports for key, value in report.user_properties if key == "largest error"]
    if noted:
        terminalreporter.section("largest absolute errors against the official code")
        for name, item, error, tolerance in noted:
            terminalreporter.write_line(f"{name:12} {item:20} {error:.2e}  (allowed {tolerance:.0e})")
