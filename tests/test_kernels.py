"""Faster arithmetic against the plain formulas: the same values, the same gradients, no unfused attention."""

import math

import pytest
import torch
from small_models import SMALL_RESAMPLER, randomised, small_controlnet, small_unet
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from xdyna import DynamicsAdapter, ImagePromptAdapter, PoseControlNet
from xdyna.attention import attend
from xdyna.controlnets.residuals import control_residuals
from xdyna.unet import ClipGroupNorm, silu_over


def plain_group_norm(norm: nn.GroupNorm, x: Tensor, batch: int) -> Tensor:
    """Written out: one mean and one variance for each clip and group."""
    clips = x.double().reshape(batch, -1, norm.num_groups, x.shape[1] // norm.num_groups, *x.shape[2:])
    mean = clips.mean(dim=(1, 3, 4, 5), keepdim=True)
    variance = clips.var(dim=(1, 3, 4, 5), correction=0, keepdim=True)
    normed = ((clips - mean) / (variance + norm.eps).sqrt()).reshape(x.shape)
    return (normed * norm.weight[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


@pytest.mark.parametrize("size", [(6, 32, 5, 7), (4, 32, 1, 1), (2, 64, 8, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooled_norm_is_the_formula_with_and_without_gradients(size: tuple[int, ...], layout: torch.memory_format):
    norm = randomised(ClipGroupNorm(8, size[1]), 0)
    generator = torch.Generator().manual_seed(0)
    # Frames of different brightness and contrast: pooling them is not the mean of what each is on its own.
    x = torch.randn(size, generator=generator) * torch.rand(size[0], 1, 1, 1, generator=generator) * 3
    x = (x + torch.randn(size[0], 1, 1, 1, generator=generator)).contiguous(memory_format=layout)
    wanted = plain_group_norm(norm, x, 2)
    kept = x.clone()
    with torch.no_grad():
        fast = norm(x, 2)
    assert (fast - wanted).abs().max() < 1e-5
    assert (norm(x, 2) - wanted).abs().max() < 1e-5
    assert torch.equal(x, kept)


def test_pooled_norm_moves_no_frame() -> None:
    norm, x = randomised(ClipGroupNorm(8, 32), 0), torch.randn(6, 32, 5, 7)

    def largest_copy() -> int:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as measured:
            norm(x, 2)
        copies = [event for event in measured.events() if event.name == "aten::copy_"]
        return max((math.prod(event.input_shapes[0]) for event in copies), default=0)

    assert largest_copy() == x.numel()  # the plain formula, which has gradients
    with torch.no_grad():
        assert largest_copy() <= 6 * 8  # statistics


def test_pooled_norm_in_half_precision_rounds_once() -> None:
    norm, x = randomised(ClipGroupNorm(8, 32), 0).bfloat16(), torch.randn(6, 32, 5, 7).bfloat16()
    with torch.no_grad():
        error = (norm(x, 2).float() - plain_group_norm(norm, x, 2).float()).abs()
    assert error.max() < 0.04
    assert error.mean() < 0.002  # of values about 1, whose neighbours are 0.008 apart


def test_silu_writes_over_its_input_only_without_gradients() -> None:
    x = torch.randn(3, 4)
    wanted = x * x.sigmoid()
    assert torch.allclose(silu_over(x), wanted)
    assert not torch.equal(x, wanted)
    with torch.no_grad():
        assert silu_over(x) is x
    assert torch.allclose(x, wanted)


def test_rows_that_share_keys_attend_as_if_the_keys_were_repeated() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(6, 5, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(2, 3, 8, generator=generator, requires_grad=True) for _ in range(2))
    gradients = []
    for repeats in (1, 3):
        out = attend(query, *(x.repeat_interleave(repeats, dim=0) for x in (key, value)), heads=2)
        gradients.append((out, *torch.autograd.grad(out.square().sum(), (query, key, value))))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(*gradients, strict=True))


def test_a_call_with_and_without_gradients_agrees() -> None:
    """Whatever is done otherwise without gradients, in the whole UNet with both adapters."""
    for pooled in (True, False):
        unet = small_unet(pool_group_norm=pooled)
        randomised(DynamicsAdapter.from_unet(unet), 3).attach(unet)
        randomised(ImagePromptAdapter.from_unet(unet, SMALL_RESAMPLER), 4).attach(unet)
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(2, 4, 5, 6, 8, generator=generator)
        tokens = torch.randn(4, 4 + unet.num_image_tokens, 16, generator=generator)
        kept = sample.clone()
        with torch.no_grad():
            fast = unet(sample, 500, tokens).sample
        assert (unet(sample, 500, tokens).sample - fast).abs().max() < 1e-5
        assert torch.equal(sample, kept)


def test_a_controlnet_takes_its_text_once_and_has_the_stock_keys() -> None:
    from diffusers import ControlNetModel

    ours = small_controlnet(PoseControlNet)
    stock = small_controlnet(ControlNetModel)
    assert list(ours.state_dict()) == list(stock.state_dict())
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 3, 8, 8, generator=generator)
    text, condition = torch.randn(2, 4, 16, generator=generator), torch.rand(2, 3, 3, 16, 16, generator=generator)
    rows = []
    for net in (ours, stock):
        attn = net.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
        attn.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    results = [control_residuals(net, latents, 500, text, condition) for net in (ours, stock)]
    assert rows == [2, 6]
    for a, b in zip((*results[0].down, results[0].mid), (*results[1].down, results[1].mid), strict=True):
        assert (a - b).abs().max() < 1e-5


def test_no_attention_falls_to_the_unfused_kernel() -> None:
    """Spatial, temporal, cross-attention and both adapters' reads, in single and half precision."""
    unet = small_unet()
    randomised(DynamicsAdapter.from_unet(unet), 3).attach(unet)
    randomised(ImagePromptAdapter.from_unet(unet, SMALL_RESAMPLER), 4).attach(unet)
    for dtype in (torch.float32, torch.bfloat16):
        unet.to(dtype)
        sample = torch.randn(1, 4, 4, 8, 8).to(dtype)
        tokens = torch.randn(2, 4 + unet.num_image_tokens, 16).to(dtype)
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as measured:
            unet(sample, 500, tokens)
        names = {event.key: event.count for event in measured.key_averages() if "scaled_dot_product" in event.key}
        fused = sum(count for name, count in names.items() if "flash" in name or "efficient" in name)
        assert fused == names["aten::scaled_dot_product_attention"] > 0
        assert not any("math" in name for name in names)
