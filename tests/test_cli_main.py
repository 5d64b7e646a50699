"""The frame of the command: exit statuses, one line for every mistake, notices, progress, --json."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

import xdyna
from xdyna import cli
from xdyna.cli import common
from xdyna.cli.common import JsonOption, PlainProgress, announce, emit_json, progress
from xdyna.errors import UserError


def with_command(monkeypatch: pytest.MonkeyPatch, function: Callable[..., None]) -> None:
    """Give the command a sub-command `probe`."""
    sub_app = typer.Typer(add_completion=False)
    sub_app.command("probe")(function)
    real = cli.import_module

    def find(name: str) -> object:
        return SimpleNamespace(app=sub_app) if name.endswith(".probe") else real(name)

    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "probe"))
    monkeypatch.setattr(cli, "find_spec", lambda name: True)
    monkeypatch.setattr(cli, "import_module", find)


def raising(error: BaseException) -> Callable[[], None]:
    def probe() -> None:
        raise error

    return probe


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "animate" in capsys.readouterr().out
    assert cli.main([]) == 0
    assert "animate" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"xdyna {xdyna.__version__}\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("photo.png: two\nlines"), 2, "photo.png: two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.BadParameter("no good"), 2, "no good"),
        (RuntimeError("boom"), 1, "unexpected RuntimeError: boom (a defect; XDYNA_DEBUG=1 shows where)"),
    ],
)
def test_every_failure_is_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    line: str,
) -> None:
    monkeypatch.delenv("XDYNA_DEBUG", raising=False)
    with_command(monkeypatch, raising(error))
    assert cli.main(["probe"]) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("xdyna: error: ")
    assert line in output.err
    assert output.err.count("\n") == 1


def test_sigterm_is_answered_once_and_only_where_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # while it cleans up: `timeout` sends two
            print("cleaned up")

    with_command(monkeypatch, probe)
    assert cli.main(["probe"]) == 143
    assert capsys.readouterr() == ("cleaned up\n", "xdyna: error: terminated\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        assert cli.main(["probe"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM, signal.SIGTERM]


def test_debug_shows_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDYNA_DEBUG", "1")
    with_command(monkeypatch, raising(RuntimeError("boom")))
    with pytest.raises(RuntimeError, match="boom"):
        cli.main(["probe"])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["anmate"], "No such command 'anmate'"),
        (["animate", "--stepz", "3"], "No such option: --stepz"),
        (["animate", "--steps", "few"], "--steps"),
        (["animate"], "--ref is missing"),
        (["animate", "--ref", "a.png", "--set", "stepz=3"], "unknown key 'stepz'; did you mean steps?"),
        (["animate", "--ref", "a.png", "--align", "limbs"], "--align: got 'limbs', wanted 'auto', 'none'"),
        (["animate", "--ref", "a.png", "--size", "big"], "--size: got 'big', wanted WIDTHxHEIGHT"),
        (["animate", "--ref", "a.png", "--jobs", "jobs.yaml"], "wanted no --ref"),
        (["animate", "--jobs", "jobs.yaml"], "jobs.yaml: cannot be read"),
        (["animate", "--list-people", "p.png"], "--pose-video is missing"),
        (["animate", "--ref", "a.png", "--config", "infer/tinny"], "did you mean infer/tiny"),
    ],
)
def test_mistakes_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    wanted: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("xdyna: error: ")
    assert wanted in output.err
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_sub_command_module_does_not_break_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", ("animate", "not_there"))
    assert cli.main(["--help"]) == 0
    assert "not_there" not in capsys.readouterr().out
    assert cli.main(["not_there"]) == 2


def test_notices_go_to_stdout_and_warnings_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe() -> None:
        announce("model tiny:\n because")
        logging.getLogger("xdyna.preprocess").warning("no face")

    with_command(monkeypatch, probe)
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr() == ("model tiny: because\n", "xdyna: warning: no face\n")


def test_json_leaves_stdout_to_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def probe(as_json: JsonOption = False) -> None:
        announce("a notice")
        logging.getLogger("xdyna").warning("a warning")
        with progress(quiet=as_json) as on_progress:
            on_progress("denoise", 2, 2)
        if as_json:
            emit_json({"output": Path("out.mp4"), "frames": 3})

    with_command(monkeypatch, probe)
    assert cli.main(["probe", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {"output": "out.mp4", "frames": 3, "notices": ["a notice", "a warning"]}
    assert output.out.count("\n") == 1
    assert output.err == "xdyna: warning: a warning\n"
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr().out == "a notice\ndenoise: 2/2\n"


def test_plain_progress_says_little(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter(range(0, 10_000, 1))
    monkeypatch.setattr(common.time, "monotonic", lambda: float(next(now_s)))
    cli.start_talk()
    on_progress = PlainProgress()
    for done in range(31):
        on_progress("pose", done, 30)
    on_progress("pose", 30, 30)
    for done in range(12):
        on_progress("write", done, 0)
    assert capsys.readouterr().out.splitlines() == [
        "pose: 10/30, 20 s left",
        "pose: 20/30, 10 s left",
        "pose: 30/30",
        "write: 10",
    ]


def test_a_closed_pipe_is_no_defect(tmp_path: Path) -> None:
    """`xdyna --help | head -0`: the reader is gone before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from xdyna.cli import main; sys.exit(main(['--version']))"
    done = subprocess.run(
        [sys.executable, "-u", "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1
