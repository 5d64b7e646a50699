"""What breaks in the middle of a job is told in one line, leaves nothing half written, and can be gone on from.

Other faults of a job are tested where they belong: the work of another job, damaged states and two commands on one
output in `test_resume`, full memory in `test_memory_plan`, full disks and signals in `test_session`, `test_video_write`
and `test_bad_input`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from animate_inputs import files_in, make_driver, make_photo

from xdyna.cli import main
from xdyna.infer.engine.fit import Fitted
from xdyna.infer.faults import between_steps, is_device_lost
from xdyna.infer.session import Session
from xdyna.infer.work import Work
from xdyna.unet import XDynaUNet
from xdyna.video import gif
from xdyna.video.gif import GifSink

FAILED = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_photo(folder / "photo.png")
    make_driver(folder / "dance.mp4", 2)
    return folder


@pytest.fixture
def command(inputs: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDYNA_DEBUG", raising=False)
    files = ["--ref", str(inputs / "photo.png"), "--pose-video", str(inputs / "dance.mp4"), "-o", "out.gif"]
    return ["animate", *files, "--model", str(tiny_folder), "--frames", "2", "--steps", "4"]


def at_call(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], None]) -> list[int]:
    """Do something at the UNet's call of a number, counted from 1; gives the numbers of the calls there were."""
    true_forward, calls = XDynaUNet.forward, []

    def forward(self: XDynaUNet, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == number:
            do()
        return true_forward(self, *args, **kwargs)

    monkeypatch.setattr(XDynaUNet, "forward", forward)
    return calls


def lose_the_gpu() -> None:
    raise RuntimeError(FAILED)


# --- a GPU that is gone ------------------------------------------------------------------------------------------


def test_a_lost_gpu_is_one_line_and_the_command_goes_on(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--no-resume"]) == 0
    whole = Path("out.gif").read_bytes()
    Path("out.gif").unlink()
    Path("out.gif.json").unlink()
    capsys.readouterr()
    with monkeypatch.context() as patched:
        at_call(patched, 4, lose_the_gpu)  # the reference runs once, then a call for each step
        assert main([*command, "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("xdyna: error: --device cpu: the GPU was lost (CUDA error: unspecified launch failure); ")
    assert "the same command goes on from step " in error
    assert error.count("\n") == 1
    step = int(error.rsplit("step ", 1)[1])
    assert files_in(Path()) == [".out.gif.work"]
    calls = at_call(monkeypatch, 0, lose_the_gpu)
    assert main(command) == 0
    assert f"goes on after step {step - 1}" in capsys.readouterr().out
    assert len(calls) == 4 - (step - 1)
    assert Path("out.gif").read_bytes() == whole
    assert files_in(Path()) == ["out.gif", "out.gif.json"]


def test_a_lost_gpu_before_anything_is_saved(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_call(monkeypatch, 3, lose_the_gpu)
    assert main(command) == 2
    assert "nothing was saved yet: the same command begins anew (--resume saves" in capsys.readouterr().err
    assert files_in(Path()) == []


def test_no_other_job_is_begun_on_a_lost_gpu(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [{"ref": command[2], "pose_video": command[4], "output": f"{name}.gif"} for name in "ab"]
    Path("jobs.json").write_text(json.dumps(jobs))
    calls = at_call(monkeypatch, 2, lose_the_gpu)
    true_told = Session._faults_told
    monkeypatch.setattr(  # the device that the session asks about is a CPU here
        Session, "_faults_told", lambda self, config, device, work: true_told(self, config, torch.device("cuda"), work)
    )
    assert main(["animate", "--jobs", "jobs.json", *command[7:]]) == 2
    first, second, last = capsys.readouterr().err.splitlines()
    assert "jobs.json job 1: --device cuda: the GPU was lost" in first
    assert "jobs.json job 2: not begun, as an earlier job found no device any more: --device cuda: the GPU" in second
    assert "2 of 2 jobs failed" in last
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(FAILED), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: the launch timed out and was terminated"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("a shape is wrong"), False),
        (ValueError(FAILED), False),
    ],
)
def test_what_counts_as_lost(error: BaseException, lost: bool) -> None:
    assert is_device_lost(error) is lost


def test_a_defect_stays_one(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("a shape is wrong")

    at_call(monkeypatch, 2, fail)
    assert main(command) == 1
    assert "unexpected RuntimeError: a shape is wrong (a defect" in capsys.readouterr().err


# --- a disk that is full -----------------------------------------------------------------------------------------


def test_a_full_disk_in_the_middle_of_the_video_costs_only_the_writing(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true_write, written = GifSink.write, []

    def write(self: GifSink, frame: Any) -> None:
        written.append(frame)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true_write(self, frame)

    with monkeypatch.context() as patched:
        patched.setattr(gif.GifSink, "write", write)
        assert main([*command, "--resume"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "xdyna: error: out.gif: cannot write: no space left on the disk; free some or choose another folder\n"
    )
    assert files_in(Path()) == [".out.gif.work"]
    calls = at_call(monkeypatch, 0, lose_the_gpu)
    assert main(command) == 0
    assert calls == [], "all steps were saved"
    assert files_in(Path()) == ["out.gif", "out.gif.json"]


# --- Ctrl-C and SIGTERM ------------------------------------------------------------------------------------------


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_the_first_ctrl_c_waits_for_the_step(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        calls = at_call(patched, 2, press)
        assert main([*command, "--resume"]) == 130
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "xdyna: warning: Ctrl-C: this step is finished and saved first; Ctrl-C again stops at once",
        "xdyna: error: interrupted",
    ]
    stopped = next(line for line in output.out.splitlines() if line.startswith("stopped after step"))
    step = int(stopped.split()[3])
    assert calls[-1] == 2
    assert files_in(Path()) == [".out.gif.work"]
    assert main(command) == 0
    assert f"goes on after step {step}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_stops_at_once(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press_twice() -> None:
        press()
        press()
        raise AssertionError("not at once")

    calls = at_call(monkeypatch, 2, press_twice)
    assert main([*command, "--resume"]) == 130
    assert calls == [1, 2]
    assert "stopped after" not in capsys.readouterr().out
    assert files_in(Path()) in ([], [".out.gif.work"])


def test_ctrl_c_does_not_wait_where_nothing_is_saved(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press_once() -> None:
        press()
        raise AssertionError("not at once")

    at_call(monkeypatch, 2, press_once)
    assert main([*command, "--no-resume"]) == 130
    assert capsys.readouterr().err == "xdyna: error: interrupted\n"
    assert files_in(Path()) == []


def test_ctrl_c_is_left_alone_in_the_users_own_program() -> None:
    def run() -> None:
        with between_steps(lambda stage, done, total: None, lambda: True):
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            press()
            raise AssertionError("not at once")

    with pytest.raises(KeyboardInterrupt):
        run()


@pytest.mark.parametrize("stage", ["denoise", "write"])
def test_sigterm_leaves_no_part(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    seen: list[list[str]] = []

    def press_and_look() -> None:
        seen.append(files_in(Path()))
        press(signal.SIGTERM)

    if stage == "denoise":
        at_call(monkeypatch, 3, press_and_look)
    else:
        true_decode = Fitted.decode

        def decode(self: Fitted, *args: Any) -> Any:
            for frame in true_decode(self, *args):
                yield frame
                press_and_look()

        monkeypatch.setattr(Fitted, "decode", decode)
    assert main([*command, "--resume"]) == 143
    assert capsys.readouterr().err == "xdyna: error: terminated\n"
    assert any(".part" in name for name in seen[0]) == (stage == "write")
    assert files_in(Path()) == [".out.gif.work"]
    assert files_in(Path(".out.gif.work")) == ["state.safetensors"]


# --- two commands on one output ----------------------------------------------------------------------------------


def test_two_commands_on_one_output(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with Work(Path("out.gif")):  # a lock is that of an open file: the same process cannot take it twice either
        assert main(command) == 2
        assert capsys.readouterr().err == (
            f"xdyna: error: out.gif: another command (process {os.getpid()}) is writing it; wait for it, or choose "
            "another output\n"
        )
        assert files_in(Path()) == [".out.gif.work"]
