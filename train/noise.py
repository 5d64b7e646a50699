"""The noise objective: what is added to clean latents, what the network has to say about it, and how much it weighs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from xdyna.errors import UserError, near_matches
from xdyna.latents import to_clean

PREDICTIONS = ("epsilon", "v_prediction", "sample")

#: Random sources of the samples of a batch, one each.
Generators = Sequence[torch.Generator]


def sample_generator(seed: int, index: int, stream: int = 0) -> torch.Generator:
    """The random source of one sample, on the CPU.

    Args:
        seed: of the run.
        index: the sample's number, 0 and up.
        stream: tells independent sources of one sample apart.
    """
    return torch.Generator().manual_seed(sample_seed(seed, index, stream))


def sample_seed(seed: int, index: int, stream: int = 0) -> int:
    """The seed of `sample_generator`, 0 .. 2^63-1."""
    return _mix(_mix(_mix(seed) + index) + stream)


def sample_generators(seed: int, indices: Iterable[int], stream: int = 0) -> list[torch.Generator]:
    """`sample_generator` of every sample of a batch."""
    return [sample_generator(seed, int(index), stream) for index in indices]


def _mix(value: int) -> int:
    """Spread the bits of an integer over 63 (splitmix64): near numbers give unrelated ones."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1


def normal(generators: Generators, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Normal numbers [B, *shape], each sample's from its own source."""
    return torch.stack([torch.randn(tuple(shape), generator=source) for source in generators]).to(device)


def uniform(generators: Generators, shape: Sequence[int] = (), device: torch.device | str = "cpu") -> Tensor:
    """Numbers from 0 up to 1, [B, *shape], each sample's from its own source."""
    return torch.stack([torch.rand(tuple(shape), generator=source) for source in generators]).to(device)


def linear_schedule(terminal_signal: float, num_timesteps: int) -> dict[str, Any]:
    """Settings of a diffusers scheduler whose betas rise linearly until the last timestep keeps this signal power."""
    low, high = 0.0, 1.0  # the end of the betas, halved down: the more noise, the less signal
    for _ in range(60):
        middle = (low + high) / 2
        kept = torch.linspace(middle / 20, middle, num_timesteps, dtype=torch.float64).neg().log1p().sum().exp()
        low, high = (middle, high) if kept > terminal_signal else (low, middle)
    return {"beta_schedule": "linear", "beta_start": low / 20, "beta_end": low, "trained_betas": None}


class Objective:
    """How latents are noised in training, what is predicted, and how much each timestep weighs.

    Args:
        scheduler: a diffusers scheduler; its noise schedule is taken, and its prediction unless another is given.
        prediction: ``epsilon`` (the noise), ``v_prediction``, ``sample`` (the clean latents), or None: the scheduler's.
        zero_snr: rescale the schedule so that the last timestep is pure noise (Lin et al. 2023).
        min_snr: cap of the signal-to-noise ratio in the weight (Hang et al. 2023); 0: all timesteps weigh 1.
        noise_offset: standard deviation of the part of the noise that is constant over a channel.
        early: exponent of the timesteps' distribution; 1 is uniform, more draws noisy ones more often.
        terminal_signal: share of signal power, above 0 and below 1, that the last timestep of a new linear schedule
            keeps; None: the scheduler's schedule as it is.

    Attributes:
        scheduler: a scheduler of the same class that samples what is trained here; save it with the weights.
        alphas_cumprod: float32 [T], the share of signal power at each timestep.

    Raises:
        UserError: an unknown prediction, or noise to be predicted where a timestep is nothing but noise.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        prediction: str | None = None,
        zero_snr: bool = False,
        min_snr: float = 0.0,
        noise_offset: float = 0.0,
        early: float = 1.0,
        terminal_signal: float | None = None,
    ) -> None:
        self.prediction = prediction or scheduler.config.prediction_type
        self.min_snr, self.noise_offset, self.early = min_snr, noise_offset, early
        if self.prediction not in PREDICTIONS:
            raise UserError(f"prediction={self.prediction}: not known{near_matches(self.prediction, PREDICTIONS)}")
        changes: dict[str, Any] = {"prediction_type": self.prediction}
        if terminal_signal is not None:
            changes |= linear_schedule(terminal_signal, scheduler.config.num_train_timesteps)
        if zero_snr:
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        self.scheduler = type(scheduler).from_config(scheduler.config, **changes)
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod.float()
        if zero_snr and float(self.alphas_cumprod[-1]) > 1e-6:
            raise UserError(f"zero_snr: {type(scheduler).__name__} cannot rescale its schedule; wanted a DDIMScheduler")
        if self.prediction == "epsilon" and float(self.alphas_cumprod[-1]) < 1e-6:
            raise UserError(
                "prediction=epsilon: cannot be learnt where the last timestep is pure noise (zero_snr); "
                "set prediction=v_prediction or prediction=sample"
            )

    def timesteps(self, generators: Generators, device: torch.device | str = "cpu") -> Tensor:
        """A timestep per sample: int64 [B], 0 .. T-1."""
        last = len(self.alphas_cumprod) - 1
        return (last * uniform(generators, device=device) ** (1 / self.early)).round().long()

    def noise(self, generators: Generators, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Noise for samples of shape [C, ..]: [B, C, ..]."""
        drawn = normal(generators, shape, device)
        if self.noise_offset:
            flat = (shape[0], *(1 for _ in shape[1:]))
            drawn = drawn + self.noise_offset * normal(generators, flat, device)
        return drawn

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents [B, ..] at timesteps [B]."""
        signal, rest = self._scales(timesteps, clean)
        return signal * clean + rest * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to predict, [B, ..]."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        signal, rest = self._scales(timesteps, clean)
        return signal * noise - rest * clean

    def to_clean(self, predicted: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a prediction stands for, [B, ..]."""
        signal, rest = self._scales(timesteps, noisy)
        return to_clean(self.prediction, predicted, noisy, signal, rest)

    def weight(self, timesteps: Tensor) -> Tensor:
        """Weight of the squared error at each timestep: float32 [B]; all 1 unless `min_snr` is set.

        The capped ratio is the weight of the clean latents' error; divided by what an error of the prediction does to
        them, it is 1 for noise at high noise and falls with the signal.
        """
        if not self.min_snr:
            return torch.ones(len(timesteps), device=timesteps.device)
        signal = self.alphas_cumprod.to(timesteps.device)[timesteps]  # power
        capped = torch.clamp(signal / (1 - signal), max=self.min_snr)
        if self.prediction == "sample":
            return capped
        if self.prediction == "v_prediction":
            return capped * (1 - signal)  # 1 / (snr + 1)
        below = signal / (1 - signal) < self.min_snr
        return torch.where(below, torch.ones_like(capped), capped * (1 - signal) / signal)

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitudes of signal and noise, shaped to multiply `like`."""
        power = self.alphas_cumprod.to(like.device)[timesteps.to(like.device)]
        power = power.reshape(-1, *(1 for _ in like.shape[1:]))
        return power.sqrt().to(like.dtype), (1 - power).sqrt().to(like.dtype)
