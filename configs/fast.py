"""Approximations, each one switch, and the presets that put them together (YAML beside this file, in ``engine/``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from xdyna.configs import Config, find_preset, read_mapping

if TYPE_CHECKING:
    from xdyna.configs.animate import AnimateConfig

PresetName = Literal["exact", "balanced", "fast", "turbo"]
#: What `turbo` means with a LoRA, which it takes to be distilled for few steps.
DISTILLED = "turbo-lora"


class FastConfig(Config):
    """What is left out of the work; every default leaves nothing out. The prices are in docs/fast.md.

    Steps are counted from 0. Fractions are of the number of steps.
    """

    #: Which timesteps few steps take; None: as the model was saved.
    spacing: Literal["leading", "trailing", "linspace"] | None = None
    #: Guidance from this fraction of the steps on, and up to that; outside the conditional half runs alone.
    guidance_from: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    guidance_to: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    #: The whole UNet every so many steps; in between its outermost layers alone, on the deeper ones' last output.
    reuse_every: Annotated[int, Field(ge=1, le=100)] = 1
    #: How many of the last layers run in between, and as many of the first ones but one.
    reuse_depth: Annotated[int, Field(ge=1, le=8)] = 1
    #: The ControlNets every so many steps; in between their last residuals.
    residuals_every: Annotated[int, Field(ge=1, le=100)] = 1
    #: Share of the tokens that the largest self-attentions do without, merged with others like them.
    merge_tokens: Annotated[float, Field(ge=0.0, le=0.75)] = 0.0
    #: MiB that may be kept from one step for others; what does not fit is computed.
    keep_mb: Annotated[int, Field(ge=0)] = 4096

    @model_validator(mode="after")
    def _check_together(self) -> FastConfig:
        if self.guidance_from >= self.guidance_to:
            raise ValueError(
                f"wanted guidance_from ({self.guidance_from}) before guidance_to ({self.guidance_to}); "
                "--guidance 1 turns it off"
            )
        return self


def with_preset(config: AnimateConfig, model: AnimateConfig) -> tuple[AnimateConfig, list[str]]:
    """Lay a config's preset under what it says itself, and over the model's own settings.

    What of the preset has no effect on this model, or would cost work, is left out.

    Args:
        config: as the user gave it.
        model: the model's own settings.

    Returns:
        The config, and lines for the user.
    """
    if config.preset == "exact":
        return config, []
    name = DISTILLED if config.preset == "turbo" and config.lora else config.preset
    values = read_mapping(find_preset(f"engine/{name}"))
    fast: dict[str, Any] = values.pop("fast", {})
    notes = []
    if name == DISTILLED:
        notes.append("preset turbo: the LoRA is taken to be distilled for few steps; for another take --preset fast")
    own_steps = config.steps or model.steps
    if own_steps is not None and own_steps <= values["steps"]:
        if config.steps is None:
            notes.append(f"preset {config.preset}: keeps this model's own {_steps(own_steps)} and scheduler")
        for key in ("steps", "scheduler"):
            values.pop(key)
        fast.pop("spacing", None)
    steps = config.steps or values.get("steps") or own_steps
    guidance = config.guidance or values.get("guidance") or model.guidance
    fast = {key: value for key, value in fast.items() if _has_effect(key, steps, guidance)}
    if config.pose_scale == 0 and (config.face_scale == 0 or config.face is False):
        fast.pop("residuals_every", None)  # no ControlNet runs
    given = {key for key in config.model_fields_set if getattr(config, key) is not None}
    update = {key: value for key, value in values.items() if key not in given}
    own_fast = {key: getattr(config.fast, key) for key in config.fast.model_fields_set}
    update["fast"] = FastConfig.model_validate({**fast, **own_fast})
    return config.model_copy(update=update), notes


def _has_effect(key: str, steps: int | None, guidance: float | None) -> bool:
    """Whether a switch of a preset does something in so many steps under such a guidance."""
    if key.startswith("guidance_"):
        return (guidance or 1) > 1 and (steps or 1) > 1
    if key.startswith(("reuse_", "residuals_", "merge_")):  # what one step blurs by merging, none after it mends
        return (steps or 1) > 1
    return True


def _steps(count: int) -> str:
    return "one step" if count == 1 else f"{count} steps"
