"""A small recipe for tests of the training loop; as a script: `python loop_parts.py OUT [--resume] [KEY=VALUE ..]`."""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from xdyna.configs.train import TrainConfig
from xdyna.data.source import Batch, TrainingClip
from xdyna.train.noise import Objective, sample_generators
from xdyna.train.run import Run


class NoiseSource:
    """Random 4x4 pictures; sample `bad` is marked by a mask of zeros."""

    def __init__(self, num_clips: int | None = None, fingerprint: str = "noise-1", bad: int = -1) -> None:
        self.num_clips, self.fingerprint, self.bad = num_clips, fingerprint, bad
        self.drawn: list[int] = []

    def draw(self, index: int) -> TrainingClip:
        self.drawn.append(index)
        frames = np.random.default_rng(index).integers(0, 256, (2, 4, 4, 3), np.uint8)
        masks = np.full((2, 4, 4), 0 if index == self.bad else 255, np.uint8)
        return TrainingClip(f"noise {index}", frames, masks, frames, None, False)

    def check(self) -> list[str]:
        return []


class Block(nn.Sequential):
    """GroupNorm, SiLU, dropout, convolution."""

    def __init__(self, dropout: float, channels: int) -> None:
        super().__init__(
            nn.GroupNorm(2, 8), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(8, channels, 3, padding=1)
        )  # fmt: skip


class SmallNet(nn.Module):
    """Two blocks, found by name as those of a UNet are."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([Block(dropout, 8), Block(0.0, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.down_blocks:
            x = block(x)
        return x


class SmallSystem(nn.Module):
    """Denoises the second frame given the first: a frozen convolution, then a trained net with dropout."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Conv2d(6, 8, 3, padding=1).requires_grad_(False)
        self.net = SmallNet(dropout)
        self.saved = {"net": self.net}
        scheduler = DDIMScheduler(num_train_timesteps=100, prediction_type="v_prediction")
        self.objective = Objective(scheduler, min_snr=5.0, noise_offset=0.1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        device = self.frozen.weight.device
        frames = torch.as_tensor(batch.frames).permute(0, 1, 4, 2, 3).contiguous().float().to(device) / 127.5 - 1
        sources = sample_generators(0, batch.indices)
        timesteps = self.objective.timesteps(sources, device)
        noise = self.objective.noise(sources, (3, 4, 4), device)
        noisy = self.objective.add_noise(frames[:, 1], noise, timesteps)
        predicted = self.net(self.frozen(torch.cat([frames[:, 0], noisy], 1)))
        target = self.objective.target(frames[:, 1], noise, timesteps)
        losses = self.objective.weight(timesteps) * ((predicted - target) ** 2).mean((1, 2, 3))
        good = torch.as_tensor(batch.masks).to(device).amax((1, 2, 3)) > 0
        losses = losses * torch.where(good, 1.0, torch.nan)
        return {"loss": losses.mean(), "timestep": timesteps.float().mean()}


def small_config(out: Path, **values: Any) -> TrainConfig:
    """Short runs without worker processes."""
    given = {"batch": 2, "warmup": 0, "cooldown": 0, "workers": 0, "sample_every": 0, "validate_clips": 0, **values}
    return TrainConfig(out=out, **given)


def write_net(run: Run) -> Callable[[Path], None]:
    """What the small recipe hands to `Run.finish`."""

    def write(folder: Path) -> None:
        state = run.raw.get_submodule("net").state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "net.safetensors")

    return write


def train(cfg: TrainConfig, *, on_step: Callable[[Run, int], None] | None = None, **settings: Any) -> Path:
    """The small recipe.

    Args:
        cfg: its settings.
        on_step: called between backward and update.
        **settings: of the source (`source`), the system (`system`), and of `Run`.
    """
    system = settings.pop("system", None) or SmallSystem()
    source = settings.pop("source", None) or NoiseSource()
    run = Run(cfg, "small", system, source, quiet=True, **settings)
    for step in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        if on_step:
            on_step(run, step)
        run.update()
    return run.finish(write_net(run))


def losses(folder: Path) -> list[float]:
    """The losses in a run's log, in its order."""
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def frozen_digests(system: nn.Module) -> dict[str, str]:
    """A hash of the bits of every parameter that does not train, by name: equal before and after a run."""
    return {
        name: hashlib.sha256(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in system.named_parameters()
        if not value.requires_grad
    }


def main(out: Path, *words: str) -> Path:
    """Train as the words say; `kill=N` sends the process SIGKILL inside step N, `term=N` SIGTERM."""
    pairs = dict(word.split("=") for word in words if "=" in word)
    kill, term = int(pairs.pop("kill", -1)), int(pairs.pop("term", -1))
    cfg = small_config(out, **{key: json.loads(value) for key, value in pairs.items()})

    def on_step(run: Run, step: int) -> None:
        if step == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == term:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(cfg, on_step=on_step, system=SmallSystem(dropout=0.1), resume="--resume" in words)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:]))
