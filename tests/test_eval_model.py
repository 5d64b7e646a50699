"""Models scored on test sets: the drawn one, folders of known layouts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip
from eval_clips import put_frames, true_clip

from xdyna.cli import main
from xdyna.data.synthetic.clips import World
from xdyna.data.synthetic.write import Wanted, write_clip
from xdyna.errors import UserError
from xdyna.infer.evaluate import synthetic
from xdyna.infer.evaluate.datasets import open_dataset
from xdyna.infer.evaluate.generate import Animator
from xdyna.infer.evaluate.results import Results
from xdyna.infer.evaluate.synthetic import SyntheticFolder, entries
from xdyna.photo import read_photo
from xdyna.preprocess.tracks import Tracks


def score_model(model: Path, out: Path, *more: str) -> int:
    command = ["eval", "model", "--model", str(model), "--out", str(out), "--metrics", "psnr,seam,joints-synth"]
    return main([*command, *more])


def test_the_list_is_frozen() -> None:
    """Whoever changes these lines makes another test set, which needs another name."""
    listed = entries()
    assert len(listed) == 44
    assert [entry.name for entry in listed[:4]] == ["00-self", "01-cross", "02-self", "03-other-body"]
    assert (listed[0].index, listed[39].index, listed[40].index) == (24_000_000, 24_000_039, 25_000_000)
    assert [entry.frames for entry in listed[38:42]] == [16, 16, 40, 40]
    assert listed[-1].name == "43-long"
    world = synthetic.WORLD
    assert (world.seed, world.size_wh, world.fps, world.loop_s) == (0, (64, 96), 12.0, 1.0)
    assert world.scenes == ("studio", "sea", "waterfall", "fire", "meadow")


def test_a_model_on_the_drawn_set(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    monkeypatch.setattr(synthetic, "COUNT", 1)  # then a long one
    monkeypatch.setattr(synthetic, "LONG_FRAMES", 33)
    more = ("--clips", "2", "--data", str(data), "--name", "mine", "--set", "steps=1", "--set", "window=16")
    assert score_model(tiny_folder, out, *more) == 0
    shown = capsys.readouterr().out
    assert "psnr/fg" in shown
    results = Results.read(out / "results.jsonl")
    assert results.methods == ("mine",)
    assert len(results.header["methods"]["mine"]["model_sha256"]) == 64
    assert results.header["dataset"]["name"] == "synthetic-v1"
    assert {line.clip.split("@")[0] for line in results.clips} == {"00-self", "01-long"}
    assert {line.scene for line in results.clips} <= set(synthetic.WORLD.scenes)
    line = results.clips[0]
    assert set(line.values) == {"psnr/all", "psnr/fg", "psnr/bg", "joints-synth/all"}
    long = [line for line in results.clips if line.video == "01-long"]
    assert len(long) == 2
    assert any("seam/all" in line.values for line in long), "borders of windows cross a long clip"
    made = read_photo(Path(line.files["generated"]) / "000000.png")
    assert made.shape == (96, 64, 3)
    tracks = Tracks.load(Path(line.files["tracks"]))
    assert tracks.size_wh == (64, 96)

    def again(*args: object) -> None:
        raise AssertionError("a finished video is not made again")

    monkeypatch.setattr(Animator, "animate", again)
    before = (out / "results.jsonl").read_text()
    assert score_model(tiny_folder, out, *more) == 0
    assert (out / "results.jsonl").read_text().startswith(before)
    assert Results.read(out / "results.jsonl").clips == results.clips
    capsys.readouterr()
    assert score_model(tiny_folder, out, *more, "--set", "steps=2") == 2
    assert "holds videos of another run (other settings); name another --out" in capsys.readouterr().err


def test_the_drawn_set_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "FRAMES", 2)
    world = World(seed=3, size_wh=(24, 32), scenes=("sea",))
    first, second = (SyntheticFolder(tmp_path / name, 2, world) for name in "ab")
    for folder in (first, second):
        assert [entry.name for entry, case in folder.cases(lambda entry: True) if case is not None] == [
            "00-self",
            "01-cross",
        ]
    assert first.facts() == second.facts()
    kept = SyntheticFolder(tmp_path / "a", 2, world)
    assert [case for _, case in kept.cases(lambda entry: False)] == [None, None]
    assert kept.facts() == first.facts()
    other = SyntheticFolder(tmp_path / "c", 2, World(seed=4, size_wh=(24, 32), scenes=("sea",)))
    list(other.cases(lambda entry: False))
    assert other.facts()["sha256"] != first.facts()["sha256"]


def test_a_folder_of_videos_with_tracks(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "clips"
    data.mkdir()
    world = World(size_wh=(32, 48), scenes=("sea",), framings={"full": 1.0})
    for index in (1, 2):
        write_clip(data, world, index, 16, Wanted(flow=False))
    (data / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    more = ["--dataset", str(data), "--set", "align=none", "--set", "steps=1", "--allow-failed"]
    assert score_model(tiny_folder, out, *more) == 0
    results = Results.read(out / "results.jsonl")
    assert results.header["dataset"]["layout"] == "plain"
    assert len(results.clips) == 2
    assert all({"psnr/fg", "joints-synth/all"} <= set(line.values) for line in results.clips)
    assert [line.video for line in results.failed] == ["broken"]
    assert "broken.mp4: not a readable video" in capsys.readouterr().err


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_tiktok_and_disco(tmp_path: Path) -> None:
    for name in ("00001", "00002"):
        put_frames(tmp_path / "tiktok" / name / "images", true_clip(0, 3))
    put_frames(tmp_path / "tiktok" / "00002" / "masks", np.zeros((3, 32, 24), np.uint8))
    found = open_dataset(tmp_path / "tiktok")
    assert found.layout == "tiktok"
    assert [(item.name, item.masks is not None, item.photo) for item in found.items] == [
        ("00001", False, None),
        ("00002", True, None),
    ]
    assert found.items[0].truth == found.items[0].driving == tmp_path / "tiktok" / "00001" / "images"
    put_frames(tmp_path / "disco" / "001", true_clip(0, 3))
    assert open_dataset(tmp_path / "disco").layout == "disco"


def empty(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_realisdance_val(tmp_path: Path) -> None:
    empty(tmp_path / "gt/0001.mp4", tmp_path / "gt/0002.mp4", tmp_path / "ref/0001.png", tmp_path / "smpl/0001.mp4")
    with pytest.raises(UserError, match="laid out as RealisDance-Val, but ref holds no picture 0002"):
        open_dataset(tmp_path)
    empty(tmp_path / "ref/0002.jpg")
    found = open_dataset(tmp_path)
    assert found.layout == "realisdance-val"
    assert [item.photo.name for item in found.items if item.photo] == ["0001.png", "0002.jpg"]
    assert found.items[0].truth == tmp_path / "gt/0001.mp4"


def test_x_dance_has_no_truth(tmp_path: Path) -> None:
    empty(tmp_path / "images/00001.png", tmp_path / "videos/00009/video.mp4")
    with pytest.raises(UserError, match="no picture in images has the name of a driver in videos"):
        open_dataset(tmp_path)
    empty(tmp_path / "videos/00001/video.mp4")
    found = open_dataset(tmp_path)
    assert found.layout == "x-dance"
    assert [(item.name, item.truth) for item in found.items] == [("00001", None)]


def test_humanvid(tmp_path: Path) -> None:
    empty(tmp_path / "videos/0/a.mp4", tmp_path / "videos/1/b.mp4", tmp_path / "camera/0/a.txt")
    found = open_dataset(tmp_path)
    assert found.layout == "humanvid"
    assert [item.name for item in found.items] == ["0/a", "1/b"]


def test_manifest_as_a_test_set(tmp_path: Path) -> None:
    jobs = [{"ref": "a.png", "pose_video": "b.mp4", "truth": None, "scene": "sea"}]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    (item,) = open_dataset(tmp_path / "jobs.json").items
    assert (item.name, item.truth, item.scene) == ("a_b", None, "sea")


def test_unknown_layouts_say_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    with pytest.raises(UserError, match=r"of no layout that is known here. realisdance-val: gt/NAME.mp4 and ref.*tik"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="no such folder; wanted a test set, synthetic-v1 or a manifest"):
        open_dataset(tmp_path / "nothing")


def test_frames_that_say_their_rate_are_sampled_by_it(tmp_path: Path) -> None:
    from xdyna.infer.evaluate.frames import FrameFolder, VideoFile
    from xdyna.infer.evaluate.protocol import load_protocol
    from xdyna.video import VideoReader, VideoWriter

    config = load_protocol("v1").config
    video = make_clip(tmp_path / "a.mp4", 25, 25)
    with VideoWriter(tmp_path / "a", (96, 64), 25) as writer:
        for frame in VideoReader(video):
            writer.write(frame)
    folder, file = FrameFolder(tmp_path / "a", config), VideoFile(video, config)
    assert folder.count == file.count == 12
    for of_folder, of_file in zip(folder.pictures(), file.pictures(), strict=True):
        assert np.array_equal(of_folder(), of_file())
