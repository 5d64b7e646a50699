"""Which model a job runs, and models with other parts: text, image tokens, no face, no adapter, half precision."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from animate_inputs import make_driver, make_photo
from diffusers import DDIMScheduler
from tiny_models import tiny_pipeline

from xdyna.cli import main
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer.load import (
    EMBEDDED,
    SCHEDULERS,
    build_scheduler,
    choose_device,
    choose_dtype,
    choose_model,
    load_pipeline,
    split_lora,
)
from xdyna.models import converted_folder
from xdyna.video import VideoReader


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_photo(folder / "photo.png")
    make_driver(folder / "dance.mp4", 4)
    make_driver(folder / "pose.mp4", 4, background=0, with_tracks=False)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder."""
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def animate(inputs: Path, model: Path | str, *more: str) -> int:
    command = [
        "animate",
        "--ref",
        str(inputs / "photo.png"),
        "--pose-video",
        str(inputs / "dance.mp4"),
        "-o",
        "out.gif",
    ]
    return main([*command, "--model", str(model), "--size", "32x48", "--steps", "2", *more])


def result() -> str:
    return hashlib.sha256(Path("out.gif").read_bytes()).hexdigest()


def save_model(folder: Path, **settings: Any) -> Path:
    tiny_pipeline(**settings).save_pretrained(folder)
    return folder


# --- choosing ----------------------------------------------------------------------------------------------------


def test_auto_takes_converted_weights_when_they_are_there(cache: Path, tiny_folder: Path) -> None:
    with pytest.raises(UserError, match=r"holds no converted weights.*xdyna models pull"):
        choose_model("x-dyna")
    folder = converted_folder("x-dyna")
    assert folder.is_relative_to(cache)
    shutil.copytree(tiny_folder, folder)
    for name in ("auto", "x-dyna"):
        choice = choose_model(name)
        assert (choice.name, choice.folder, choice.defaults().size) == ("x-dyna", folder, (512, 896))
        assert choice.announcement == f"model x-dyna: converted official weights in {folder}"


@pytest.mark.skipif(not (EMBEDDED / "model_index.json").is_file(), reason="the embedded weights are not here")
def test_auto_takes_the_embedded_model_otherwise(cache: Path) -> None:
    auto, tiny, by_path = choose_model("auto"), choose_model("tiny"), choose_model(str(EMBEDDED))
    assert auto.name == tiny.name == by_path.name == "tiny"
    assert auto.folder == EMBEDDED
    assert f"no converted official weights in {converted_folder('x-dyna')}" in auto.announcement
    assert auto.defaults() == tiny.defaults() == by_path.defaults()


def test_a_folder_brings_its_own_settings(tiny_folder: Path, tmp_path: Path) -> None:
    assert choose_model(str(tiny_folder)).defaults().size == (32, 48)
    plain = Path(shutil.copytree(tiny_folder, tmp_path / "plain"))
    (plain / "animate.yaml").unlink()
    assert choose_model(str(plain)).defaults().size == (512, 896)


def test_the_hash_names_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    first = choose_model(str(tiny_folder)).sha256
    (copy / "animate.yaml").write_text("size: 64x96\n")
    assert choose_model(str(copy)).sha256 == first
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert choose_model(str(copy)).sha256 != first


def test_settings_that_nobody_decides_are_asked_for(
    inputs: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (model / "animate.yaml").write_text("guidance: 1.0\n")
    assert animate(inputs, model) == 2
    assert "window: the model's own settings leave it open, wanted --window" in capsys.readouterr().err


def test_devices_and_dtypes() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
    assert choose_dtype("auto", torch.device("cuda")) is torch.float16
    assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="'cuda:1', which is not available here; there is cpu"):
            choose_device("cuda:1")


def test_lora_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "with:colon.safetensors"):
        Path(name).touch()
    assert split_lora("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert split_lora("a.safetensors:-0.5") == (Path("a.safetensors"), -0.5)
    assert split_lora("with:colon.safetensors") == (Path("with:colon.safetensors"), 1.0)
    assert split_lora("with:colon.safetensors:2") == (Path("with:colon.safetensors"), 2.0)
    with pytest.raises(UserError, match="got the scale 'strong'"):
        split_lora("a.safetensors:strong")


def test_another_scheduler_keeps_the_noise_schedule() -> None:
    own = DDIMScheduler(beta_start=0.001, beta_end=0.01, beta_schedule="linear", prediction_type="v_prediction")
    assert build_scheduler("ddim", own) is own
    other = build_scheduler("dpm++", own)
    assert torch.equal(other.betas, own.betas)
    assert other.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_a_model_that_predicts_the_sample(name: str) -> None:
    """What the table says of each scheduler is what diffusers does."""
    own = DDIMScheduler(prediction_type="sample")
    if SCHEDULERS[name][1]:
        scheduler = build_scheduler(name, own)
    else:
        with pytest.raises(UserError, match=f"--scheduler {name}: this model predicts the clean sample.*wanted ddim"):
            build_scheduler(name, own)
        import diffusers

        scheduler = getattr(diffusers, SCHEDULERS[name][0]).from_config(own.config)
    scheduler.set_timesteps(4)
    sample = torch.zeros(1, 4, 2, 3, 3)

    def step() -> Any:
        generator = {"generator": torch.Generator()} if "generator" in scheduler.step.__code__.co_varnames else {}
        return scheduler.step(sample, scheduler.timesteps[0], sample, **generator).prev_sample

    if SCHEDULERS[name][1]:
        assert torch.isfinite(step()).all()
    else:
        with pytest.raises((ValueError, NotImplementedError, TypeError)):
            step()


# --- parts -------------------------------------------------------------------------------------------------------


def test_text_and_image_tokens(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with the parts of the official one, its norm pooled over frames."""
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path / "full", text=True, image_prompt=True, pool_group_norm=True)
    guided = ["--guidance", "3"]
    hashes = []
    for options in ([], ["--prompt", "a dancer"], ["--negative-prompt", "blur"]):
        assert animate(inputs, model, *guided, *options) == 0
        hashes.append(result())
    assert len(set(hashes)) == 3

    wide = inputs / "wide.png"
    make_photo(wide)
    from PIL import Image

    photo = Image.open(inputs / "photo.png")
    canvas = Image.new("RGB", (photo.width * 3, photo.height), (255, 0, 0))
    canvas.paste(photo, (photo.width, 0))
    canvas.save(wide)
    (inputs / "wide.tracks.npz").unlink()
    shifted = ["--ref", str(wide), "--align", "none"]
    assert animate(inputs, model, *guided, "--align", "none") == 0
    middle = result()
    assert animate(inputs, model, *guided, *shifted) == 0
    assert result() != middle, "the image tokens see the whole photo, not only its cropped middle"


def test_models_without_face_or_adapter(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path / "bare", face=False, adapter=False)
    assert animate(inputs, model) == 0
    assert animate(inputs, model, "--face") == 2
    assert "--face: this model has no face ControlNet" in capsys.readouterr().err
    assert animate(inputs, model, "--adapter-scale", "0.5") == 2
    assert "--adapter-scale: this model has no Dynamics-Adapter" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(
    inputs: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert animate(inputs, tiny_folder) == 0
    full = list(VideoReader("out.gif"))
    assert animate(inputs, tiny_folder, "--dtype", dtype) == 0
    half = list(VideoReader("out.gif"))
    gap = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(full, half, strict=True)])
    assert 0 < gap < 40


def test_loading_is_quiet_and_gives_frozen_choices(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    choice = choose_model(str(tiny_folder))
    config = AnimateConfig(scheduler="euler").with_model_defaults(choice.defaults())
    pipe = load_pipeline(choice, config, torch.device("cpu"), torch.float32)
    assert capfd.readouterr() == ("", "")
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert pipe.unet.dtype == torch.float32


def test_the_official_manifest_runs(
    inputs: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(inputs)
    entry = {"image_path": "photo.png", "caption": "", "target_no_head_poses": "pose.mp4", "target_videos": "dance.mp4"}
    manifest = tmp_path / "example.json"
    manifest.write_text(json.dumps([entry, {**entry, "caption": "a dancer"}]))
    assert main(["animate", "--jobs", str(manifest), "-o", str(tmp_path), "--model", str(tiny_folder)]) == 2
    error = capsys.readouterr().err
    assert "job 2: --prompt: this model has no text encoder" in error
    record = json.loads((tmp_path / "photo_dance.mp4.json").read_text())
    assert (record["frames"], record["align"]) == (4, "none")
    assert record["resolved"]["pose_maps"] == "pose.mp4"
    assert not (tmp_path / "photo_dance-2.mp4").exists()
