"""Small stand-ins for the networks of the metrics, in files such as those that are published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from xdyna.metrics import backbones
from xdyna.metrics.nets.i3d import I3D
from xdyna.metrics.nets.inception import InceptionV3
from xdyna.metrics.nets.iresnet import IResNet
from xdyna.metrics.nets.perceptual import ALEX, VGG, Lpips, Trunk

NARROW = 8


def drawn(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a network, of a size that keeps values in range, and statistics that change something."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(100)
        elif key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            state[key] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.ndim < 2:
            state[key] = torch.randn(value.shape, generator=generator) * 0.1
        else:
            state[key] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
    return state


def write_lpips(folder: Path, trunk: Trunk, names: tuple[str, str]) -> None:
    state = drawn(Lpips(trunk, NARROW))
    lins = {key: value.abs() for key, value in state.items() if key.startswith("lin")}
    # The classifier's file has its classes, too.
    features = {key: value for key, value in state.items() if not key.startswith("lin")}
    torch.save({**features, "classifier.6.bias": torch.zeros(10)}, folder / names[0])
    torch.save(lins, folder / names[1])


def write_videomae(folder: Path) -> None:
    width, depth = 24, 2
    shapes = {"patch_embed.proj.weight": (width, 3, 2, 56, 56), "patch_embed.proj.bias": (width,)}
    shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,), "head.weight": (5, width), "head.bias": (5,)}
    for block in range(depth):
        of_block = {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.q_bias": (width,), "attn.v_bias": (width,), "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.fc1.weight": (40, width), "mlp.fc1.bias": (40,),
            "mlp.fc2.weight": (width, 40), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        shapes |= {f"blocks.{block}.{key}": shape for key, shape in of_block.items()}
    generator = torch.Generator().manual_seed(3)
    state = {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}
    torch.save(
        {"module": {key: value.half() for key, value in state.items()}}, folder / "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
    )


def write_clip(folder: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder.mkdir()
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=12, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)


def write_all(folder: Path) -> Path:
    """A folder with stand-ins for every network that reads tensors."""
    folder.mkdir(exist_ok=True)
    torch.save(drawn(I3D(7, narrow=NARROW), 1), folder / "i3d_pretrained_400.pt")
    torch.save({"epoch": 3, "state_dict": drawn(I3D(5, narrow=NARROW), 2)}, folder / "I3D_16.pth.tar")
    torch.save(drawn(InceptionV3(2 * NARROW)), folder / "pt_inception-2015-12-05-6726825d.pth")
    write_lpips(folder, ALEX, ("alexnet-owt-7be5be79.pth", "alex.pth"))
    write_lpips(folder, VGG, ("vgg16-397923af.pth", "vgg.pth"))
    lightning = {f"model.{key}": value for key, value in drawn(IResNet((1, 2, 1, 1), 4, 16)).items()}
    torch.save({"state_dict": {**lightning, "head.kernel": torch.zeros(2, 2)}}, folder / "adaface_ir50_ms1mv2.ckpt")
    write_videomae(folder)
    write_clip(folder / "clip")
    return folder


def without_hashes(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let stand-ins pass where the true file's hash is known."""
    data = json.loads(backbones.MANIFEST.read_text(encoding="utf-8"))
    for entry in data.values():
        for variant in entry["variants"]:
            variant["files"] = dict.fromkeys(variant["files"])
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(data), encoding="utf-8")
    patch.setattr(backbones, "MANIFEST", manifest)
