"""A manifest on two Ray actors, one of which is killed in mid-job."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from animate_inputs import files_in, make_driver, make_photo

from xdyna.cli import main

pytest.importorskip("ray", reason="Ray is not installed: pip install 'xdyna[scale]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def kill_one(folder: Path, killed: list[int], over: threading.Event) -> None:
    """Kill the process that has the first work folder with a saved step."""
    while not over.wait(0.02):
        for state in folder.glob(".*.work/state.safetensors"):
            lock = state.with_name("lock")
            if lock.exists() and (text := lock.read_text()):
                killed.append(int(text))
                os.kill(killed[0], signal.SIGKILL)
                return


def test_two_actors_one_killed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost, and every file has the bytes of a local run; the command once more does what failed."""
    monkeypatch.chdir(tmp_path)
    make_photo(Path("photo.png"))
    make_driver(Path("dance.mp4"), 4)
    entries = [{"ref": "photo.png", "output": f"{seed}.gif", "seed": seed} for seed in range(4)]
    shared = {"pose_video": "dance.mp4", "model": str(tiny_folder), "size": "64x96", "frames": 4, "steps": 4}
    jobs = {"defaults": {**shared, "deterministic": True}, "jobs": [*entries, {"ref": "none.png"}]}
    Path("jobs.json").write_text(json.dumps(jobs))
    assert main(["animate", "--jobs", "jobs.json", "-o", "local", "--json"]) == 2
    command = ["batch", "jobs.json", "-o", "spread", "--actors", "2", "--cpus-per-actor", "1", "--retries", "1"]

    killed: list[int] = []
    Path("spread").mkdir()
    over = threading.Event()
    killer = threading.Thread(target=kill_one, args=(Path("spread"), killed, over))
    killer.start()
    capsys.readouterr()
    try:
        status = main([*command, "--json"])
    finally:
        over.set()
        killer.join()
    output = capsys.readouterr()
    if "Ray at local does not answer" in output.err:  # its parts give each other 15 s to start
        pytest.skip(f"Ray does not start on this machine: {output.err}")
    assert status == 2, output.err
    assert len(killed) == 1
    report = json.loads(output.out)
    assert "1 actors were lost and replaced" in report["notices"]
    rows = [json.loads(line) for line in Path("spread/results.jsonl").read_text().splitlines()]
    assert sorted(rows, key=lambda row: row["job"]) == report["jobs"]
    assert [row["status"] for row in report["jobs"]] == ["done"] * 4 + ["failed"]
    assert sorted(row["attempts"] for row in report["jobs"]) == [1, 1, 1, 2, 2], (
        "the one in mid-job, the one that failed"
    )
    assert "none.png: no such file" in report["jobs"][-1]["reason"]
    assert "1 of 5 jobs failed" in output.err.splitlines()[-1]
    for name in (f"{seed}.gif{suffix}" for seed in range(4) for suffix in ("", ".json")):
        assert Path("spread", name).read_bytes() == Path("local", name).read_bytes()
    assert files_in(Path("spread")) == sorted([*files_in(Path("local")), "results.jsonl"])

    make_photo(Path("none.png"))
    assert main([*command, "--results", "spread/again.csv"]) == 0
    assert "spread/again.csv: 1 done, 4 skipped, 0 failed" in capsys.readouterr().out
