"""A step's prediction with less work and other numbers; every approximation is one switch, off by default.

* Guidance only in an interval of the steps; outside it the conditional half runs alone.
* ControlNet residuals of an earlier step.
* Deep features of an earlier step (`deep_cache`).
* Merged tokens (`token_merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdyna.attention import ReferenceCache
from xdyna.controlnets.residuals import Residuals
from xdyna.denoise import Conditioning, Control
from xdyna.infer.engine.deep_cache import deep_output, outermost_residuals, run_outermost
from xdyna.infer.engine.predict import ExactPredictor, StepReference, _Job
from xdyna.infer.engine.residuals import Features, FrameResiduals, StepResiduals
from xdyna.infer.engine.token_merge import merged_tokens
from xdyna.unet import XDynaUNet

Group = tuple[tuple[int, ...], ...]


class Kept:
    """Tensors of an earlier step, up to a number of bytes; what does not fit is not there.

    Args:
        budget: bytes, shared with whoever has the same list.
    """

    def __init__(self, budget: list[int]) -> None:
        self._budget = budget
        self._found: dict[Any, list[Tensor]] = {}

    def put(self, key: Any, tensors: list[Tensor]) -> bool:
        """Keep it if it fits; tells whether it did."""
        size = sum(x.numel() * x.element_size() for x in tensors)
        if size > self._budget[0]:
            return False
        self._budget[0] -= size
        self._found[key] = tensors
        return True

    def get(self, key: Any) -> list[Tensor] | None:
        return self._found.get(key)

    def clear(self) -> None:
        self._budget[0] += sum(x.numel() * x.element_size() for tensors in self._found.values() for x in tensors)
        self._found = {}


@dataclass
class _Earlier:
    """What a job keeps from one step for others.

    Attributes:
        conditioning: whose job it is.
        deep: deep features by group of windows.
        residuals: ControlNet residuals by frame.
        halves: of guidance, in the last whole step; 0 before there was one.
        all_kept: the features of all its windows are there.
        controls: ControlNets that were on in it.
        windows, weights: in it; the steps on its features take them over.
        reference: the reference's keys and values in it.
        text: that `residuals` were made under; None before there were any.
        latents, timestep: that they were made from.
        of_controls: ControlNets that `residuals` are of.
    """

    conditioning: Conditioning
    deep: Kept
    residuals: Kept
    halves: int = 0
    all_kept: bool = True
    controls: tuple[int, ...] = ()
    windows: Sequence[Sequence[int]] = ()
    weights: Sequence[NDArray[np.float32]] = ()
    reference: ReferenceCache | None = None
    text: Tensor | None = None
    latents: Tensor | None = None
    timestep: Tensor | None = None
    of_controls: tuple[int, ...] = ()


@dataclass
class FastPredictor(ExactPredictor):
    """An `ExactPredictor` that leaves work out.

    Attributes:
        guidance_from: fraction of the steps before which the conditional half runs alone.
        guidance_to: fraction from which on it does.
        reuse_every: the whole UNet runs in every so-manieth step, from the first on.
        reuse_depth: layers that run in the others, see `deep_cache`.
        residuals_every: the ControlNets run in every so-manieth step, from the first on.
        merge_tokens: share of tokens merged, see `token_merge`.
        keep_bytes: most that is kept from step to step.
    """

    guidance_from: float = 0.0
    guidance_to: float = 1.0
    reuse_every: int = 1
    reuse_depth: int = 1
    residuals_every: int = 1
    merge_tokens: float = 0.0
    keep_bytes: int = 4 << 30
    _earlier: _Earlier | None = field(default=None, repr=False)
    _step: int = field(default=0, repr=False)
    _on_features: bool = field(default=False, repr=False)  # of an earlier step

    def starts_afresh(self, step: int) -> bool:
        """Whether a step depends on nothing that earlier ones left here: a job can be resumed there."""
        return step % self.reuse_every == 0 and step % self.residuals_every == 0

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
        if self._earlier is None or self._earlier.conditioning is not conditioning:
            budget = [self.keep_bytes]
            self._earlier = _Earlier(conditioning, Kept(budget), Kept(budget))
        earlier = self._earlier
        if not self.guidance_from <= step / num_steps < self.guidance_to:
            guidance_scale = 1.0
        halves = 2 if guidance_scale > 1 else 1
        on = tuple(i for i, control in enumerate(conditioning.controls) if control.is_on(step, num_steps))
        self._step = step
        self._on_features = step % self.reuse_every > 0 and halves <= earlier.halves and on == earlier.controls
        if self.near_reference and not earlier.all_kept:
            self._on_features = False  # the outermost layers alone do not record what whole windows would read
        if self._on_features:
            windows, weights = earlier.windows, earlier.weights
        else:
            earlier.deep.clear()
            earlier.all_kept = True
            earlier.halves, earlier.controls, earlier.windows, earlier.weights = halves, on, windows, weights
        with merged_tokens(unet, self.merge_tokens, (latents.shape[-2], latents.shape[-1])):
            predicted = super().__call__(
                unet, latents, timestep, conditioning, windows, weights, guidance_scale,
                step=step, num_steps=num_steps, window_batch=window_batch,
            )  # fmt: skip
        if self.spread is not None and self.near_reference and self.reuse_every > 1:
            earlier.all_kept = self.spread.everywhere(earlier.all_kept)  # so that all take the same way
        return predicted

    def _residuals(
        self,
        controls: dict[int, Control],
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        features: Features,
        run: int,
    ) -> StepResiduals:
        earlier = self._earlier
        assert earlier is not None
        kept = earlier.residuals if self.residuals_every > 1 else None
        if kept is not None:
            known = earlier.text is not None and len(earlier.text) >= len(text)
            known = known and earlier.text is not None and torch.equal(earlier.text[-len(text) :], text)
            if self._step % self.residuals_every == 0 or not known or tuple(controls) != earlier.of_controls:
                kept.clear()
                earlier.text, earlier.of_controls = text, tuple(controls)
                earlier.latents, earlier.timestep = latents.clone(), timestep
            # What is not kept is made again from that step: the frames that only another process needed then.
            assert earlier.latents is not None
            assert earlier.timestep is not None
            latents, timestep = earlier.latents, earlier.timestep
        settings = (controls, latents, timestep, text, features, run)
        whole = _LastResiduals(*settings, fixed=self.deterministic, kept=kept)
        if not self._on_features:
            return whole
        outer = _LastResiduals(*settings, fixed=self.deterministic, kept=kept, depth=self.reuse_depth)
        return _ByWindow(whole, outer, lambda group: earlier.deep.get(_key(group)) is not None)

    def _reference(self, unet: XDynaUNet, job: _Job, timestep: Tensor, tokens: Tensor) -> StepReference:
        earlier = self._earlier
        assert earlier is not None
        if self._on_features and earlier.reference is not None:
            return _LastReference(
                {site: (k[-len(tokens) :], v[-len(tokens) :]) for site, (k, v) in earlier.reference.items()}
            )
        reference = super()._reference(unet, job, timestep, tokens)
        earlier.reference = reference.cache()
        return reference

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
        earlier = self._earlier
        assert earlier is not None
        settings = (unet, rows, timestep, context)
        deep = earlier.deep.get(_key(group)) if self._on_features else None
        if deep is not None:
            (features,) = deep
            features = features[-len(context) * rows.shape[2] :]  # the conditional half, if it runs alone
            return run_outermost(*settings, features, self.reuse_depth, added.down if added else None, *keys)
        if self.reuse_every == 1 or self._on_features:
            return super()._run(*settings, group, added, keys)
        with deep_output(unet, self.reuse_depth) as found:
            sample = super()._run(*settings, group, added, keys)
        earlier.all_kept &= earlier.deep.put(_key(group), found)
        return sample


class _LastReference(StepReference):
    """The keys and values of an earlier step."""

    def __init__(self, cache: ReferenceCache) -> None:
        self.record, self._cache = None, cache


class _LastResiduals(StepResiduals):
    """Residuals that are kept for later steps, or come from an earlier one.

    Args:
        *settings: of `StepResiduals`.
        fixed: likewise.
        kept: by frame, of an earlier step, and where to keep what is computed; None to keep nothing.
        depth: skip connections that are wanted; None for everything. The middle block's is then left out.
    """

    def __init__(self, *settings: Any, fixed: bool, kept: Kept | None, depth: int | None = None) -> None:
        super().__init__(*settings, fixed=fixed)
        self.kept, self.depth = kept, depth

    def _evaluate(self, first: int) -> None:
        frames = range(first, min(first + self.run, self.latents.shape[2]))
        kept = [self.kept.get(frame) if self.kept is not None else None for frame in frames]
        found = [levels for levels in kept if levels is not None]
        if len(found) == len(frames):
            self._frames.update(zip(frames, map(self._wanted, found), strict=True))
            self._zero = self._zero or [torch.zeros_like(level) for level in self._frames[first]]
            return
        super()._evaluate(first)
        for frame in frames:
            if self.kept is not None and self.depth is None and self.kept.get(frame) is None:
                self.kept.put(frame, self._frames[frame])

    def _wanted(self, levels: FrameResiduals) -> FrameResiduals:
        """Of as many texts and skip connections as this step wants."""
        levels = [level[-len(self.text) :] for level in levels]
        return levels if self.depth is None else [*levels[: self.depth], _nothing(levels[0])]

    def _residuals(self, frames: tuple[int, ...]) -> Iterator[list[Tensor]]:
        if self.depth is None:
            yield from super()._residuals(frames)
            return
        rows = self.latents[0, :, list(frames)].to(self.text.device).transpose(0, 1)
        for number, control in self.controls.items():
            net = control.net
            features = self.features.fetch(number, control, frames)
            settings = (rows.to(net.dtype), self.timestep, self.text.to(net.dtype), features, control.scale)
            levels = outermost_residuals(net, *settings, self.depth)
            levels = [level.reshape(len(self.text), len(frames), *level.shape[1:]) for level in levels]
            yield [*levels, _nothing(levels[0])]


def _nothing(level: Tensor) -> Tensor:
    """In the middle block's place, where nobody reads it: [.., C, h, w] -> [.., C, 1, 1]."""
    return level[..., :1, :1]


class _ByWindow(StepResiduals):
    """The outermost levels' residuals for windows whose deep features are kept, all for the others.

    Args:
        whole, outer: what to ask.
        is_kept: whether a group's features are.
    """

    def __init__(
        self, whole: StepResiduals, outer: StepResiduals, is_kept: Callable[[Sequence[Sequence[int]]], bool]
    ) -> None:
        self._whole, self._outer, self._is_kept = whole, outer, is_kept

    def window(self, group: Sequence[Sequence[int]], *, reference: bool) -> Residuals:
        return (self._outer if self._is_kept(group) else self._whole).window(group, reference=reference)

    def keep(self, needed: Container[int]) -> None:
        self._whole.keep(needed)
        self._outer.keep(needed)


def _key(group: Sequence[Sequence[int]]) -> Group:
    return tuple(tuple(window) for window in group)
