"""ControlNets frame by frame, their sum, and the uncontrolled reference frame."""

import pytest
import torch
from small_models import small_controlnet, small_unet

from xdyna import PoseControlNet, SFaceControlNet
from xdyna.controlnets.residuals import Residuals, control_residuals, sum_residuals


def arguments(net: torch.nn.Module, frames: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    config = net.config
    latents = torch.randn(2, config.in_channels, frames, 8, 8, generator=generator)
    text = torch.randn(2, 4, config.cross_attention_dim, generator=generator)
    side = 8 * 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    condition = torch.rand(1, config.conditioning_channels, frames, side, side, generator=generator)
    return latents, text, condition


@torch.no_grad()
def test_frames_are_evaluated_one_by_one() -> None:
    net = small_controlnet(PoseControlNet)
    latents, text, condition = arguments(net)
    all_frames = control_residuals(net, latents, 500, text, condition)
    for i in range(3):
        one = control_residuals(net, latents[:, :, i : i + 1], 500, text, condition[:, :, i : i + 1])
        assert (all_frames.mid[:, :, i : i + 1] - one.mid).abs().max() < 1e-5
        for a, b in zip(all_frames.down, one.down, strict=True):
            assert (a[:, :, i : i + 1] - b).abs().max() < 1e-5


@torch.no_grad()
def test_a_timestep_per_clip() -> None:
    net = small_controlnet(PoseControlNet)
    latents, text, condition = arguments(net)
    both = control_residuals(net, latents, torch.tensor([3, 700]), text, condition)
    one = control_residuals(net, latents[1:], 700, text[1:], condition)
    assert (both.mid[1:] - one.mid).abs().max() < 1e-5


@torch.no_grad()
def test_residuals_fit_the_unet_and_leave_the_reference_alone() -> None:
    unet = small_unet(pool_group_norm=False)
    pose, face = small_controlnet(PoseControlNet), small_controlnet(SFaceControlNet)
    latents, text, condition = arguments(pose)
    faces = SFaceControlNet.condition(condition, 1 - condition)
    total = sum_residuals(
        [
            control_residuals(pose, latents, 500, text, condition),
            control_residuals(face, latents, 500, text, faces),
        ]
    ).with_reference()
    assert (total.mid[:, :, 0] == 0).all()
    assert all((r[:, :, 0] == 0).all() for r in total.down)
    sample = torch.cat([torch.ones_like(latents[:, :, :1]), latents], dim=2)
    plain = unet(sample, 500, text).sample
    controlled = unet(
        sample, 500, text, down_block_additional_residuals=total.down, mid_block_additional_residual=total.mid
    ).sample
    assert torch.equal(plain[:, :, 0], controlled[:, :, 0])
    assert (plain[:, :, 1:] - controlled[:, :, 1:]).abs().max() > 1e-4


@torch.no_grad()
def test_scale() -> None:
    net = small_controlnet(PoseControlNet)
    latents, text, condition = arguments(net)
    full = control_residuals(net, latents, 500, text, condition)
    half = control_residuals(net, latents, 500, text, condition, scale=0.5)
    assert torch.allclose(half.mid, full.mid * 0.5)
    assert full.mid.abs().max() > 1e-4


def test_wrong_inputs_are_named() -> None:
    net = small_controlnet(SFaceControlNet)
    latents, text, condition = arguments(net)
    with pytest.raises(ValueError, match=r"wanted \[B, 6, 3, height, width\]"):
        control_residuals(net, latents, 500, text, condition[:, :3])
    with pytest.raises(ValueError, match=r"wanted \[B, 6, 3, height, width\]"):
        control_residuals(net, latents, 500, text, condition[:, :, :2])
    with pytest.raises(ValueError, match="no residuals"):
        sum_residuals([])
    with pytest.raises(ValueError, match="has 6"):
        SFaceControlNet(conditioning_channels=3)
    a = Residuals((torch.zeros(1, 1, 1, 1, 1),), torch.zeros(1, 1, 1, 1, 1))
    b = Residuals((), torch.zeros(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="shorter"):
        sum_residuals([a, b])


@pytest.mark.parametrize(("cls", "channels"), [(PoseControlNet, 3), (SFaceControlNet, 6)])
def test_save_and_load(cls, channels: int, tmp_path, caplog) -> None:
    net = small_controlnet(cls)
    assert net.config.conditioning_channels == channels
    net.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert not [r for r in caplog.records if "not expected" in r.message]
    assert loaded.config.conditioning_channels == channels
    a, b = net.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_full_size_parameters() -> None:
    with torch.device("meta"):
        sd15 = {"cross_attention_dim": 768}
        assert sum(p.numel() for p in PoseControlNet(**sd15).parameters()) == 361_279_120
        assert sum(p.numel() for p in SFaceControlNet(**sd15).parameters()) == 361_279_552
