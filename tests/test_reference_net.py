"""The reference network: what it computes, where it changes the host, and that it goes without a trace."""

import pytest
import torch
from small_models import randomised, small_unet
from test_unet import inputs, run
from tiny_models import tiny_components, tiny_inputs

from xdyna import DynamicsAdapter, ReferenceNet, XDynaPipeline
from xdyna.adapters.host import SiteAdapter
from xdyna.train.parts import without_motion
from xdyna.unet import XDynaUNet


def attached(unet: XDynaUNet, seed: int = 3) -> ReferenceNet:
    return randomised(ReferenceNet.from_unet(unet), seed).attach(unet)


def test_untrained_copy_says_what_the_host_says_of_a_frame() -> None:
    unet = small_unet(pool_group_norm=False, reference_timestep="zero")
    net = ReferenceNet.from_unet(unet)
    sample, text = inputs(unet)
    with DynamicsAdapter.from_unet(unet).attached(unet), torch.no_grad():
        wanted = unet.encode_reference(sample[:, :, 0], 7, text)
        got = net(sample[:, :, 0], text)
    assert set(got) == set(wanted)
    for site, pair in wanted.items():
        for mine, hosts in zip(got[site], pair, strict=True):
            assert (mine - hosts).abs().max() < 1e-5


def test_keys_join_in_one_softmax() -> None:
    """Two equal sets of keys and values halve each weight twice: the output is that of one set."""
    unet = small_unet(pool_group_norm=False, reference_timestep="zero")
    sample, text = inputs(unet)
    still = sample[:, :, :1].repeat(1, 1, 2, 1, 1)  # the driving frame is the reference itself, at timestep 0
    with torch.no_grad(), without_motion(unet):
        alone = unet(still, 0, text).sample[:, :, 1:]
        with ReferenceNet.from_unet(unet).attached(unet):
            joined = unet(still, 0, text).sample[:, :, 1:]
    assert (joined - alone).abs().max() < 1e-4


def test_life_of_a_reference_net(tmp_path) -> None:
    unet = small_unet()
    args = inputs(unet)
    before, keys = run(unet, *args), set(unet.state_dict())
    net = attached(unet)
    assert net.is_on(unet)
    assert not net.is_on(small_unet())
    changed = run(unet, *args)
    assert (changed - before)[:, :, 1:].abs().max() > 1e-3
    assert set(unet.state_dict()) == keys
    net.scale = 0.0
    assert torch.equal(run(unet, *args), before)
    net.scale = 1e-9
    weak = run(unet, *args)
    net.scale = 0.5
    half = run(unet, *args)
    assert (weak - changed)[:, :, 1:].abs().max() > (half - changed)[:, :, 1:].abs().max() > 1e-4
    net.detach()
    assert torch.equal(run(unet, *args), before)
    assert not unet._forward_hooks
    assert not unet._forward_pre_hooks

    net.save_pretrained(tmp_path)
    again = ReferenceNet.from_pretrained(tmp_path)
    assert torch.equal(run(again.attach(unet) and unet, *args), changed)


def test_every_weight_trains() -> None:
    unet = small_unet()
    net = ReferenceNet.from_unet(unet).attach(unet)
    sample, text = inputs(unet)
    unet(sample, 500, text).sample[:, :, 1:].square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for p in unet.parameters())


def test_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        unet = small_unet()
        net = ReferenceNet.from_unet(unet).attach(unet).train()
        if checkpointing:
            net.enable_gradient_checkpointing()
        sample, text = inputs(unet)
        unet(sample, 500, text).sample[:, :, 1:].square().mean().backward()
        return [p.grad for p in net.parameters()]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-7)


def test_other_adapters_and_other_hosts_are_refused() -> None:
    unet = small_unet()
    adapter = DynamicsAdapter.from_unet(unet).attach(unet)
    with pytest.raises(ValueError, match="another adapter is attached"):
        ReferenceNet.from_unet(unet).attach(unet)
    adapter.detach()
    wide = small_unet(block_out_channels=(64, 64))
    with pytest.raises(ValueError, match="the reference network is 32 wide, the UNet 64"):
        ReferenceNet.from_unet(unet).attach(wide)
    net = ReferenceNet.from_unet(unet)
    net.scale = -1.0
    with pytest.raises(ValueError, match="wanted 0 or more"):
        run(net.attach(unet) and unet, *inputs(unet))


def test_a_pipeline_with_a_reference_net(tmp_path) -> None:
    """In the adapter's place it is saved, loaded and used by the pipeline as it is."""
    parts = tiny_components(adapter=False)
    parts["dynamics_adapter"] = randomised(ReferenceNet.from_unet(parts["unet"]), 8)
    pipe = XDynaPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.dynamics_adapter, SiteAdapter)

    def frames(pipe: XDynaPipeline, **more: float) -> torch.Tensor:
        out = pipe(**tiny_inputs(), num_inference_steps=2, generator=torch.Generator().manual_seed(0),
                   output_type="latent", **more).frames  # fmt: skip
        return torch.as_tensor(out)

    wanted = frames(pipe)
    assert (frames(pipe, adapter_scale=0.0) - wanted).abs().max() > 1e-3
    pipe.save_pretrained(tmp_path)
    again = XDynaPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.dynamics_adapter, ReferenceNet)
    assert torch.equal(frames(again), wanted)
