"""One job, or one manifest, in two processes over gloo, through the command."""

import hashlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from animate_inputs import files_in, make_driver, make_photo
from launched import launch

from xdyna.cli import main
from xdyna.errors import UserError
from xdyna.infer import processes
from xdyna.infer.processes import Team, launched_processes
from xdyna.unet import XDynaUNet

NUM_FRAMES = 14  # two windows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_photo(folder / "photo.png")
    make_driver(folder / "dance.mp4", NUM_FRAMES)
    return folder


@pytest.fixture
def command(inputs: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [
        "animate", "--ref", str(inputs / "photo.png"), "--pose-video", str(inputs / "dance.mp4"), "-o", "out.gif",
        "--model", str(tiny_folder), "--steps", "3", "--deterministic",
    ]  # fmt: skip


def digests() -> list[str]:
    """Of the output and its record, which are then removed."""
    found = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in ("out.gif", "out.gif.json")]
    Path("out.gif").unlink()
    return found


def test_two_processes_write_the_bytes_of_one(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    command += ["--guidance", "2", "--scheduler", "euler-ancestral"]
    assert main(command) == 0
    alone = digests()
    first, second = launch(tmp_path_factory.mktemp("said"), [[*command, "--window-batch", "2"]] * 2)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "out.gif: 14 frames" in first.out
    assert second.out == ""
    assert first.err == second.err == []
    record = json.loads(Path("out.gif.json").read_text())
    assert record["resolved"]["window_batch"] == 2
    assert digests()[0] == alone[0]
    assert files_in(Path()) == ["out.gif.json"]


@pytest.mark.slow
def test_a_job_of_two_goes_on_after_one_was_killed(
    command: list[str], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    alone = digests()
    true_forward, calls = XDynaUNet.forward, []

    def prepare(rank: int) -> None:
        """The second process is killed at its third window."""

        def forward(self: XDynaUNet, *args: Any, **kwargs: Any) -> Any:
            calls.append(rank)
            if rank == 1 and len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return true_forward(self, *args, **kwargs)

        XDynaUNet.forward = forward  # type: ignore[method-assign]  # only in the forked process

    folder = tmp_path_factory.mktemp("said")
    other, killed = launch(folder, [[*command, "--resume"]] * 2, prepare)
    assert (other.status, killed.status) == (2, -signal.SIGKILL)
    (line,) = other.err
    assert "another process of this launch is gone without a word" in line
    assert "state.safetensors" in files_in(Path(".out.gif.work"))
    first, second = launch(folder, [command] * 2)
    assert (first.status, second.status) == (0, 0), first.err
    assert re.search(r"goes on after step [12]\n", first.out)
    assert digests() == alone
    assert not Path(".out.gif.work").exists()


@pytest.mark.parametrize(
    ("rank", "change", "wanted"),
    [
        (1, ["--ref", "none.png"], "process 1: none.png: no such file"),
        (0, ["--ref", "none.png"], "error: none.png: no such file"),
        (1, ["--seed", "7"], "process 1 has another seed than process 0"),
    ],
)
def test_what_one_cannot_do_ends_both_with_one_line(
    command: list[str], tmp_path_factory: pytest.TempPathFactory, rank: int, change: list[str], wanted: str
) -> None:
    commands = [command, command]
    commands[rank] = [*command, *change]
    ended = launch(tmp_path_factory.mktemp("said"), commands)
    assert [process.status for process in ended] == [2, 2]
    (line,) = ended[0].err + ended[1].err
    assert wanted in line
    assert files_in(Path()) == []


def test_jobs_of_a_manifest_go_to_both(
    command: list[str], inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shared = {"pose_video": "dance.mp4", "frames": 1, "steps": 1, "deterministic": True}
    shared["model"] = command[command.index("--model") + 1]
    entries = [{"ref": "photo.png", "output": f"{seed}.gif", "seed": seed} for seed in range(4)]
    manifest = inputs / "jobs.json"
    manifest.write_text(json.dumps({"defaults": shared, "jobs": [*entries, {"ref": "none.png"}]}))
    folder = tmp_path_factory.mktemp("said")
    ended = launch(folder, [["animate", "--jobs", str(manifest), "-o", "out", "--retries", "1"]] * 2)
    assert [process.status for process in ended] == [2, 2], ended
    lines = [line for process in ended for line in process.out.splitlines()]
    for number in range(4):
        assert sum(f"job {number + 1} of 5: out/{number}.gif" in line for line in lines) == 1
    assert sum("none_dance.mp4: failed" in line for line in lines) == 2, "tried, and tried again"
    assert all(line.startswith("process 1: ") for line in ended[1].out.splitlines())
    assert ended[1].err == []
    assert "1 of 5 jobs failed" in ended[0].err[-1]
    ended = launch(folder, [["animate", "--jobs", str(manifest), "-o", "out", "--resume", "--json"]] * 2)
    report = json.loads(ended[0].out)
    assert [job.get("skipped", "error" in job) for job in report["jobs"]] == [True] * 5
    assert ended[1].out == ""
    assert main(["animate", "--ref", str(inputs / "photo.png"), *command[3:], "-o", "alone.gif", "--seed", "2",
                 "--frames", "1", "--steps", "1"]) == 0  # fmt: skip
    assert Path("alone.gif").read_bytes() == Path("out/2.gif").read_bytes()


def test_who_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert launched_processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert launched_processes() == 1, "a queue's variables alone are no launcher"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setattr(processes, "START_S", 0.2)
    assert launched_processes() == 2
    with pytest.raises(UserError, match="process 0 of 2: the others were not found"):
        Team.launched()
