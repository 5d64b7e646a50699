"""`xdyna data maps` and `xdyna data pack`: from videos to shards that a recipe reads, through the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip

from xdyna.cli import main
from xdyna.data.folder import FolderSource, scan_folder
from xdyna.data.recorded import Cut
from xdyna.data.shards import ShardSource, find_shards
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoWriter

SIZE_WH = (48, 72)


def _dance(folder: Path, name: str, index: int = 0, size_wh: tuple[int, int] = (96, 144)) -> Path:
    """A drawn dance and its tracks, as `xdyna data synth` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(seed=3, size_wh=size_wh, framings={"bust": 1.0})
    clip = render(clip_spec(world, index), np.arange(8) / world.fps, world.size_wh, world.fps)
    with VideoWriter(folder / f"{name}.mp4", size_wh, world.fps) as writer:
        for frame in clip.frames:
            writer.write(frame)
    clip.tracks.save(folder / f"{name}.tracks.npz")
    return folder / f"{name}.mp4"


def test_from_videos_to_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    _dance(folder, "one", 0)
    _dance(folder, "two", 1)
    make_clip(folder / "two.swapped.mp4", 8, 12, (96, 144))
    (folder / "scenes").mkdir()
    make_clip(folder / "scenes/sea.mp4", 8, 12, (96, 64))
    assert main(["data", "maps", str(folder), "--size", "48x72", "--size", "72x48", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in report["prepared"]] == ["one.mp4", "sea.mp4", "two.mp4"]
    assert report["problems"] == []

    recordings = scan_folder(folder, True, whatever=True)
    assert [item.size_wh for item in recordings.items] == [SIZE_WH, (72, 48), SIZE_WH]
    assert set(recordings.items[2].files) >= {"swapped.face_local", "swapped.face_global"}
    cut = Cut(3, sizes=(SIZE_WH, (72, 48)), face=True)
    clip = FolderSource(folder, cut, recordings.only(scenes=False)).draw(0)
    assert clip.face_maps is not None
    assert clip.pose_maps.any()
    assert clip.face_maps.any()
    cut_out = clip.face_maps[..., 3:].max(-1) > 40
    difference = np.abs(clip.face_maps[..., 3:].astype(int) - clip.frames)[cut_out]
    assert difference.mean() < 8  # the face map shows the frame's own pixels, in place

    assert main(["data", "maps", str(folder), "--size", "48x72"]) == 0
    assert "maps of 0 videos written, 3 were there" in capsys.readouterr().out
    assert main(["data", "pack", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert "clips-000000.tar: 3 clips" in capsys.readouterr().out
    packed = ShardSource(find_shards(str(tmp_path / "out")), Cut(3, sizes=(SIZE_WH,), face="swapped"))
    assert sum("one" in line or "00000000" in line for line in packed.check()) == 1  # it has no swapped face
    assert packed.draw(0).frames.shape == (4, 72, 48, 3)


def test_drawn_clips_on_disk_are_training_data_as_they_are(tmp_path: Path) -> None:
    options = ["--count", "3", "--frames", "6", "--size", "48x72", "--scene-only", "0.5", "--swapped", "--no-flow"]
    assert main(["data", "synth", "-o", str(tmp_path), "--seed", "5", *options]) == 0
    found = scan_folder(tmp_path, "swapped")
    assert found.problems == ()
    assert sorted({item.is_scene for item in found.items}) == [False, True]
    people = FolderSource(tmp_path, Cut(3, sizes=(SIZE_WH,), face="swapped"), found.only(scenes=False))
    clip = people.draw(0)
    assert 0.05 < (clip.masks > 127).mean() < 0.95
    assert clip.pose_maps[clip.masks > 127].max() > 100


def test_a_video_without_a_person_is_named_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _dance(tmp_path, "good")
    empty = make_clip(tmp_path / "nobody.mp4", 8, 12, (96, 144))
    Tracks.empty(8, (96, 144), 12.0).save(tmp_path / "nobody.tracks.npz")
    assert main(["data", "maps", str(tmp_path), "--size", "48x72"]) == 0
    shown = capsys.readouterr()
    assert "maps of 1 videos written" in shown.out
    assert "nobody" in shown.err
    assert main(["data", "pack", str(tmp_path), "-o", str(tmp_path / "out"), "--json"]) == 0
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) == 1
    assert f"left out: {empty}: no nobody.pose.mp4 beside it" in problems[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["maps", "{folder}", "--size", "50"], "--size 50: wanted WxH in pixels"),
        (["maps", "{folder}", "--size", "50x72"], "--size 50x72: wanted sides of 16 to 8192 pixels that are multiples"),
        (["maps", "{folder}/none"], "none: no such folder; wanted a folder of videos"),
        (["maps", "{folder}"], "no video in it"),
        (["pack", "{folder}"], "no video in it"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *(text.format(folder=tmp_path) for text in arguments)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
