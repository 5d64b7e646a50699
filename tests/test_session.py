"""Jobs in one session: the same bytes as each on its own, with less work."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from animate_inputs import files_in, make_driver, make_photo, waving_tracks
from tiny_models import tiny_pipeline

from xdyna.cli import main
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer import session as session_module
from xdyna.infer import sources as sources_module
from xdyna.infer.animate import AnimateJob, animate
from xdyna.infer.kept import Kept, array_sha256
from xdyna.infer.session import Session
from xdyna.pipeline import XDynaPipeline
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoWriter


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos with tracks, and dance.mp4 with and bare.mp4 without."""
    folder = tmp_path_factory.mktemp("inputs")
    make_photo(folder / "photo.png")
    make_photo(folder / "other.png", (80, 96))
    make_driver(folder / "dance.mp4", 6, tone=(0.2, 0.4))
    make_driver(folder / "bare.mp4", 6, with_tracks=False)
    return folder


@pytest.fixture
def job(inputs: Path, tiny_folder: Path, tmp_path: Path) -> AnimateJob:
    config = AnimateConfig(model=str(tiny_folder), frames=3, steps=2)
    return AnimateJob(inputs / "photo.png", inputs / "dance.mp4", tmp_path / "out.mp4", config)


def with_settings(job: AnimateJob, output: Path, **settings: Any) -> AnimateJob:
    config = AnimateConfig.model_validate({**dict(job.config), **settings})
    return replace(job, output=output, config=config)


def digests(job: AnimateJob) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*job.outputs, job.record)]


class Calls:
    """Counts calls of functions that go on doing what they did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: dict[str, int] = {}
        self._monkeypatch = monkeypatch

    def count(self, owner: Any, name: str) -> None:
        true: Callable[..., Any] = getattr(owner, name)
        self.counts[name] = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            return true(*args, **kwargs)

        self._monkeypatch.setattr(owner, name, counted)


def test_a_session_writes_the_bytes_of_single_jobs(job: AnimateJob, tmp_path: Path, inputs: Path) -> None:
    variants: list[dict[str, Any]] = [
        {}, {"seed": 7}, {"compare": True, "guidance": 2.0}, {"dtype": "bfloat16", "scheduler": "dpm++"}, {},
    ]  # fmt: skip
    jobs = [with_settings(job, tmp_path / f"{number}.mp4", **some) for number, some in enumerate(variants)]
    jobs[1] = replace(jobs[1], reference=inputs / "other.png")
    alone = []
    for one in jobs[:-1]:
        animate(one)
        alone.append(digests(one))
    alone.append(alone[0])
    for overlap, tried in ((True, jobs), (False, jobs[:3])):
        with Session(overlap=overlap) as session:
            for one in tried:
                session.run(one)
        assert [digests(one) for one in tried] == alone[: len(tried)], f"overlap {overlap}"


def test_a_manifest_loads_and_encodes_once(
    job: AnimateJob, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    calls.count(session_module, "load_pipeline")
    calls.count(sources_module, "prepare")
    calls.count(XDynaPipeline, "encode_reference")
    calls.count(XDynaPipeline, "encode_prompt")
    settings = {"model": job.config.model, "frames": 2, "steps": 1, "guidance": 2.0}
    entries: list[dict[str, Any]] = [{}, {"scheduler": "euler"}, {"seed": 7}, {"ref": "other.png"}]
    jobs = [{"ref": "photo.png", "pose_video": "dance.mp4", **entry} for entry in entries]
    (inputs / "jobs.json").write_text(json.dumps({"defaults": settings, "jobs": jobs}))
    assert main(["animate", "--jobs", str(inputs / "jobs.json"), "-o", str(tmp_path)]) == 0
    assert len(files_in(tmp_path)) == 8
    # Both photos, and the first once more with another seed; the empty prompt serves for both halves of guidance.
    assert calls.counts == {"load_pipeline": 1, "prepare": 2, "encode_reference": 3, "encode_prompt": 1}


def test_a_shared_driver_is_looked_at_once(
    job: AnimateJob, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Looking:
        name = "looking"

        def __init__(self, label: str) -> None:
            self._label = label

        def detect(self, frames: Any, *, fps: float) -> Tracks:
            number = sum(1 for _ in frames)
            seen.append(self._label)
            return waving_tracks(number, (96, 144), fps, face=False)

    true_build = sources_module.build_detector

    def build(name: str = "auto", **settings: Any) -> Any:
        if name == "auto" and "bare" not in settings["video"].name:
            return true_build(name, **settings)
        return Looking(settings["video"].name), "pose: detector looking"

    monkeypatch.setattr(sources_module, "build_detector", build)
    jobs = [
        replace(with_settings(job, tmp_path / f"{name}.gif", steps=1), reference=inputs / f"{name}.png")
        for name in ("photo", "other")
    ]
    copy = Path(shutil.copy(inputs / "bare.mp4", tmp_path / "bare copy.mp4"))
    jobs = [replace(jobs[0], driving=inputs / "bare.mp4"), replace(jobs[1], driving=copy)]
    with Session() as session:
        for one in jobs:
            session.run(one)
        assert seen == ["bare.mp4"], "the same content under another name"
        session.run(with_settings(jobs[1], jobs[1].output, start=0.25))
        assert seen == ["bare.mp4", "bare copy.mp4"], "other frames of it"
    together = [digests(one) for one in jobs[:1]]
    animate(jobs[0])
    assert [digests(one) for one in jobs[:1]] == together


def test_a_model_that_was_written_again_is_loaded_again(
    job: AnimateJob, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    calls.count(session_module, "load_pipeline")
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    one = with_settings(job, job.output, model=str(model), steps=1, frames=1)
    with Session() as session:
        first = session.run(one)
        session.run(one)
        assert calls.counts["load_pipeline"] == 1
        tiny_pipeline(seed=1).save_pretrained(model)
        second = session.run(with_settings(one, one.output, size="32x48", window=8, overlap=2))
    assert calls.counts["load_pipeline"] == 2
    assert first.model_sha256 != second.model_sha256


def test_a_failed_job_leaves_the_session_usable(job: AnimateJob, tmp_path: Path) -> None:
    with Session() as session:
        with pytest.raises(UserError, match="--window: got 99 frames"):
            session.run(with_settings(job, job.output, window=99))
        with pytest.raises(UserError, match="no tracks"):
            session.run(with_settings(job, job.output, detector="tracks", tracks=tmp_path / "no tracks"))
        assert files_in(tmp_path) == []
        session.run(job)
    together = digests(job)
    animate(job)
    assert digests(job) == together


def test_a_wrong_size_is_told_before_the_model_is_loaded(job: AnimateJob, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    calls.count(session_module, "load_pipeline")
    calls.count(sources_module, "prepare")
    with pytest.raises(UserError, match="--size: width x height is 8192x8192, this model takes"):
        animate(with_settings(job, job.output, size="8192x8192"))
    assert calls.counts == {"load_pipeline": 0, "prepare": 0}


def test_what_is_wrong_with_the_model_is_told_first(
    job: AnimateJob, inputs: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"junk")
    nobody = tmp_path / "nobody.tracks.npz"
    Tracks.empty(6, (96, 144), 8.0).save(nobody)
    with pytest.raises(UserError, match="not a model that can be loaded"):
        animate(with_settings(job, job.output, model=str(model), tracks=nobody))
    with pytest.raises(UserError, match="holds no person"):
        animate(with_settings(job, job.output, tracks=nobody))


@pytest.mark.parametrize("overlap", [True, False])
def test_a_full_disk_while_writing(
    job: AnimateJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    true_write = VideoWriter.write

    def write(self: VideoWriter, frame: Any) -> None:
        if self.num_frames == 1:
            raise UserError(f"{self.path}: cannot write: no space left on the disk")
        true_write(self, frame)

    monkeypatch.setattr(VideoWriter, "write", write)
    with Session(overlap=overlap) as session, pytest.raises(UserError, match=r"out\.mp4: .*no space left"):
        session.run(job)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("stage", ["photo", "denoise", "write"])
def test_ctrl_c_removes_what_is_half_written(job: AnimateJob, tmp_path: Path, stage: str) -> None:
    def on_progress(name: str, done: int, total: int) -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animate(job, on_progress)
    assert files_in(tmp_path) == []


def test_deterministic_batches_change_no_byte(job: AnimateJob, tmp_path: Path) -> None:
    whole = {"deterministic": True, "frames": None, "window": 4, "guidance": 2.0, "steps": 1}
    jobs = [
        with_settings(job, tmp_path / f"{number}.gif", window_batch=windows, vae_batch=frames, **whole)
        for number, (windows, frames) in enumerate([("auto", "auto"), (2, 4), (3, 64)])
    ]
    with Session() as session:
        for one in jobs:
            session.run(one)
    first, *others = (digests(one)[0] for one in jobs)
    assert others == [first, first]
    resolved = [json.loads(one.record.read_text())["resolved"] for one in jobs]
    assert [(one["window_batch"], one["vae_batch"]) for one in resolved] == [(1, 1), (2, 4), (3, 64)]


def test_batches_are_used(job: AnimateJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xdyna.unet import XDynaUNet

    rows: list[int] = []
    decoded: list[int] = []
    true_forward, true_decode = XDynaUNet.forward, XDynaPipeline.decode_frames

    def forward(self: XDynaUNet, sample: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        return true_forward(self, sample, *args, **kwargs)

    def decode_frames(self: XDynaPipeline, *args: Any) -> Any:
        for part in true_decode(self, *args):
            decoded.append(len(part))
            yield part

    monkeypatch.setattr(XDynaUNet, "forward", forward)
    monkeypatch.setattr(XDynaPipeline, "decode_frames", decode_frames)
    animate(with_settings(job, job.output, frames=None, window=4, steps=1, window_batch=2, vae_batch=4))
    assert max(rows) == 2
    assert decoded == [4, 2]


def test_near_reference_where_it_applies(job: AnimateJob, tmp_path: Path) -> None:
    """The model of these tests pools its norm over a window's frames."""
    jobs = [
        with_settings(job, tmp_path / f"{near}.gif", frames=None, window=4, steps=1, near_reference=near)
        for near in (False, True)
    ]
    with Session() as session:
        for one in jobs:
            session.run(one)
    assert digests(jobs[0])[0] != digests(jobs[1])[0]
    tiny_pipeline(pool_group_norm=False).save_pretrained(tmp_path / "per-frame")
    per_frame = {"model": str(tmp_path / "per-frame"), "size": "32x48", "window": 4, "overlap": 2, "guidance": 1.0}
    with pytest.raises(UserError, match="--near-reference: this model's norm is per frame"):
        animate(with_settings(job, job.output, **per_frame, near_reference=True))


def test_batches_in_settings() -> None:
    assert AnimateConfig(window_batch="3").window_batch == 3
    for wrong in ("many", 0, 1.5):
        with pytest.raises(ValueError, match="window_batch"):
            AnimateConfig.model_validate({"window_batch": wrong})


def test_kept_values_are_bounded() -> None:
    kept: Kept[int] = Kept(2)
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    for number in (1, 2, 1, 3, 1, 2):
        assert kept.fetch(number, lambda number=number: make(number)) == number
    assert made == [1, 2, 3, 2], "2 was not asked for the longest when 3 came"
    assert len(kept) == 2


def test_hashes_tell_shapes_and_types_apart() -> None:
    values = np.arange(12, dtype=np.uint8)
    others = [values.reshape(3, 4), values.reshape(4, 3), values.view(np.int8), values[::-1]]
    assert len({array_sha256(values), *map(array_sha256, others)}) == 5
