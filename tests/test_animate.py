"""Whole jobs through the command and the library: photo and video in, video and record out."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from animate_inputs import files_in, make_driver, make_photo, waving_tracks
from clips import loud_interval

from xdyna.cli import main
from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.infer.animate import AnimateJob, animate, finished
from xdyna.infer.people import list_people
from xdyna.photo import read_photo
from xdyna.provenance import AI_GENERATED, read_provenance
from xdyna.unet import XDynaUNet
from xdyna.video import VideoReader, probe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photo.png, dance.mp4 (12 frames at 8 fps, with sound) and the tracks of both."""
    folder = tmp_path_factory.mktemp("inputs")
    make_photo(folder / "photo.png")
    make_driver(folder / "dance.mp4", 12, tone=(0.5, 1.0))
    return folder


@pytest.fixture
def command(inputs: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An animate command whose output lands in the test's own current folder."""
    monkeypatch.chdir(tmp_path)
    return [
        "animate", "--ref", str(inputs / "photo.png"), "--pose-video", str(inputs / "dance.mp4"),
        "--model", str(tiny_folder),
    ]  # fmt: skip


def run(command: list[str], *more: str) -> None:
    assert main([*command, *more]) == 0


def frames_of(path: Path | str) -> list[Any]:
    return list(VideoReader(path))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_of(path: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(f"{path}.json").read_text())
    return record


def test_one_command_makes_a_video_and_its_record(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path, inputs: Path
) -> None:
    run(command, "-o", "out.mp4", "--seed", "7")
    output = capsys.readouterr()
    assert output.err == ""
    assert f"model tiny-random: the folder {tiny_folder}" in output.out
    assert f"pose: tracks from {inputs / 'dance.tracks.npz'}" in output.out
    assert "out.mp4: 12 frames of 32x48 at 8 fps, seed 7" in output.out
    assert files_in(tmp_path) == ["out.mp4", "out.mp4.json"]

    info = probe("out.mp4")
    assert (info.size_wh, info.fps, info.num_frames, info.has_audio) == ((32, 48), 8, 12, True)
    facts = read_provenance("out.mp4")
    assert facts is not None
    assert (facts["content"], facts["tool"], facts["seed"]) == (AI_GENERATED, "xdyna", "7")

    record = record_of("out.mp4")
    assert record["seed"] == record["resolved"]["seed"] == 7
    assert record["asked"]["config"]["steps"] is None
    assert (record["resolved"]["steps"], record["resolved"]["window"]) == (2, 8)
    assert record["model"]["sha256"] == facts["model_hash"]
    assert len(facts["model_hash"]) == 64
    assert (record["align"], record["frames"], record["fps"], record["size"]) == ("bones", 12, "8", [32, 48])


def test_the_same_command_gives_the_same_bytes(command: list[str], tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    run(command, "-o", "a/out.mp4")
    run(command, "-o", "b/out.mp4")
    run(command, "-o", "c/out.mp4", "--seed", "43")
    assert sha256(Path("a/out.mp4")) == sha256(Path("b/out.mp4"))
    assert sha256(Path("a/out.mp4.json")) == sha256(Path("b/out.mp4.json"))
    different = [
        np.abs(x.astype(int) - y).mean() for x, y in zip(frames_of("a/out.mp4"), frames_of("c/out.mp4"), strict=True)
    ]
    assert min(different) > 1


def test_the_record_is_a_config_that_repeats_the_run(command: list[str], tmp_path: Path) -> None:
    run(command, "-o", "a.mp4", "--steps", "3", "--pose-scale", "0.7", "--frames", "4")
    Path("again.yaml").write_text(yaml.safe_dump(record_of("a.mp4")["resolved"]))
    run(command, "-o", "b.mp4", "--config", "again.yaml")
    assert sha256(Path("a.mp4")) == sha256(Path("b.mp4"))


def test_json_is_one_object_on_stdout(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    run(command, "-o", "out.mp4", "--json", "--frames", "3")
    output = capfd.readouterr()
    report = json.loads(output.out)
    assert output.out.count("\n") == 1
    assert output.err == ""
    assert (report["output"], report["num_frames"], report["fps"], report["seed"]) == ("out.mp4", 3, 8.0, 42)
    assert any(line.startswith("model tiny-random") for line in report["notices"])


@pytest.mark.parametrize(
    ("options", "num_frames", "fps"),
    [
        (["--frames", "5"], 5, 8),
        (["--stride", "2"], 6, 4),
        (["--fps", "4"], 6, 4),
        (["--fps", "16", "--frames", "20"], 20, 16),
        (["--start", "1"], 4, 8),
        (["--start", "0.5", "--fps", "4", "--stride", "2", "--frames", "2"], 2, 2),
    ],
)
def test_driving_interval(command: list[str], options: list[str], num_frames: int, fps: int) -> None:
    run(command, "-o", "out.mp4", "--steps", "1", *options)
    assert len(frames_of("out.mp4")) == num_frames
    assert probe("out.mp4").fps == fps


def test_sound_follows_the_interval(command: list[str]) -> None:
    run(command, "-o", "out.mp4", "--steps", "1", "--start", "0.25")
    interval = loud_interval(Path("out.mp4"))
    assert interval is not None
    assert interval == pytest.approx((0.25, 0.75), abs=0.05)
    run(command, "-o", "silent.mp4", "--steps", "1", "--no-audio", "--frames", "2")
    assert not probe("silent.mp4").has_audio


def test_start_auto_begins_at_the_best_pose(
    command: list[str], inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The photo shows the third frame's pose."""
    waving_tracks(12, (64, 96))[[2]].save(inputs / "third.tracks.npz")
    (inputs / "third.png").write_bytes((inputs / "photo.png").read_bytes())
    command[2] = str(inputs / "third.png")
    run(command, "-o", "out.mp4", "--steps", "1", "--start", "auto", "--frames", "4")
    record = record_of("out.mp4")
    assert (record["start_frame"], record["frames"]) == (2, 4)
    interval = loud_interval(Path("out.mp4"))
    assert interval is not None
    assert interval[0] == pytest.approx(0.25, abs=0.05)  # of 0.5 s, two frames of 1/8 s are gone


def test_other_outputs_carry_the_mark_too(command: list[str]) -> None:
    run(command, "-o", "out.gif", "--steps", "1", "--frames", "3")
    run(command, "-o", "frames", "--steps", "1", "--frames", "3")
    assert len(list(Path("frames").glob("*.png"))) == 3
    for name in ("out.gif", "frames"):
        facts = read_provenance(name)
        assert facts is not None
        assert facts["content"] == AI_GENERATED
        assert record_of(name)["frames"] == 3


def test_compare_upscale_watermark_and_maps(command: list[str], tmp_path: Path) -> None:
    run(command, "-o", "plain.mp4", "--steps", "1", "--frames", "3", "--codec", "h264")
    run(
        command, "-o", "out.mp4", "--steps", "1", "--frames", "3", "--compare", "--upscale", "3", "--save-maps", "maps",
        "--watermark", "made by AI",
    )  # fmt: skip
    assert probe("out.mp4").size_wh == (96, 144)
    row = probe("out.compare.mp4")
    assert row.size_wh[1] == 144
    assert row.size_wh[0] == 4 * 96
    assert row.num_frames == 3
    assert "dance.pose.mp4" in files_in(tmp_path / "maps")

    plain, marked = frames_of("plain.mp4")[0], frames_of("out.mp4")[0]
    enlarged = plain.repeat(3, axis=0).repeat(3, axis=1).astype(int)
    changed = np.abs(marked.astype(int) - enlarged).mean(axis=-1)
    assert changed[-10:].mean() > changed[:72].mean()


def test_drawn_pose_maps_need_no_video(command: list[str], inputs: Path) -> None:
    maps = make_driver(inputs / "maps.mp4", 5, background=0, with_tracks=False)
    run([*command[:3], *command[5:]], "-o", "out.mp4", "--pose-maps", str(maps), "--steps", "1")
    assert len(frames_of("out.mp4")) == 5
    assert record_of("out.mp4")["align"] == "none"


def test_tracks_need_no_video(command: list[str], inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracks = str(inputs / "dance.tracks.npz")
    run([*command[:3], *command[5:]], "-o", "out.mp4", "--tracks", tracks, "--steps", "1", "--stride", "3")
    assert (len(frames_of("out.mp4")), probe("out.mp4").fps) == (4, Fraction(8, 3))
    assert "no face can steer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "scheduler", ["ddim", "euler", "dpm++", "unipc", "lms", "pndm", "ddpm", "euler-ancestral", "lcm"]
)
def test_schedulers(command: list[str], scheduler: str) -> None:
    run(command, "-o", "out.mp4", "--scheduler", scheduler, "--frames", "2", "--steps", "4")
    assert record_of("out.mp4")["resolved"]["scheduler"] == scheduler


def test_no_face_and_scales_change_the_result(command: list[str]) -> None:
    variants = {
        "all": [],
        "no-face": ["--no-face"],
        "weak-face": ["--face-scale", "0"],
        "no-adapter": ["--adapter-scale", "0"],
        "no-pose": ["--pose-scale", "0"],
        "late-pose": ["--set", "pose_start=0.3"],
        "affine": ["--align", "affine"],
        "closed": ["--schedule", "closed"],
    }
    hashes = {}
    for name, options in variants.items():
        run(command, "-o", f"{name}.gif", "--frames", "12", "--steps", "2", *options)
        hashes[name] = sha256(Path(f"{name}.gif"))
    assert hashes.pop("weak-face") == hashes["no-face"]
    assert len(set(hashes.values())) == len(hashes), hashes


def test_lora_files_change_the_result_by_their_scale(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from tiny_models import tiny_components

    from xdyna.adapters.motion_lora import add_lora, save_lora

    unet = tiny_components()["unet"]
    for parameter in add_lora(unet, rank=2, parts=("motion", "spatial")):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    file = save_lora(unet, tmp_path / "lora")
    hashes = []
    for options in ([], ["--lora", f"{file}:0"], ["--lora", str(file)], ["--lora", f"{file}:0.5"]):
        run(command, "-o", "out.gif", "--frames", "3", *options)
        hashes.append(sha256(Path("out.gif")))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    pictures = []
    for number, options in enumerate(([f"{file}:0.5"], [f"{file}:0.25", f"{file}:0.25"])):
        run(command, "-o", f"out{number}", "--frames", "3", *(part for text in options for part in ("--lora", text)))
        pictures.append(read_photo(sorted(Path(f"out{number}").glob("*.png"))[0]).astype(int))
    assert np.abs(pictures[1] - pictures[0]).mean() < 0.1  # equal but for rounding

    for parameter in (p for name, p in unet.named_parameters() if "lora_B" in name):
        parameter.data.fill_(float("nan"))
    spoilt = save_lora(unet, tmp_path / "spoilt")
    assert main([*command, "-o", "spoilt.gif", "--lora", str(file), "--lora", str(spoilt)]) == 2
    assert f"--lora {spoilt}: weight " in capsys.readouterr().err


def test_full_memory_is_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(self: XDynaUNet, *args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(XDynaUNet, "forward", forward)
    assert main([*command, "-o", "out.gif", "--frames", "2"]) == 2
    assert "out of memory at " in (told := capsys.readouterr().err)
    assert "lower --size or --window" in told
    assert not Path("out.gif").exists()


def test_a_manifest_runs_every_job_and_resumes(
    command: list[str], inputs: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        {"ref": "photo.png", "pose_video": "dance.mp4", "output": "one.mp4"},
        {"ref": "missing.png", "pose_video": "dance.mp4"},
        {"ref": "photo.png", "pose_video": "dance.mp4", "output": "sub/three.gif", "seed": 3},
    ]
    manifest = inputs / "jobs.yaml"
    manifest.write_text(yaml.safe_dump({"defaults": {"frames": 2, "model": str(tiny_folder)}, "jobs": jobs}))
    batch = ["animate", "--jobs", str(manifest), "-o", str(tmp_path / "out"), "--resume"]
    assert main(batch) == 2
    output = capsys.readouterr()
    first, last = output.err.splitlines()
    assert f"{manifest} job 2: {inputs / 'missing.png'}" in first
    assert "1 of 3 jobs failed" in last
    made = [tmp_path / "out/one.mp4", tmp_path / "out/sub/three.gif"]
    times = [path.stat().st_mtime_ns for path in made]
    assert record_of(str(made[1]))["seed"] == 3

    (inputs / "missing.png").write_bytes((inputs / "photo.png").read_bytes())
    assert main([*batch, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [job.get("skipped", False) for job in report["jobs"]] == [True, False, True]
    assert report["failed"] == 0
    assert [path.stat().st_mtime_ns for path in made] == times
    assert (tmp_path / "out/missing_dance.mp4").is_file()

    assert main([*batch, "--set", "steps=1"]) == 0, "other settings are other jobs"
    assert all(path.stat().st_mtime_ns != time_ns for path, time_ns in zip(made, times, strict=True))


def test_a_manifest_goes_on_after_a_folder_that_cannot_be_made(
    inputs: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [{"ref": "photo.png", "pose_video": "dance.mp4", "output": f"{name}/a.gif"} for name in ("file", "good")]
    (inputs / "folders.json").write_text(json.dumps(jobs, indent="\t"))
    (tmp_path / "file").touch()
    options = ["--model", str(tiny_folder), "--frames", "2", "--steps", "1"]
    assert main(["animate", "--jobs", str(inputs / "folders.json"), "-o", str(tmp_path), *options]) == 2
    assert f"job 1: {tmp_path / 'file'}: cannot write" in capsys.readouterr().err
    assert (tmp_path / "good/a.gif").is_file()


def test_resume_of_one_job(command: list[str], inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(command, "-o", "out.mp4", "--frames", "2", "--resume")
    made_ns = Path("out.mp4").stat().st_mtime_ns
    run(command, "-o", "out.mp4", "--frames", "2", "--resume")
    assert Path("out.mp4").stat().st_mtime_ns == made_ns
    assert "finished by an earlier run" in capsys.readouterr().out
    Path("out.mp4").unlink()
    run(command, "-o", "out.mp4", "--frames", "2", "--resume")
    assert Path("out.mp4").is_file()


def test_resume_wants_the_same_model_and_every_output(command: list[str], inputs: Path, tiny_folder: Path) -> None:
    config = AnimateConfig(model=str(tiny_folder), frames=2, steps=1, compare=True)
    job = AnimateJob(inputs / "photo.png", inputs / "dance.mp4", Path("out.mp4"), config)
    result = animate(job)
    report = finished(job)
    assert report is not None
    assert (report["num_frames"], report["model_sha256"]) == (2, result.model_sha256)
    Path("out.compare.mp4").rename("away.mp4")
    assert finished(job) is None
    Path("away.mp4").rename("out.compare.mp4")
    assert finished(job) is not None
    record = record_of("out.mp4")
    record["model"]["folder"] = "models/another"
    job.record.write_text(json.dumps(record))
    assert finished(job) is None


def test_list_people(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command[:1], *command[3:5], "--list-people", "people.png"]) == 0
    assert files_in(tmp_path) == ["people.png"]
    assert "people.png: 1 person, numbered" in capsys.readouterr().out


def test_list_people_looks_before_it_searches(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command[:1], *command[3:5], "--list-people", "none/people.png"]) == 2
    output = capsys.readouterr()
    assert "none/people.png: cannot write: its folder does not exist" in output.err
    assert output.out == ""


def test_list_people_of_a_later_part(command: list[str], inputs: Path, tmp_path: Path) -> None:
    """The tracks belong to the same frames as the picture."""
    tracks = waving_tracks(12)
    tracks.joints_conf[:8] = 0
    tracks.save(tmp_path / "late.tracks.npz")
    (tmp_path / "late.mp4").write_bytes((inputs / "dance.mp4").read_bytes())
    late = AnimateConfig(start=1.0)
    assert list_people(tmp_path / "late.mp4", tmp_path / "people.png", late) == [{"number": 1, "seen": 1.0}]


def test_from_python(inputs: Path, tiny_folder: Path, tmp_path: Path) -> None:
    config = load_config(AnimateConfig, None, [f"model={tiny_folder}", "frames=3"])
    seen: dict[str, tuple[int, int]] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= max(total, done)
        seen[stage] = (done, total)

    job = AnimateJob(inputs / "photo.png", inputs / "dance.mp4", tmp_path / "out.mp4", config)
    result = animate(job, on_progress)
    assert (result.num_frames, result.fps, result.size_wh, result.seed) == (3, 8.0, (32, 48), 42)
    assert all(done == total for done, total in seen.values())
    assert list(seen)[-2:] == ["denoise", "write"]
    assert result.output.is_file()
    assert result.record.is_file()
