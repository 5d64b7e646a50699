"""The measuring script, on maps drawn from known tracks."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from test_pose_draw import SIZE_WH, standing

from xdyna.preprocess.draw import draw_pose_maps
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoWriter

ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, tracks: Tracks) -> None:
    with VideoWriter(path, SIZE_WH, Fraction(8)) as writer:
        for image in draw_pose_maps(tracks, SIZE_WH):
            writer.write(image)


def test_script_finds_what_was_moved(tmp_path: Path) -> None:
    ours = standing(6)
    theirs = standing(6)
    theirs.joints_xy[:, 4, 0] += 0.1 * 896  # their right wrist is 10 % of the height away
    ours.save(tmp_path / "dance.tracks.npz")
    write(tmp_path / "dance.mp4", ours)
    write(tmp_path / "pose.mp4", theirs)
    command = [sys.executable, str(ROOT / "scripts" / "measure_pose_match.py"), "dance.mp4", "pose.mp4"]
    command += ["--detector", "tracks", "--picture", "sheet.png"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if "%" in line and line.split()}
    assert abs(float(lines["right_wrist"][0]) - 10) < 0.3
    assert lines["right_wrist"][2] == "100.0%"
    others = [float(values[0]) for name, values in lines.items() if "_" in name and name != "right_wrist"]
    assert len(others) == 11
    assert max(others) < 0.2
    assert "at least 0.5 on 100.0% of frames" in done.stdout
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert np.isfinite(others).all()
