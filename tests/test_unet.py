"""The video UNet: what flows between frames, what it refuses, saving, checkpointing, compiling, half precision."""

import json
import warnings

import accelerate
import pytest
import torch
from diffusers import UNetMotionModel
from small_models import randomised, small_unet

from xdyna import DynamicsAdapter, XDynaUNet

FRAMES = 5


def inputs(unet: XDynaUNet, batch: int = 2, frames: int = FRAMES, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, unet.config.in_channels, frames, side, side, generator=generator)
    tokens = unet.config.num_text_tokens + unet.num_image_tokens
    return sample, torch.randn(batch, tokens, unet.config.cross_attention_dim, generator=generator)


@torch.no_grad()
def run(unet: XDynaUNet, *args: torch.Tensor, timestep: int = 500, **kwargs: object) -> torch.Tensor:
    return unet(args[0], timestep, args[1], **kwargs).sample


def test_everything_is_frozen() -> None:
    assert not any(p.requires_grad for p in small_unet().parameters())


def test_reference_frame_is_alone_when_norms_are_per_frame() -> None:
    unet = small_unet(pool_group_norm=False)
    sample, text = inputs(unet)
    other = sample.clone()
    other[:, :, 1:] += 1
    assert torch.equal(run(unet, sample, text)[:, :, 0], run(unet, other, text)[:, :, 0])


def test_pooled_norm_lets_driving_frames_reach_the_reference() -> None:
    unet = small_unet(pool_group_norm=True)
    sample, text = inputs(unet)
    other = sample.clone()
    other[:, :, 1:] *= 3
    assert (run(unet, sample, text)[:, :, 0] - run(unet, other, text)[:, :, 0]).abs().max() > 1e-3


def test_without_adapter_and_pooling_the_reference_reaches_no_driving_frame() -> None:
    unet = small_unet(pool_group_norm=False)
    sample, text = inputs(unet)
    other = sample.clone()
    other[:, :, 0] += 1
    assert torch.equal(run(unet, sample, text)[:, :, 1:], run(unet, other, text)[:, :, 1:])


def test_temporal_positions_start_at_the_first_driving_frame() -> None:
    """With equal driving frames only positions tell them apart; they must not count the reference."""
    unet = small_unet(pool_group_norm=False)
    sample, text = inputs(unet, batch=1)
    sample[:, :, 1:] = sample[:, :, 1:2]
    full = run(unet, sample, text)
    unet_kept = run(unet, sample[:, :, 1:], text, reference_cache={})  # no reference frame in the sample at all
    assert (full[:, :, 1:] - unet_kept).abs().max() < 1e-5
    assert (full[:, :, 1] - full[:, :, 2]).abs().max() > 1e-4


def test_clips_of_a_batch_do_not_mix() -> None:
    unet = small_unet()
    sample, text = inputs(unet)
    both = run(unet, sample, text)
    single = run(unet, sample[1:], text[1:])
    assert (both[1:] - single).abs().max() < 1e-5


def test_timestep_per_clip_equals_one_by_one() -> None:
    unet = small_unet()
    sample, text = inputs(unet)
    with torch.no_grad():
        both = unet(sample, torch.tensor([10, 900]), text).sample
        last = unet(sample[1:], 900, text[1:]).sample
    assert (both[1:] - last).abs().max() < 1e-5


def test_reference_timestep_zero_changes_only_what_the_reference_is_told() -> None:
    same, zero = small_unet(pool_group_norm=False), small_unet(pool_group_norm=False, reference_timestep="zero")
    sample, text = inputs(same)
    a, b = run(same, sample, text), run(zero, sample, text)
    assert (a[:, :, 1:] - b[:, :, 1:]).abs().max() < 1e-5
    assert (a[:, :, 0] - b[:, :, 0]).abs().max() > 1e-3
    assert (run(same, sample, text, timestep=0)[:, :, 0] - b[:, :, 0]).abs().max() < 1e-5


@pytest.mark.parametrize("side_hw", [(8, 8), (7, 5), (6, 10), (9, 12)])
def test_latent_sizes_that_do_not_halve_evenly(side_hw: tuple[int, int]) -> None:
    unet = small_unet()
    text = inputs(unet)[1]
    sample = torch.randn(2, 4, 3, *side_hw)
    assert run(unet, sample, text).shape == sample.shape


def test_per_frame_model_equals_stock_blocks_frame_by_frame() -> None:
    """Motion modules silenced, a driving frame is what diffusers' own UNet makes of it alone."""
    unet = small_unet(pool_group_norm=False)
    keys = UNetMotionModel.__init__.__wrapped__.__code__.co_varnames
    config = {k: v for k, v in unet.config.items() if k in keys and not k.startswith("_")}
    stock = UNetMotionModel(**config, use_motion_mid_block=False).eval()
    stock.load_state_dict(unet.state_dict())
    for model in (unet, stock):
        for name, parameter in model.named_parameters():
            if "motion_modules" in name and ".proj_out." in name:
                parameter.data.zero_()
    sample, text = inputs(unet, batch=1, frames=2)
    got = run(unet, sample, text)
    for frame in range(2):
        with torch.no_grad():
            wanted = stock(sample[:, :, frame : frame + 1], 500, text).sample
        assert (got[:, :, frame : frame + 1] - wanted).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda s, t: (s[0], t), r"wanted \[B, 4, frames"),
        (lambda s, t: (s[:, :3], t), r"wanted \[B, 4, frames"),
        (lambda s, t: (s, t[:, :-1]), "wanted .* text tokens then 0 image tokens"),
        (lambda s, t: (s, t[:1]), "wanted"),
        (lambda s, t: (s.repeat(1, 1, 6, 1, 1), t), "29 driving frames in one window, at most 24"),
    ],
)
def test_refuses_what_does_not_fit(change, wanted: str) -> None:
    unet = small_unet()
    with pytest.raises(ValueError, match=wanted):
        run(unet, *change(*inputs(unet)))


def test_refuses_a_wrong_number_of_residuals() -> None:
    unet = small_unet()
    sample, text = inputs(unet)
    with pytest.raises(ValueError, match=r"1 ControlNet residuals for \d+ skip"):
        run(unet, sample, text, down_block_additional_residuals=[torch.zeros(2, 32, FRAMES, 8, 8)])


def test_save_and_load_without_warnings(tmp_path, caplog) -> None:
    unet = small_unet(norm_num_groups=8, motion_norm_num_groups=16)
    sample, text = inputs(unet)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        unet.save_pretrained(tmp_path)
        loaded = XDynaUNet.from_pretrained(tmp_path)
    assert not [r for r in caplog.records if "not expected" in r.message or "not used" in r.message]
    assert loaded.config.motion_norm_num_groups == 16
    assert loaded.down_blocks[0].motion_modules[0].norm.num_groups == 16
    assert torch.equal(run(loaded, sample, text), run(unet, sample, text))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "use_motion_mid_block" not in saved
    assert saved["motion_max_seq_length"] == 24


def test_an_attached_adapter_is_not_saved_with_the_unet(tmp_path) -> None:
    unet = small_unet()
    keys = set(unet.state_dict())
    with DynamicsAdapter.from_unet(unet).attached(unet):
        unet.save_pretrained(tmp_path)
        assert set(unet.state_dict()) != keys
    assert set(XDynaUNet.from_pretrained(tmp_path).state_dict()) == keys


def test_checkpointed_gradients_are_the_same() -> None:
    """Through ResNets, transformers and motion modules; a second forward before backward must not disturb the first."""
    gradients = []
    for checkpointing in (False, True):
        unet = small_unet().train()
        unet.requires_grad_(True)
        if checkpointing:
            unet.enable_gradient_checkpointing()
            motion = [m for m in unet.modules() if type(m).__name__ == "DrivingMotionModule"]
            assert all(m.gradient_checkpointing for m in motion)
        sample, text = inputs(unet)
        loss = unet(sample, 500, text).sample.square().mean()
        unet(sample[:, :, :3], 500, text)
        loss.backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all((gradients[0][k] - gradients[1][k]).abs().max() < 1e-6 for k in gradients[0])


@pytest.mark.slow
def test_blocks_compile_in_one_graph_for_several_frame_counts() -> None:
    """Three widths, spatial and temporal blocks, as at SD1.5 size."""
    levels = ("CrossAttnDownBlockMotion",) * 3
    unet = small_unet(
        block_out_channels=(16, 32, 48), down_block_types=levels, up_block_types=("CrossAttnUpBlockMotion",) * 3
    )
    DynamicsAdapter.from_unet(unet).attach(unet)
    wanted = [run(unet, *inputs(unet, frames=n)) for n in (3, 4, 5)]
    unet.compile_repeated_blocks(fullgraph=True, dynamic=True, backend="aot_eager")
    for n, expected in zip((3, 4, 5), wanted, strict=True):
        assert (run(unet, *inputs(unet, frames=n)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_close_to_single(dtype: torch.dtype) -> None:
    unet = small_unet()
    sample, text = inputs(unet)
    wanted = run(unet, sample, text)
    got = run(unet.to(dtype), sample.to(dtype), text.to(dtype))
    assert got.dtype == dtype
    assert (got.float() - wanted).abs().mean() < 0.05 * wanted.abs().mean()


def test_unknown_reference_timestep_is_refused() -> None:
    with pytest.raises(ValueError, match="'later', wanted 'same' or 'zero'"):
        small_unet(reference_timestep="later")


def test_from_unet2d_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="xdyna convert"):
        XDynaUNet.from_unet2d(None)


def test_weights_kept_on_the_cpu_and_fetched_as_needed() -> None:
    """accelerate's offload hooks, with an adapter's layers on the host."""
    unet = small_unet()
    adapter = randomised(DynamicsAdapter.from_unet(unet), seed=3).attach(unet)
    sample, text = inputs(unet)
    wanted = run(unet, sample, text)
    accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
    assert all(p.device.type == "meta" for p in adapter.parameters())
    assert torch.equal(run(unet, sample, text), wanted)
    accelerate.hooks.remove_hook_from_module(unet, recurse=True)
    assert torch.equal(run(unet, sample, text), wanted)


def test_autocast_runs_a_half_precision_host_with_a_full_precision_adapter() -> None:
    """The usual arrangement while an adapter trains."""
    unet = small_unet()
    sample, text = inputs(unet)
    adapter = randomised(DynamicsAdapter.from_unet(unet), seed=3)
    with adapter.attached(unet):
        wanted = run(unet, sample, text)
    unet.to(torch.bfloat16)
    with adapter.attached(unet), torch.autocast("cpu", torch.bfloat16):
        got = run(unet, sample, text)
    assert next(adapter.parameters()).dtype == torch.float32
    assert (got.float() - wanted).abs().mean() < 0.05 * wanted.abs().mean()


def test_motion_modules_train_on_channels_last_latents() -> None:
    """One clip in the memory layout of a VAE's latents, which a first block without attention keeps."""
    down, up = ("DownBlockMotion", "CrossAttnDownBlockMotion"), ("CrossAttnUpBlockMotion", "UpBlockMotion")
    unet = small_unet(pool_group_norm=False, down_block_types=down, up_block_types=up)
    for block in unet.down_blocks:
        block.motion_modules.requires_grad_(True)
    sample, text = inputs(unet, batch=1)
    frames = sample[0].transpose(0, 1).contiguous(memory_format=torch.channels_last)
    unet(frames.transpose(0, 1)[None], 500, text).sample[:, :, 1:].square().mean().backward()
    gradient = unet.down_blocks[0].motion_modules[0].norm.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
