"""The embedded model: its limits, its parts, and that it does what its name says on a clip it never saw."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import xdyna
from xdyna.configs import load_config
from xdyna.configs.clips import ClipConfig
from xdyna.configs.recipes import ImageConfig
from xdyna.data.source import Batch, build_source, draw_batch
from xdyna.train.parts import load_base
from xdyna.train.samples import animate, evaluate
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem

TINY = Path(xdyna.__file__).resolve().parent / "weights" / "tiny"


def test_size_limits() -> None:
    files = list(TINY.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) <= 25_000_000
    assert {path.parent.name for path in files} == {
        "vae", "unet", "dynamics_adapter", "pose_controlnet", "face_controlnet", "stored_prompt",
    }  # fmt: skip
    parts = load_base(TINY)
    assert sum(p.numel() for module in parts.modules().values() for p in module.parameters()) <= 12_000_000


def test_classes_and_switches() -> None:
    index = json.loads((TINY / "model_index.json").read_text())
    assert index["_class_name"] == "XDynaPipeline"
    assert index["unet"][1] == "XDynaUNet"
    assert index["vae"][1] == "AutoencoderKL"
    assert index["size_limits"] == {"min_wh": [64, 96], "max_wh": [128, 192], "multiple": 8}
    config = json.loads((TINY / "unet" / "config.json").read_text())
    assert config["pool_group_norm"] is False


def test_weights_are_finite_half_precision() -> None:
    from safetensors.torch import load_file

    for path in TINY.rglob("*.safetensors"):
        for key, value in load_file(path).items():
            if value.is_floating_point():
                assert value.dtype == torch.float16, f"{path}: {key}"
                assert torch.isfinite(value).all(), f"{path}: {key}"


@pytest.fixture(scope="module")
def config() -> ClipConfig:
    """The world it was trained on; noise schedule and start are the model's own."""
    preset = load_config(ImageConfig, "train/tiny-motion")
    return started_as_base(ClipConfig(world=preset.world, frames=4, scene_share=0.0), load_base(TINY))


@pytest.fixture(scope="module")
def system(config: ClipConfig) -> ClipSystem:
    torch.set_num_threads(1)
    return ClipSystem(load_base(TINY), config, ())


def held_out(config: ClipConfig, count: int) -> Batch:
    """Consecutive frames of clips that training never reached."""
    return draw_batch(build_source(config, frames=config.frames), range(config.held_out, config.held_out + count))


def test_pose_and_reference_both_count(config: ClipConfig, system: ClipSystem) -> None:
    """Truth is nearer to what the model makes of it than to what it makes of another clip's pose or picture."""
    batch = held_out(config, 4)
    figure = batch.masks[:, 1:] > 127

    def error(pose_from: int, picture_from: int) -> float:
        pictures = np.concatenate([np.roll(batch.frames[:, :1], picture_from, 0), batch.frames[:, 1:]], 1)
        mixed = replace(batch, frames=pictures, pose_maps=np.roll(batch.pose_maps, pose_from, 0))
        made = animate(system, mixed, 4)
        return float(((made.astype(float) - batch.frames[:, 1:]) ** 2)[figure].mean())

    right = error(0, 0)
    assert right < 0.8 * error(1, 0)
    assert right < 0.8 * error(0, 1)


def test_figure_is_closer_to_truth_than_the_copied_reference(config: ClipConfig, system: ClipSystem) -> None:
    values, _ = evaluate(system, held_out(config, 8), 6)
    assert values["model_figure"] > values["copy_figure"]
