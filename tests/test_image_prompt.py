"""Image tokens: counted, read, switched off, stored."""

import pytest
import torch
from small_models import SMALL_RESAMPLER, randomised, small_unet
from test_unet import inputs, run

from xdyna import DynamicsAdapter, ImagePromptAdapter


def test_tokens_come_after_the_text_and_are_counted() -> None:
    unet = small_unet()
    text_only = inputs(unet)
    adapter = ImagePromptAdapter.from_unet(unet, SMALL_RESAMPLER).attach(unet)
    assert unet.num_image_tokens == adapter.num_image_tokens == SMALL_RESAMPLER["num_queries"]
    with pytest.raises(ValueError, match="image tokens for each clip"):
        run(unet, *text_only)
    assert run(unet, *inputs(unet)).shape == text_only[0].shape


def test_resampler_makes_the_tokens() -> None:
    unet = small_unet()
    adapter = ImagePromptAdapter.from_unet(unet, SMALL_RESAMPLER)
    tokens = adapter.encode(torch.randn(2, 7, SMALL_RESAMPLER["embed_dims"]))
    assert tokens.shape == (2, SMALL_RESAMPLER["num_queries"], unet.config.cross_attention_dim)


def test_image_tokens_matter_and_scale_zero_ignores_them() -> None:
    unet = small_unet()
    plain = inputs(unet)
    before = run(unet, *plain)
    adapter = randomised(ImagePromptAdapter.from_unet(unet, SMALL_RESAMPLER), seed=4).attach(unet)
    sample, context = inputs(unet)
    context[:, : unet.config.num_text_tokens] = plain[1]
    sample = plain[0]
    assert (run(unet, sample, context) - before).abs().max() > 1e-4
    adapter.scale = 0
    assert torch.equal(run(unet, sample, context), before)
    adapter.detach()
    assert unet.num_image_tokens == 0
    assert torch.equal(run(unet, *plain), before)


def test_round_trip_and_both_adapters_together(tmp_path) -> None:
    unet = small_unet()
    prompt = randomised(ImagePromptAdapter.from_unet(unet, SMALL_RESAMPLER), seed=4).attach(unet)
    dynamics = randomised(DynamicsAdapter.from_unet(unet), seed=5).attach(unet)
    args = inputs(unet)
    wanted = run(unet, *args)
    prompt.save_pretrained(tmp_path)
    dynamics.detach()
    prompt.detach()
    loaded = ImagePromptAdapter.from_pretrained(tmp_path)
    with dynamics.attached(unet), loaded.attached(unet):
        assert torch.equal(run(unet, *args), wanted)


def test_full_size_parameters() -> None:
    from xdyna import XDynaUNet

    with torch.device("meta"):
        adapter = ImagePromptAdapter.from_unet(XDynaUNet())
    assert sum(p.numel() for p in adapter.layers.parameters()) == 19_169_280
    assert sum(p.numel() for p in adapter.resampler.parameters()) == 29_918_208
