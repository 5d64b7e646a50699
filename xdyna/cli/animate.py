"""`xdyna animate`: one photo and one driving video, or a manifest of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xdyna.cli.common import (
    SHARED,
    ConfigOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    SeedOption,
    SetOption,
    announce,
    emit_json,
    follows,
    progress,
)
from xdyna.cli.failed import failed_status, list_failed
from xdyna.cli.launched import launched
from xdyna.cli.settings import Settings
from xdyna.cli.source_options import (
    DRIVER,
    AlignOption,
    DetectorOption,
    DwposeDetOption,
    DwposePoseOption,
    FaceOption,
    FpsOption,
    FramesOption,
    PersonOption,
    PoseMapsOption,
    PoseVideoOption,
    RefOption,
    SmoothOption,
    StartOption,
    StrideOption,
    TracksOption,
    option,
)
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.jobs import Job, load_jobs, outputs_of

if TYPE_CHECKING:
    from xdyna.infer.processes import Team
    from xdyna.infer.session import Session

MODEL, RESULT = "Model and sampling", "Result"


def animate(
    context: typer.Context,
    ref: RefOption = None,
    pose_video: PoseVideoOption = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="MP4, MOV or GIF file, or a folder of PNG files (default out.mp4)."),
    ] = None,
    jobs: Annotated[
        Path | None, typer.Option("--jobs", help="Manifest of many jobs (YAML, JSON, JSON lines); -o is its folder.")
    ] = None,
    list_people: Annotated[
        Path | None,
        option("--list-people", "Only write a picture of the numbered people of the driving video.", DRIVER),
    ] = None,
    model: Annotated[str | None, option("--model", "auto, tiny, x-dyna or a folder (default auto).", MODEL)] = None,
    size: Annotated[str | None, option("--size", "WxH in pixels (default: the model's).", MODEL)] = None,
    steps: Annotated[int | None, option("--steps", "Denoising steps (default: the model's).", MODEL)] = None,
    guidance: Annotated[
        float | None, option("--guidance", "Guidance scale; 1 is off (default: the model's).", MODEL)
    ] = None,
    scheduler: Annotated[str | None, option("--scheduler", "ddim, euler, dpm++, unipc, ..", MODEL)] = None,
    window: Annotated[int | None, option("--window", "Frames that are denoised together.", MODEL)] = None,
    overlap: Annotated[int | None, option("--overlap", "Frames that neighbouring windows share.", MODEL)] = None,
    schedule: Annotated[
        str | None, option("--schedule", "Windows: open, closed (official) or grid (default the model's).", MODEL)
    ] = None,
    adapter_scale: Annotated[
        float | None, option("--adapter-scale", "Strength of the reference (default 1).", MODEL)
    ] = None,
    pose_scale: Annotated[float | None, option("--pose-scale", "Strength of the pose (default 1).", MODEL)] = None,
    face_scale: Annotated[float | None, option("--face-scale", "Strength of the face (default 1).", MODEL)] = None,
    noise: Annotated[
        str | None, option("--noise", "independent, shared, mixed or shuffled (default the model's).", MODEL)
    ] = None,
    anchor: Annotated[
        float | None, option("--anchor", "0..1: hold the colours of long videos at the photo's (default 0).", MODEL)
    ] = None,
    preset: Annotated[
        str | None,
        option("--preset", "exact, balanced, fast or turbo (default exact; docs/fast.md).", MODEL),
    ] = None,
    small_decoder: Annotated[
        Path | None, option("--small-decoder", "Folder of an AutoencoderTiny that decodes, for previews.", MODEL)
    ] = None,
    preview: Annotated[
        bool | None,
        option("--preview/--no-preview", "Show frames in OUTPUT.preview.png while the job runs (default off).", RESULT),
    ] = None,
    window_batch: Annotated[
        str | None, option("--window-batch", "Windows computed at once, a number or auto (default auto).", MODEL)
    ] = None,
    vae_batch: Annotated[
        str | None, option("--vae-batch", "Frames decoded at once, a number or auto (default auto).", MODEL)
    ] = None,
    vram: Annotated[
        str | None, option("--vram", "GiB of the device to fit into, or auto: what is free (default auto).", MODEL)
    ] = None,
    quantize: Annotated[
        str | None, option("--quantize", "int8 or fp8: weights in 8 bits (extra quant; docs/fast.md).", MODEL)
    ] = None,
    plan: Annotated[
        bool, option("--plan", "Only print how the job would be fitted into memory, and write nothing.", MODEL)
    ] = False,
    deterministic: Annotated[
        bool | None, option("--deterministic", "Batches of one size: the same bytes for any --*-batch.", MODEL)
    ] = None,
    near_reference: Annotated[
        bool | None,
        option("--near-reference", "The reference once a step; for models with pooled norm, inexact.", MODEL),
    ] = None,
    compile: Annotated[
        bool | None, option("--compile", "Compile the networks' blocks: slow at first, then faster.", MODEL)
    ] = None,
    cuda_graphs: Annotated[
        bool | None, option("--cuda-graphs", "Record the UNet's kernels and launch them as one; GPUs only.", MODEL)
    ] = None,
    lora: Annotated[list[str] | None, option("--lora", "LoRA file, FILE or FILE:scale; repeatable.", MODEL)] = None,
    prompt: Annotated[str | None, option("--prompt", "Text for the model (default empty).", MODEL)] = None,
    negative_prompt: Annotated[str | None, option("--negative-prompt", "What to avoid (default empty).", MODEL)] = None,
    start: StartOption = None,
    fps: FpsOption = None,
    stride: StrideOption = None,
    frames: FramesOption = None,
    person: PersonOption = None,
    detector: DetectorOption = None,
    dwpose_det: DwposeDetOption = None,
    dwpose_pose: DwposePoseOption = None,
    tracks: TracksOption = None,
    pose_maps: PoseMapsOption = None,
    smooth: SmoothOption = None,
    align: AlignOption = None,
    face: FaceOption = None,
    codec: Annotated[str | None, option("--codec", "Video codec of an MP4 (default h264).", RESULT)] = None,
    audio: Annotated[bool | None, option("--audio/--no-audio", "Keep the video's sound (default on).", RESULT)] = None,
    compare: Annotated[
        bool | None, option("--compare", "Also write NAME.compare: photo, driver, pose and result.", RESULT)
    ] = None,
    steady_colours: Annotated[
        bool | None, option("--steady-colours", "Lead colours that go off back to the first second.", RESULT)
    ] = None,
    watermark: Annotated[str | None, option("--watermark", "A visible mark of this text.", RESULT)] = None,
    upscale: Annotated[
        int | None, option("--upscale", "Enlarge the result N times by resampling (default 1).", RESULT)
    ] = None,
    save_maps: Annotated[Path | None, option("--save-maps", "Folder for what the model sees.", RESULT)] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    profile: Annotated[
        bool | None,
        typer.Option(
            "--profile/--no-profile",
            help="Measure where time and memory go: a table and a trace in OUTPUT.profile.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Skip what is finished, and save unfinished work after each step (default: save what takes over a "
            "minute).",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Begin anew where unfinished work lies beside OUTPUT.", rich_help_panel=SHARED),
    ] = False,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="With --jobs: run failed jobs up to N times more (default 0).")
    ] = 0,
) -> None:
    """Animate a photo of a person with the motion of a video.

    Writes OUTPUT and, beside it, OUTPUT.json with all settings and the seed.

    What options do not say comes from --set, then --config, then the model's own preset.
    """
    options = {key: context.params[key] for key in AnimateConfig.model_fields if key in context.params}
    settings = Settings(config, overrides or [], options)
    if plan and (jobs is not None or list_people is not None):
        raise UserError("--plan: is for one job; wanted no --jobs and no --list-people")
    if (plan or list_people is not None) and follows():
        return  # the first process does it
    if jobs is not None:
        if ref or pose_video or list_people:
            raise UserError(
                "--jobs: the manifest names photos and videos, wanted no --ref, --pose-video or --list-people"
            )
        runner = _Runner(settings, as_json=as_json, resume=resume, restart=restart)
        with launched(all_talk=True) as team:
            _animate_all(load_jobs(jobs), runner, output or Path(), retries, team)
    elif retries:
        raise UserError("--retries: goes with --jobs; wanted a manifest")
    elif list_people is not None:
        _list_people(pose_video, settings, list_people, as_json=as_json)
    else:
        job = Job(ref=_wanted(ref, "--ref", "the photo of the person to animate"), pose_video=pose_video)
        if plan:
            _print_plan(job, settings, output or Path("out.mp4"), as_json=as_json)
            return
        runner = _Runner(settings, as_json=as_json, resume=resume, restart=restart)
        with launched() as team:
            _animate_one(job, runner, output or Path("out.mp4"), team)


def _wanted(path: Path | None, flag: str, meaning: str) -> Path:
    if path is None:
        raise UserError(f"{flag} is missing: wanted {meaning}")
    return path


@dataclass(frozen=True)
class _Runner:
    """Runs jobs the way the command line asks for."""

    settings: Settings
    as_json: bool
    resume: bool | None
    restart: bool

    def run(self, job: Job, output: Path, session: Session, *, quiet: bool = False) -> dict[str, Any]:
        """Run one job, or skip it where it is done, and return its report.

        Args:
            job: what to do.
            output: what to write.
            session: that runs it.
            quiet: show no progress.
        """
        config = self.settings.resolve(job)
        from xdyna.infer.animate import AnimateJob
        from xdyna.infer.attempt import run_job

        animate_job = AnimateJob(job.ref, job.pose_video, output, config)
        with progress(quiet=quiet or self.as_json) as on_progress:
            report, line = run_job(animate_job, session, on_progress, resume=self.resume, restart=self.restart)
        announce(line)
        if not report.get("skipped"):
            _show_profile(config, output, as_json=self.as_json or quiet)
        return report


def _show_profile(config: AnimateConfig, output: Path, *, as_json: bool) -> None:
    """Print the table of a job that was measured; with `--json` tell where it is."""
    if not config.profile:
        return
    from xdyna.infer.profile import TABLE, profile_folder

    folder = profile_folder(output)
    if not as_json:
        print((folder / TABLE).read_text(encoding="utf-8"), flush=True)
    announce(f"{folder}: table and trace (chrome://tracing or ui.perfetto.dev show it)")


def _animate_one(job: Job, runner: _Runner, output: Path, team: Team) -> None:
    runner.settings.resolve(job)  # what is wrong with them is told before anything heavy is imported
    from xdyna.infer.session import Session

    with Session(team=team) as session:
        report = runner.run(job, output, session, quiet=not team.leads)
    if runner.as_json and team.leads:
        emit_json(report)


def _print_plan(job: Job, settings: Settings, output: Path, *, as_json: bool) -> None:
    config = settings.resolve(job)
    from xdyna.infer.animate import AnimateJob
    from xdyna.infer.session import Session

    with Session() as session:
        line = session.plan(AnimateJob(job.ref, job.pose_video, output, config))
    announce(line)
    if as_json:
        emit_json({"plan": line})


def _animate_all(jobs: list[Job], runner: _Runner, folder: Path, retries: int, team: Team) -> None:
    """Run all jobs of a manifest on one model; the others go on where one fails, and failed ones may run again.

    Each process of a team takes the next job when it is done with one, on its own device.
    """
    from xdyna.infer.session import Session

    outputs = outputs_of(jobs, folder)
    reports: dict[int, dict[str, Any]] = {}
    failed = list(range(len(jobs)))
    with Session(team=team.alone()) as session:
        for attempt in range(1 + retries):
            if attempt and failed and team.leads:
                announce(f"{len(failed)} failed jobs once more, {attempt} of {retries}")
            mine: dict[int, dict[str, Any]] = {}
            for index in team.shared(failed, f"attempt {attempt}"):
                left = jobs_left(mine.values(), len(failed) - failed.index(index), team.size)
                announce(f"job {index + 1} of {len(jobs)}: {outputs[index]}{left}")
                mine[index] = _tried(jobs[index], runner, outputs[index], session, quiet=not team.leads)
            for reported in team.gather(mine):
                reports.update(reported)
            failed = [index for index in failed if "error" in reports[index]]
    if runner.as_json and team.leads:
        emit_json({"jobs": [reports[index] for index in range(len(jobs))], "failed": len(failed)})
    if failed and team.leads:
        list_failed({jobs[index].origin: reports[index] for index in failed}, len(jobs))
    team.broadcast(None)  # all end once it is told
    if failed:
        raise typer.Exit(failed_status(reports[index] for index in failed))


def jobs_left(reports: Iterable[Mapping[str, Any]], count: int, num_processes: int) -> str:
    """For the line of a job: how long this one and those after it take, if they take as long as those before.

    Args:
        reports: of the jobs before.
        count: jobs that are not done.
        num_processes: that take them in turn.
    """
    from xdyna.infer.time_left import shown_time

    took_s = [float(report["seconds"]) for report in reports if "seconds" in report]
    if not took_s or count < 1:
        return ""
    return f" (about {shown_time(sum(took_s) / len(took_s) * count / num_processes)} for what is left)"


def _tried(job: Job, runner: _Runner, output: Path, session: Session, *, quiet: bool = False) -> dict[str, Any]:
    """The report of a job; of one that fails the reason, which is told at once."""
    from xdyna.infer.attempt import tried

    report = tried(output, lambda: runner.run(job, output, session, quiet=quiet))
    if "error" in report:
        announce(f"{output}: failed: {report['error']}")
    return report


def _list_people(pose_video: Path | None, settings: Settings, picture: Path, *, as_json: bool) -> None:
    driving = _wanted(pose_video, "--pose-video", "the video whose people are to be listed")
    config = settings.resolve()
    from xdyna.infer.people import list_people

    with progress(quiet=as_json) as on_progress:
        people = list_people(driving, picture, config, on_progress)
    number = "1 person" if len(people) == 1 else f"{len(people)} people"
    announce(f"{picture}: {number}, numbered from the left; choose one with --person N")
    if as_json:
        emit_json({"picture": picture, "people": people})
