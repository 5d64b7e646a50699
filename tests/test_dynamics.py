"""The Dynamics-Adapter: on, off, stored, and fed by a reference that was run before."""

import pytest
import torch
from safetensors.torch import load_file
from small_models import randomised, small_unet
from test_unet import inputs, run

from xdyna import DynamicsAdapter, XDynaUNet
from xdyna.attention import spatial_sites


def trained(unet: XDynaUNet) -> DynamicsAdapter:
    """An adapter whose output projection is not zero."""
    return randomised(DynamicsAdapter.from_unet(unet), seed=3)


def test_untrained_changes_nothing() -> None:
    unet = small_unet()
    args = inputs(unet)
    before = run(unet, *args)
    with DynamicsAdapter.from_unet(unet).attached(unet):
        assert torch.equal(run(unet, *args), before)


def test_query_starts_as_the_hosts() -> None:
    unet = small_unet()
    adapter = DynamicsAdapter.from_unet(unet)
    site, attn = next(iter(spatial_sites(unet, "attn1").items()))
    assert torch.equal(adapter.layers[site.replace(".", "-")]["to_q_ref"].weight, attn.to_q.weight)


def test_detaching_restores_output_and_keys_bit_for_bit() -> None:
    unet = small_unet()
    args = inputs(unet)
    before, keys = run(unet, *args), set(unet.state_dict())
    adapter = trained(unet)
    adapter.attach(unet)
    assert (run(unet, *args) - before).abs().max() > 1e-3
    assert any("to_q_ref" in key for key in unet.state_dict())
    adapter.detach()
    assert torch.equal(run(unet, *args), before)
    assert set(unet.state_dict()) == keys


def test_scale_zero_is_the_host_and_scale_acts_while_attached() -> None:
    unet = small_unet()
    args = inputs(unet)
    before = run(unet, *args)
    adapter = trained(unet).attach(unet)
    full = run(unet, *args)
    adapter.scale = 0.5
    half = run(unet, *args)
    adapter.scale = 0
    assert torch.equal(run(unet, *args), before)
    assert (full - half).abs().max() > 1e-4
    assert (half - before).abs().max() > 1e-4


def test_driving_frames_now_see_the_reference() -> None:
    unet = small_unet(pool_group_norm=False)
    trained(unet).attach(unet)
    sample, text = inputs(unet)
    other = sample.clone()
    other[:, :, 0] += 1
    change = (run(unet, sample, text) - run(unet, other, text))[:, :, 1:].abs().amax(dim=(0, 1, 3, 4))
    assert (change > 1e-4).all()


@pytest.mark.parametrize("reference_timestep", ["same", "zero"])
def test_cached_reference_equals_reference_in_the_batch(reference_timestep: str) -> None:
    unet = small_unet(pool_group_norm=False, reference_timestep=reference_timestep)
    trained(unet).attach(unet)
    sample, text = inputs(unet)
    wanted = run(unet, sample, text)[:, :, 1:]
    with torch.no_grad():
        cache = unet.encode_reference(sample[:, :, 0], 500, text)
    assert set(cache) == set(spatial_sites(unet, "attn1"))
    assert (run(unet, sample[:, :, 1:], text, reference_cache=cache) - wanted).abs().max() < 1e-5


def test_zero_timestep_cache_is_constant_over_a_job() -> None:
    unet = small_unet(pool_group_norm=False, reference_timestep="zero")
    trained(unet).attach(unet)
    sample, text = inputs(unet)
    with torch.no_grad():
        first, last = (unet.encode_reference(sample[:, :, 0], t, text) for t in (961, 1))
    assert all(torch.equal(first[site][0], last[site][0]) for site in first)


def test_cache_is_refused_where_it_would_be_wrong() -> None:
    pooled = small_unet(pool_group_norm=True)
    trained(pooled).attach(pooled)
    sample, text = inputs(pooled)
    with pytest.raises(ValueError, match="pools GroupNorm"):
        pooled.encode_reference(sample[:, :, 0], 1, text)
    bare = small_unet(pool_group_norm=False)
    with pytest.raises(ValueError, match="no Dynamics-Adapter"):
        bare.encode_reference(sample[:, :, 0], 1, text)


def test_own_file_holds_own_weights_only(tmp_path) -> None:
    unet = small_unet()
    args = inputs(unet)
    adapter = trained(unet).attach(unet)
    wanted = run(unet, *args)
    adapter.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {key.rsplit(".", 2)[-2] for key in stored} == {"to_q_ref", "to_out_ref"}
    adapter.detach()
    DynamicsAdapter.from_pretrained(tmp_path).attach(unet)
    assert torch.equal(run(unet, *args), wanted)


def test_full_size_has_24_8_million_parameters() -> None:
    with torch.device("meta"):
        unet = XDynaUNet()
        adapter = DynamicsAdapter.from_unet(unet)
    assert sum(p.numel() for p in adapter.parameters()) == 24_793_280
    assert len(adapter.layers) == 16


def test_only_the_adapter_gets_gradients_with_checkpointing() -> None:
    unet = small_unet().train()
    adapter = trained(unet).attach(unet).requires_grad_(True)
    unet.enable_gradient_checkpointing()
    sample, text = inputs(unet)
    unet(sample, 500, text).sample[:, :, 1:].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    names = {name for name, p in unet.named_parameters() if p.grad is not None}
    assert all("_ref." in name for name in names)


def test_refuses_a_second_adapter_and_another_host() -> None:
    unet = small_unet()
    adapter = trained(unet).attach(unet)
    with pytest.raises(ValueError, match="already attached"):
        adapter.attach(unet)
    with pytest.raises(ValueError, match="another adapter is attached"):
        trained(unet).attach(unet)
    wide = small_unet(block_out_channels=(64, 64))
    with pytest.raises(ValueError, match="the adapter is 32 wide, the UNet 64"):
        DynamicsAdapter.from_unet(small_unet()).attach(wide)
    deep = small_unet(layers_per_block=2)
    with pytest.raises(ValueError, match="first that differs"):
        DynamicsAdapter.from_unet(small_unet()).attach(deep)
    with pytest.raises(ValueError, match="attaches to an XDynaUNet"):
        trained(small_unet()).attach(torch.nn.Linear(1, 1))


def test_a_failed_attach_leaves_the_host_alone() -> None:
    unet = small_unet(block_out_channels=(64, 64))
    keys = set(unet.state_dict())
    with pytest.raises(ValueError, match="wide"):
        DynamicsAdapter.from_unet(small_unet()).attach(unet)
    assert set(unet.state_dict()) == keys
