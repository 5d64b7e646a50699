"""`xdyna batch`: a manifest of many jobs on Ray."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xdyna.cli.common import (
    ConfigOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    SeedOption,
    SetOption,
    announce,
    emit_json,
    progress,
)
from xdyna.cli.failed import failed_status, list_failed
from xdyna.cli.settings import Settings
from xdyna.errors import UserError
from xdyna.files import make_folder
from xdyna.jobs import Job, load_jobs, outputs_of

if TYPE_CHECKING:
    from xdyna.infer.animate import AnimateJob
    from xdyna.infer.batch import Outcome

CLUSTER = "Cluster"


def _option(*flags: str, help: str, **more: Any) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=CLUSTER, **more)


def batch(
    manifest: Annotated[Path, typer.Argument(help="Jobs, as for animate --jobs (YAML, JSON, JSON lines).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results (default: this one).")] = Path(),
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Table of results, .jsonl or .csv (default OUTPUT/results.jsonl)."),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="Run failed jobs up to N times more (default 0).")
    ] = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Skip what is finished, and save unfinished work after each step (default on)."
        ),
    ] = True,
    actors: Annotated[
        int | None, _option("--actors", min=1, help="Models held at once (default: what the GPUs hold, else 1).")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, _option("--gpus-per-actor", min=0, help="May be a fraction (default 1, or 0 without GPUs).")
    ] = None,
    cpus_per_actor: Annotated[
        float | None,
        _option("--cpus-per-actor", min=0, help="Also its threads (default 1, or an equal share without GPUs)."),
    ] = None,
    in_flight: Annotated[
        int, _option("--in-flight", min=1, help="Jobs that an actor holds at a time, one of them running (default 2).")
    ] = 2,
    address: Annotated[
        str | None, _option("--address", help="Of a Ray cluster (default RAY_ADDRESS, else Ray on this machine).")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="auto, tiny, x-dyna or a folder (default auto).")] = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic", help="Batches of one size: the same bytes wherever a job runs.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a manifest of jobs on a Ray cluster, or on all of this machine.

    Writes every job's OUTPUT and OUTPUT.json as animate does, and a table with a row for each job. What is finished is
    not run again, so the same command goes on where it was stopped and runs what failed once more.
    """
    from xdyna.infer.batch import check_table
    from xdyna.infer.ray_fleet import check_ray

    check_ray()
    jobs = load_jobs(manifest)
    outputs = outputs_of(jobs, output)
    table = results or output / "results.jsonl"
    check_table(table, outputs)
    options = {"model": model, "deterministic": deterministic, "seed": seed, "device": device, "dtype": dtype}
    settings = Settings(config, overrides or [], options)
    make_folder(table.parent)
    told = _Told(jobs, outputs, as_json=as_json)
    with ExitStack() as stack:
        told.open(table, stack)
        todo = _sorted_out(jobs, outputs, settings, told, resume=resume)
        if todo:
            _run(todo, told, (actors, gpus_per_actor, cpus_per_actor), address, in_flight, retries, resume=resume)
    told.end(table)


class _Told:
    """What becomes known of jobs, told and written as it does.

    Args:
        jobs: all.
        outputs: of each.
        as_json: show no progress.
    """

    def __init__(self, jobs: list[Job], outputs: list[Path], *, as_json: bool) -> None:
        self._jobs, self._outputs, self._as_json = jobs, outputs, as_json
        self._rows: dict[int, dict[str, Any]] = {}
        self._failed: dict[int, dict[str, Any]] = {}

    def open(self, table: Path, stack: ExitStack) -> None:
        """Begin the table, and show progress."""
        from xdyna.infer.batch import results_table

        self._add_row = stack.enter_context(results_table(table))
        self._on_progress = stack.enter_context(progress(quiet=self._as_json))

    def __call__(self, number: int, outcome: Outcome) -> None:
        """A job has ended."""
        output = self._outputs[number]
        row = outcome.row(self._jobs[number].origin, output)
        self._rows[number] = row
        self._add_row(row)
        for warning in outcome.report.get("warnings", ()):
            announce(f"{output}: warning: {warning}")
        if outcome.status == "failed":
            self._failed[number] = outcome.report
            announce(f"{output}: failed: {row['reason']}")
        elif outcome.status == "done":
            announce(f"{output}: {row['num_frames']} frames, {outcome.seconds:.0f} s")
        self._on_progress("jobs", len(self._rows), len(self._jobs))

    def end(self, table: Path) -> None:
        """Say how all went.

        Raises:
            typer.Exit: with the status for jobs that failed.
        """
        counts = {name: sum(row["status"] == name for row in self._rows.values()) for name in _STATUSES}
        announce(f"{table}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        if self._as_json:
            emit_json({"jobs": [self._rows[number] for number in sorted(self._rows)], **counts, "results": table})
        if self._failed:
            reports = {self._jobs[number].origin: self._failed[number] for number in sorted(self._failed)}
            list_failed(reports, len(self._jobs), "the same command runs only what is not finished")
            raise typer.Exit(failed_status(reports.values()))


_STATUSES = ("done", "skipped", "failed")


def _sorted_out(
    jobs: list[Job], outputs: list[Path], settings: Settings, told: _Told, *, resume: bool
) -> dict[int, AnimateJob]:
    """The jobs that are to run: not those that are finished, nor those that have no settings that make sense."""
    from xdyna.infer.animate import AnimateJob, finished
    from xdyna.infer.attempt import failed
    from xdyna.infer.batch import Outcome

    todo = {}
    for number, (job, output) in enumerate(zip(jobs, outputs, strict=True)):
        try:
            animate_job = AnimateJob(job.ref, job.pose_video, output, settings.resolve(job))
        except UserError as error:
            told(number, Outcome(failed(output, str(error)), attempts=1))
            continue
        done = finished(animate_job) if resume else None
        if done is None:
            todo[number] = animate_job
        else:
            told(number, Outcome({**done, "skipped": True}))
    return todo


def _run(
    todo: dict[int, AnimateJob],
    told: _Told,
    wanted: tuple[int | None, float | None, float | None],
    address: str | None,
    in_flight: int,
    retries: int,
    *,
    resume: bool,
) -> None:
    """Run jobs on Ray.

    Args:
        todo: jobs by number.
        told: called with each that has ended.
        wanted: actors, and for each of them GPUs and CPUs.
        address: of the cluster.
        in_flight: see `Batch`, like the next.
        retries: likewise.
        resume: go on with what was saved.
    """
    from xdyna.infer.batch import Batch
    from xdyna.infer.ray_fleet import RayFleet, choose_share, ray_running, room

    with ray_running(address) as resources:
        share = choose_share(resources, *wanted, len(todo))
        line = f"{len(todo)} jobs for {share.actors} actors with {share.gpus:g} GPUs and {share.cpus:g} CPUs"
        at_once = room(resources, share)
        announce(line if at_once == share.actors else f"{line}; the cluster has room for {at_once} at once")
        fleet = RayFleet(share, resume=resume)
        run = Batch(fleet, todo, workers=share.actors, in_flight=in_flight, retries=retries)
        run.run(told)
        if run.num_lost:
            announce(f"{run.num_lost} actors were lost and replaced")
