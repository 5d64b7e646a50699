"""Settings of the ablation: what is compared, at what price, fixed before the first run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from xdyna.configs import Config
from xdyna.configs.recipes import RECIPES


class AblationMethod(Config):
    """One way to train, and the seeds it is trained with.

    Attributes:
        name: of its runs' files.
        label: what tables call it.
        recipe: that trains it.
        seeds: one run for each.
        train: settings of the recipe that differ from the plan's `train`.
        animate: settings of the animation that differ from the model's own.
    """

    name: str = Field(pattern="^[a-z0-9_]+$")
    label: str
    recipe: Literal["dynamics_adapter", "reference_net", "ip_adapter"]
    seeds: tuple[int, ...] = Field(min_length=1)
    train: dict[str, Any] = Field(default_factory=dict)
    animate: dict[str, Any] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("wanted each seed only once")
        return seeds


class AblationFigure(Config):
    """A column of the table.

    Attributes:
        key: `METRIC/REGION` of the results.
        label: head of the column.
    """

    key: str
    label: str


class AblationConfig(Config):
    """What is compared.

    Attributes:
        base: pipeline folder of the weights that all methods share and that stay frozen.
        dataset: test set, as `xdyna eval model --dataset`.
        clips: of the first clips of the test set; null for all.
        protocol: how clips are read, as `xdyna eval --protocol`.
        train: settings of every run's recipe; `steps` is the budget.
        methods: the first is the one that the others are compared with.
        figures: columns of the table.
        strip: clips of the test set that the picture shows.
    """

    base: Path
    dataset: str = "synthetic-v1"
    clips: int | None = Field(None, ge=1)
    protocol: str = "v1"
    train: dict[str, Any]
    methods: tuple[AblationMethod, ...] = Field(min_length=1)
    figures: tuple[AblationFigure, ...] = Field(min_length=1)
    strip: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_train(self) -> AblationConfig:
        if "steps" not in self.train:
            raise ValueError("train has no steps, wanted one budget for every run")
        if len({method.name for method in self.methods}) < len(self.methods):
            raise ValueError("two methods have one name, wanted a name of its own for each")
        for method in self.methods:
            name = method.name
            given = {**self.train, **method.train}
            for key in ("base", "out", "seed", "init"):
                if key in given:
                    raise ValueError(f"method {name}: train sets {key}, which the plan decides")
            if "steps" in method.train:
                raise ValueError(f"method {name}: train sets steps, wanted the same budget for every run")
            RECIPES[method.recipe].model_validate(given)
        return self

    def method(self, name: str) -> AblationMethod:
        """A method by its name."""
        return next(method for method in self.methods if method.name == name)
