"""The examples in docs/pipeline.md run as they stand, on a small model."""

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_models import TINY_WH, tiny_photo, tiny_pipeline

from xdyna.photo import write_png
from xdyna.preprocess.tracks import Tracks
from xdyna.provenance import read_provenance
from xdyna.video import VideoReader, VideoWriter
from xdyna.windows import closed_windows, open_windows

DOC = Path(__file__).resolve().parents[1] / "docs" / "pipeline.md"
#: OpenPose joints of somebody who stands, in hundredths of the frame.
STANDING = [
    (50, 15), (50, 25), (38, 25), (32, 40), (30, 52), (62, 25), (68, 40), (70, 52), (43, 52),
    (42, 72), (42, 92), (57, 52), (58, 72), (58, 92), (48, 13), (52, 13), (45, 14), (55, 14),
]  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples read: a model, a photo, a clip and the clip's tracks."""
    size_wh, num_frames = (64, 96), 5
    tiny_pipeline(image_prompt=True, text=True).save_pretrained(tmp_path / "models" / "x-dyna")
    write_png(tmp_path / "photo.png", tiny_photo(size_wh))
    with VideoWriter(tmp_path / "dance.mp4", size_wh, 8) as video:
        for i in range(num_frames):
            video.write(tiny_photo(size_wh, i))
    tracks = Tracks.empty(num_frames, size_wh, 8.0)
    tracks.joints_xy[:] = np.asarray(STANDING, np.float32) / 100 * size_wh
    tracks.joints_xy[:, :, 0] += np.arange(num_frames)[:, None]
    tracks.joints_conf[:] = 1
    angles = np.linspace(0, 2 * np.pi, 68)
    tracks.face_xy[:] = np.stack([32 + 8 * np.cos(angles), 14 + 8 * np.sin(angles)], axis=1)
    tracks.face_conf[:] = 1
    tracks.save(tmp_path / "dance.tracks.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)


def test_example_of_the_whole_way(workplace: Path) -> None:
    code = examples()[0]
    for line, smaller in (("SIZE_WH = (512, 896)", f"SIZE_WH = {TINY_WH}"), ("STEPS = 25", "STEPS = 2")):
        assert line in code
        code = code.replace(line, smaller)
    exec(compile(code, str(DOC), "exec"), {})
    made = VideoReader(workplace / "out.mp4")
    assert made.size_wh == TINY_WH
    assert len(list(made)) == 5
    facts = read_provenance(workplace / "out.mp4")
    assert facts is not None
    assert facts["model"] == "models/x-dyna"


def test_example_of_a_custom_pipeline(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    scope: dict[str, object] = {}
    exec(compile(examples()[1], str(DOC), "exec"), scope)
    assert type(scope["pipe"]).__name__ == "XDynaPipeline"


def test_table_of_windows_is_right() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| (\d+) \|$", DOC.read_text(), re.MULTILINE)
    assert len(rows) == 4
    for frames, opened, closed in rows:
        counts = {len(open_windows(int(frames), offset=offset)) for offset in range(12)}
        assert " or ".join(str(count) for count in sorted(counts)) == opened
        assert {len(closed_windows(int(frames), offset=offset)) for offset in range(16)} == {int(closed)}
