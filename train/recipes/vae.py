"""Recipe `vae`: a small AutoencoderKL from nothing, on drawn frames. Only `tiny` needs it; real models have SD1.5's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from xdyna.configs.recipes import VaeConfig
from xdyna.data.source import Batch, ClipSource, build_source, draw_batch
from xdyna.metrics.psnr import psnr
from xdyna.train.noise import normal, sample_generators
from xdyna.train.parts import read_vae
from xdyna.train.run import Run
from xdyna.train.sample_files import note_sample, sample_path, write_sheet
from xdyna.train.system import to_unit

RECIPE = "vae"
SAMPLES = 48
CAPTION = "Originals above their reconstructions."


def train(cfg: VaeConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the autoencoder; return `<out>/model`, whose folder `vae` holds it."""
    torch.manual_seed(cfg.seed)
    vae = read_vae(cfg.init, "--init ") if cfg.init else build_vae(cfg)
    vae = vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(cfg.train_encoder)
    vae.quant_conv.requires_grad_(cfg.train_encoder)
    system = VaeSystem(vae, cfg)
    source = build_source(cfg, frames=1, consecutive=False)
    held_out = HeldOut(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=held_out.report)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()

    def write(folder: Path) -> None:
        if cfg.train_encoder or not cfg.init:  # else latents mean what they did, their scale included
            held_out.set_scaling()
        vae.save_pretrained(folder / "vae")

    return run.finish(write)


class VaeSystem(nn.Module):
    """Loss of a batch of pictures, one of every sample: its reference frame."""

    def __init__(self, vae: AutoencoderKL, cfg: VaeConfig) -> None:
        super().__init__()
        self.vae, self.cfg = vae, cfg
        self.saved = {"vae": vae}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        cfg, device = self.cfg, self.vae.device
        pictures = to_unit(batch.frames[:, 0]).to(device, memory_format=torch.channels_last)  # [B, 3, H, W]
        masks = torch.as_tensor(batch.masks[:, :1], device=device)  # [B, 1, H, W]
        weight = 1 + cfg.figure * masks / 255
        posterior = self.vae.encode(pictures).latent_dist
        latents = posterior.mode()
        noise = normal(sample_generators(cfg.seed, batch.indices), latents.shape[1:]).to(latents)
        decoded = self.vae.decode(latents + cfg.jitter * latents.std().detach() * noise).sample
        distance = (weight * (decoded - pictures).abs()).mean()
        colours = _colour_distance(decoded, pictures, weight)
        edges = _edge_distance(decoded, pictures, weight)
        kl = posterior.kl().mean() / latents[0].numel()
        loss = distance + cfg.colour * colours + cfg.edge * edges + cfg.kl * kl
        return {"loss": loss, "l1": distance, "edges": edges, "kl": kl}


def build_vae(cfg: VaeConfig) -> AutoencoderKL:
    """An AutoencoderKL of the configured widths with random weights."""
    levels = len(cfg.widths)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=cfg.widths,
        layers_per_block=cfg.layers,
        latent_channels=cfg.latent_channels,
        norm_num_groups=cfg.norm_groups,
        sample_size=max(cfg.world.size_wh),
        mid_block_add_attention=False,
        force_upcast=False,
    )
    for block in vae.modules():  # every residual branch starts at nothing: a nearly linear network learns colours fast
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
    return vae


class HeldOut:
    """Pictures that training never sees, for figures and for the latents' scale."""

    def __init__(self, system: VaeSystem, source: ClipSource, cfg: VaeConfig) -> None:
        self.vae, self.source = system.vae, source
        self.indices = range(cfg.held_out, cfg.held_out + SAMPLES)

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        pictures = to_unit(batch.frames[:, 0]).to(self.vae.device)
        return self.vae.encode(pictures).latent_dist.mode()

    def set_scaling(self) -> None:
        """Store the factor that brings the latents to unit variance."""
        latents = self.latents(draw_batch(self.source, self.indices))
        self.vae.register_to_config(scaling_factor=float(1 / latents.std()))

    @torch.no_grad()
    def report(self, folder: Path, step: int) -> None:
        """PSNR in `report.txt`, and a contact sheet: originals above their reconstructions."""
        batch = draw_batch(self.source, self.indices)
        frames, masks = batch.frames[:, 0], batch.masks[:, 0] > 127
        decoded = self.vae.decode(self.latents(batch)).sample
        pictures = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        whole, figure = psnr(pictures, frames), psnr(pictures, frames, masks)
        with (folder / "report.txt").open("a") as report:
            report.write(f"step {step}: PSNR whole {whole:.2f} dB, figure {figure:.2f} dB\n")
        rows = [np.concatenate([*part[k : k + 12]], 1) for k in (0, 12) for part in (frames, pictures)]
        write_sheet(sample_path(folder, step, ".png"), np.concatenate(rows))
        note_sample(folder, step, CAPTION, {"PSNR (dB)": {"whole frames": whole, "figures": figure}})


def _colour_distance(decoded: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error of 4x4-pixel means along light-dark, red-blue and green-magenta."""
    red, green, blue = F.avg_pool2d(weight.sqrt() * (decoded - wanted), 4).unbind(1)
    axes = ((red + green + blue) / 3, red - blue, 2 * green - red - blue)
    return torch.stack([axis.square().mean() for axis in axes]).sum()


def _edge_distance(decoded: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 distance between horizontal and vertical differences."""
    across = ((decoded - wanted).diff(dim=-1).abs() * weight[..., 1:]).mean()
    down = ((decoded - wanted).diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return across + down
