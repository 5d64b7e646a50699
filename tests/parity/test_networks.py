"""UNet, ControlNets and Resampler against the official code's outputs, their weights through the converter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from golden_sets import Check, converted, facts, set_names, tensors, worst
from torch import Tensor, nn

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.adapters.image_prompt import ImagePromptAdapter
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.unet import XDynaUNet, unfold

pytestmark = pytest.mark.parity

MODEL_TOLERANCE = 5e-5
RESAMPLER_TOLERANCE = 1e-5

sets = pytest.mark.parametrize("name", set_names())


@pytest.fixture(scope="session")
def load_unet(folder: Path) -> Callable[[str], XDynaUNet]:
    """The UNet of a set with both adapters attached."""
    loaded: dict[str, XDynaUNet] = {}

    def load(name: str) -> XDynaUNet:
        if name not in loaded:
            root = converted(name, folder)
            unet = XDynaUNet.from_pretrained(root / "unet").eval()
            DynamicsAdapter.from_pretrained(root / "dynamics_adapter").attach(unet)
            ImagePromptAdapter.from_pretrained(root / "image_prompt").attach(unet)
            loaded[name] = unet
        return loaded[name]

    return load


@sets
def test_unet(name: str, load_unet: Callable[[str], XDynaUNet], check: Check) -> None:
    """Every recorded timestep."""
    golden, unet = tensors(name, "unet"), load_unet(name)
    errors = {
        timestep: worst(run(unet, golden, timestep), golden[f"out.t{timestep}"])
        for timestep in facts(name, "models")["config"]["timesteps"]
    }
    check(name, "unet", errors, MODEL_TOLERANCE)


@sets
def test_unet_residuals(name: str, load_unet: Callable[[str], XDynaUNet], check: Check) -> None:
    """With ControlNet residuals on every skip connection and the middle."""
    golden, unet = tensors(name, "unet"), load_unet(name)
    count = sum(key.startswith("down_residual.") for key in golden)
    residuals = {
        "down_block_additional_residuals": tuple(golden[f"down_residual.{i}"].float() for i in range(count)),
        "mid_block_additional_residual": golden["mid_residual"].float(),
    }
    errors = {
        timestep: worst(run(unet, golden, timestep, **residuals), golden[f"out_res.t{timestep}"])
        for timestep in facts(name, "models")["config"]["timesteps"]
    }
    check(name, "unet_residuals", errors, MODEL_TOLERANCE)


@sets
def test_unet_inner(name: str, load_unet: Callable[[str], XDynaUNet], check: Check) -> None:
    """What goes into and comes out of the first modules, and every block's output, at the middle timestep."""
    golden, unet = tensors(name, "unet"), load_unet(name)
    row = len(golden["sample"]) - 1  # the recorded batch row
    first = unet.down_blocks[0]
    block = first.attentions[0].transformer_blocks[0]
    modules = {
        "resnet": first.resnets[0],
        "attn1_mixed": block.attn1,
        "attn2_ip": block.attn2,
        "transformer": first.attentions[0],
        "motion": first.motion_modules[0],
        "mid": unet.mid_block,
    }
    modules |= {f"down.{i}": module for i, module in enumerate(unet.down_blocks)}
    modules |= {f"up.{i}": module for i, module in enumerate(unet.up_blocks)}
    with Recorder(modules) as seen:
        run(unet, golden, middle_timestep(name))

    wanted = [key for key in golden if key.startswith(("inter.", "block_out."))]
    assert {key.partition(".")[0] for key in wanted} == {"inter", "block_out"}
    batch, num_frames = len(golden["sample"]), golden["sample"].shape[2]
    errors = {}
    for key in wanted:
        module, _, side = key.removeprefix("inter.").rpartition(".")
        if key.startswith("block_out."):
            module, side = key.removeprefix("block_out."), "out"
        got = seen[f"{module}.{side}"]
        if golden[key].ndim == 3:  # tokens of one clip, frames folded
            got = got[row * num_frames : (row + 1) * num_frames]
        else:
            got = unfold(got, batch)[row : row + 1, :, : golden[key].shape[2]]
        errors[key] = worst(got, golden[key])
    check(name, "unet_inner", errors, MODEL_TOLERANCE)


@sets
def test_controlnet_pose(name: str, folder: Path, check: Check) -> None:
    controlnet = PoseControlNet.from_pretrained(converted(name, folder) / "pose_controlnet")
    check_controlnet(name, "pose", controlnet, check)


@sets
def test_controlnet_face(name: str, folder: Path, check: Check) -> None:
    controlnet = SFaceControlNet.from_pretrained(converted(name, folder) / "face_controlnet")
    check_controlnet(name, "face", controlnet, check)


def check_controlnet(name: str, kind: str, controlnet: ControlNetModel, check: Check) -> None:
    """Residuals and the embedded condition at the middle timestep."""
    golden = tensors(name, "controlnet")
    controlnet.eval()
    condition = golden[f"{kind}.cond_u8"].float() / 256
    with torch.no_grad():
        down, mid = controlnet(
            golden[f"{kind}.sample"],
            middle_timestep(name),
            encoder_hidden_states=golden[f"{kind}.encoder_hidden_states"],
            controlnet_cond=condition,
            return_dict=False,
        )
        embedded = controlnet.controlnet_cond_embedding(condition)
    assert len(down) == sum(key.startswith(f"{kind}.down.") for key in golden)
    errors = {f"down.{i}": worst(tensor, golden[f"{kind}.down.{i}"]) for i, tensor in enumerate(down)}
    errors |= {"mid": worst(mid, golden[f"{kind}.mid"])}
    errors |= {"cond_embedding": worst(embedded, golden[f"{kind}.cond_embedding"])}
    check(name, f"controlnet_{kind}", errors, MODEL_TOLERANCE)


@sets
def test_resampler(name: str, folder: Path, check: Check) -> None:
    golden = tensors(name, "resampler")
    adapter = ImagePromptAdapter.from_pretrained(converted(name, folder) / "image_prompt").eval()
    with torch.no_grad():
        error = worst(adapter.encode(golden["image_embeds"]), golden["out"])
    check(name, "resampler", {"out": error}, RESAMPLER_TOLERANCE)


def run(unet: XDynaUNet, golden: dict[str, Tensor], timestep: int, **residuals: Any) -> Tensor:
    with torch.no_grad():
        return unet(golden["sample"], timestep, golden["encoder_hidden_states"], **residuals).sample


def middle_timestep(name: str) -> int:
    """Intermediates and ControlNets were recorded at the middle one of the set's timesteps."""
    timesteps = facts(name, "models")["config"]["timesteps"]
    return int(timesteps[len(timesteps) // 2])


class Recorder:
    """First input and first output of some modules during a `with` block."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.seen: dict[str, Tensor] = {}
        self.handles = [
            module.register_forward_hook(self.hook(name), with_kwargs=True) for name, module in modules.items()
        ]

    def hook(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            self.seen[f"{name}.in"] = next(iter((*args, *kwargs.values())))
            self.seen[f"{name}.out"] = out if isinstance(out, Tensor) else out[0]

        return record

    def __enter__(self) -> dict[str, Tensor]:
        return self.seen

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
