"""Sets of our own where recorded ones are blind, against the UNet restated as plain formulas (`plain_unet.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_sets import Check, facts, official_weights, set_names, tensors, worst
from official_files import official_shapes, seeded
from plain_unet import PlainUNet
from torch import Tensor

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.adapters.image_prompt import ImagePromptAdapter
from xdyna.checkpoints import OfficialFiles, convert_official
from xdyna.checkpoints.infer_config import unet_config
from xdyna.unet import XDynaUNet

TOLERANCE = 5e-5
RESAMPLER = {
    "embed_dims": 24, "hidden_dims": 16, "depth": 1, "dim_head": 4, "heads": 3, "num_queries": 16, "ffn_ratio": 2,
}  # fmt: skip


@dataclass(frozen=True)
class OwnSet:
    """A model whose numbers differ from each other wherever they could be mixed up, and an input for it."""

    widths: tuple[int, ...]
    groups: int
    heads: int
    motion_heads: int = 8
    motion_groups: int = 32
    layers: int = 1
    num_frames: int = 3
    latent_hw: tuple[int, int] = (8, 8)
    timestep: int = 501

    def settings(self) -> dict[str, Any]:
        return {
            "norm_num_groups": self.groups,
            "num_attention_heads": self.heads,
            "motion_num_attention_heads": self.motion_heads,
            "motion_norm_num_groups": self.motion_groups,
        }

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Seeded weights of the UNet and of the Resampler, under official names."""
        levels = len(self.widths)
        config = {
            **self.settings(),
            "block_out_channels": self.widths,
            "layers_per_block": self.layers,
            "cross_attention_dim": 24,
            "down_block_types": ["CrossAttnDownBlockMotion"] * (levels - 1) + ["DownBlockMotion"],
            "up_block_types": ["UpBlockMotion"] + ["CrossAttnUpBlockMotion"] * (levels - 1),
        }
        unet, resampler = official_shapes(config, RESAMPLER)
        return seeded(unet, 10), seeded(resampler, 11)

    def plain(self, weights: dict[str, Tensor]) -> PlainUNet:
        return PlainUNet(weights, self.heads, self.groups, self.motion_heads, self.motion_groups)


SETS = {
    "motion_groups": OwnSet(widths=(32, 64), groups=8, heads=8),
    "few_motion_groups": OwnSet(widths=(32, 64), groups=32, heads=8, motion_groups=4),
    "heads": OwnSet(widths=(32, 96), groups=16, heads=4, motion_heads=2),
    "odd_latents": OwnSet(widths=(32, 32, 64, 64), groups=16, heads=2, num_frames=2, latent_hw=(9, 13)),
    "even_but_not_by_8": OwnSet(widths=(32, 32, 64, 64), groups=16, heads=4, latent_hw=(12, 10), timestep=961),
    "layers": OwnSet(widths=(32, 64), groups=16, heads=4, layers=3, num_frames=5, timestep=1),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", set_names())
def test_formulas_agree_with_the_official_code(name: str, check: Check) -> None:
    """What our own sets are compared with is itself compared with what was recorded."""
    golden, weights = tensors(name, "unet"), official_weights(name, "unet")
    config = facts(name, "models")["config"]
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    unet = unet_config(shapes, config["unet"])
    plain = PlainUNet(weights, unet["num_attention_heads"], unet["norm_num_groups"])
    count = sum(key.startswith("down_residual.") for key in golden)
    residuals = [golden[f"down_residual.{i}"].float() for i in range(count)] + [golden["mid_residual"].float()]
    errors = {}
    for timestep in config["timesteps"]:
        inputs = (golden["sample"], timestep, golden["encoder_hidden_states"])
        errors[f"t{timestep}"] = worst(plain(*inputs), golden[f"out.t{timestep}"])
        errors[f"t{timestep} with residuals"] = worst(plain(*inputs, residuals), golden[f"out_res.t{timestep}"])
    check(name, "plain formulas", errors, TOLERANCE)


@pytest.fixture(scope="module")
def weights() -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    return {name: own.weights() for name, own in SETS.items()}


@pytest.mark.parametrize("name", SETS)
def test_own_set(name: str, weights: Any, tmp_path: Path, check: Check) -> None:
    own = SETS[name]
    unet_weights, resampler_weights = weights[name]
    unet = convert_and_load(own.settings(), unet_weights, resampler_weights, tmp_path)
    sample, context = draw_inputs(own)
    plain = own.plain(unet_weights)
    errors = {"alone": worst(run(unet, own, sample, context), plain(sample, own.timestep, context))}
    residuals = draw_residuals(unet, sample)
    got = run(
        unet,
        own,
        sample,
        context,
        down_block_additional_residuals=tuple(residuals[:-1]),
        mid_block_additional_residual=residuals[-1],
    )
    errors["with residuals"] = worst(got, plain(sample, own.timestep, context, residuals))
    check("own", name, errors, TOLERANCE)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("motion_groups", {"motion_norm_num_groups": 8}),
        ("heads", {"motion_num_attention_heads": 4}),
        ("heads", {"num_attention_heads": 2}),
        ("odd_latents", {"pool_group_norm": False}),
    ],
)
def test_own_sets_are_not_blind(name: str, mistake: dict[str, Any], weights: Any, tmp_path: Path) -> None:
    """A model with one wrong number is far outside the tolerance."""
    own = SETS[name]
    unet = convert_and_load({**own.settings(), **mistake}, *weights[name], tmp_path)
    sample, context = draw_inputs(own)
    difference = run(unet, own, sample, context) - own.plain(weights[name][0])(sample, own.timestep, context)
    assert difference.abs().max() > 100 * TOLERANCE


def convert_and_load(
    settings: dict[str, Any], unet: dict[str, Tensor], resampler: dict[str, Tensor], folder: Path
) -> XDynaUNet:
    """Our UNet with both adapters, from official-looking files through the converter."""
    torch.save({"state_dict": unet}, folder / "unet.ckpt")
    torch.save({"image_proj": resampler, "ip_adapter": {}}, folder / "ip.bin")
    files = OfficialFiles(unet=folder / "unet.ckpt", ip_adapter=folder / "ip.bin")
    settings = {"unet": settings, "image_prompt": {"dim_head": RESAMPLER["dim_head"]}}
    convert_official(files, folder / "out", settings=settings)
    model = XDynaUNet.from_pretrained(folder / "out" / "unet").eval()
    DynamicsAdapter.from_pretrained(folder / "out" / "dynamics_adapter").attach(model)
    ImagePromptAdapter.from_pretrained(folder / "out" / "image_prompt").attach(model)
    return model


def draw_inputs(own: OwnSet) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(12)
    sample = torch.randn(2, 4, 1 + own.num_frames, *own.latent_hw, generator=generator)
    return sample, torch.randn(2, 77 + RESAMPLER["num_queries"], 24, generator=generator)


def draw_residuals(unet: XDynaUNet, sample: Tensor) -> list[Tensor]:
    """One for every skip connection, and for the middle: sizes halve, rounding up."""
    generator = torch.Generator().manual_seed(13)
    widths, layers = unet.config.block_out_channels, unet.config.layers_per_block
    size_hw = list(sample.shape[-2:])
    shapes = [(widths[0], *size_hw)]
    for level, width in enumerate(widths):
        shapes += [(width, *size_hw)] * layers
        if level < len(widths) - 1:
            size_hw = [(side + 1) // 2 for side in size_hw]
            shapes.append((width, *size_hw))
    shapes.append((widths[-1], *size_hw))
    return [torch.randn(2, c, sample.shape[2], h, w, generator=generator) * 0.3 for c, h, w in shapes]


def run(unet: XDynaUNet, own: OwnSet, sample: Tensor, context: Tensor, **residuals: Any) -> Tensor:
    with torch.no_grad():
        return unet(sample, own.timestep, context, **residuals).sample
