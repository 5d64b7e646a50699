"""Manifests of jobs in every form that is accepted."""

import json
from pathlib import Path

import pytest
import yaml

from xdyna.errors import UserError
from xdyna.jobs import Job, load_jobs, outputs_of


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_jobs(path)
    return str(caught.value)


def test_the_same_jobs_in_every_form(tmp_path: Path) -> None:
    entries = [
        {"ref": "a.png", "pose_video": "/v/b.mp4", "output": "x.mp4", "seed": 3, "align": "none"},
        {"ref": "c.png", "pose_video": "d.mp4"},
    ]
    forms = [
        write(tmp_path / "jobs.json", entries),
        write(tmp_path / "jobs.yaml", yaml.safe_dump(entries)),
        write(tmp_path / "more.yml", yaml.safe_dump({"jobs": entries})),
        write(tmp_path / "jobs.jsonl", "\n".join(json.dumps(entry) for entry in entries) + "\n\n"),
    ]
    for form in forms:
        first, second = load_jobs(form)
        assert (first.ref, first.pose_video) == (tmp_path / "a.png", Path("/v/b.mp4"))
        assert (first.output, first.settings) == (Path("x.mp4"), {"seed": 3, "align": "none"})
        assert second.output is None
        assert second.origin == f"{form} job 2"


def test_defaults_hold_for_all_jobs_that_do_not_say_otherwise(tmp_path: Path) -> None:
    data = {"defaults": {"pose_video": "v.mp4", "steps": 5}, "jobs": [{"ref": "a.png"}, {"ref": "b.png", "steps": 6}]}
    first, second = load_jobs(write(tmp_path / "jobs.json", data))
    assert first.pose_video == second.pose_video == tmp_path / "v.mp4"
    assert (first.settings["steps"], second.settings["steps"]) == (5, 6)


def test_the_official_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths are relative to the folder the official script is started in, not to the manifest."""
    for name in ("photo/1.png", "pose/1/pose.mp4", "video/1.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "examples").mkdir()
    entry = {
        "image_path": "photo/1.png",
        "caption": "",
        "target_no_head_poses": "pose/1/pose.mp4",
        "target_videos": "video/1.mp4",
    }
    manifest = write(tmp_path / "examples" / "example.json", [entry])
    monkeypatch.chdir(tmp_path)
    (job,) = load_jobs(manifest)
    assert (job.ref, job.pose_video) == (Path("photo/1.png"), Path("video/1.mp4"))
    assert job.settings == {"prompt": "", "pose_maps": Path("pose/1/pose.mp4")}


def test_pose_maps_or_tracks_stand_for_the_video(tmp_path: Path) -> None:
    entries = [{"ref": "a.png", "pose_maps": "p.mp4"}, {"ref": "a.png", "tracks": "t.tracks.npz"}]
    jobs = load_jobs(write(tmp_path / "jobs.json", entries))
    assert [job.pose_video for job in jobs] == [None, None]
    assert jobs[1].settings["tracks"] == tmp_path / "t.tracks.npz"
    assert [path.name for path in outputs_of(jobs, Path("out"))] == ["a_p.mp4", "a_t.mp4"]


def test_outputs_never_collide(tmp_path: Path) -> None:
    def job(output: str | None) -> Job:
        return Job(ref=Path("x/a.png"), pose_video=Path("b.mp4"), output=output and Path(output), origin="m job")

    outputs = outputs_of([job(None), job(None), job("a_b-2.mp4"), job(None)], tmp_path)
    assert [path.name for path in outputs] == ["a_b.mp4", "a_b-3.mp4", "a_b-2.mp4", "a_b-4.mp4"]
    with pytest.raises(UserError, match="wanted one file for each job"):
        outputs_of([job("x.mp4"), job("x.mp4")], tmp_path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", "wanted a list of jobs"),
        ("[]", "holds no jobs"),
        ("just text", "wanted a list of jobs"),
        ('["a.png"]', "job 1: is a str, wanted a mapping"),
        ('[{"pose_video": "b.mp4"}]', "job 1: has no photo, wanted 'ref'"),
        ('[{"ref": "a.png"}]', "job 1: has no driving video, wanted 'pose_video'"),
        ('[{"ref": 3, "pose_video": "b.mp4"}]', "job 1: ref: got 3, wanted a path"),
        ('[{"ref": "a.png", "image_path": "b.png"}]', "gives 'ref' twice"),
        ('{"jobs": [], "default": {}}', "unknown key 'default'; did you mean defaults?"),
        ('{"jobs": 3}', "holds a int, wanted a list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_broken_manifests(tmp_path: Path, content: str, wanted: str) -> None:
    path = write(tmp_path / "jobs.yaml", content)
    text = error_of(path)
    assert text.startswith(str(path))
    assert wanted in text


def test_broken_json_lines_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", '{"ref": "a.png", "pose_video": "b.mp4"}\n{"ref": }\n')
    assert error_of(path).startswith(f"{path} line 2: not JSON")
    assert "cannot be read" in error_of(tmp_path / "none.jsonl")
    assert "cannot be read" in error_of(tmp_path / "none.yaml")


def test_a_line_of_json_lines_may_hold_other_line_ends(tmp_path: Path) -> None:
    entry = {"ref": "a\u2028b.png", "pose_video": "v\u0085.mp4"}
    (tmp_path / "jobs.jsonl").write_bytes(f"{json.dumps(entry, ensure_ascii=False)}\r\n".encode() * 2)
    jobs = load_jobs(tmp_path / "jobs.jsonl")
    assert [job.ref.name for job in jobs] == ["a\u2028b.png"] * 2
