"""Recipe `joints`: a small regressor of the joints of drawn people, for measuring generated clips.

It learns from frames of the synthetic world, moved, recoloured, blurred, noised and partly sent through an autoencoder,
because it will read what a model of that world generates.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from xdyna.configs.metrics_recipes import JointsConfig
from xdyna.data.source import Batch, TrainingClip, draw_batch
from xdyna.data.synthetic.body import place
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.data.synthetic.motion import calmed
from xdyna.data.synthetic.raster import Projection
from xdyna.errors import UserError
from xdyna.metrics.joints import JointRegressor, JointsShape, cell_middles, load_regressor
from xdyna.train.noise import sample_generator
from xdyna.train.recipes.joint_pictures import blurred, moved, noisy, recoloured, through_vae
from xdyna.train.run import Run
from xdyna.train.sample_files import note_sample, sample_path, write_sheet
from xdyna.train.system import to_unit

RECIPE = "joints"
WEIGHTS_NAME = "joints-synth.safetensors"
SPAN_S = 6.0  # moments of a clip are drawn from its first seconds
#: The goal of a heatmap is a Gaussian of this size, pixels; what it weighs beside the distance of the points; and how
#: many pixels of distance weigh 1.
GOAL_PX, GOAL_WEIGHT, SHOWN_WEIGHT, DISTANCE_PX = 4.0, 0.3, 0.3, 4.0


def train(cfg: JointsConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the regressor; return the folder that holds `joints-synth.safetensors`."""
    torch.manual_seed(cfg.seed)
    world = World(**cfg.world.model_dump())
    regressor = load_regressor(cfg.init) if cfg.init else JointRegressor(JointsShape(world.size_wh, cfg.widths))
    regressor = regressor.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    source = PoseSource(world, cfg.moments)
    system = JointSystem(regressor, _read_vae(cfg), source, cfg)
    report = Report(regressor, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=report)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()

    def write(folder: Path) -> None:
        mean_px, median_px = report.errors()
        regressor.save(folder / WEIGHTS_NAME, steps=cfg.steps, mean_px=round(mean_px, 3), median_px=round(median_px, 3))

    return run.finish(write)


class PoseSource:
    """People of a world at random moments; their joints can be asked for by the sample's number."""

    num_clips: int | None = None

    def __init__(self, world: World, moments: int) -> None:
        self.world, self.moments = world, moments
        self.fingerprint = "joints-" + hashlib.sha256(repr((world, moments)).encode()).hexdigest()[:16]

    def draw(self, index: int) -> TrainingClip:
        """Sample number `index`; it has no maps worth the name."""
        spec = clip_spec(self.world, index)
        clip = render(spec, self._times_s(index), self.world.size_wh, self.world.fps)
        blank = np.zeros_like(clip.frames)
        return TrainingClip(f"{RECIPE} {index}", clip.frames, clip.masks, blank, None, not spec.person)

    def joints(self, name: str) -> Tensor:
        """Joints [moments, 18, 2] in pixels of the sample of that name; far outside the frame where nobody is.

        The name tells the number: that of the batch changes where steps see the same clips again.
        """
        index = int(name.rpartition(" ")[2])
        spec = clip_spec(self.world, index)
        motion = calmed(spec.motion, spec.camera.travel)
        figure = place(spec.character.body, motion, self._times_s(index))
        points = Projection(spec.camera, self.world.size_wh)(figure.joints)
        return torch.as_tensor(points if spec.person else np.full_like(points, -1e3), dtype=torch.float32)

    def check(self) -> list[str]:
        """A drawn world has nothing that could be wrong."""
        return []

    def _times_s(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.random.default_rng([self.world.seed, index, 9]).uniform(0, SPAN_S, self.moments)


class JointSystem(nn.Module):
    """Loss of a batch of clips: their frames are spoiled, and the regressor is asked where the joints are."""

    def __init__(
        self, regressor: JointRegressor, vae: AutoencoderKL | None, source: PoseSource, cfg: JointsConfig
    ) -> None:
        super().__init__()
        self.regressor, self.vae, self.source, self.cfg = regressor, vae, source, cfg
        self.saved = {"regressor": regressor}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        device = next(self.regressor.parameters()).device
        random = sample_generator(self.cfg.seed, int(batch.indices[0]))
        pictures, points = to_unit(batch.frames), torch.cat([self.source.joints(name) for name in batch.names])
        pictures, points = moved(pictures, points, random)
        pictures = blurred(recoloured(pictures, random), random)
        if self.vae is not None:
            pictures = through_vae(pictures.to(device), self.vae, self.cfg.vae_share, random)
        pictures = noisy(pictures.cpu(), random).to(device, memory_format=torch.channels_last)
        return self.loss(pictures, points.to(device))

    def loss(self, pictures: Tensor, points: Tensor) -> dict[str, Tensor]:
        """The distance of the points, the heatmaps' cross-entropy with a Gaussian, and who is in the frame at all.

        Args:
            pictures: float [N, 3, H, W], -1..1.
            points: joints [N, 18, 2], pixels; those outside the frame do not count.
        """
        size = torch.tensor(self.regressor.shape.size_wh, device=points.device)
        inside = ((points >= 0) & (points < size)).all(-1).float()
        heat, shown = self.regressor(pictures)
        distance = (self.regressor.points(heat) - points).norm(dim=-1)
        entropy = -(self._goal(points, heat) * heat.flatten(2).log_softmax(-1)).sum(-1)
        count = inside.sum().clamp(min=1)
        located = ((distance / DISTANCE_PX + GOAL_WEIGHT * entropy) * inside).sum() / count
        loss = located + SHOWN_WEIGHT * F.binary_cross_entropy_with_logits(shown, inside)
        return {"loss": loss, "px": (distance * inside).sum() / count}

    def _goal(self, points: Tensor, heat: Tensor) -> Tensor:
        """A Gaussian round each joint over the heatmap's cells: [N, 18, h*w], sums of 1."""
        (rows, columns), (width, height) = heat.shape[-2:], self.regressor.shape.size_wh
        x, y = cell_middles(columns, width).to(points), cell_middles(rows, height).to(points)
        across = torch.exp(-0.5 * ((x - points[..., :1]) / GOAL_PX) ** 2)
        down = torch.exp(-0.5 * ((y - points[..., 1:]) / GOAL_PX) ** 2)
        goal = (down[..., :, None] * across[..., None, :]).flatten(2)
        return goal / goal.sum(-1, keepdim=True).clamp(min=1e-6)


class Report:
    """The regressor's error on clean held-out frames, and a contact sheet with the joints it found."""

    def __init__(self, regressor: JointRegressor, source: PoseSource, cfg: JointsConfig) -> None:
        self.regressor, self.source = regressor, source
        self.indices = range(cfg.held_out, cfg.held_out + cfg.validate_clips)

    def __call__(self, folder: Path, step: int) -> None:
        mean_px, median_px = self.errors()
        with (folder / "report.txt").open("a", encoding="utf-8") as report:
            report.write(f"step {step}: mean {mean_px:.3f} px, median {median_px:.3f} px\n")
        frames = draw_batch(self.source, self.indices[:8]).frames[:, 0]
        found, _ = self.regressor.find(frames)
        pictures = [_marked(frame, joints) for frame, joints in zip(frames, found, strict=True)]
        write_sheet(sample_path(folder, step, ".png"), np.concatenate(pictures, 1))
        errors = {"mean": mean_px, "median": median_px}
        note_sample(
            folder, step, "Held-out people and the joints that were found.", {"Error of the joints (px)": errors}
        )

    @torch.no_grad()
    def errors(self) -> tuple[float, float]:
        """Mean and median distance over all joints inside the frame, pixels; NaN without held-out clips."""
        if not self.indices:
            return float("nan"), float("nan")
        batch = draw_batch(self.source, self.indices)
        wanted = torch.cat([self.source.joints(name) for name in batch.names]).numpy()
        found, _ = self.regressor.find(batch.frames.reshape(-1, *batch.frames.shape[2:]))
        inside = ((wanted >= 0) & (wanted < np.asarray(self.source.world.size_wh))).all(-1)
        distances = np.linalg.norm(found - wanted, axis=-1)[inside]
        return float(distances.mean()), float(np.median(distances))


def _marked(frame: np.ndarray, joints: np.ndarray, factor: int = 4) -> np.ndarray:
    large = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    for x, y in joints:
        cv2.circle(large, (round(float(x) * factor), round(float(y) * factor)), 3, (255, 0, 255), -1)
    return large


def _read_vae(cfg: JointsConfig) -> AutoencoderKL | None:
    """The autoencoder that spoils pictures, frozen; None if none goes through it."""
    if not cfg.vae_share:
        return None
    if cfg.vae is not None:
        folder = cfg.vae
    else:
        from xdyna.train.parts import base_folder

        folder = base_folder(cfg.base) / "vae"
    if not (folder / "config.json").is_file():
        raise UserError(f"vae={folder}: not the folder of an autoencoder; name one, or set vae_share=0")
    return AutoencoderKL.from_pretrained(folder, local_files_only=True).float().requires_grad_(False).eval()
