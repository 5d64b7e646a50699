"""`xdyna data synth`: every truth lies beside the clip, and bad input is one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xdyna.cli import main
from xdyna.data.folder import FolderSource
from xdyna.data.recorded import Cut
from xdyna.data.synthetic import write
from xdyna.data.synthetic.clips import World, clip_spec, dressed_as, render
from xdyna.data.synthetic.expression import EXPRESSIONS
from xdyna.data.synthetic.flow import clip_flow
from xdyna.errors import UserError
from xdyna.photo import read_photo
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoReader

PERSON = {
    "mp4", "png", "json", "tracks.npz", "expression.npz", "moving.png", "flow.npz",
    "pose.mp4", "mask.mp4", "face_local.mp4", "face_global.mp4",
}  # fmt: skip
SCENE = {"mp4", "png", "json", "tracks.npz", "expression.npz", "moving.png", "flow.npz"}


def _synth(folder: Path, *options: str) -> int:
    return main(["data", "synth", "-o", str(folder), "--size", "64x96", "--fps", "12", "--seed", "1", *options])


def _kinds(folder: Path, name: str) -> set[str]:
    return {path.name.removeprefix(f"{name}.") for path in folder.iterdir() if path.name.startswith(f"{name}.")}


def test_every_truth_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 18 frames are more than are drawn at a time
    assert _synth(tmp_path / "a", "--count", "2", "--frames", "18", "--loop", "1", "--framing", "full", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in report["clips"]] == ["clip-00000.mp4", "clip-00001.mp4"]
    assert len(report["files"]) == 2 * len(PERSON)
    assert _kinds(tmp_path / "a", "clip-00001") == PERSON
    world = World(seed=1, fps=12.0, loop_s=1.0, framings={"full": 1.0})
    spec, times_s = clip_spec(world, 1), np.arange(18) / 12
    truth = render(spec, times_s, world.size_wh, 12.0)
    stem = tmp_path / "a" / "clip-00001"
    assert np.array_equal(Tracks.load(stem.with_suffix(".tracks.npz")).joints_xy, truth.tracks.joints_xy)
    assert np.array_equal(read_photo(stem.with_suffix(".png")), truth.frames[0])
    with np.load(stem.with_suffix(".flow.npz")) as data:
        flow, valid = clip_flow(spec, times_s, world.size_wh)
        assert np.array_equal(data["valid"], valid)
        assert np.abs(data["flow"].astype(np.float32) - flow).max() < 0.02
        assert np.array_equal(data["flow"], flow.astype(np.float16))
    with np.load(stem.with_suffix(".expression.npz")) as data:
        assert np.array_equal(data["values"], truth.expression)
        assert tuple(data["names"]) == EXPRESSIONS
    about = json.loads(stem.with_suffix(".json").read_text())
    assert (about["index"], about["scene"], about["num_frames"]) == (1, spec.scene, 18)
    mask = np.stack(list(VideoReader(stem.with_suffix(".mask.mp4"))))[..., 0]
    assert np.abs(mask.astype(int) - truth.masks).mean() < 4
    assert ((mask > 127) == (truth.masks > 127)).mean() > 0.99


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, first, count in (("a", "3", "1"), ("b", "2", "2")):
        options = ("--first", first, "--count", count, "--frames", "4", "--swapped")
        assert _synth(tmp_path / name, *options) == 0
    files = sorted((tmp_path / "a").iterdir())
    assert {path.name for path in files} == {path.name for path in (tmp_path / "b").glob("clip-00003.*")}
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in files)
    swapped = {f"clip-00003.swapped.{kind}.mp4" for kind in ("face_local", "face_global")}
    assert swapped < {path.name for path in files}


def test_a_folder_of_clips_trains(tmp_path: Path) -> None:
    """What is written is read back by the source of filmed clips: dances with their maps, scenes without."""
    assert _synth(tmp_path, "--count", "6", "--frames", "6", "--scene-only", "0.5", "--swapped", "--no-flow") == 0
    scenes = sorted(path.name for path in (tmp_path / "scenes").glob("*.mp4"))
    assert 0 < len(scenes) < 6
    assert _kinds(tmp_path / "scenes", scenes[0].removesuffix(".mp4")) == SCENE - {"flow.npz"}
    source = FolderSource(tmp_path, Cut(frames=3, face="swapped", sizes=((64, 96),)))
    assert not source.problems
    clips = [source.draw(index) for index in range(12)]
    assert {clip.is_scene for clip in clips} == {True, False}
    for clip in clips:
        assert clip.pose_maps.any() != clip.is_scene
        assert (clip.masks > 127).any() != clip.is_scene


def test_everybody_follows_the_driving_clip(tmp_path: Path) -> None:
    assert _synth(tmp_path, "--count", "2", "--frames", "3", "--drive", "7", "--no-maps", "--no-flow") == 0
    world = World(seed=1, fps=12.0)
    driver = clip_spec(world, 7)
    for index in range(2):
        spec = dressed_as(driver, clip_spec(world, index))
        truth = render(spec, np.arange(3) / 12, world.size_wh, 12.0)
        tracks = Tracks.load(tmp_path / f"clip-0000{index}.tracks.npz")
        assert np.array_equal(tracks.joints_xy, truth.tracks.joints_xy)
        assert "pose.mp4" not in _kinds(tmp_path, f"clip-0000{index}")
    expressions = [np.load(tmp_path / f"clip-0000{k}.expression.npz")["values"] for k in range(2)]
    assert np.array_equal(*expressions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scene", "watterfall"], "unknown scene 'watterfall'; did you mean waterfall"),
        (["--scene-only", "1.5"], "scene_only is 1.5, wanted the share"),
        (["--framing", "burst"], "unknown framing 'burst'; did you mean bust"),
        (["--size", "64"], "--size 64: wanted WxH"),
        (["--size", "8x8"], "--size 8x8: wanted WxH"),
        (["--full-size"], "--size 64x96 and --full-size"),
        (["--fps", "nan"], "'--fps'"),
        (["--seed", "-3"], "seed is -3"),
        (["--loop", "-1"], "--loop"),
        (["--count", "0"], "--count"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _synth(tmp_path / "out", *options) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert _synth(tmp_path / "out") == 2
    assert "cannot write" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = render
    world = replace(World(seed=1), size_wh=(32, 48))

    def breaking(*args: object) -> object:
        if np.asarray(args[1]).min() > 0:
            raise UserError("the disk is full")
        return drawn(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "render", breaking)
    with pytest.raises(UserError, match="disk is full"):
        write.write_clip(tmp_path, world, 0, write.CHUNK + 1)
    left = [path.name for path in tmp_path.iterdir()]
    assert all(name.endswith(".png") for name in left)  # the first frame was whole
