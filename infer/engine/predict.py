"""A step's prediction with the numbers of `xdyna.denoise.predict_clip` and less work.

* A ControlNet sees single frames: each is evaluated once a step, not once for each window that shows it, and once for
  both halves of guidance where their text is the same.
* Control maps are embedded once a job.
* Both halves run as one up to the first cross-attention (`xdyna.fork`).
* Where GroupNorm is per frame, the reference runs once a step, or once a job where its timestep is fixed, and windows
  hold driving frames alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdyna.attention import Record, ReferenceCache, spatial_sites
from xdyna.controlnets.residuals import Residuals
from xdyna.denoise import Conditioning, Control, blend_windows, shown_later, take_windows
from xdyna.infer.engine.residuals import Features, OnWindow, StepResiduals
from xdyna.infer.engine.spread import Spread
from xdyna.spans import Span, no_span
from xdyna.unet import XDynaUNet

DEFAULT_FEATURES_BYTES = 64 << 20


@dataclass
class _Job:
    """What is kept between the steps of one job.

    Attributes:
        conditioning: whose job it is.
        text: the text that `reference` was made under.
        features: embedded control maps.
        reference: keys and values of a reference with a fixed timestep.
    """

    conditioning: Conditioning
    features: Features
    text: Tensor | None = None
    reference: ReferenceCache | None = None


@dataclass
class ExactPredictor:
    """A `Predictor` for one job after the other; what it keeps belongs to the conditioning it was last called with.

    Attributes:
        deterministic: networks see batches of one size, whatever the window batch: one window, and as many frames for
            the ControlNets, the last of them repeated where the clip ends.
        near_reference: where GroupNorm is pooled over the window, take the reference's keys and values from a step's
            first window for the others as well, and leave it out of them. Near-exact.
        features_bytes: budget for embedded control maps.
        on_window: told of progress within a step.
        spread: over processes, each of which predicts some of the windows.
        span: told what a step is at.
    """

    deterministic: bool = False
    near_reference: bool = False
    features_bytes: int = DEFAULT_FEATURES_BYTES
    on_window: OnWindow | None = None
    spread: Spread | None = None
    span: Span = no_span
    _job: _Job | None = field(default=None, repr=False)

    def starts_afresh(self, step: int) -> bool:
        """Whether a step depends on nothing that earlier ones left here: a job can be resumed there."""
        return True

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
        if self._job is None or self._job.conditioning is not conditioning:
            self._job = _Job(conditioning, Features(self.features_bytes, conditioning.text.device))
        job, guided = self._job, guidance_scale > 1
        size = 1 if self.deterministic else window_batch
        text, image_tokens = conditioning.halves(guided)
        tokens = torch.cat([text, image_tokens], dim=1).to(unet.dtype)
        controls = {i: c for i, c in enumerate(conditioning.controls) if c.is_on(step, num_steps)}
        different = text if guided and not torch.equal(text[0], text[1]) else text[:1]
        # As many frames as the UNet sees windows; over processes, no more than a window, which another may not need.
        run = len(windows[0]) * (size if self.spread is None else 1)
        residuals = self._residuals(controls, latents, timestep, different, job.features, run)
        with self.span("reference"):
            references = self._reference(unet, job, timestep, tokens)
        if self.spread is None:
            groups = [windows[first : first + size] for first in range(0, len(windows), size)]
        else:
            groups = self.spread.groups(windows, size, first=references.record is not None)
        own = sum(map(len, groups))
        later = shown_later(groups)
        done = 0

        def predict(group: Sequence[Sequence[int]]) -> Tensor:
            nonlocal done
            cache = references.cache()
            rows = take_windows(latents, group).to(tokens.device, unet.dtype)  # [W, C, n, h, w]
            if cache is None:
                first = conditioning.reference_latents.to(rows).expand(len(rows), -1, -1, -1, -1)
                rows = torch.cat([first, rows], dim=2)
            with self.span("ControlNets"):
                added = residuals.window(group, reference=cache is None) if controls else None
            residuals.keep(later[done])
            context = tokens.repeat_interleave(len(group), dim=0)
            with self.span("UNet"):
                predicted = self._run(unet, rows, timestep, context, group, added, (cache, references.record))
            references.take(len(group))
            done += 1
            if self.on_window is not None:
                self.on_window(sum(map(len, groups[:done])), own)
            driving: Tensor = predicted[:, :, -len(group[0]) :].float()
            return driving.reshape(len(text), len(group), *driving.shape[1:])

        if self.spread is not None:
            return self.spread.blend(predict, latents, windows, weights, guidance_scale, groups)
        return blend_windows(predict, latents, windows, weights, guidance_scale, size)

    def _residuals(
        self,
        controls: dict[int, Control],
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        features: Features,
        run: int,
    ) -> StepResiduals:
        """The ControlNets' part in a step; arguments of `StepResiduals`."""
        return StepResiduals(controls, latents, timestep, text, features, run, fixed=self.deterministic)

    def _reference(self, unet: XDynaUNet, job: _Job, timestep: Tensor, tokens: Tensor) -> StepReference:
        """The reference's part in a step; arguments of `StepReference`."""
        return StepReference(unet, job, timestep, tokens, near=self.near_reference)

    def _run(
        self,
        unet: XDynaUNet,
        rows: Tensor,
        timestep: Tensor,
        context: Tensor,
        group: Sequence[Sequence[int]],
        added: Residuals | None,
        keys: tuple[ReferenceCache | None, ReferenceCache | None],
    ) -> Tensor:
        """One call of the UNet.

        Args:
            unet: with its adapters attached.
            rows: of W windows, [W, C, n (+ 1), h, w]; with the reference as frame 0 where no keys are given.
            timestep: of the step.
            context: text and image tokens, [k*W, T + n, D].
            group: frames of each window.
            added: residuals of the ControlNets that are on.
            keys: the reference's keys and values, and what to record them in.

        Returns:
            [k*W, C, n (+ 1), h, w].
        """
        cache, record = keys
        sample: Tensor = unet(
            rows,
            timestep,
            encoder_hidden_states=context,
            down_block_additional_residuals=added.down if added else None,
            mid_block_additional_residual=added.mid if added else None,
            reference_cache=cache,
            record=record,
        ).sample
        return sample


class StepReference:
    """Where a step's windows get the reference's keys and values from, if not from a frame of their own.

    Args:
        unet: with its adapters attached.
        job: keeps what is fixed over the job.
        timestep: of the step.
        tokens: text and image tokens of the halves, [k, T + n, D].
        near: see `ExactPredictor.near_reference`.
    """

    def __init__(self, unet: XDynaUNet, job: _Job, timestep: Tensor, tokens: Tensor, *, near: bool) -> None:
        self.record: ReferenceCache | None = None
        self._cache: ReferenceCache | None = None
        if not _reads_reference(unet):
            return
        if unet.config.pool_group_norm:
            self.record = Record() if near else None
            return
        fixed = unet.config.reference_timestep == "zero"
        if fixed and job.reference is not None and job.text is not None and torch.equal(job.text, tokens):
            self._cache = job.reference
            return
        reference = job.conditioning.reference_latents[:, :, 0].to(unet.dtype)
        self._cache = unet.encode_reference(reference, timestep, tokens)
        if fixed:
            job.text, job.reference = tokens, self._cache

    def cache(self) -> ReferenceCache | None:
        """None: the reference goes into the window as its frame 0."""
        return self._cache

    def take(self, num_windows: int) -> None:
        """Keep what the first window left in `record`; it lies there half by half, window by window."""
        if self.record:
            self._cache = {site: (k[::num_windows], v[::num_windows]) for site, (k, v) in self.record.items()}
            self.record = None


def _reads_reference(unet: XDynaUNet) -> bool:
    """Whether a Dynamics-Adapter that is attached and on can read a cached reference."""
    processors = [attn.processor for attn in spatial_sites(unet, "attn1").values()]
    return any(getattr(p, "reads_reference", False) and p.scale != 0 for p in processors)
