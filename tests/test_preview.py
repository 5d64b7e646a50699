"""Pictures while a job runs: what they show, that they change nothing, and that they go."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from animate_inputs import files_in, make_driver, make_photo
from diffusers import AutoencoderTiny, DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image
from tiny_models import TINY_SCHEDULER

from xdyna.cli import main
from xdyna.configs.animate import AnimateConfig
from xdyna.denoise import Conditioning
from xdyna.errors import UserError
from xdyna.infer.animate import AnimateJob
from xdyna.infer.engine import preview as preview_module
from xdyna.infer.engine.long import signal_and_noise
from xdyna.infer.engine.preview import FRAMES, LinearColours, Preview, captioned, fit_colours, shown_frames
from xdyna.infer.session import Session
from xdyna.provenance import read_provenance


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_photo(folder / "photo.png")
    make_driver(folder / "dance.mp4", 6)
    settings = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    AutoencoderTiny(**settings, **widths).save_pretrained(folder / "small")
    return folder


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session() as session:
        yield session


@pytest.fixture
def job(inputs: Path, tiny_folder: Path, tmp_path: Path) -> AnimateJob:
    config = AnimateConfig(model=str(tiny_folder), frames=2, steps=4)
    return AnimateJob(inputs / "photo.png", inputs / "dance.mp4", tmp_path / "out.mp4", config)


def with_settings(job: AnimateJob, **settings: Any) -> AnimateJob:
    return replace(job, config=AnimateConfig.model_validate({**dict(job.config), **settings}))


def digests(job: AnimateJob) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*job.outputs, job.record)]


@contextmanager
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    found: list[str] = []
    with caplog.at_level(logging.INFO, logger="xdyna"):
        caplog.clear()
        yield found
    found += [record.message for record in caplog.records if record.message.startswith("preview")]


def test_a_preview_changes_no_byte_and_goes(
    job: AnimateJob, inputs: Path, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    session.run(job)
    alone = digests(job)
    picture = job.output.with_name("out.mp4.preview.png")
    seen: list[bytes] = []

    def look(stage: str, done: int, total: int) -> None:
        if stage == "write" and done == 0 and picture.exists():
            seen.append(picture.read_bytes())
            shown = np.asarray(Image.open(picture))
            assert shown[:48, : 2 * 32].std() > 1
            facts = read_provenance(picture)
            assert facts is not None
            assert facts["model"] == "tiny-random"

    ways: list[tuple[dict[str, Any], str]] = [
        ({}, "4 pictures by a linear guess"),
        ({"preview_every": 3}, "2 pictures by a linear guess"),  # and the last step's
        ({"preview_with": "vae", "preview_every": 4}, "1 picture by the VAE"),
        ({"preview_with": inputs / "small"}, "4 pictures by the small decoder"),
    ]
    for settings, told in ways:
        with lines(caplog) as said:
            session.run(with_settings(job, preview=True, **settings), look)
        assert told in said[0]
        assert digests(job) == alone, "not even the record tells of it"
        assert files_in(job.output.parent) == ["out.mp4", "out.mp4.json"]
    assert len(set(seen)) == 3, "of the linear ones the last is the same"
    with lines(caplog) as said:
        session.run(with_settings(job, preview=True, small_decoder=inputs / "small"), look)
    assert "by the small decoder" in said[0], "what decodes the result shows it too"


def test_a_job_that_fails_leaves_its_last_picture(job: AnimateJob, session: Session) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "denoise" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.run(with_settings(job, preview=True), stop)
    assert files_in(job.output.parent) == ["out.mp4.preview.png"]


def test_a_job_goes_on_without_pictures(
    job: AnimateJob, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise UserError(f"{path}: cannot write: no space left on the disk")

    def hungry(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    job = with_settings(job, preview=True, frames=1, steps=2)
    for name, broken, reason in (("write_png", full, "no space left"), ("captioned", hungry, "preview_with=linear")):
        with monkeypatch.context() as patch, lines(caplog) as said:
            patch.setattr(preview_module, name, broken)
            session.run(job)
        assert len(said) == 2, "told once"
        assert reason in said[0]
        assert "0 pictures" in said[1]


def test_in_a_manifest(inputs: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs.yaml").write_text(
        f"defaults: {{model: {tiny_folder}, frames: 1, steps: 2, preview: true}}\njobs:\n"
        f"- {{ref: {inputs}/photo.png, pose_video: {inputs}/dance.mp4}}\n"
        f"- {{ref: {inputs}/photo.png, pose_video: {inputs}/dance.mp4, preview_every: 2}}\n"
    )
    assert main(["animate", "--jobs", str(tmp_path / "jobs.yaml"), "-o", str(tmp_path / "made")]) == 0
    said = capsys.readouterr()
    assert "preview: 2 pictures" in said.out + said.err
    assert "preview: 1 picture by" in said.out + said.err
    assert not [name for name in files_in(tmp_path / "made") if "preview" in name]


def test_wrong_settings(job: AnimateJob, inputs: Path, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("preview_with", "vae"), ("preview_every", 2)):
        with pytest.raises(ValueError, match=f"{name} .*changes nothing without --preview"):
            AnimateConfig.model_validate({name: value})
    with pytest.raises(UserError, match=r"--set preview_with .*: has no config.json"):
        session.run(with_settings(job, preview=True, preview_with=inputs))
    photo = make_photo(job.output.with_name("out.mp4.preview.png"))
    with pytest.raises(UserError, match=r"preview\.png: is an input"):
        session.run(replace(with_settings(job, preview=True), reference=photo))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_what_is_shown_is_the_clean_clip(scheduler: Any, kind: str, tmp_path: Path) -> None:
    """A perfect prediction is shown as the truth, in any step, of whatever the model predicts."""
    source = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 20, 3, 2, generator=source)
    schedule = scheduler(**{**TINY_SCHEDULER, "prediction_type": kind} if scheduler is DDIMScheduler else
                         {"beta_start": 0.00085, "beta_end": 0.012, "prediction_type": kind})  # fmt: skip
    schedule.set_timesteps(5)
    shown: list[torch.Tensor] = []

    def decode(latents: torch.Tensor, conditioning: Any) -> list[Any]:
        shown.append(latents)
        return [np.zeros((8, 8, 3), np.uint8)] * latents.shape[2]

    preview = Preview(tmp_path / "preview.png", decode, "a test", schedule, 1)
    for step in (0, 3):
        time = schedule.timesteps[step]
        a, b = signal_and_noise(schedule, time)
        told = {"epsilon": noise, "sample": clean, "v_prediction": a * noise - b * clean}[kind]
        inner: Any = lambda *_, told=told, **__: told  # noqa: E731
        args: Any = (None, a * clean + b * noise, time, None, [], [], 1.0)
        assert preview.predictor(inner)(*args, step=step, num_steps=5) is told
        assert torch.allclose(shown[-1], clean[:, :, shown_frames(20)], atol=1e-3)


def test_frames_are_spread_over_the_clip() -> None:
    assert shown_frames(1) == [0]
    assert shown_frames(5) == [0, 1, 2, 3, 4]
    many = shown_frames(300)
    assert len(many) == FRAMES
    assert (many[0], many[-1]) == (0, 299)


def test_a_linear_guess_is_exact_where_latents_are_linear() -> None:
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 1, 12, 8, generator=source)
    true = torch.tensor([[0.05, 0, 0.02], [0, 0.06, 0], [0.01, 0, -0.04], [0.02, 0.02, 0], [0.5, 0.4, 0.6]])
    colours = torch.cat([latents[0, :, 0], torch.ones(1, 12, 8)]).movedim(0, -1) @ true
    photo = np.asarray((colours.repeat_interleave(4, 0).repeat_interleave(4, 1) * 255).round().byte())
    assert torch.allclose(fit_colours(latents, photo), true, atol=2e-3)
    conditioning: Any = Conditioning(latents, torch.zeros(1), None, torch.zeros(1), None, [])
    (picture,) = LinearColours(photo, (32, 48))(latents, conditioning)
    assert picture.shape == (48, 32, 3)
    small = picture.reshape(12, 4, 8, 4, 3).mean((1, 3)) / 255
    assert abs(small - np.asarray(colours)).mean() < 0.03  # smoothed by enlarging
    # A photo of one colour says nothing about others: its colour is what all latents get.
    grey = fit_colours(latents, np.full((48, 32, 3), 90, np.uint8))
    assert torch.allclose(grey, torch.tensor([[0.0] * 3] * 4 + [[90 / 255] * 3]), atol=1e-4)


def test_the_caption_is_readable_under_small_frames() -> None:
    frames = [np.full((48, 32, 3), 200, np.uint8)] * 2
    sheet = captioned(frames, "step 3 of 4, the VAE")
    assert (sheet[:48, :64] == 200).all()
    assert sheet[48:].max() > 200
    assert sheet[48:, -12:].max() == 0, "nothing is cut off"
