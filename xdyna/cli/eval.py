"""`xdyna eval`: score generated videos by a frozen protocol, and compare what came of it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xdyna.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    SeedOption,
    SetOption,
    announce,
    emit_json,
    fail,
    progress,
)
from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.configs.evaluate import EvaluateConfig
from xdyna.errors import UserError

if TYPE_CHECKING:
    from xdyna.infer.evaluate.compare import Comparison
    from xdyna.infer.evaluate.pairs import Pair
    from xdyna.infer.evaluate.score import Scored

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Score videos by a frozen protocol, and compare.")

_SHOWN = 20  # lines about pairs that failed

MetricsOption = Annotated[
    str | None, typer.Option("--metrics", help="Names with commas (default: all that can be had here).")
]
BackbonesOption = Annotated[Path | None, typer.Option("--backbones", help="Folder with the networks' weights.")]
ProtocolOption = Annotated[str, typer.Option("--protocol", metavar="NAME|FILE", help="How clips are read.")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Folder of features (default: beside the results, NAME.features).")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Videos measured at once (default 1).")]
ActorsOption = Annotated[
    int | None, typer.Option("--actors", help="Ray actors that measure, on one machine or many (extra scale).")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="Threads of torch and OpenCV.")]
AllowOption = Annotated[
    bool, typer.Option("--allow-failed", help="End with status 0 though some pairs could not be measured.")
]


@app.command()
def score(
    context: typer.Context,
    generated: Annotated[Path | None, typer.Option("--generated", help="Folder of generated videos.")] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Folder of the true videos, under the same names.")
    ] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="Folder of the persons' masks.")] = None,
    photos: Annotated[Path | None, typer.Option("--photos", help="Folder of the reference photos.")] = None,
    tracks: Annotated[Path | None, typer.Option("--tracks", help="Folder of driving joints (.tracks.npz).")] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--methods", metavar="NAME=DIR", help="Another method's folder; repeat it.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Jobs that made the videos, in place of --reference.")
    ] = None,
    metrics: MetricsOption = None,
    backbones: BackbonesOption = None,
    protocol: ProtocolOption = "v1",
    out: Annotated[Path, typer.Option("--out", "-o", help="File of results; an unfinished one goes on.")] = Path(
        "results.jsonl"
    ),
    cache: CacheOption = None,
    workers: WorkersOption = None,
    actors: ActorsOption = None,
    threads: ThreadsOption = None,
    allow_failed: AllowOption = False,
    as_json: JsonOption = False,
) -> int:
    """Score generated videos against true ones: pairs by name, or by the manifest that made them."""
    options = ("metrics", "backbones", "cache", "workers", "actors", "threads", "allow_failed")
    config = load_config(EvaluateConfig, values={key: context.params[key] for key in options})
    if (reference is None) == (manifest is None):
        raise UserError("wanted --reference DIR or --manifest FILE, one of them")
    folders = _folders(generated, methods or [])
    from xdyna.infer.evaluate.pairs import pairs_by_name, pairs_of_manifest
    from xdyna.infer.evaluate.protocol import load_protocol
    from xdyna.infer.evaluate.score import ScoreJob
    from xdyna.infer.evaluate.score import score as run

    chosen = load_protocol(protocol)
    pairs: dict[str, Sequence[Pair]] = {}
    for name, folder in folders.items():
        if reference is not None:
            extra = {"masks": masks, "photos": photos, "tracks": tracks, "allow_failed": allow_failed}
            pairs[name] = pairs_by_name(folder, reference, **extra)  # type: ignore[arg-type]
        else:
            assert manifest is not None
            pairs[name] = pairs_of_manifest(manifest, folder)
    job = ScoreJob(pairs, folders, out, chosen, config, command=shlex.join(["xdyna", *sys.argv[1:]]))
    announce(chosen.line())
    with progress(quiet=as_json) as on_progress:
        scored = run(job, on_progress)
    return finish(scored, allow_failed, as_json)


@app.command()
def model(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="auto, tiny, x-dyna or a folder.")] = "auto",
    dataset: Annotated[
        str, typer.Option("--dataset", help="synthetic-v1, a folder of a known layout, or a manifest of jobs.")
    ] = "synthetic-v1",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of videos and results.")] = Path("evaluation"),
    name: Annotated[
        str | None, typer.Option("--name", help="Of the method in the results (default: the model's).")
    ] = None,
    clips: Annotated[
        int | None, typer.Option("--clips", min=1, help="The first so many clips of the test set.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of drawn clips that several runs share (default OUT/data).")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="exact, balanced, fast or turbo (default exact).")
    ] = None,
    overrides: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    metrics: MetricsOption = None,
    backbones: BackbonesOption = None,
    protocol: ProtocolOption = "v1",
    cache: CacheOption = None,
    workers: WorkersOption = None,
    actors: ActorsOption = None,
    threads: ThreadsOption = None,
    allow_failed: AllowOption = False,
    as_json: JsonOption = False,
) -> int:
    """Generate a model's videos for a test set, then score them; an unfinished run goes on.

    --set changes settings of the animation, as for `xdyna animate`.
    """
    options = ("metrics", "backbones", "cache", "workers", "actors", "threads", "allow_failed")
    config = load_config(EvaluateConfig, values={key: context.params[key] for key in options})
    given = {key: context.params[key] for key in ("model", "preset", "seed", "device", "dtype")}
    settings = load_config(AnimateConfig, None, overrides or [], values=given)
    from xdyna.infer.evaluate.model import ModelJob, evaluate_model
    from xdyna.infer.evaluate.protocol import load_protocol

    chosen = load_protocol(protocol)
    command = shlex.join(["xdyna", *sys.argv[1:]])
    job = ModelJob(settings, dataset, out, chosen, config, name, clips, data, command)
    announce(chosen.line())
    with progress(quiet=as_json) as on_progress:
        scored = evaluate_model(job, on_progress)
    return finish(scored, allow_failed, as_json)


def _folders(generated: Path | None, methods: Sequence[str]) -> dict[str, Path]:
    """Method -> folder."""
    folders = {} if generated is None else {generated.absolute().name: generated}
    for text in methods:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--methods {text}: wanted NAME=DIR")
        if name in folders:
            raise UserError(f"--methods {text}: {name} is named twice, wanted a name of its own for each folder")
        folders[name] = Path(folder).expanduser()
    if not folders:
        raise UserError("wanted --generated DIR, or --methods NAME=DIR for each method")
    return folders


def finish(scored: Scored, allow_failed: bool, as_json: bool) -> int:
    """Print what came of it; status 1 where something failed that may not."""
    from xdyna.infer.evaluate.table import score_table, summary

    results = scored.results
    _show(score_table(results), as_json)
    for name, why in results.header["missing"].items():
        announce(f"left out: {name}: {why}")
    for note in scored.notes:
        announce(f"note: {note}")
    for problem in scored.problems[:_SHOWN]:
        fail(problem)
    if len(scored.problems) > _SHOWN:
        fail(f"and {len(scored.problems) - _SHOWN} more; all are in {results.path}")
    announce(f"{results.path}: {len(results.clips)} clips, {len(results.failed)} pairs failed")
    if as_json:
        emit_json({"results": results.path, "problems": list(scored.problems), **summary(results)})
    return 1 if scored.problems and not allow_failed else 0


def _show(table: Sequence[str], as_json: bool) -> None:
    """Print a table as it is; with `--json` its numbers are in the object."""
    if not as_json:
        print("\n".join(table), flush=True)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="File of results, or FILE:METHOD.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise, of the other method.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file to write.")] = None,
    draws: Annotated[int, typer.Option("--draws", min=100, help="Bootstrap samples of clips' figures.")] = 10_000,
    set_draws: Annotated[int, typer.Option("--set-draws", min=20, help="Of Frechet distances.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    level: Annotated[float, typer.Option("--level", min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    as_json: JsonOption = False,
) -> None:
    """Compare two methods scored by one protocol: paired bootstrap over the videos that both have."""
    from xdyna.infer.evaluate.compare import compare as run
    from xdyna.infer.evaluate.table import compare_table

    found: Comparison = run(a, b, draws=draws, set_draws=set_draws, seed=seed, level=level)
    _show(compare_table(found), as_json)
    report: dict[str, Any] = found.to_json()
    if out is not None:
        import json

        from xdyna.files import written_whole

        with written_whole(out) as part:
            part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        announce(f"{out}: written")
    if as_json:
        emit_json(report)


@app.command()
def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Files of results; for .md, records.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="PAGE.html, FOLDER of records to keep, or PAGE.md made from records.")
    ] = Path("report.html"),
    by: Annotated[
        str | None, typer.Option("--by", metavar="METRIC/REGION", help="Tells worst from best clips (default PSNR).")
    ] = None,
    strips: Annotated[int, typer.Option("--strips", min=0, help="Worst and best clips shown of every method.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Write one page with tables, plots and clips that opens from disk; or records, and Markdown from them."""
    suffix, notes = out.suffix.lower(), list[str]()
    if suffix in (".html", ".htm"):
        from xdyna.infer.evaluate.report.page import ReportJob, write_report

        with progress(quiet=as_json) as on_progress:
            notes = write_report(ReportJob(tuple(results), out, by, strips), on_progress)
        written = [out]
    elif suffix == ".md":
        from xdyna.infer.evaluate.publish import write_markdown

        write_markdown(results, out, shlex.join(["xdyna", *sys.argv[1:]]))
        written = [out]
    elif not suffix:
        from xdyna.infer.evaluate.publish import write_records

        written = write_records(results, out)
    else:
        raise UserError(f"--out {out}: wanted a name that ends in .html or .md, or a folder for records")
    for note in notes:
        announce(f"not shown: {note}")
    for path in written:
        announce(f"{path}: written, {path.stat().st_size / 1e6:.1f} MB")
    if as_json:
        emit_json({"written": written, "not_shown": notes})
