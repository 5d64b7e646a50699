"""`xdyna train`: its options, the dry run, what memory it foretells, and what is said when memory runs out."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_parts import NoiseSource, SmallSystem, small_config, train
from torch import nn
from typer.testing import CliRunner

from xdyna.alive import Alive
from xdyna.cli import app, main
from xdyna.configs.recipes import RECIPES
from xdyna.data.source import draw_batch
from xdyna.errors import UserError
from xdyna.train.dry import DryRun
from xdyna.train.memory import estimate, out_of_memory_explained, step_peak, ways_to_save

TINY = ["--set", "world.size_wh=[32, 48]", "--set", "frames=2", "--set", "batch=2", "--set", "workers=0"]


def test_help_lists_every_recipe_with_a_line() -> None:
    text = " ".join(CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output.split())
    for name in RECIPES:
        assert f" {name} " in text
    assert "vae a small AutoencoderKL from nothing." in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dynamic_adapter"], "unknown recipe 'dynamic_adapter'; did you mean dynamics_adapter"),
        (["vae", "--set", "acumulate=2"], "unknown key 'acumulate'; did you mean accumulate?"),
        (["vae", "--set", "optimizer=adam"], "got 'adam', wanted 'adamw', 'adamw8bit' or 'sgd'"),
        (["vae", "--steps", "0"], "--steps: got 0, wanted greater than 0"),
        (["motion_module", "--base", "no/such/model"], "no/such/model"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *args]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.recipe
def test_dry_run_tells_what_a_run_takes_and_writes_nothing(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    args = ["train", "dynamics_adapter", "--base", str(tiny_folder), "--out", str(out), "--dry-run", *TINY]
    args += ["--set", "trains=[dynamics_adapter]", "--set", "ema=0.9", "--set", f"cache={tmp_path / 'cache'}"]
    assert main([*args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    from xdyna.train.parts import load_base

    adapter = load_base(tiny_folder).dynamics_adapter
    count = sum(value.numel() for value in adapter.parameters())
    assert report["trainable_parameters"] == count
    memory = report["memory_bytes"]
    assert (memory["gradients"], memory["optimizer"], memory["average"]) == (4 * count, 8 * count, 4 * count)
    assert memory["total"] == sum(memory[key] for key in ("weights", "optimizer", "average", "step"))
    assert memory["weights"] > 4 * report["parameters"] - 1
    assert (report["clips"], report["steps_per_epoch"], report["global_batch"]) == (None, None, 2)
    assert report["settings"]["frames"] == 2
    assert list(tmp_path.iterdir()) == []


def test_dry_run_counts_epochs(tmp_path: Path) -> None:
    with pytest.raises(DryRun) as told:
        train(small_config(tmp_path, steps=100, batch=4, dry_run=True), source=NoiseSource(num_clips=50))
    assert told.value.report["steps_per_epoch"] == 13
    assert "50 clips, 4 per step: 13 steps per epoch, 7.7 epochs in 100 steps" in told.value.lines[2]


def test_dry_run_names_problems_of_the_data(tmp_path: Path) -> None:
    class Flawed(NoiseSource):
        def check(self) -> list[str]:
            return ["clip-3.mp4: left out: broken"]

    with pytest.raises(DryRun) as told:
        train(small_config(tmp_path, dry_run=True), source=Flawed())
    assert "problem: clip-3.mp4: left out: broken" in told.value.lines


# -- memory ------------------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """Convolutions in a row: what is kept for the backward pass can be counted by hand."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(depth))
        self.saved = {"tower": self.layers}

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        x = torch.as_tensor(batch.frames[:, 0]).permute(0, 3, 1, 2).float()
        for layer in self.layers:
            x = layer(x)
        return {"loss": x.mean()}


def test_step_is_what_activations_take(tmp_path: Path) -> None:
    """One more convolution keeps one more activation: [64, 16, 4, 4] float32, 64 kB."""
    cfg = small_config(tmp_path, batch=64, optimizer="sgd")
    batch = draw_batch(NoiseSource(), range(64))
    steps = [step_peak(cfg, Tower(depth), batch) for depth in (20, 40)]
    activation, gradients = 64 * 16 * 16 * 4, 4 * (16 * 16 * 9 + 16)
    assert (steps[1] - steps[0]) / 20 == pytest.approx(activation, abs=gradients)


def test_foretold_step_equals_the_bytes_alive_in_a_real_one(tmp_path: Path) -> None:
    system, cfg = SmallSystem(), small_config(tmp_path, batch=64, accumulate=2)
    batch = draw_batch(NoiseSource(), range(64))
    told = step_peak(cfg, system, batch)
    with Alive() as alive:
        for _ in range(2):
            system(batch)["loss"].backward()
    assert told == pytest.approx(alive.peak, rel=0.02)


@pytest.mark.parametrize(
    ("optimizer", "ema", "processes", "expected"),
    [("adamw", 0.9, 1, (4, 8, 4)), ("adamw8bit", 0.0, 1, (4, 2, 0)), ("sgd", 0.0, 2, (8, 0, 0))],
)
def test_bytes_per_trained_parameter(
    tmp_path: Path, optimizer: str, ema: float, processes: int, expected: tuple[int, int, int]
) -> None:
    system = SmallSystem()
    count = sum(value.numel() for value in system.net.parameters())
    cfg = small_config(tmp_path, optimizer=optimizer, ema=ema)
    told = estimate(cfg, system, draw_batch(NoiseSource(), range(2)), processes=processes)
    assert (told.gradients / count, told.optimizer / count, told.average / count) == expected
    assert told.weights == sum(value.numel() * 4 for value in system.state_dict().values())


def test_checkpointing_and_half_precision_are_foretold_to_take_less(tmp_path: Path) -> None:
    from small_models import small_controlnet

    from xdyna.controlnets.pose import PoseControlNet
    from xdyna.train.modules import enable_checkpointing

    class Control(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_controlnet(PoseControlNet)

        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            count = len(batch.frames)
            down, mid = self.net(
                torch.ones(count, 4, 8, 8), torch.tensor(3), torch.ones(count, 4, 16), torch.ones(count, 3, 16, 16),
                return_dict=False,
            )  # fmt: skip
            return {"loss": sum(value.float().square().mean() for value in (*down, mid))}  # type: ignore[dict-item]

    system, batch = Control(), draw_batch(NoiseSource(), range(32))
    plain = estimate(small_config(tmp_path, optimizer="sgd"), system, batch)
    half = estimate(small_config(tmp_path, optimizer="sgd", precision="bf16"), system, batch)
    enable_checkpointing(system)
    again = estimate(small_config(tmp_path, optimizer="sgd", checkpointing=True), system, batch)
    assert half.step < 0.8 * plain.step
    assert again.step < 0.75 * plain.step


def test_system_that_needs_numbers_is_run_once_in_earnest(tmp_path: Path) -> None:
    class Numbers(SmallSystem):
        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            values = super().forward(batch)
            return values if values["loss"].item() > -1 else {}

    cfg, batch = small_config(tmp_path, batch=8), draw_batch(NoiseSource(), range(8))
    system = Numbers()
    assert estimate(cfg, system, batch).step == pytest.approx(estimate(cfg, SmallSystem(), batch).step, rel=0.02)
    assert all(value.grad is None for value in system.parameters())


def test_full_size_adapter_has_24_8_million_parameters() -> None:
    """X-Dyna's adapter on SD1.5's shape, on the meta device: 24.8 M."""
    from xdyna.adapters.dynamics import DynamicsAdapter
    from xdyna.train.modules import count_parameters
    from xdyna.unet import XDynaUNet

    with torch.device("meta"):
        unet = XDynaUNet(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",),
            up_block_types=("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 3,
            layers_per_block=2,
            cross_attention_dim=768,
            num_attention_heads=8,
        ).requires_grad_(False)
        adapter = DynamicsAdapter.from_unet(unet)
        adapter.attach(unet)
        adapter.requires_grad_(True)
    assert round(count_parameters(unet, adapter, trainable=True) / 1e6, 1) == 24.8


# -- out of memory -----------------------------------------------------------------------------------------------


def test_out_of_memory_names_settings_to_lower(tmp_path: Path) -> None:
    cfg = small_config(tmp_path, batch=4, ema=0.9)
    wanted = (
        r"out of memory on the machine; to lower it: batch=2 accumulate=2, or checkpointing=true, or precision=bf16"
    )
    with pytest.raises(UserError, match=wanted), out_of_memory_explained(cfg):
        torch.empty(1 << 60)
    with pytest.raises(UserError, match="out of memory on the GPU; to lower it"), out_of_memory_explained(cfg):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_explained(cfg):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(("batch", "told"), [(5, "batch=1 accumulate=10"), (6, "batch=3 accumulate=4"), (1, None)])
def test_a_smaller_batch_keeps_the_samples_per_step(tmp_path: Path, batch: int, told: str | None) -> None:
    first = ways_to_save(small_config(tmp_path, batch=batch, accumulate=2))[0]
    assert first == (told or "checkpointing=true")


def test_ways_to_save_leave_out_what_is_done_already(tmp_path: Path) -> None:
    cfg = small_config(tmp_path, batch=1, checkpointing=True, precision="bf16", optimizer="sgd")
    assert ways_to_save(cfg) == ["smaller frames (now 64x96)"]


@pytest.mark.recipe
def test_out_of_memory_in_the_command_is_one_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xdyna.train.run import Run

    def exhaust(run: Run, values: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Run, "backward", exhaust)
    args = ["train", "pose_controlnet", "--base", str(tiny_folder), "--out", str(tmp_path / "run"), *TINY]
    assert main([*args, "--set", "sample_every=0"]) == 2
    said = capsys.readouterr().err
    assert "out of memory on the GPU; to lower it: batch=1 accumulate=2, or checkpointing=true" in said
    assert os.linesep not in said.strip()
