"""From a config to the predictor that works as it says, and what is said against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdyna.errors import UserError
from xdyna.infer.engine.deep_cache import most_depth
from xdyna.infer.engine.fast import FastPredictor
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.engine.token_merge import merging_sites

if TYPE_CHECKING:
    from xdyna.configs.animate import AnimateConfig
    from xdyna.pipeline import XDynaPipeline


def build_predictor(config: AnimateConfig) -> ExactPredictor:
    """The predictor of a config: the exact one, unless something is to be left out."""
    fast = config.fast
    switches = {
        "guidance_from": fast.guidance_from,
        "guidance_to": fast.guidance_to,
        "reuse_every": fast.reuse_every,
        "reuse_depth": fast.reuse_depth,
        "residuals_every": fast.residuals_every,
        "merge_tokens": fast.merge_tokens,
    }
    if all(value == FastPredictor.__dataclass_fields__[name].default for name, value in switches.items()):
        return ExactPredictor(deterministic=config.deterministic, near_reference=config.near_reference)
    return FastPredictor(
        deterministic=config.deterministic,
        near_reference=config.near_reference,
        keep_bytes=fast.keep_mb << 20,
        **switches,  # type: ignore[arg-type]  # numbers, each of its field's kind
    )


def check_fast(pipe: XDynaPipeline, config: AnimateConfig) -> None:
    """Refuse what would do nothing on this model, or cannot be done.

    Args:
        pipe: with the job's scheduler.
        config: with preset and model's defaults filled in.
    Raises:
        UserError: naming the switch and the reason.
    """
    fast, sampling = config.fast, config.sampling()
    for name in ("reuse_every", "residuals_every"):
        every = getattr(fast, name)
        if every > 1 and sampling.steps == 1:
            raise UserError(
                f"--set fast.{name}: got {every}, but one step has no earlier one to take from; leave it out"
            )
    if fast.reuse_depth > 1 and fast.reuse_every == 1:
        raise UserError(f"--set fast.reuse_depth: got {fast.reuse_depth}, wanted --set fast.reuse_every=N with it")
    if fast.reuse_depth > most_depth(pipe.unet):
        raise UserError(
            f"--set fast.reuse_depth: got {fast.reuse_depth}, this model's outermost level has"
            f" {most_depth(pipe.unet)} layers"
        )
    if (fast.guidance_from, fast.guidance_to) != (0.0, 1.0):
        _check_interval(fast.guidance_from, fast.guidance_to, sampling.steps, sampling.guidance)
    if fast.merge_tokens > 0:
        _check_merging(pipe, fast.merge_tokens, sampling.size_wh)
    if fast.residuals_every > 1 and _controls_off(pipe, config):
        raise UserError(
            f"--set fast.residuals_every: got {fast.residuals_every}, but no ControlNet runs (--pose-scale 0);"
            " leave it out"
        )
    usual = type(fast).model_fields["keep_mb"].default  # which a record holds as well
    if fast.keep_mb != usual and fast.reuse_every == fast.residuals_every == 1:
        raise UserError(
            f"--set fast.keep_mb: got {fast.keep_mb}, but nothing is kept from step to step; wanted"
            " --set fast.reuse_every=N or fast.residuals_every=N with it"
        )
    if config.near_reference and config.adapter_scale == 0:
        raise UserError("--near-reference: the reference is not read (--adapter-scale 0); leave it out")
    if fast.spacing is not None and type(pipe.scheduler).__name__ == "LCMScheduler":
        raise UserError(f"--set fast.spacing: got {fast.spacing!r}, but --scheduler lcm has timesteps of its own")


def _check_interval(first: float, last: float, steps: int, guidance: float) -> None:
    """Refuse an interval of guidance that leaves no step out, or every one."""
    option = "--set fast.guidance_from, guidance_to"
    if guidance <= 1:
        raise UserError(f"{option}: guidance is off (--guidance 1); leave them out")
    inside = sum(first <= step / steps < last for step in range(steps))
    if inside == steps:
        raise UserError(f"{option}: got {first:g} to {last:g}, in which all of {steps} steps lie; leave them out")
    if inside == 0:
        raise UserError(
            f"{option}: got {first:g} to {last:g}, in which none of {steps} steps lies; wanted a wider interval, or"
            " --guidance 1"
        )


def _check_merging(pipe: XDynaPipeline, share: float, size_wh: tuple[int, int]) -> None:
    """Refuse to merge where there is nothing to, or less than one token of a frame."""
    sites, level = merging_sites(pipe.unet)
    if not sites:
        raise UserError("--set fast.merge_tokens: this model has no self-attention on its way down; leave it out")
    width, height = (-(-side // (pipe.vae_scale_factor << level)) for side in size_wh)
    if int(share * width * height) == 0:
        raise UserError(
            f"--set fast.merge_tokens: got {share:g}, less than one of a frame's {width * height} tokens; leave it out"
        )


def _controls_off(pipe: XDynaPipeline, config: AnimateConfig) -> bool:
    """Whether neither ControlNet has any strength."""
    face = pipe.face_controlnet is not None and config.face is not False and config.face_scale > 0
    return config.pose_scale == 0 and not face
