"""`xdyna bench`: our way of denoising against others, on the same networks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from xdyna.cli.common import DeviceOption, DtypeOption, JsonOption, announce, emit_json, progress
from xdyna.configs import load_config
from xdyna.configs.bench import BenchConfig

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", help="small, random-sd15, tiny or a folder (default small).")
    ] = None,
    frames: Annotated[
        str | None, typer.Option("--frames", help="Lengths of clips, with commas (default 16,48,96,192).")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="WxH in pixels (default: the model's).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps (default 2).")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Guidance scale; 1 is off (default 7.5).")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="Windows of all plans: closed (official, default) or open.")
    ] = None,
    plans: Annotated[
        str | None,
        typer.Option(
            "--plans",
            help="Of official,official-plain,diffusers,freenoise,ours,ours-open (default: without -plain and -open).",
        ),
    ] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", help="Rounds (default 2).")] = None,
    flops_only: Annotated[
        bool | None, typer.Option("--flops-only", help="Only count operations; computes nothing, fits any size.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the record (default docs/benchmarks).")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure our way of denoising against the official code's and diffusers', on the same networks.

    Counts operations, then runs the plans in turns, each in a process of its own, and writes a Markdown page and a
    JSON file. Models of random weights take memory and time as trained ones do.
    """
    if context.invoked_subcommand is not None:
        return
    options = {key: context.params[key] for key in BenchConfig.model_fields}
    config = load_config(BenchConfig, values=options)
    from xdyna.infer.bench.bench import bench as run
    from xdyna.infer.bench.report import write_record

    with progress(quiet=as_json) as on_progress:
        record = run(config, shlex.join(["xdyna", *sys.argv[1:]]), on_progress)
    markdown, data = write_record(record, config.out)
    announce(f"{markdown}: written, with {data.name} beside it")
    if as_json:
        emit_json({"markdown": markdown, "json": data, **record.to_json()})


@app.command()
def ablation(
    plan: Annotated[
        str, typer.Option("--plan", metavar="NAME|FILE", help="What is compared, at what price.")
    ] = "ablation/plan",
    resume: Annotated[bool, typer.Option("--resume", help="Go on: do the runs that have no record yet.")] = False,
    runs: Annotated[
        int | None, typer.Option("--runs", min=0, help="At most so many now; 0 only writes the page (default all).")
    ] = None,
    records: Annotated[Path, typer.Option("--records", help="Folder of one JSON for each finished run.")] = Path(
        "docs/benchmarks/ablation"
    ),
    work: Annotated[Path, typer.Option("--work", help="Folder of trainings, videos and test clips.")] = Path(
        "runs/ablation"
    ),
    page: Annotated[Path, typer.Option("--page", help="Markdown page that is written.")] = Path("docs/ablation.md"),
    picture: Annotated[Path, typer.Option("--picture", help="Picture strip beside it.")] = Path(
        "docs/images/ablation.png"
    ),
) -> None:
    """Train and score the ways to show a model its reference, on one base and one budget, and write the page.

    A run takes minutes and leaves a record, so the plan may be carried out over days.
    """
    from xdyna.configs.ablation import AblationConfig
    from xdyna.train.ablation import Workshop, score_trial, train_trial, waiting
    from xdyna.train.ablation_page import write_page

    shop = Workshop(load_config(AblationConfig, plan), records, work)
    for trial, terms in waiting(shop, resume=resume or runs == 0, most=runs).items():
        model = train_trial(shop, trial)
        with progress() as on_progress:
            written = score_trial(shop, trial, model, terms, on_progress)
        announce(f"{written}: written")
    for path in write_page(shop, page, picture, "xdyna bench ablation --resume"):
        announce(f"{path}: written")
