"""`xdyna train RECIPE`: run a training recipe."""

from __future__ import annotations

import inspect
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from xdyna.cli.common import ConfigOption, JsonOption, SetOption, announce, emit_json
from xdyna.configs import load_config
from xdyna.configs.recipes import RECIPES
from xdyna.configs.train import TrainConfig
from xdyna.errors import UserError, near_matches


def describe_recipes() -> str:
    """A line per recipe: its name and what its settings' docstring says of it."""
    lines = []
    for name, settings in RECIPES.items():
        first = inspect.getdoc(settings).partition("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr]
        lines.append(f"{name:<18} {first.partition(': ')[2] or first}")
    return "\n\n".join(lines)


def train(
    recipe: Annotated[str, typer.Argument(help="What to train, see above.", show_default=False)],
    base: Annotated[
        str | None, typer.Option("--base", metavar="tiny|FOLDER", help="Model that is trained on (default tiny).")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="synthetic|FOLDER|SHARDS",
            help="Clips: drawn, a folder of prepared videos, or clips-{000..009}.tar (default synthetic).",
        ),
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Weights to start from: a safetensors file of one part, or a folder.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder.", show_default="runs/RECIPE")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the whole run.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of every random draw.", show_default="the recipe's")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and tell parameters, memory and epochs, without training."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a part of a model. Recipes:"""
    if recipe not in RECIPES:
        raise UserError(f"unknown recipe {recipe!r}{near_matches(recipe, RECIPES)}")
    given = {"base": base, "data": data, "init": init, "out": out, "steps": steps, "seed": seed}
    given["dry_run"] = True if dry_run else None
    settings = load_config(RECIPES[recipe], config, overrides or [], values=given)
    _run(recipe, settings, resume=resume, as_json=as_json)


train.__doc__ = f"{train.__doc__}\n\n{describe_recipes()}"


def _run(recipe: str, settings: TrainConfig, *, resume: bool, as_json: bool) -> None:
    """Train, or tell what training would take."""
    from xdyna.train.dry import DryRun
    from xdyna.train.memory import out_of_memory_explained

    module = import_module(f"xdyna.train.recipes.{recipe}")
    speaks = os.environ.get("RANK", "0") == "0"  # of the processes of `accelerate launch`, the first
    try:
        with out_of_memory_explained(settings):
            result: Path = module.train(settings, resume=resume, quiet=as_json)
    except DryRun as done:
        if speaks:
            _tell(done, settings, as_json=as_json)
        return
    if not speaks:
        return
    state = result / "state.json"  # of a checkpoint: the run was stopped
    steps = json.loads(state.read_text(encoding="utf-8"))["step"] if state.is_file() else settings.steps
    if steps == settings.steps:
        announce(f"{recipe}: {steps} steps done, weights in {result}")
    if as_json:
        emit_json({"recipe": recipe, "steps": steps, "weights": result})


def _tell(done: Any, settings: TrainConfig, *, as_json: bool) -> None:
    if as_json:
        emit_json({**done.report, "settings": settings.model_dump(mode="json")})
        return
    print(settings.model_dump_json(indent=2))
    print(done)
