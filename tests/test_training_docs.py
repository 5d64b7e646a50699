"""The way through docs/training.md, at small scale: published files, videos, an adapter, a face, a result."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from animate_inputs import make_driver, make_photo
from clips import make_clip
from official_files import is_base, small_controlnet, small_unet, write_sd15
from safetensors.torch import load_file, save_file
from tiny_models import tiny_text_encoder, tiny_tokenizer

from xdyna.cli import main
from xdyna.configs.recipes import RECIPES
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.video import VideoWriter

#: What shapes cannot say of the small files; SD1.5, AnimateDiff and the openpose ControlNet need none of it.
SMALL = [
    "unet.norm_num_groups=8", "unet.motion_norm_num_groups=16", "unet.num_attention_heads=4",
    "unet.motion_num_attention_heads=4", "unet.num_text_tokens=4", "unet.sample_size=8",
    "pose_controlnet.norm_num_groups=8", "pose_controlnet.attention_head_dim=4",
]  # fmt: skip
QUICK = [
    "accumulate=2", "frames=2", "buckets=[[32, 48], [48, 32]]", "warmup=0", "ema=0", "workers=0", "save_every=2",
    "sample_every=2", "sample_steps=1", "validate_clips=1", "threads=1",
]  # fmt: skip


def sets(values: list[str]) -> list[str]:
    return [part for text in values for part in ("--set", text)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD1.5, AnimateDiff's modules and an openpose ControlNet, converted as the page says."""
    folder = tmp_path_factory.mktemp("published")
    unet = small_unet()
    sd15 = write_sd15(folder / "sd15", {key: value for key, value in unet.items() if is_base(key)})
    tiny_text_encoder().save_pretrained(sd15 / "text_encoder")
    tiny_tokenizer().save_pretrained(sd15 / "tokenizer")
    save_file({k: v for k, v in unet.items() if ".motion_modules." in k}, folder / "motion.safetensors")
    save_file(small_controlnet(), folder / "openpose.safetensors")
    args = ["convert", "--sd15", str(sd15), "--motion", str(folder / "motion.safetensors")]
    args += ["--pose-controlnet", str(folder / "openpose.safetensors"), "-o", str(folder / "base")]
    assert main([*args, *sets(SMALL)]) == 0
    return folder / "base"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dances with swapped faces, and a scene; their maps are made as the page says."""
    folder = tmp_path_factory.mktemp("videos")
    world = World(seed=3, size_wh=(64, 96), framings={"bust": 1.0})
    for index in range(3):
        clip = render(clip_spec(world, index), np.arange(8) / world.fps, world.size_wh, world.fps)
        for name, frames in ((f"dance{index}.mp4", clip.frames), (f"dance{index}.swapped.mp4", 255 - clip.frames)):
            with VideoWriter(folder / name, world.size_wh, world.fps) as writer:
                for frame in frames:
                    writer.write(frame)
        clip.tracks.save(folder / f"dance{index}.tracks.npz")
    (folder / "scenes").mkdir()
    for name in ("sea", "fire"):
        make_clip(folder / "scenes" / f"{name}.mp4", 8, 12, (96, 64))
    assert main(["data", "maps", str(folder), "--size", "32x48", "--size", "48x32"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.recipe
def test_from_videos_to_an_adapter_to_a_face_to_a_video(
    base: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "stage1", tmp_path / "stage2"
    first = ["train", "dynamics_adapter", "--config", "train/dynamics_adapter", "--base", str(base)]
    first += ["--data", str(videos), "--out", str(one), "--steps", "2", *sets([*QUICK, "scene_share=0.5"])]
    assert main([*first, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "steps per epoch" in said
    assert not one.exists()
    assert main(first) == 0
    assert "(dynamics_adapter, pose_controlnet, motion)" in capsys.readouterr().out
    adapter = load_file(one / "model/dynamics_adapter/diffusion_pytorch_model.safetensors")
    assert any(value.any() for key, value in adapter.items() if "to_out_ref" in key)
    assert (one / "samples/step-000002.png").is_file()

    second = ["train", "s_face_controlnet", "--config", "train/s_face_controlnet", "--base", str(one / "model")]
    second += ["--data", str(videos), "--out", str(two), "--steps", "2", *sets(QUICK)]
    assert main(second) == 0
    for part in ("unet", "dynamics_adapter", "pose_controlnet", "vae"):
        before, after = (load_file(run / f"model/{part}/diffusion_pytorch_model.safetensors") for run in (one, two))
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items()), part
    index = json.loads((two / "model/model_index.json").read_text())
    assert index["face_controlnet"] == ["xdyna", "SFaceControlNet"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]

    make_photo(tmp_path / "photo.png")
    make_driver(tmp_path / "drive.mp4", 3)
    args = ["animate", "--ref", str(tmp_path / "photo.png"), "--pose-video", str(tmp_path / "drive.mp4")]
    args += ["-o", str(tmp_path / "out.mp4"), "--model", str(two / "model"), "--size", "32x48", "--steps", "1"]
    assert main([*args, "--guidance", "1"]) == 0
    assert (tmp_path / "out.mp4").stat().st_size > 500


@pytest.mark.recipe
def test_a_recipe_of_ones_own_is_as_short_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    quick = "steps=1, workers=0, sample_every=0, validate_clips=0"
    assert "steps=200" in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace("steps=200", quick), {})
    assert (tmp_path / "runs/mine/model/dynamics_adapter/diffusion_pytorch_model.safetensors").is_file()
    assert (tmp_path / "runs/mine/model/model_index.json").is_file()


def test_the_page_names_every_recipe_and_every_preset() -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    for recipe in RECIPES:
        assert f"`{recipe}`" in page, recipe
    for name in ("dynamics_adapter", "motion_module", "pose_controlnet", "s_face_controlnet"):
        assert f"`train/{name}`" in page, name
