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
    if (fast.guidance_from, fast.guidance_to) != (0.0, 1.0) and sampling.guidance <= 1:
        raise UserError("--set fast.guidance_from, guidance_to: guidance is off (--guidance 1); leave them out")
    if fast.merge_tokens > 0 and not merging_sites(pipe.unet)[0]:
        raise UserError("--set fast.merge_tokens: this model has no self-attention on its way down; leave it out")
    if fast.spacing is not None and type(pipe.scheduler).__name__ == "LCMScheduler":
        raise UserError(f"--set fast.spacing: got {fast.spacing!r}, but --scheduler lcm has timesteps of its own")
