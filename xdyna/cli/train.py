"""`xdyna train RECIPE`: run a training recipe."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from xdyna.cli.common import ConfigOption, JsonOption, SeedOption, SetOption, announce, emit_json
from xdyna.configs import load_config
from xdyna.configs.recipes import RECIPES
from xdyna.errors import UserError, near_matches


def train(
    recipe: Annotated[str, typer.Argument(help=f"One of {', '.join(RECIPES)}.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder.", show_default="the recipe's")] = None,
    init: Annotated[Path | None, typer.Option("--init", help="Folder of weights to start from.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the whole run.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    seed: SeedOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a part of a model on the synthetic world.

    The run folder gets the resolved settings, a log, checkpoints, contact sheets and, at the end, the weights.
    """
    if recipe not in RECIPES:
        raise UserError(f"unknown recipe {recipe!r}{near_matches(recipe, RECIPES)}")
    given = {"out": out, "init": init, "steps": steps, "seed": seed}
    settings = load_config(RECIPES[recipe], config, overrides or [], values=given)
    if dry_run:
        if as_json:
            emit_json({"recipe": recipe, **settings.model_dump(mode="json")})
        else:
            print(f"recipe: {recipe}\n" + settings.model_dump_json(indent=2))
        return
    module = import_module(f"xdyna.train.recipes.{recipe}")
    result = module.train(settings, resume=resume, quiet=as_json)
    announce(f"{recipe}: {settings.steps} steps done, weights in {result}")
    if as_json:
        emit_json({"recipe": recipe, "steps": settings.steps, "weights": result})
