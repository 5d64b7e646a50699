"""Recipes through the command: what should train trains, the rest stays bit for bit; stopping and going on is exact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from xdyna.cli import app, main
from xdyna.configs.train import TrainConfig
from xdyna.errors import UserError
from xdyna.train.loop import Run, rate_factor
from xdyna.train.parts import load_parts, motion_modules

SMALL = ["world.size_wh=[32, 48]", "threads=1", "workers=0", "sample_every=0", "save_every=2", "batch=2", "warmup=0"]
SHAPE = ["widths=[8, 16]", "attention=[false, true]", "heads=2", "norm_groups=4", "frames=2"]


def run(*args: str, sets: list[str]) -> str:
    """Run `xdyna train ARGS` and return what it printed."""
    result = CliRunner().invoke(app, ["train", *args, *(part for text in sets for part in ("--set", text))])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    run("vae", "--out", str(out), "--steps", "2", sets=[*SMALL, "widths=[8, 8, 8]"])
    return out / "vae"


@pytest.fixture(scope="module")
def image_model(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("image")
    run("bring_up", "--out", str(out), "--steps", "2", sets=[*SMALL, *SHAPE, f"vae={vae}"])
    return out / "model"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    parts = load_parts(folder)
    parts.dynamics_adapter.detach()
    return {
        f"{name}.{key}": value for name, part in parts.modules().items() for key, value in part.state_dict().items()
    }


@pytest.mark.recipe
def test_image_recipe_leaves_motion_and_face_alone(image_model: Path, vae: Path) -> None:
    before = load_file(vae / "diffusion_pytorch_model.safetensors")
    after = weights(image_model)
    assert all(torch.equal(after[f"vae.{key}"], value) for key, value in before.items())
    parts = load_parts(image_model)
    assert all(not p.any() for m in motion_modules(parts.unet) for p in m.get_submodule("proj_out").parameters())
    assert not any(p.any() for p in parts.face_controlnet.controlnet_mid_block.parameters())
    assert any(p.any() for p in parts.pose_controlnet.controlnet_mid_block.parameters())


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("trains", "sets"),
    [
        ("motion", ["consecutive=true"]),
        ("face_controlnet", ["consecutive=true", "face=true"]),
        ("dynamics_adapter", []),
    ],
)
def test_only_the_named_part_moves(image_model: Path, tmp_path: Path, trains: str, sets: list[str]) -> None:
    run("bring_up", "--init", str(image_model), "--out", str(tmp_path), "--steps", "2",
        sets=[*SMALL, *SHAPE, f"trains=[{trains}]", *sets])  # fmt: skip
    before, after = weights(image_model), weights(tmp_path / "model")
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    if trains == "motion":
        assert all(".motion_modules." in key for key in moved)
    else:
        assert all(key.startswith(f"{trains}.") for key in moved)
    assert moved


@pytest.mark.recipe
def test_resumed_run_equals_an_uninterrupted_one(image_model: Path, tmp_path: Path) -> None:
    common = [*SMALL, *SHAPE, "ema=0.9", "cooldown=0"]
    args = ["bring_up", "--init", str(image_model)]
    run(*args, "--out", str(tmp_path / "whole"), "--steps", "4", sets=common)
    run(*args, "--out", str(tmp_path / "split"), "--steps", "2", sets=common)
    run(*args, "--out", str(tmp_path / "split"), "--steps", "4", "--resume", sets=common)
    whole, split = weights(tmp_path / "whole" / "model"), weights(tmp_path / "split" / "model")
    assert all(torch.equal(value, split[key]) for key, value in whole.items())
    losses = [json.loads(line)["loss"] for line in (tmp_path / "split" / "log.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert losses == expected


class OneNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))


def make_run(tmp_path: Path, recipe: str = "one", **values: Any) -> tuple[Run, OneNumber]:
    from accelerate import Accelerator

    resume = values.pop("resume", False)
    model = OneNumber()
    cfg = TrainConfig(out=tmp_path / "run", save_every=1, warmup=0, cooldown=0, **values)
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.lr)
    return Run(cfg, recipe, {"model": model}, optimizer, Accelerator(cpu=True), resume=resume, quiet=True), model


def test_nan_loss_stops_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    training, model = make_run(tmp_path, steps=5)

    def go() -> None:
        for step in training.steps():
            training.update(model.value.sum() * (float("nan") if step == 2 else 1.0))

    with pytest.raises(UserError, match=r"nan at step 2 .* last good checkpoint: .*step-000002"):
        go()
    assert torch.isfinite(load_file(training.folder / "checkpoints/step-000002/model.safetensors")["value"]).all()


def test_only_the_last_checkpoints_stay_and_no_partial_ones(tmp_path: Path) -> None:
    training, model = make_run(tmp_path, steps=5, keep=2)
    for _ in training.steps():
        training.update(model.value.square().sum())
    names = sorted(path.name for path in (training.folder / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000005"]


def test_a_run_folder_is_not_overwritten_and_not_mixed_up(tmp_path: Path) -> None:
    training, model = make_run(tmp_path, steps=1)
    for _ in training.steps():
        training.update(model.value.sum())
    with pytest.raises(UserError, match="holds a run already"):
        make_run(tmp_path, steps=2)
    with pytest.raises(UserError, match="of recipe 'one', wanted 'two'"):
        make_run(tmp_path, recipe="two", steps=2, resume=True)


def test_average_is_put_in_and_taken_out(tmp_path: Path) -> None:
    training, model = make_run(tmp_path, steps=3, ema=0.9, lr=0.5)
    for _ in training.steps():
        training.update(model.value.sum())
    trained = model.value.item()
    with training.averaged():
        assert trained < model.value.item() <= 1.0
    assert model.value.item() == trained


def test_learning_rate_rises_and_falls() -> None:
    rates = [rate_factor(step, 10, 2, 4) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_unknown_recipe_names_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "bringup"]) == 2
    assert "did you mean bring_up?" in capsys.readouterr().err


def test_missing_autoencoder_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "bring_up", "--out", str(tmp_path), "--set", f"vae={tmp_path / 'none'}"]) == 2
    assert "not the folder of an autoencoder" in capsys.readouterr().err


def test_dry_run_prints_the_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "bring_up", "--config", "train/tiny-image", "--dry-run", "--out", str(tmp_path / "x")]) == 0
    assert '"reuse": 3' in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


def test_exported_model_is_a_pipeline(image_model: Path, tmp_path: Path) -> None:
    import numpy as np

    from xdyna.pipeline import XDynaPipeline
    from xdyna.train.export import export_pipeline

    count = export_pipeline(image_model, tmp_path / "tiny")
    assert count == sum(len(value.flatten()) for key, value in weights(image_model).items() if ".pe" not in key)
    pipe = XDynaPipeline.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    maps = np.zeros((3, 96, 64, 3), np.uint8)
    maps[:, 40:60, 30:34] = 255
    reference = np.full((96, 64, 3), 90, np.uint8)
    frames = pipe(reference, maps, num_inference_steps=2, guidance_scale=1.0, output_type="np",
                  generator=torch.Generator().manual_seed(0)).frames  # fmt: skip
    assert frames.shape == (1, 3, 96, 64, 3)
    assert np.isfinite(frames).all()
