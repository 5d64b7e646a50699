"""Recipes through the command: only what should train moves, and the pipeline takes the result."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from animate_inputs import make_driver, make_photo
from safetensors.torch import load_file
from typer.testing import CliRunner

from xdyna.cli import app, main
from xdyna.configs import find_preset, load_config
from xdyna.configs.clips import ClipConfig
from xdyna.configs.recipes import RECIPES
from xdyna.data.source import Batch, Face, build_source, draw_batch
from xdyna.pipeline import XDynaPipeline
from xdyna.train.parts import load_base, motion_modules
from xdyna.train.system import ClipSystem

SMALL = [
    "world.size_wh=[32, 48]", "world.framings={full: 1.0}", "threads=1", "workers=0", "sample_every=0", "save_every=2",
    "batch=2", "warmup=0", "validate_clips=0",
]  # fmt: skip
SHAPE = ["widths=[8, 16]", "attention=[false, true]", "heads=2", "norm_groups=4", "frames=2", "reuse=1"]


def run(*args: str, sets: list[str]) -> str:
    """Run `xdyna train ARGS` and return what it printed."""
    result = CliRunner().invoke(app, ["train", *args, *(part for text in sets for part in ("--set", text))])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight in a model folder, as `part/key`."""
    return {
        f"{path.parent.name}/{key}": value
        for path in sorted(folder.glob("*/*.safetensors"))
        for key, value in load_file(path).items()
    }


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    run("vae", "--out", str(out), "--steps", "2", sets=[*SMALL, "widths=[8, 8, 8]", "sample_every=2"])
    return out / "model" / "vae"


@pytest.fixture(scope="module")
def image_model(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("image")
    run("image", "--out", str(out), "--steps", "2", sets=[*SMALL, *SHAPE, f"vae={vae}"])
    return out / "model"


@pytest.mark.recipe
def test_autoencoder_learns_its_scale_and_reports(vae: Path) -> None:
    config = json.loads((vae / "config.json").read_text())
    assert config["scaling_factor"] != pytest.approx(0.18215)
    assert re.fullmatch(
        r"step 2: PSNR whole [\d.]+ dB, figure [\d.]+ dB\n", (vae.parents[1] / "report.txt").read_text()
    )
    assert (vae.parents[1] / "samples" / "step-000002.png").stat().st_size > 1000


@pytest.mark.recipe
def test_frozen_encoder_keeps_what_latents_mean(vae: Path, tmp_path: Path) -> None:
    run("vae", "--init", str(vae), "--out", str(tmp_path), "--steps", "2",
        sets=[*SMALL, "widths=[8, 8, 8]", "train_encoder=false"])  # fmt: skip
    before, after = weights(vae.parent), weights(tmp_path / "model")
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved
    assert all(key.startswith(("vae/decoder", "vae/post_quant")) for key in moved)


@pytest.mark.recipe
def test_frozen_encoder_keeps_the_latents_scale_in_another_world(vae: Path, tmp_path: Path) -> None:
    before = json.loads((vae / "config.json").read_text())["scaling_factor"]
    for frozen in (True, False):
        out = tmp_path / str(frozen)
        run("vae", "--init", str(vae), "--out", str(out), "--steps", "1",
            sets=[*SMALL, "world.seed=7", f"train_encoder={not frozen}"])  # fmt: skip
        after = json.loads((out / "model" / "vae" / "config.json").read_text())["scaling_factor"]
        assert (after == before) == frozen


@pytest.mark.recipe
def test_image_recipe_leaves_motion_and_face_alone(image_model: Path, vae: Path) -> None:
    before, after = weights(vae.parent), weights(image_model)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    parts = load_base(image_model)
    assert all(not p.any() for m in motion_modules(parts.unet) for p in m.get_submodule("proj_out").parameters())
    assert not any(p.any() for p in parts.face_controlnet.controlnet_mid_block.parameters())
    assert any(p.any() for p in parts.pose_controlnet.controlnet_mid_block.parameters())


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("recipe", "sets", "allowed"),
    [
        ("motion_module", [], ["unet/.motion_modules."]),
        ("dynamics_adapter", ["trains=[dynamics_adapter]"], ["dynamics_adapter/"]),
        ("dynamics_adapter", [], ["dynamics_adapter/", "pose_controlnet/", "unet/.motion_modules."]),
        ("pose_controlnet", [], ["pose_controlnet/"]),
        ("s_face_controlnet", [], ["face_controlnet/"]),
        ("image", ["trains=[unet]", "consecutive=true"], ["unet/"]),
        (
            "image",
            ["trains=[unet, motion, dynamics_adapter, pose_controlnet]", "consecutive=true"],
            ["unet/", "unet/.motion_modules.", "dynamics_adapter/", "pose_controlnet/"],
        ),
    ],
)
def test_only_what_should_train_moves(
    tiny_folder: Path, tmp_path: Path, recipe: str, sets: list[str], allowed: list[str]
) -> None:
    base = ["--init", str(tiny_folder)] if recipe == "image" else ["--set", f"base={tiny_folder}"]
    said = run(recipe, *base, "--out", str(tmp_path), "--steps", "2", sets=[*SMALL, "frames=2", *sets])
    before, after = weights(tiny_folder), weights(tmp_path / "model")
    assert before.keys() == after.keys()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    expected = {key for key in before if any(_is(pattern, key) for pattern in allowed)}
    if "unet/.motion_modules." not in allowed:
        expected = {key for key in expected if ".motion_modules." not in key}
    assert moved <= expected
    for pattern in allowed:  # every part that should train did
        assert any(_is(pattern, key) for key in moved)
    count = sum(before[key].numel() for key in expected if not key.endswith(".pe"))
    assert f"{recipe}: {count:,} of " in said


def _is(pattern: str, key: str) -> bool:
    part, _, rest = pattern.partition("/")
    return key.startswith(f"{part}/") and rest in key


@pytest.mark.recipe
def test_result_is_a_pipeline_with_the_bases_settings(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    used = ["shared_noise=true", "start_keep=0.75", "sample_every=1", "sample_steps=1"]
    run("dynamics_adapter", "--set", f"base={tiny_folder}", "--out", str(out), "--steps", "1",
        sets=[*SMALL, "frames=2", *used])  # fmt: skip
    pipe = XDynaPipeline.from_pretrained(out / "model", dtype=torch.float32)
    assert pipe.config.shared_noise
    assert pipe.config.start_keep == 0.75
    assert pipe.config.size_limits == {"min_wh": [32, 48], "max_wh": [64, 96], "multiple": 8}
    assert (out / "model" / "animate.yaml").read_text() == (tiny_folder / "animate.yaml").read_text()
    assert not any(path.is_symlink() for path in (out / "model").rglob("*"))  # small enough to be copied
    pipe.set_progress_bar_config(disable=True)
    maps = np.zeros((3, 48, 32, 3), np.uint8)
    maps[:, 20:30, 10:14] = 255
    frames = pipe(np.full((48, 32, 3), 90, np.uint8), maps, num_inference_steps=2, guidance_scale=1.0, window=3,
                  overlap=1, output_type="np", generator=torch.Generator().manual_seed(0)).frames  # fmt: skip
    assert np.isfinite(frames).all()
    assert (out / "samples" / "step-000001.png").is_file()
    assert (out / "samples" / "step-000001.mp4").stat().st_size > 1000
    assert re.match(
        r"step 1: PSNR dB model_whole [\d.]+, model_figure [\d.]+, copy_whole ", (out / "report.txt").read_text()
    )


@pytest.mark.recipe
def test_runs_start_as_their_base_does(tiny_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    index = json.loads((base / "model_index.json").read_text()) | {"shared_noise": True, "start_keep": 0.9}
    (base / "model_index.json").write_text(json.dumps(index))
    run("pose_controlnet", "--base", str(base), "--out", str(tmp_path / "run"), "--steps", "1",
        sets=[*SMALL, "frames=2"])  # fmt: skip
    for name in ("config.json", "model/model_index.json"):
        found = json.loads((tmp_path / "run" / name).read_text())
        assert (found["shared_noise"], found["start_keep"]) == (True, 0.9)


@pytest.mark.recipe
def test_animate_takes_what_image_makes(image_model: Path, tmp_path: Path) -> None:
    make_photo(tmp_path / "photo.png")
    make_driver(tmp_path / "drive.mp4", 3)
    args = ["animate", "--ref", str(tmp_path / "photo.png"), "--pose-video", str(tmp_path / "drive.mp4")]
    for size in (["--size", "64x96"], []):  # the largest, and the one it was made for
        out = tmp_path / f"out{len(size)}.mp4"
        assert main([*args, "-o", str(out), "--model", str(image_model), *size, "--steps", "1"]) == 0
        assert out.stat().st_size > 1000
    assert "size: 32x48" in (image_model / "animate.yaml").read_text()


@pytest.mark.recipe
def test_resumed_run_equals_an_uninterrupted_one(tiny_folder: Path, tmp_path: Path) -> None:
    common = [*SMALL, "frames=2", "ema=0.9", "cooldown=0", "reuse=2", f"base={tiny_folder}"]
    run("dynamics_adapter", "--out", str(tmp_path / "whole"), "--steps", "4", sets=common)
    run("dynamics_adapter", "--out", str(tmp_path / "split"), "--steps", "3", sets=common)
    run("dynamics_adapter", "--out", str(tmp_path / "split"), "--steps", "4", "--resume", sets=common)
    whole, split = weights(tmp_path / "whole" / "model"), weights(tmp_path / "split" / "model")
    assert whole.keys() == split.keys()
    assert all(torch.equal(value, split[key]) for key, value in whole.items())


@pytest.mark.recipe
def test_init_starts_from_a_parts_own_folder_or_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    sets = [*SMALL, "frames=2", "lr=0.0000001", "trains=[dynamics_adapter]", f"base={tiny_folder}"]
    run("dynamics_adapter", "--out", str(tmp_path / "first"), "--steps", "2",
        sets=[*sets, "renew=[dynamics_adapter]", "lr=0.01"])  # fmt: skip
    first = weights(tmp_path / "first" / "model")
    key = next(key for key in first if key.endswith("to_out_ref.weight"))
    for init in (
        "first/model",
        "first/model/dynamics_adapter",
        "first/model/dynamics_adapter/diffusion_pytorch_model.safetensors",
    ):
        out = tmp_path / f"from-{init.count('/')}"
        run("dynamics_adapter", "--init", str(tmp_path / init), "--out", str(out), "--steps", "1", sets=sets)
        second = weights(out / "model")
        assert not torch.equal(first[key], weights(tiny_folder)[key])
        assert torch.allclose(first[key], second[key], atol=1e-5)


@pytest.mark.recipe
def test_image_is_fed_swapped_faces(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[Batch] = []

    class Watched(ClipSystem):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            fed.append(batch)
            return super().forward(batch)

    monkeypatch.setattr("xdyna.train.recipes.image.ClipSystem", Watched)
    sets = [*SMALL, "frames=2", "consecutive=true", "trains=[face_controlnet]", "face=swapped"]
    run("image", "--init", str(tiny_folder), "--out", str(tmp_path), "--steps", "1", sets=sets)
    cfg = load_config(RECIPES["image"], overrides=sets)
    faces: tuple[Face, Face] = ("swapped", True)
    swapped, own = (draw_batch(build_source(cfg, frames=2, face=face), fed[0].indices).face_maps for face in faces)
    assert np.array_equal(fed[0].face_maps, swapped)
    assert not np.array_equal(fed[0].face_maps, own)
    before, after = weights(tiny_folder), weights(tmp_path / "model")
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved
    assert all(key.startswith("face_controlnet/") for key in moved)


@pytest.mark.recipe
def test_what_was_made_anew_is_saved_though_it_does_not_train(tiny_folder: Path, tmp_path: Path) -> None:
    run("pose_controlnet", "--set", f"base={tiny_folder}", "--out", str(tmp_path), "--steps", "1",
        sets=[*SMALL, "frames=2", "renew=[dynamics_adapter]"])  # fmt: skip
    outputs = [value for key, value in weights(tmp_path / "model").items() if key.endswith("to_out_ref.weight")]
    assert outputs
    assert not any(value.any() for value in outputs)


@pytest.mark.recipe
def test_image_takes_another_autoencoder_for_a_model(image_model: Path, vae: Path, tmp_path: Path) -> None:
    run("vae", "--init", str(vae), "--out", str(tmp_path / "vae"), "--steps", "1",
        sets=[*SMALL, "widths=[8, 8, 8]", "train_encoder=false"])  # fmt: skip
    newer = tmp_path / "vae" / "model" / "vae"
    run("image", "--init", str(image_model), "--out", str(tmp_path / "run"), "--steps", "1",
        sets=[*SMALL, *SHAPE, f"vae={newer}"])  # fmt: skip
    after = weights(tmp_path / "run" / "model")
    assert all(torch.equal(after[key], value) for key, value in weights(newer.parent).items())


@pytest.mark.recipe
def test_exported_model_is_half_the_size_and_keeps_its_settings(image_model: Path, tmp_path: Path) -> None:
    from xdyna.train.export import export_pipeline

    count = export_pipeline(image_model, tmp_path / "tiny", {"schedule": "grid"})
    assert count == sum(value.numel() for key, value in weights(image_model).items() if ".pe" not in key)
    assert all(value.dtype == torch.float16 for value in weights(tmp_path / "tiny").values())
    pipe = XDynaPipeline.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    assert pipe.config.schedule == "grid"
    assert pipe.config.shared_noise
    assert pipe.config.start_keep == 1.0  # neither is the pipeline's default


def test_every_recipe_has_defaults_that_hold() -> None:
    for name, kind in RECIPES.items():
        assert str(kind().out).startswith("runs/"), name
        assert isinstance(kind().base, Path)


@pytest.mark.parametrize("recipe", ["motion_module", "dynamics_adapter", "pose_controlnet", "s_face_controlnet"])
def test_presets_for_a_model_of_full_size_are_complete(recipe: str) -> None:
    config = load_config(RECIPES[recipe], find_preset(f"train/{recipe}"))
    assert isinstance(config, ClipConfig)
    assert str(config.base) == "base"
    assert config.start == 0
    assert config.checkpointing
    assert config.precision == "bf16"


def test_unknown_recipe_names_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dynamic_adapter"]) == 2
    assert "did you mean dynamics_adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["image", "--set", "vae=/nowhere"], "vae=/nowhere: not the folder of an autoencoder"),
        (["dynamics_adapter", "--set", "base=/nowhere"], "/nowhere: neither auto, tiny, x-dyna nor an existing folder"),
        (["motion_module", "--init", "/nowhere"], "--init /nowhere: holds no weights of motion; wanted"),
        (["vae", "--init", "/nowhere"], "--init /nowhere: not the folder of an autoencoder"),
        (["dynamics_adapter", "--set", "trains=[vae]"], "trains"),
        (["dynamics_adapter", "--set", "trains=[]"], "trains"),
        (["image", "--set", "trains=[]"], "trains"),
        (["s_face_controlnet", "--set", "scene_share=0.5"], "scene_share"),
        (["s_face_controlnet", "--set", "scene_share=null"], "scene_share"),
        (["motion_lora", "--set", "renew=[motion]"], "renew"),
        (["reference_net", "--set", "trains=[motion]"], "trains leaves out reference_net"),
        (["dynamics_adapter", "--set", "reference_drop=1"], "did you mean reference_dropout"),
        (["image", "--set", "trains=[motion]"], "wanted consecutive=true"),
        (["image", "--set", "trains=[face_controlnet]"], "wanted face=true"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *args, "--out", str(tmp_path / "run"), "--steps", "1"]) == 2
    said: Any = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
