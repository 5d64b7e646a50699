"""`xdyna models`: what can be fetched, fetch it, check it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from xdyna.cli.common import DtypeOption, JsonOption, announce, emit_json, progress
from xdyna.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List, fetch and check models.")


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """Known models and the networks of metrics, where they come from, and how far they are here."""
    from xdyna.models import Lock, converted_folder, known_models, pulled_folder, state

    lock = Lock.read()
    rows: list[dict[str, Any]] = []
    for name, model in known_models().items():
        converted = converted_folder(name)
        row: dict[str, Any] = {
            "name": name,
            "about": model.about,
            "state": state(name),
            "folder": pulled_folder(name),
            "converted": converted if (converted / "model_index.json").is_file() else None,
            "sources": [
                {"repo": repo, "licence": licence, "commit": lock.commit(name, repo)}
                for repo, licence in model.licences.items()
            ],
        }
        rows.append(row)
        announce(f"{name}: {model.about} [{row['state']}{', converted' if row['converted'] else ''}]")
        for source in row["sources"]:
            at = f" at {source['commit'][:12]}" if source["commit"] else ""
            announce(f"  {source['repo']}{at}: {source['licence']}")
    networks = list_networks()
    if as_json:
        emit_json({"models": rows, "networks": networks})


def list_networks() -> list[dict[str, Any]]:
    """Say which networks of metrics are in the cache, and whose they are."""
    from xdyna.metrics.backbones import find_backbone, known_backbones

    announce("networks of metrics (`--backbones FOLDER` is searched as well):")
    rows: list[dict[str, Any]] = []
    for name, backbone in known_backbones().items():
        row: dict[str, Any] = {"name": name, "about": backbone.about, "missing": None}
        try:
            find_backbone(name)
        except UserError as error:
            row["missing"] = str(error)
        row["sources"] = [{"source": one.source, "licence": one.licence} for one in backbone.variants]
        rows.append(row)
        announce(f"  {name}: {backbone.about} [{'not here' if row['missing'] else 'here'}]")
        for one in row["sources"]:
            announce(f"    {one['source']}: {one['licence']}")
    return rows


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A model or a metric's network of `xdyna models list`.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also the files that only a partial checkpoint needs.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Take the newest commit, not the one pulled before.")
    ] = False,
    convert: Annotated[bool, typer.Option("--convert/--no-convert", help="Convert x-dyna once it is here.")] = True,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model, check it against the hub's hashes, note what was seen, and convert it.

    An interrupted download goes on where it stopped.
    """
    from xdyna.configs import load_config
    from xdyna.configs.convert import ConvertConfig
    from xdyna.hub import HuggingFaceHub
    from xdyna.metrics.backbones import known_backbones, on_hub
    from xdyna.models import find_model
    from xdyna.models import pull as fetch

    settings = load_config(ConvertConfig, values={"dtype": dtype})
    model = on_hub(name) if name in known_backbones() else find_model(name)
    for repo, licence in model.licences.items():
        announce(f"{repo}: {licence}")
    with progress(quiet=as_json) as on_progress:
        folder = fetch(model, HuggingFaceHub(), everything=everything, update=update, on_progress=on_progress)
        announce(f"{name}: complete in {folder}")
        report: dict[str, Any] = {"name": name, "folder": folder}
        if convert and name == "x-dyna":
            from xdyna.cli.convert import to_pipeline

            # After an update the folder that is there was made of other files.
            report["converted"] = to_pipeline(folder, None, {}, settings, update, not update, on_progress)
    if as_json:
        emit_json(report)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models; by default all that are here.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte of pulled models with what was noted when they were pulled; exit 2 when something is wrong."""
    from xdyna.models import known_models, pulled_folder
    from xdyna.models import verify as check

    names = names or [name for name in known_models() if pulled_folder(name).is_dir()]
    if not names:
        announce("nothing has been pulled")
    found: dict[str, dict[str, str]] = {}
    for name in names:
        found[name] = {}
        for target, state in check(name):
            found[name][target] = state
            announce(f"{name}: {state:10} {target}")
    if as_json:
        emit_json({"models": found})
    wrong = [f"{target} {state}" for files in found.values() for target, state in files.items() if state != "good"]
    gone = [name for name, files in found.items() if files and set(files.values()) == {"missing"}]
    if gone and len(gone) == len(found):
        raise UserError(f"{', '.join(gone)}: nothing is here to verify; wanted `xdyna models pull {gone[0]}` first")
    if wrong:
        raise UserError(f"not as pulled: {', '.join(wrong)}; move what is wrong away and run `xdyna models pull` again")
