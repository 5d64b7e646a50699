"""What keeps long videos together: noise that neighbours share, colours held at an anchor, windows that go on.

* `draw_clip_noise`: where the denoising starts, for the pipeline's `noise` argument.
* `AnchoredPredictor`: leads the slow part of each step's predicted colours back to the reference or the clip's start.
* `continue_clip`: windows denoised one after the other, each beginning with the last frames of the one before.

Each is off unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xdyna import windows as clip_windows
from xdyna.configs.animate import AnimateConfig
from xdyna.denoise import Conditioning, Predictor
from xdyna.latents import (
    clip_size,
    condition_maps,
    draw_mask,
    draw_noise,
    initial_latents,
    noise_frames,
    split_generator,
    to_clean,
)
from xdyna.pipeline import XDynaPipeline
from xdyna.stepping import STEP_FRAMES
from xdyna.unet import XDynaUNet

Noise = Literal["independent", "shared", "mixed", "shuffled"]
NOISES: tuple[str, ...] = get_args(Noise)
Anchor = Literal["reference", "start"]


# --- noise ------------------------------------------------------------------------------------------------------------


def pipeline_noise_stream(generator: torch.Generator) -> torch.Generator:
    """The stream that a pipeline given this generator draws its noise from; the generator stays as it is."""
    return split_generator(generator.clone_state(), 4)[0]


def draw_clip_noise(
    kind: str,
    num_driving_frames: int,
    shape_chw: Sequence[int],
    stream: torch.Generator,
    window: int = clip_windows.DEFAULT_SIZE,
    overlap: int = clip_windows.DEFAULT_OVERLAP,
    ratio: float = 1.0,
) -> Tensor:
    """The noise of `clip_noise_frames` as one tensor, float32 [1, C, F, h, w] on the CPU."""
    frames = clip_noise_frames(kind, num_driving_frames, shape_chw, stream, window, overlap, ratio)
    return torch.stack(list(frames), dim=1)[None]


def clip_noise_frames(
    kind: str,
    num_driving_frames: int,
    shape_chw: Sequence[int],
    stream: torch.Generator,
    window: int = clip_windows.DEFAULT_SIZE,
    overlap: int = clip_windows.DEFAULT_OVERLAP,
    ratio: float = 1.0,
) -> Iterator[Tensor]:
    """Noise of a clip, frame by frame, every element standard normal. A longer clip begins with the same noise.

    Args:
        kind: `independent`: anew for every frame. `shared`: one for all frames. `mixed`: a shared and an independent
            part added up ("mixed noise" of PYoCo, Ge et al. 2023). `shuffled`: independent over the first window; each
            `window - overlap` frames after it have the noise of those that left the window, in another order, so that
            every window of that grid holds the same noise (FreeNoise, Qiu et al. 2023).
        num_driving_frames: F, frames of the clip.
        shape_chw: of one frame's latents.
        stream: draws; see `pipeline_noise_stream`.
        window: of `shuffled`, frames.
        overlap: of `shuffled`, frames.
        ratio: of `mixed`: standard deviation of the shared part over that of the independent part. The correlation of
            two frames is ratio^2 / (1 + ratio^2).

    Returns:
        F times float32 [C, h, w] on the CPU, drawn as they are asked for.

    Raises:
        ValueError: an unknown kind, or numbers that make no sense.
    """
    if kind not in NOISES:
        raise ValueError(f"noise is {kind!r}, wanted one of {', '.join(NOISES)}")
    if kind == "mixed" and not 0 <= ratio < float("inf"):
        raise ValueError(f"ratio is {ratio}, wanted 0 or more")
    if kind == "shuffled":
        drawn = list(islice(noise_frames(shape_chw, stream), min(num_driving_frames, window)))
        return (drawn[place] for place in shuffled_order(num_driving_frames, window, overlap, stream))
    own = islice(noise_frames(shape_chw, stream, shared=kind == "shared"), num_driving_frames)
    if kind != "mixed":
        return own
    shared = torch.randn(*shape_chw, generator=stream)  # drawn before any of `own`
    return ((ratio * shared + frame) / math.sqrt(1 + ratio**2) for frame in own)


def shuffled_order(num_driving_frames: int, window: int, overlap: int, stream: torch.Generator) -> list[int]:
    """Which of the first window's frames each frame has its noise from: length F, see `draw_clip_noise`.

    Raises:
        ValueError: window and overlap that make no sense.
    """
    if window < 1 or not 0 <= overlap < window:
        raise ValueError(f"windows of {window} frames that share {overlap}: wanted 0 <= overlap < window")
    order = list(range(min(num_driving_frames, window)))
    stride = window - overlap
    while len(order) < num_driving_frames:
        left = order[len(order) - window :][:stride]
        order += [left[place] for place in torch.randperm(stride, generator=stream).tolist()]
    return order[:num_driving_frames]


def chosen_noise(config: AnimateConfig, pipe: XDynaPipeline, num_driving_frames: int) -> Iterator[Tensor] | None:
    """Each frame's noise as a config (with the model's settings filled in) asks for it; None for the model's own."""
    if config.noise is None:
        return None
    sampling = config.sampling()
    width, height = (side // pipe.vae_scale_factor for side in sampling.size_wh)
    stream = pipeline_noise_stream(torch.Generator("cpu").manual_seed(config.seed))
    shape = (pipe.unet.config.in_channels, height, width)
    return clip_noise_frames(config.noise, num_driving_frames, shape, stream, sampling.window, sampling.overlap)


# --- anchor -----------------------------------------------------------------------------------------------------------


@dataclass
class AnchoredPredictor:
    """A `Predictor` that holds the colours of another one's predictions.

    Of the clean latents that each step predicts, mean and standard deviation of every channel are averaged over time,
    and their slow part is led to the anchor's. What is faster than the average stays.

    Attributes:
        inner: makes the prediction.
        scheduler: of the pipeline; says what the prediction means.
        strength: 0..1, share of the way to the anchor.
        anchor: `reference`, the clean reference; or `start`, the first `span` frames of the same prediction. Towards
            the reference the strength grows with the share of signal from step to step, for predictions from much noise
            are blurred and ought not to look like it yet; it is full in the last step.
        span: frames before and after that are averaged; a window is a good choice.
    """

    inner: Predictor
    scheduler: Any
    strength: float
    anchor: Anchor = "reference"
    span: int = clip_windows.DEFAULT_SIZE

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or self.span < 1:
            raise ValueError(f"strength is {self.strength} and span {self.span}, wanted 0..1 and at least 1")

    def __call__(
        self,
        unet: XDynaUNet,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        windows: Sequence[Sequence[int]],
        weights: Sequence[NDArray[np.float32]],
        guidance_scale: float,
        *,
        step: int = 0,
        num_steps: int = 1,
        window_batch: int = 1,
    ) -> Tensor:
        """float32 [1, C, F, h, w]; see `xdyna.denoise.predict_clip`."""
        predicted = self.inner(
            unet, latents, timestep, conditioning, windows, weights, guidance_scale,
            step=step, num_steps=num_steps, window_batch=window_batch,
        )  # fmt: skip
        signal, noise = signal_and_noise(self.scheduler, timestep)
        if self.strength == 0 or noise == 0:
            return predicted
        kind = self.scheduler.config.prediction_type
        reference = conditioning.reference_latents.to(predicted)

        def clean(frames: slice) -> Tensor:
            return to_clean(kind, predicted[:, :, frames], latents[:, :, frames], signal, noise)

        runs = [slice(first, first + STEP_FRAMES) for first in range(0, latents.shape[2], STEP_FRAMES)]
        statistics = [_channel_statistics(clean(frames)) for frames in runs]
        means, variances = (torch.cat(parts, dim=2) for parts in zip(*statistics, strict=True))
        moves = self._moves(means, variances, reference, signal)
        explained = {"sample": 1.0, "epsilon": -signal / noise, "v_prediction": -1 / noise}[kind]
        changed = torch.empty_like(predicted)
        for frames in runs:
            mean, stretch, shift = (value[:, :, frames] for value in moves)
            # The same latents, explained by other clean ones.
            change = (clean(frames) - mean) * (stretch - 1) + shift
            changed[:, :, frames] = predicted[:, :, frames] + change * explained
        return changed

    def _moves(self, means: Tensor, variances: Tensor, reference: Tensor, signal: float) -> tuple[Tensor, ...]:
        """Around what the clean latents of one step are stretched, by how much, and what is added: [1, C, F, 1, 1]."""
        mean, deviation = _slow(means, variances, self.span)
        strength = self.strength
        if self.anchor == "reference":
            wanted_mean, wanted_deviation = _slow(*_channel_statistics(reference), 1)
            last, _ = signal_and_noise(self.scheduler, self.scheduler.timesteps[-1])
            strength *= min(1.0, (signal / last) ** 2)
        else:
            start = _slow(means[:, :, : self.span], variances[:, :, : self.span], means.shape[2])
            wanted_mean, wanted_deviation = (value[:, :, :1] for value in start)
        stretch = (wanted_deviation / deviation.clamp_min(1e-6)) ** strength
        return mean, stretch, strength * (wanted_mean - mean)


def anchored(predictor: Predictor, scheduler: Any, config: AnimateConfig) -> Predictor:
    """The predictor, held at the anchor that a config (with the model's settings filled in) asks for, if at any."""
    if config.anchor == 0:
        return predictor
    return AnchoredPredictor(predictor, scheduler, config.anchor, config.anchor_to, config.sampling().window)


def signal_and_noise(scheduler: Any, timestep: Tensor) -> tuple[float, float]:
    """Standard deviations (a, b) of what a model is shown at a timestep: a * clean + b * noise, a^2 + b^2 = 1.

    Args:
        scheduler: any that the pipeline takes, its timesteps set.
        timestep: one of them.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        signal = float(scheduler.alphas_cumprod[int(timestep)])
    else:  # the timesteps may be fractions, or rounded
        place = int((scheduler.timesteps == timestep).nonzero()[0])
        signal = 1 / (1 + float(sigmas[place]) ** 2)
    return signal**0.5, (1 - signal) ** 0.5


def _channel_statistics(clean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of each frame: [1, C, F] each."""
    return clean.mean((-2, -1)), clean.var((-2, -1), unbiased=False)


def _slow(means: Tensor, variances: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation, averaged over up to `span` frames before and after: [1, C, F, 1, 1] each."""

    def averaged(values: Tensor) -> Tensor:
        reach = min(span, values.shape[-1])
        return F.avg_pool1d(values, 2 * reach + 1, 1, reach, count_include_pad=False)[..., None, None]

    return averaged(means), averaged(variances).sqrt()


# --- continuation -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def continue_clip(
    pipe: XDynaPipeline,
    reference: Any,
    pose_maps: Any,
    face_maps: Any = None,
    *,
    num_inference_steps: int = 25,
    window: int = clip_windows.DEFAULT_SIZE,
    overlap: int = clip_windows.DEFAULT_OVERLAP,
    width: int | None = None,
    height: int | None = None,
    generator: torch.Generator | None = None,
    reference_latents: Tensor | None = None,
    noise: Tensor | None = None,
    on_window: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> Tensor:
    """Denoise the windows of schedule `continue` one after the other, through all steps each.

    The frames that a window shares with those before it are given: at every step they hold the finished latents with
    that step's noise, and they come out as they went in. A clip that fits into one window is what the pipeline makes of
    it; a longer clip begins with the same frames, but for its last window, which may begin earlier to be as long.

    Meant for models that were trained to go on from given frames; others see frames that are less noisy than they know.

    Args:
        pipe: the pipeline.
        reference: see the pipeline's call; this and what follows.
        pose_maps: F frames.
        face_maps: pair of as many frames.
        num_inference_steps: of each window.
        window: driving frames in a window.
        overlap: given frames at the beginning of a window (in the last one more, where the clip ends before).
        width: pixels.
        height: pixels.
        generator: of every random number.
        reference_latents: instead of an encoding of the reference.
        noise: [1, C, F, h, w] instead of drawn noise.
        on_window: told after each window how many are done, and of how many.
        **settings: others of the pipeline's call, the same in every window; none of `latents`, `mask`, `schedule`,
            `window_offsets`, `state`, `output_type`, `return_dict` and the callback.

    Returns:
        Latents, float32 [1, C, F, h, w].

    Raises:
        ValueError: an input that does not fit.
    """
    num_frames, maps_wh = clip_size(pose_maps)
    own_wh = pipe.sizes.round_down(maps_wh)
    size_wh = own_wh[0] if width is None else width, own_wh[1] if height is None else height
    pipe.check_size(*size_wh)
    maps = [condition_maps(pose_maps, size_wh)]  # stretched by the whole clip's extremes, not by each window's
    maps += [condition_maps(part, size_wh, "face_maps") for part in face_maps or ()]
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**63 - 1, (1,))))
    steps = generator.clone_state()  # the first window's draws are those of a clip that is one window long
    noise_stream, mask_stream, _, more_steps = split_generator(generator.clone_state(), 4)
    if reference_latents is None:
        reference_latents = pipe.encode_reference(reference, size_wh, generator)
    reference_latents = reference_latents.to(pipe.unet.device, torch.float32)
    frame_shape = (reference_latents.shape[1], *reference_latents.shape[3:])
    clip_shape = (1, frame_shape[0], num_frames, *frame_shape[1:])
    drawn = 1 if pipe.config.shared_noise else num_frames
    noise = draw_noise(drawn, frame_shape, noise_stream).expand(clip_shape) if noise is None else noise
    if noise.shape != clip_shape:
        raise ValueError(f"noise has shape {list(noise.shape)}, wanted {list(clip_shape)}")
    mask = draw_mask(drawn, frame_shape, mask_stream, pipe.config.start_keep).expand(clip_shape)

    clip = torch.empty(clip_shape)
    pieces = clip_windows.make_windows("continue", num_frames, window, overlap)
    finished = 0
    for number, frames in enumerate(pieces):
        pipe.scheduler.set_timesteps(num_inference_steps, device=pipe.unet.device)
        first = pipe.scheduler.timesteps[0]
        start = initial_latents(reference_latents, noise[:, :, frames], mask[:, :, frames], pipe.scheduler, first)
        given = _Given(clip[:, :, frames[0] : finished].to(start), noise[:, :, frames[0] : finished].to(start))
        output: Any = pipe(
            reference,
            maps[0].part(frames),
            tuple(part.part(frames) for part in maps[1:]) or None,
            width=size_wh[0],
            height=size_wh[1],
            num_inference_steps=num_inference_steps,
            generator=steps,
            reference_latents=reference_latents,
            latents=given.put(start, pipe.scheduler, first),
            window=len(frames),
            overlap=0,
            schedule="open",
            output_type="latent",
            callback_on_step_end=given.after_step,
            **settings,
        )
        clip[:, :, finished : frames[-1] + 1] = output.frames[:, :, finished - frames[0] :].cpu()
        finished = frames[-1] + 1
        steps = torch.Generator().manual_seed(int(torch.randint(0, 2**63 - 1, (1,), generator=more_steps)))
        on_window(number + 1, len(pieces))
    return clip


@dataclass(frozen=True, eq=False)
class _Given:
    """Finished frames at the beginning of a window.

    Attributes:
        clean: latents [1, C, n, h, w], n may be 0.
        noise: the clip's, of the same frames.
    """

    clean: Tensor
    noise: Tensor

    def put(self, latents: Tensor, scheduler: Any, timestep: Tensor | None) -> Tensor:
        """Latents of a window with its first frames as they are at a timestep, or clean after the last (None)."""
        count = self.clean.shape[2]
        if count == 0:
            return latents
        known = self.clean if timestep is None else scheduler.add_noise(self.clean, self.noise, timestep.reshape(1))
        return torch.cat([known, latents[:, :, count:]], dim=2)

    def after_step(self, pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's callback."""
        later = pipe.scheduler.timesteps[step + 1 :]
        return {"latents": self.put(tensors["latents"], pipe.scheduler, later[0] if len(later) else None)}
