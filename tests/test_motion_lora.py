"""LoRA through peft: new, saved, loaded, scaled, taken off."""

import pytest
import torch
from small_models import randomised, small_unet
from test_unet import inputs, run

from xdyna import DynamicsAdapter
from xdyna.adapters.motion_lora import add_lora, load_lora, save_lora, scale_lora, unload_lora


@pytest.mark.parametrize("parts", [("motion",), ("spatial",), ("dynamics",), ("motion", "spatial", "dynamics")])
def test_life_of_a_lora(parts: tuple[str, ...], tmp_path) -> None:
    unet = small_unet()
    randomised(DynamicsAdapter.from_unet(unet), seed=3).attach(unet)
    args = inputs(unet)
    before, keys = run(unet, *args), set(unet.state_dict())

    parameters = add_lora(unet, rank=2, parts=parts, name="mine")
    assert torch.equal(run(unet, *args), before)
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in parameters}
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    trained = run(unet, *args)
    assert (trained - before).abs().max() > 1e-4

    file = save_lora(unet, tmp_path, "mine")
    unload_lora(unet)
    assert torch.equal(run(unet, *args), before)
    assert set(unet.state_dict()) == keys

    load_lora(unet, file, "again")
    assert (run(unet, *args) - trained).abs().max() < 1e-6
    scale_lora(unet, {"again": 0.5})
    assert (run(unet, *args) - trained).abs().max() > 1e-5
    scale_lora(unet, {"again": 0.0})
    assert (run(unet, *args) - before).abs().max() < 1e-6


def test_rank_and_scale_survive_the_file(tmp_path) -> None:
    unet = small_unet()
    for parameter in add_lora(unet, rank=2, alpha=6):
        parameter.data = torch.full_like(parameter, 0.1)
    args = inputs(unet)
    wanted = run(unet, *args)
    save_lora(unet, tmp_path)
    unload_lora(unet)
    load_lora(unet, tmp_path)
    assert (run(unet, *args) - wanted).abs().max() < 1e-6


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match="unknown LoRA part 'hair', wanted some of motion"):
        add_lora(small_unet(), parts=("hair",))
