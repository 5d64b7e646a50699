"""Clips as a recipe's batches, and held-out clips as figures and contact sheets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdyna.configs.train import BringUpConfig
from xdyna.controlnets.residuals import Residuals, control_residuals, sum_residuals
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.latents import initial_latents
from xdyna.preprocess.draw import draw_pose_maps
from xdyna.preprocess.face import face_maps
from xdyna.train.parts import Parts, decode, encode

SPAN_S = 6.0  # moments of a clip are drawn from its first seconds


@dataclass(frozen=True, eq=False)
class Batch:
    """B clips as drawn, 1+F frames each: frame 0 is the reference.

    Attributes:
        frames: uint8 [B, 1+F, H, W, 3].
        masks: uint8 [B, 1+F, H, W], where the person is.
        pose_maps: uint8 [B, 1+F, H, W, 3].
        face_maps: uint8 [B, 1+F, H, W, 6], local then global; without faces [B, 1+F, 1, 1, 6].
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    pose_maps: NDArray[np.uint8]
    face_maps: NDArray[np.uint8]

    def rotated(self, by: int) -> Batch:
        """The same clips with frame `by` as the reference, and the old reference among the driving frames."""
        parts = (self.frames, self.masks, self.pose_maps, self.face_maps)
        return Batch(*(np.ascontiguousarray(np.roll(part, -by, axis=1)) for part in parts))


def draw_clips(cfg: BringUpConfig, indices: range, *, consecutive: bool, face: bool, frames: int) -> Batch:
    """Draw the clips of some indices of the configured world, each with a reference from another moment."""
    world = World(**cfg.world.model_dump())
    clips = []
    for index in indices:
        rng = np.random.default_rng([world.seed, index, 3])
        if consecutive:
            driving = rng.uniform(0, SPAN_S) + np.arange(frames) / world.fps
        else:
            driving = rng.uniform(0, SPAN_S, frames)
        times_s = np.concatenate([rng.uniform(0, SPAN_S, 1), driving])
        clips.append(render(clip_spec(world, index), times_s, world.size_wh, world.fps))
    pose = [np.stack(list(draw_pose_maps(clip.tracks, world.size_wh))) for clip in clips]
    if face:
        faces = [np.stack([np.concatenate(pair, -1) for pair in face_maps(c.frames, c.tracks)]) for c in clips]
    else:
        faces = [np.zeros((frames + 1, 1, 1, 6), np.uint8)] * len(clips)
    return Batch(
        np.stack([clip.frames for clip in clips]),
        np.stack([clip.masks for clip in clips]),
        np.stack(pose),
        np.stack(faces),
    )


def draw_group(cfg: BringUpConfig, group: int) -> Batch:
    """The clips of one group of `cfg.reuse` steps."""
    indices = range(group * cfg.batch, (group + 1) * cfg.batch)
    return draw_clips(cfg, indices, consecutive=cfg.consecutive, face=cfg.face, frames=cfg.frames)


def to_unit(frames: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float [N, 3, H, W] in -1..1, all leading axes folded into N."""
    flat = torch.as_tensor(frames).flatten(0, -4)
    return flat.permute(0, 3, 1, 2).float() / 127.5 - 1


def conditions(maps: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 [B, F, H, W, c] -> [B, c, F, H, W], each clip stretched to 0..1 as the pipeline does."""
    values = torch.as_tensor(maps).permute(0, 4, 1, 2, 3).float()
    low, high = values.amin((1, 2, 3, 4), keepdim=True), values.amax((1, 2, 3, 4), keepdim=True)
    return (values - low) / (high - low).clamp(min=1)


def face_condition(maps: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 [B, F, H, W, 6] -> [B, 6, F, H, W]; local and global maps are stretched each on its own."""
    maps = torch.as_tensor(maps)
    return SFaceControlNet.condition(conditions(maps[..., :3]), conditions(maps[..., 3:]))


def control(
    parts: Parts, noisy: Tensor, timestep: Tensor, text: Tensor, pose: Tensor, face: Tensor | None
) -> Residuals:
    """Summed residuals for driving frames [B, C, F, h, w], the reference's zero frame prepended."""
    residuals = [control_residuals(parts.pose_controlnet, noisy, timestep, text, pose)]
    if face is not None:
        residuals.append(control_residuals(parts.face_controlnet, noisy, timestep, text, face))
    return sum_residuals(residuals).with_reference()


def held_out_clips(cfg: BringUpConfig, count: int, frames: int) -> Batch:
    """Consecutive frames of clips that training never reaches, with face maps if the recipe feeds them."""
    indices = range(cfg.held_out, cfg.held_out + count)
    return draw_clips(cfg, indices, consecutive=True, face=cfg.face, frames=frames)


@torch.no_grad()
def animate(parts: Parts, batch: Batch, steps: int, seed: int, *, face: bool) -> NDArray[np.uint8]:
    """Animate the references of a batch as the pipeline does: uint8 [B, F, H, W, 3]."""
    clips, total = batch.frames.shape[:2]
    reference = encode(parts.vae, to_unit(batch.frames[:, :1]))[:, :, None]  # [B, C, 1, h, w]
    shape = (clips, reference.shape[1], total - 1, *reference.shape[3:])
    source = torch.Generator().manual_seed(seed)
    noise, mask = torch.randn(shape, generator=source), torch.rand(shape, generator=source) >= 0.5
    pose = conditions(batch.pose_maps[:, 1:])
    faces = face_condition(batch.face_maps[:, 1:]) if face else None
    text = parts.stored_prompt(clips)
    parts.scheduler.set_timesteps(steps)
    latents = initial_latents(reference, noise, mask, parts.scheduler, parts.scheduler.timesteps[0])
    for timestep in parts.scheduler.timesteps:
        times = timestep.expand(clips)
        extra = control(parts, latents, times, text, pose, faces)
        predicted = parts.unet(torch.cat([reference, latents], 2), times, text, extra.down, extra.mid).sample[:, :, 1:]
        latents = parts.scheduler.step(predicted, timestep, latents).prev_sample
    pictures = decode(parts.vae, latents.transpose(1, 2).flatten(0, 1))
    return pictures.unflatten(0, (clips, total - 1)).numpy()


def psnr(pictures: NDArray[np.uint8], truth: NDArray[np.uint8], where: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all pixels, or over those of the mask [..., H, W]."""
    error = (pictures.astype(np.float32) - truth) ** 2
    return float(10 * np.log10(255**2 / (error if where is None else error[where]).mean()))


def evaluate(parts: Parts, batch: Batch, steps: int, *, face: bool) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """PSNR of the model, of the reference copied, and of the truth after the VAE; and the model's pictures."""
    made = animate(parts, batch, steps, seed=1, face=face)
    truth, figure = batch.frames[:, 1:], batch.masks[:, 1:] > 127
    copied = np.broadcast_to(batch.frames[:, :1], truth.shape)
    ceiling = decode(parts.vae, encode(parts.vae, to_unit(truth))).numpy().reshape(truth.shape)
    values = {}
    for name, pictures in (("model", made), ("copy", copied), ("vae", ceiling)):
        values[f"{name}_whole"] = psnr(pictures, truth)
        values[f"{name}_figure"] = psnr(pictures, truth, figure)
    return values, made


def write_sheet(path: Path, batch: Batch, made: NDArray[np.uint8], clips: int, frames: int) -> None:
    """A contact sheet: per clip one row of truth, one of pose maps and one of the model, the reference first."""
    rows = []
    for clip in range(clips):
        reference = batch.frames[clip, 0]
        picked = np.linspace(0, made.shape[1] - 1, frames).round().astype(int)
        for strip in (batch.frames[clip, 1:], batch.pose_maps[clip, 1:], made[clip]):
            rows.append(np.concatenate([reference, *strip[picked]], 1))
    sheet = np.repeat(np.repeat(np.concatenate(rows), 2, 0), 2, 1)
    cv2.imwrite(str(path), sheet[..., ::-1])
