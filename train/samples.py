"""Held-out clips as figures, contact sheets and videos: what a run shows of itself every so often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xdyna.configs.clips import ClipConfig
from xdyna.data.source import Batch, ClipSource, draw_batch
from xdyna.latents import draw_mask, draw_noise, initial_latents
from xdyna.metrics.psnr import psnr
from xdyna.train.parts import decode, encode
from xdyna.train.sample_files import note_sample, sample_path, write_sheet
from xdyna.train.system import ClipSystem, to_unit
from xdyna.video.write import VideoWriter

CLIPS = 6
SHEET_FRAMES = 6
CAPTION = (
    "Sheet: for every clip the reference and six of its frames: the truth, the pose maps, the model. "
    "Video: the model above the truth, the clips side by side."
)


class Sampler:
    """Animates the same held-out clips whenever it is called.

    Writes into the run folder `report.txt` (a line of figures per call), `samples/step-NNNNNN.png` (per clip: truth,
    pose maps, model; the reference first) and `samples/step-NNNNNN.mp4` (model above truth, the clips side by side).

    Args:
        system: as it trains.
        source: of consecutive frames, with face maps when the system reads them.
        cfg: the recipe's settings.
        clips: how many.
    """

    def __init__(self, system: ClipSystem, source: ClipSource, cfg: ClipConfig, clips: int = CLIPS) -> None:
        self.system, self.source, self.cfg = system, source, cfg
        self.indices = range(cfg.held_out, cfg.held_out + clips)
        self._batch: Batch | None = None

    def __call__(self, folder: Path, step: int) -> None:
        if self._batch is None:
            self._batch = draw_batch(self.source, self.indices)
        values, made = evaluate(self.system, self._batch, self.cfg.sample_steps)
        text = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        with (folder / "report.txt").open("a") as report:
            report.write(f"step {step}: PSNR dB {text}\n")
        write_sheet(sample_path(folder, step, ".png"), contact_sheet(self._batch, made))
        write_video(sample_path(folder, step, ".mp4"), self._batch, made, self.cfg.world.fps)
        note_sample(
            folder,
            step,
            CAPTION,
            {f"PSNR of the {area} (dB)": {who: values[f"{who}_{part}"] for who in ("model", "copy", "vae")}
             for part, area in (("whole", "frames"), ("figure", "figures"))},
        )  # fmt: skip


@torch.no_grad()
def animate(system: ClipSystem, batch: Batch, steps: int, seed: int = 1) -> NDArray[np.uint8]:
    """Animate the references of a batch as the pipeline does without guidance: uint8 [B, F, H, W, 3].

    Args:
        system: the model; its noise is shared between frames where it trains so.
        batch: of clips; all but the driving frames is looked at.
        steps: denoising steps.
        seed: each clip's noise depends on it and on the clip's place in the batch.
    """
    return np.concatenate([_animate_one(system, _row(batch, i), steps, seed + i) for i in range(len(batch))])


def _animate_one(system: ClipSystem, batch: Batch, steps: int, seed: int) -> NDArray[np.uint8]:
    """One clip: [1, F, H, W, 3]. One at a time, so that large frames fit."""
    frames, device = batch.frames.shape[1] - 1, system.device
    scheduler = system.objective.scheduler
    reference = encode(system.parts.vae, to_unit(batch.frames[:, 0]).to(device))[:, :, None]  # [1, C, 1, h, w]
    shape = (reference.shape[1], *reference.shape[3:])
    source = torch.Generator().manual_seed(seed)
    drawn = 1 if system.cfg.shared_noise else frames
    noise = draw_noise(drawn, shape, source).expand(1, -1, frames, -1, -1).to(device)
    mask = draw_mask(drawn, shape, source, system.cfg.start_keep).expand(1, -1, frames, -1, -1)
    scheduler.set_timesteps(steps, device=device)
    latents = initial_latents(reference, noise, mask, scheduler, scheduler.timesteps[0])
    tokens = system.image_tokens(batch.frames[:, 0])
    for timestep in scheduler.timesteps:
        predicted = system.predict(reference, latents, timestep.expand(1), batch, tokens)
        latents = scheduler.step(predicted.float(), timestep, latents).prev_sample
    return decode(system.parts.vae, latents[0].transpose(0, 1)).numpy()[None]


def _row(batch: Batch, index: int) -> Batch:
    """A batch of one of its clips."""
    only = slice(index, index + 1)
    return Batch(
        names=batch.names[only],
        indices=batch.indices[only],
        frames=batch.frames[only],
        masks=batch.masks[only],
        pose_maps=batch.pose_maps[only],
        face_maps=None if batch.face_maps is None else batch.face_maps[only],
        is_scene=batch.is_scene[only],
    )


@torch.no_grad()
def evaluate(system: ClipSystem, batch: Batch, steps: int) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """PSNR of the model, of the reference copied, and of the truth after the VAE; and the model's pictures."""
    made = animate(system, batch, steps)
    truth, figure = batch.frames[:, 1:], batch.masks[:, 1:] > 127
    copied = np.broadcast_to(batch.frames[:, :1], truth.shape)
    latents = [encode(system.parts.vae, to_unit(clip).to(system.device)) for clip in truth]
    ceiling = np.stack([decode(system.parts.vae, clip).numpy() for clip in latents])
    values = {}
    for name, pictures in (("model", made), ("copy", copied), ("vae", ceiling)):
        values[f"{name}_whole"] = psnr(_joined(pictures), _joined(truth))
        values[f"{name}_figure"] = psnr(_joined(pictures), _joined(truth), _joined(figure))
    return values, made


def _joined(clips: NDArray[Any]) -> NDArray[Any]:
    """[B, F, ..] -> [B*F, ..]."""
    return clips.reshape(-1, *clips.shape[2:])


def contact_sheet(batch: Batch, made: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Per clip one row of truth, one of pose maps and one of the model, the reference first: uint8 RGB [H, W, 3].

    The clips stand in two columns.
    """
    picked = np.linspace(0, made.shape[1] - 1, SHEET_FRAMES).round().astype(int)
    blocks = []
    for clip in range(len(batch)):
        reference = batch.frames[clip, 0]
        strips = (batch.frames[clip, 1:], batch.pose_maps[clip, 1:], made[clip])
        blocks.append(np.concatenate([np.concatenate([reference, *strip[picked]], 1) for strip in strips]))
    if len(blocks) == 1:
        return blocks[0]
    half = (len(blocks) + 1) // 2
    left, right = np.concatenate(blocks[:half]), np.concatenate(blocks[half:])
    right = np.concatenate([right, np.full((len(left) - len(right), *right.shape[1:]), 255, np.uint8)])
    return np.concatenate([left, np.full((len(left), 4, 3), 255, np.uint8), right], 1)


def write_video(path: Path, batch: Batch, made: NDArray[np.uint8], fps: float) -> None:
    """A video: the model's clips side by side, the truth below each."""
    with VideoWriter(path, (batch.frames.shape[3] * len(batch), batch.frames.shape[2] * 2), fps) as video:
        for frame in range(made.shape[1]):
            rows = [np.concatenate([*clips[:, frame]], 1) for clips in (made, batch.frames[:, 1:])]
            video.write(np.concatenate(rows))
