"""One job from files to a file: read, prepare, run the pipeline, write."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xdyna
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.files import written_whole
from xdyna.infer.load import ModelChoice, choose_device, choose_dtype, choose_model, load_pipeline

if TYPE_CHECKING:
    import torch

    from xdyna.infer.finish import Finisher, Image
    from xdyna.infer.sources import Sources
    from xdyna.pipeline import XDynaPipeline
    from xdyna.preprocess.prepare import Prepared
    from xdyna.video import VideoWriter

#: Called with the stage's name, how much of it is done, and of how much.
OnProgress = Callable[[str, int, int], None]

logger = logging.getLogger("xdyna")


@dataclass(frozen=True)
class AnimateJob:
    """What to animate, with what, into which file, and how.

    Attributes:
        reference: the photo.
        driving: the driving video; None where `config.pose_maps` or `config.tracks` stand for it.
        output: `.mp4`, `.m4v`, `.mov` or `.gif` file, or a name without suffix for a folder of PNG files.
        config: settings; what is None in them is decided by the model's preset.
    """

    reference: Path
    driving: Path | None
    output: Path
    config: AnimateConfig = field(default_factory=AnimateConfig)

    @property
    def record(self) -> Path:
        """The file beside the output that holds settings and seed."""
        return self.output.with_name(f"{self.output.name}.json")

    @property
    def inputs(self) -> list[Path]:
        """The files that are read, without the model."""
        config = self.config
        return [path for path in (self.reference, self.driving, config.pose_maps, config.tracks) if path is not None]

    @property
    def outputs(self) -> list[Path]:
        """The videos (or folders of pictures) that are written."""
        return [self.output, _compare_path(self.output)] if self.config.compare else [self.output]

    def description(self) -> dict[str, Any]:
        """The job as it was asked for, in plain values."""
        return {
            "reference": str(self.reference),
            "driving": None if self.driving is None else str(self.driving),
            "config": self.config.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Result:
    """What a job made.

    Attributes:
        output: the video (or folder).
        record: file with the settings in force.
        num_frames: frames in the output.
        fps: frames per second.
        size_wh: (width, height) of the frames, pixels.
        seed: of all random draws.
        model: name of the model.
        model_sha256: hash of its weights.
        seconds: how long the job took.
        more_outputs: further files or folders written.
    """

    output: Path
    record: Path
    num_frames: int
    fps: float
    size_wh: tuple[int, int]
    seed: int
    model: str
    model_sha256: str
    seconds: float
    more_outputs: tuple[Path, ...] = ()

    def summary(self) -> str:
        """One line for the user."""
        width, height = self.size_wh
        return (
            f"{self.output}: {self.num_frames} frames of {width}x{height} at {self.fps:g} fps, seed {self.seed}, "
            f"{self.seconds:.0f} s"
        )

    def report(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


def animate(job: AnimateJob, on_progress: OnProgress = lambda stage, done, total: None) -> Result:
    """Run one job. The same job on the same machine writes the same bytes.

    Notices and warnings are logged under the name `xdyna`.

    Args:
        job: what to do.
        on_progress: called with stage, done and total as the work goes on.
    Raises:
        UserError: anything wrong with files, settings or the model; then no output is there.
    """
    from xdyna.infer.finish import Finisher
    from xdyna.infer.sources import Sources

    began_s = time.monotonic()
    sources = Sources.open(job.reference, job.driving, job.config)
    choice = choose_model(job.config.model)
    config = job.config.with_model_defaults(choice.defaults())
    finish = Finisher(config.sampling().size_wh, config.upscale, config.watermark)
    _check_outputs(job, sources, finish.size_wh)
    device = choose_device(config.device)
    with _full_memory_told(config, device):
        on_progress("load model", 0, 1)
        pipe = load_pipeline(choice, config, device, choose_dtype(config.dtype, device))
        _check_settings(pipe, config)
        on_progress("load model", 1, 1)
        logger.info("%s", choice.announcement)
        prepared = sources.prepare(config, face=_wants_face(pipe, config), on_progress=on_progress)
        run = _Run(job, config, choice, pipe, sources, prepared, finish, on_progress)
        return _write(run, _denoise(run), began_s)


@contextmanager
def _full_memory_told(config: AnimateConfig, device: torch.device) -> Iterator[None]:
    """Say which setting to lower when the device's memory runs out."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        sampling = config.sampling()
        width, height = sampling.size_wh
        raise UserError(
            f"--device {device}: out of memory at {width}x{height} px with windows of {sampling.window} frames; "
            "lower --size or --window, or take --dtype float16"
        ) from None


@dataclass(frozen=True)
class _Run:
    """A job with everything it needs at hand."""

    job: AnimateJob
    config: AnimateConfig
    choice: ModelChoice
    pipe: XDynaPipeline
    sources: Sources
    prepared: Prepared
    finish: Finisher
    on_progress: OnProgress


def _check_outputs(job: AnimateJob, sources: Sources, size_wh: tuple[int, int]) -> None:
    """Look at every place that will be written before any work is done."""
    from xdyna.video import check_output

    for path in job.outputs:
        check_output(path, job.config.codec, sources.fps, job.inputs, size_wh=size_wh)
    if job.config.save_maps is not None:
        sources.check_map_places(job.config.save_maps, job.inputs)


def _check_settings(pipe: XDynaPipeline, config: AnimateConfig) -> None:
    """Refuse, in the user's terms, what this model cannot do."""
    from xdyna.infer.finish import Finisher

    sampling = config.sampling()
    Finisher(sampling.size_wh, config.upscale, config.watermark)  # refuses a mark that does not fit
    try:
        pipe.check_size(*sampling.size_wh)
    except ValueError as error:
        raise UserError(f"--size: {error}; --upscale N enlarges the result") from None
    longest = pipe.unet.config.motion_max_seq_length
    if sampling.window > longest:
        raise UserError(f"--window: got {sampling.window} frames, this model takes at most {longest}")
    finest = pipe.scheduler.config.num_train_timesteps - 1
    if sampling.steps > finest:
        raise UserError(f"--steps: got {sampling.steps}, this model takes at most {finest}")
    for name in ("prompt", "negative_prompt"):
        if getattr(config, name) and pipe.tokenizer is None:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}: this model has no text encoder and takes no prompt; leave it out")
    if config.face and pipe.face_controlnet is None:
        raise UserError("--face: this model has no face ControlNet; leave it out")
    if config.adapter_scale != 1 and pipe.dynamics_adapter is None:
        raise UserError("--adapter-scale: this model has no Dynamics-Adapter; leave it out")


def _wants_face(pipe: XDynaPipeline, config: AnimateConfig) -> bool:
    return pipe.face_controlnet is not None and config.face is not False and config.face_scale > 0


def _denoise(run: _Run) -> torch.Tensor:
    """The clip's latents, [1, C, F, h, w]."""
    import torch

    config, pipe = run.config, run.pipe
    sampling = config.sampling()
    generator = torch.Generator("cpu").manual_seed(config.seed)
    run.on_progress("denoise", 0, sampling.steps)

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        run.on_progress("denoise", step + 1, pipe.num_timesteps)
        return {}

    output: Any = pipe(
        run.prepared.reference,
        run.prepared.pose_maps,
        run.prepared.face_maps,
        prompt=config.prompt or None,
        negative_prompt=config.negative_prompt or None,
        prompt_image=run.sources.photo if pipe.image_prompt is not None else None,
        width=sampling.size_wh[0],
        height=sampling.size_wh[1],
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        generator=generator,
        pose_scale=config.pose_scale,
        face_scale=config.face_scale,
        adapter_scale=config.adapter_scale,
        control_guidance_start=(config.pose_start, config.face_start),
        control_guidance_end=(config.pose_end, config.face_end),
        window=sampling.window,
        overlap=sampling.overlap,
        schedule=config.schedule,
        output_type="latent",
        callback_on_step_end=after_step,
    )
    latents: torch.Tensor = output.frames
    if not torch.isfinite(latents).all():
        raise UserError(
            f"the model gave NaN or infinite values with --dtype {config.dtype} and --scheduler {config.scheduler}; "
            "try --dtype float32"
        )
    return latents


def _write(run: _Run, latents: torch.Tensor, began_s: float) -> Result:
    """Decode frame by frame into the output, its record and what else was asked for."""
    job, config, prepared, finish = run.job, run.config, run.prepared, run.finish
    more = [_compare_path(job.output)] if config.compare else []
    num_frames = latents.shape[2]
    with ExitStack() as stack:
        record = stack.enter_context(written_whole(job.record))
        video = stack.enter_context(_writer(run, job.output, finish.size_wh))
        add_row = _row_writer(run, more[0], stack) if more else None
        for index, frame in enumerate(_decoded(run.pipe, latents)):
            shown = finish(frame)
            video.write(shown)
            if add_row is not None:
                add_row(shown)
            run.on_progress("write", index + 1, num_frames)
        if config.save_maps is not None:
            more += run.sources.save_maps(config.save_maps, prepared)
        result = Result(
            job.output, job.record, num_frames, float(prepared.fps), finish.size_wh, config.seed, run.choice.name,
            run.choice.sha256, time.monotonic() - began_s, tuple(more),
        )  # fmt: skip
        record.write_text(_record_text(run, result), encoding="utf-8")
    return result


def _writer(run: _Run, path: Path, size_wh: tuple[int, int]) -> VideoWriter:
    """A writer with the job's rate, codec, sound and marks."""
    from xdyna.provenance import provenance
    from xdyna.video import VideoWriter

    metadata = provenance(model=run.choice.name, model_hash=run.choice.sha256, seed=run.config.seed)
    sound = run.sources.sound(run.prepared) if run.config.audio else None
    return VideoWriter(path, size_wh, run.prepared.fps, run.config.codec, sound, metadata)


def _row_writer(run: _Run, path: Path, stack: ExitStack) -> Callable[[Image], None]:
    """What writes each frame once more, beside the photo, the driving frame and the pose map."""
    from xdyna.video import side_by_side

    panels = run.sources.panels(run.prepared)
    writer: VideoWriter | None = None

    def add(frame: Image) -> None:
        nonlocal writer
        row = side_by_side([*next(panels), frame], frame.shape[0])
        if writer is None:
            writer = stack.enter_context(_writer(run, path, (row.shape[1], row.shape[0])))
        writer.write(row)

    return add


def _decoded(pipe: XDynaPipeline, latents: torch.Tensor) -> Iterator[Image]:
    """uint8 RGB [H, W, 3], one after the other."""
    import torch

    with torch.no_grad():
        for frames in pipe.decode_frames(latents):
            for frame in frames:
                yield (frame * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _compare_path(output: Path) -> Path:
    """``out.mp4`` -> ``out.compare.mp4``."""
    return output.with_name(f"{output.stem}.compare{output.suffix}" if output.suffix else f"{output.name}-compare")


def _record_text(run: _Run, result: Result) -> str:
    """Settings in force, seed and model. No times: the same job writes the same bytes here too."""
    return (
        json.dumps(
            {
                "tool": "xdyna",
                "version": xdyna.__version__,
                "asked": run.job.description(),
                "resolved": run.config.model_dump(mode="json"),
                "seed": run.config.seed,
                "model": {"name": run.choice.name, "folder": str(run.choice.folder), "sha256": run.choice.sha256},
                "align": run.prepared.align,
                "start_frame": run.prepared.start_frame,
                "frames": result.num_frames,
                "fps": str(Fraction(run.prepared.fps)),
                "size": list(result.size_wh),
                "warnings": run.prepared.warnings,
            },
            indent=2,
            ensure_ascii=False,
        )
        + "\n"
    )


def finished(job: AnimateJob) -> dict[str, Any] | None:
    """What an earlier run of this very job recorded, if its outputs are there and neither model nor inputs changed.

    Returns:
        A report like that of `Result.report`, or None where the job must run.
    """
    try:
        record = json.loads(job.record.read_text(encoding="utf-8"))
        written_s = job.record.stat().st_mtime
        same = record["asked"] == job.description() and record["version"] == xdyna.__version__
        # `auto` may mean another model than it did.
        same = same and record["model"]["folder"] == str(choose_model(job.config.model).folder)
        there = all(path.exists() for path in job.outputs)
        if not same or not there or any(path.stat().st_mtime > written_s for path in job.inputs):
            return None
        return {
            "output": job.output,
            "record": job.record,
            "num_frames": record["frames"],
            "fps": float(Fraction(record["fps"])),
            "size_wh": record["size"],
            "seed": record["seed"],
            "model": record["model"]["name"],
            "model_sha256": record["model"]["sha256"],
        }
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
