"""Jobs that are stopped go on where they stood, with the bytes of an uninterrupted run; one output has one writer."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from animate_inputs import files_in, make_driver, make_photo
from safetensors.torch import load_file, save_file
from tiny_models import tiny_clip, tiny_photo, tiny_pipeline

from xdyna.cli import main
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer import saving as saving_module
from xdyna.infer.animate import AnimateJob, animate
from xdyna.infer.load import SCHEDULERS, build_scheduler
from xdyna.infer.session import Session
from xdyna.infer.work import Work, work_folder
from xdyna.resume import DenoiseState
from xdyna.unet import XDynaUNet


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_photo(folder / "photo.png")
    make_driver(folder / "dance.mp4", 5)
    return folder


@pytest.fixture
def job(inputs: Path, tiny_folder: Path, tmp_path: Path) -> AnimateJob:
    config = AnimateConfig(model=str(tiny_folder), frames=2, steps=4)
    return AnimateJob(inputs / "photo.png", inputs / "dance.mp4", tmp_path / "out.gif", config)


def with_settings(job: AnimateJob, **settings: Any) -> AnimateJob:
    return replace(job, config=AnimateConfig.model_validate({**dict(job.config), **settings}))


def digests(job: AnimateJob) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (job.output, job.record)]


def stopped_at(job: AnimateJob, step: int, stage: str = "denoise", **options: Any) -> Path:
    """Interrupt a job after some steps; returns its work folder."""

    def on_progress(name: str, done: int, total: int) -> None:
        if (name, done) == (stage, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animate(job, on_progress, **{"resume": True, **options})
    assert not job.output.exists()
    return work_folder(job.output)


def steps_of(job: AnimateJob, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    """Run a job and count its UNet calls."""
    calls = 0
    true_forward = XDynaUNet.forward

    def forward(self: XDynaUNet, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return true_forward(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(XDynaUNet, "forward", forward)
        animate(job, **options)
    return calls


# --- the state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_call_goes_on_from_a_saved_state(name: str, tmp_path: Path) -> None:
    """Through a file, into a pipeline that has run to its end; ancestral and DDPM steps draw noise."""

    def call(pipe: Any, state: DenoiseState | None = None, stop: int | None = None) -> Any:
        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == stop:
                pipe.state_after(step, tensors["latents"]).save(tmp_path / "state", {})
                pipe._interrupt = True
            return {}

        return pipe(
            tiny_photo(), tiny_clip(2), num_inference_steps=5, window=2, overlap=0, output_type="latent", eta=0.5,
            generator=torch.Generator().manual_seed(0), callback_on_step_end=after_step, state=state,
        ).frames  # fmt: skip

    pipe = tiny_pipeline()
    pipe.scheduler = build_scheduler(name, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    assert not torch.equal(call(pipe, stop=2), whole := call(pipe))
    assert torch.equal(call(pipe, DenoiseState.load(tmp_path / "state")), whole)


def test_a_state_of_other_steps_is_refused() -> None:
    pipe = tiny_pipeline()
    pipe.scheduler.set_timesteps(4)
    generator = torch.Generator()
    state = DenoiseState.of(1, torch.zeros(1, 4, 2, 6, 4), pipe.scheduler, generator)
    pipe.scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="other timesteps"):
        state.restore(pipe.scheduler, generator, torch.device("cpu"))
    pipe.scheduler.odd = object()
    with pytest.raises(ValueError, match="scheduler attribute odd is a object"):
        DenoiseState.of(1, torch.zeros(1), pipe.scheduler, generator)


# --- jobs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral"])
def test_a_stopped_job_goes_on(job: AnimateJob, monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    job = with_settings(job, scheduler=scheduler)
    assert steps_of(job, monkeypatch) == 4
    whole = digests(job)
    job.output.unlink()
    folder = stopped_at(job, 3)
    assert files_in(folder) == ["state.safetensors"]
    assert steps_of(job, monkeypatch) == 1, "three steps are done"
    assert digests(job) == whole
    assert files_in(job.output.parent) == ["out.gif", "out.gif.json"]


def test_a_job_stopped_while_it_writes_only_writes(job: AnimateJob, monkeypatch: pytest.MonkeyPatch) -> None:
    animate(job)
    whole = digests(job)
    job.output.unlink()
    stopped_at(job, 2, "write")
    assert steps_of(with_settings(job, upscale=2), monkeypatch) == 0, "what becomes of the frames may differ"
    job.output.unlink()
    stopped_at(job, 2, "write")
    assert steps_of(job, monkeypatch) == 0
    assert digests(job) == whole


def test_the_same_command_goes_on_after_a_kill(
    job: AnimateJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while it saves: the state before stays."""
    monkeypatch.chdir(tmp_path)
    command = [
        "animate", "--ref", str(job.reference), "--pose-video", str(job.driving), "--model", job.config.model,
        "--frames", "2", "--steps", "4", "--scheduler", "dpm++", "-o", "out.gif",
    ]  # fmt: skip
    assert main(command) == 0
    whole = hashlib.sha256(Path("out.gif").read_bytes()).hexdigest()
    Path("out.gif").unlink()
    code = (
        "import os, signal, sys\n"
        "from xdyna.resume import DenoiseState\n"
        "true_save, saved = DenoiseState.save, []\n"
        "def save(self, path, facts):\n"
        "    saved.append(path)\n"
        "    if len(saved) == 3:\n"
        "        path.write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    true_save(self, path, facts)\n"
        "DenoiseState.save = save\n"
        "from xdyna.cli import main\n"
        "main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *command, "--resume"], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert files_in(Path(".out.gif.work")) == ["lock", "state.part", "state.safetensors"]
    capsys.readouterr()
    assert main(command) == 0
    assert ".out.gif.work: goes on after step 2" in capsys.readouterr().out
    assert hashlib.sha256(Path("out.gif").read_bytes()).hexdigest() == whole
    assert not Path(".out.gif.work").exists()


def test_only_long_jobs_are_saved(job: AnimateJob, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped_at(job, 2, resume=None)
    assert not folder.exists()
    monkeypatch.setattr(saving_module, "LONG_S", 0.0)
    assert not stopped_at(job, 2, resume=False).exists()
    assert files_in(stopped_at(job, 2, resume=None)) == ["state.safetensors"]
    assert steps_of(job, monkeypatch, resume=False) == 4
    assert files_in(folder) == ["state.safetensors"], "neither used nor removed"
    assert steps_of(job, monkeypatch) == 2


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({"seed": 1}, "with seed 42, not 1"), ({"guidance": 2.0, "steps": 5}, "with steps 4, not 5 (also guidance)")],
)
def test_the_work_of_another_job_is_refused(
    job: AnimateJob, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], wanted: str
) -> None:
    folder = stopped_at(job, 2)
    with pytest.raises(UserError) as caught:
        animate(with_settings(job, **settings))
    assert str(caught.value).startswith(f"{folder}: holds the unfinished work of another job, ")
    assert wanted in str(caught.value)
    assert "--restart" in str(caught.value)
    assert steps_of(job, monkeypatch) == 2, "it is still there for the job it belongs to"


def test_other_inputs_versions_and_models_are_other_jobs(
    job: AnimateJob, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped_at(job, 2)
    other = make_photo(inputs / "other.png", (80, 96))
    with pytest.raises(UserError, match="another job, with photo "):
        animate(replace(job, reference=other))
    with monkeypatch.context() as patched:
        patched.setattr("xdyna.__version__", "99")
        with pytest.raises(UserError, match=r"with version .*, not 99"):
            animate(job)
    state, tensors = folder / "state.safetensors", load_file(folder / "state.safetensors")
    loaded = DenoiseState.load(state)
    loaded.save(state, {"model": "of old"})
    assert set(load_file(state)) == set(tensors)
    with pytest.raises(UserError, match="with model of old, not "):
        animate(job)
    assert steps_of(with_settings(job, seed=1), monkeypatch, restart=True) == 4
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_a_damaged_state_is_thrown_away(
    job: AnimateJob, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    state = stopped_at(job, 2) / "state.safetensors"
    if content is None:
        save_file({"latents": torch.zeros(2)}, state)
    else:
        state.write_bytes(content)
    with caplog.at_level("WARNING", "xdyna"):
        assert steps_of(job, monkeypatch) == 4
    assert "damaged" in caplog.text
    assert not state.exists()


def test_a_full_disk_while_saving_is_told_once(
    job: AnimateJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def save(self: DenoiseState, path: Path, facts: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DenoiseState, "save", save)
    with caplog.at_level("WARNING", "xdyna"):
        animate(job, resume=True)
    assert caplog.text.count("no space left on the disk") == 1
    assert files_in(job.output.parent) == ["out.gif", "out.gif.json"]


# --- one output, one writer --------------------------------------------------------------------------------------


def test_a_second_command_on_one_output_is_refused(job: AnimateJob) -> None:
    with Session() as session, Work(job.output):
        with pytest.raises(UserError, match=rf"out\.gif: another command \(process {os.getpid()}\) is writing it"):
            session.run(job)
        session.run(replace(job, output=job.output.with_name("other.gif")))
    assert files_in(job.output.parent) == ["other.gif", "other.gif.json"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from xdyna.infer.work import Work\n"
        "with Work(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    output = tmp_path / "out.mp4"
    done = subprocess.run([sys.executable, "-c", code, str(output)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files_in(work_folder(output)) == ["lock"]
    with Work(output) as work:
        assert (work.folder / "lock").read_text() == str(os.getpid())
    assert not work.folder.exists()


# --- manifests ---------------------------------------------------------------------------------------------------


def test_failed_jobs_are_listed_and_retried(
    job: AnimateJob, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [
        {"ref": "photo.png", "output": "one.gif"},
        {"ref": "none.png"},
        {"ref": "photo.png", "output": "two.gif"},
    ]
    shared = {"pose_video": "dance.mp4", "model": job.config.model, "frames": 1, "steps": 1}
    (inputs / "jobs.json").write_text(json.dumps({"defaults": shared, "jobs": entries}))
    true_run, attempts = Session.run, []

    def run(self: Session, job: AnimateJob, *args: Any, **options: Any) -> Any:
        attempts.append(job.output.name)
        if job.output.name == "two.gif" and attempts.count("two.gif") == 1:
            raise UserError("the network drive is away")
        return true_run(self, job, *args, **options)

    monkeypatch.setattr(Session, "run", run)
    command = ["animate", "--jobs", str(inputs / "jobs.json"), "-o", str(tmp_path)]
    assert main([*command, "--retries", "2"]) == 2
    output = capsys.readouterr()
    assert attempts == ["one.gif", "none_dance.mp4", "two.gif", "none_dance.mp4", "two.gif", "none_dance.mp4"]
    assert "two.gif: failed: the network drive is away" in output.out
    listed, last = output.err.splitlines()
    assert "failed: " in listed
    assert "jobs.json job 2: " in listed
    assert "none.png: no such file" in listed
    assert "1 of 3 jobs failed; --resume" in last
    assert (tmp_path / "two.gif").is_file()


def test_a_defect_in_one_job_spares_the_others(
    job: AnimateJob, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [{"ref": "photo.png", "pose_video": "dance.mp4", "output": f"{name}.gif"} for name in ("bad", "good")]
    (inputs / "jobs.json").write_text(json.dumps(jobs))
    monkeypatch.delenv("XDYNA_DEBUG", raising=False)
    true_run = Session.run

    def run(self: Session, job: AnimateJob, *args: Any, **options: Any) -> Any:
        if job.output.name == "bad.gif":
            raise ZeroDivisionError("oh")
        return true_run(self, job, *args, **options)

    monkeypatch.setattr(Session, "run", run)
    options = ["--model", job.config.model, "--frames", "1", "--steps", "1", "--json"]
    assert main(["animate", "--jobs", str(inputs / "jobs.json"), "-o", str(tmp_path), *options]) == 1
    output = capsys.readouterr()
    bad, good = json.loads(output.out)["jobs"]
    assert (bad["error"], bad["defect"]) == ("unexpected ZeroDivisionError: oh", True)
    assert good["num_frames"] == 1
    assert "at least one by a defect" in output.err.splitlines()[-1]


def test_retries_go_with_a_manifest(job: AnimateJob, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["animate", "--ref", str(job.reference), "--pose-video", str(job.driving), "--retries", "1"]) == 2
    assert "--retries: goes with --jobs" in capsys.readouterr().err
