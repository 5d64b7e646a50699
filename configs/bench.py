"""Settings of one benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from xdyna.configs import Config
from xdyna.configs.animate import SizeWH, read_dtype

PlanName = Literal["official", "official-plain", "diffusers", "freenoise", "ours", "ours-open"]
#: Models of random weights, by size; any other name is `tiny` or a folder.
RANDOM_MODELS = ("small", "random-sd15")


def _split(value: Any) -> Any:
    """``"16,48"`` becomes ``("16", "48")``; anything else is left for pydantic to judge."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _check_list(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("wanted at least one")
    if len(set(values)) < len(values):
        raise ValueError("wanted each only once")
    return values


class BenchConfig(Config):
    """What to measure, on what, how often.

    A field that is None is decided by the model.
    """

    model: str = "small"  # small, random-sd15, tiny or a folder
    frames: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000)], ...], BeforeValidator(_split), AfterValidator(_check_list)
    ] = (16, 48, 96, 192)
    size: SizeWH | None = None  # (width, height), pixels
    steps: Annotated[int, Field(ge=1, le=1000)] = 2
    guidance: Annotated[float, Field(ge=1.0, le=100.0)] = 7.5
    schedule: Literal["open", "closed"] = "closed"  # closed: the official windows, in every plan
    plans: Annotated[tuple[PlanName, ...], BeforeValidator(_split), AfterValidator(_check_list)] = (
        "official",
        "diffusers",
        "freenoise",
        "ours",
    )
    repeats: Annotated[int, Field(ge=1, le=1000)] = 2
    device: str = "auto"
    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"], BeforeValidator(read_dtype)] = "auto"
    flops_only: bool = False
    out: Path = Path("docs/benchmarks")
