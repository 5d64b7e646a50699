"""One job from files to a file: what it is, what came of it, and whether it is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import xdyna
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer.load import choose_model

#: Called with the stage's name, how much of it is done, and of how much.
OnProgress = Callable[[str, int, int], None]


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
        return [self.output, compare_path(self.output)] if self.config.compare else [self.output]

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


def animate(
    job: AnimateJob,
    on_progress: OnProgress = lambda stage, done, total: None,
    *,
    resume: bool | None = None,
    restart: bool = False,
) -> Result:
    """Run one job. The same job on the same machine writes the same bytes.

    Notices and warnings are logged under the name `xdyna`. Several jobs share a model in an
    `xdyna.infer.session.Session`.

    Args:
        job: what to do.
        on_progress: called with stage, done and total as the work goes on.
        resume: save the work after each step, so that the same job goes on from there after a stop of any kind: true
            always, None where it will take more than a minute. None and true go on with what was saved.
        restart: begin anew, whatever the work folder holds.
    Raises:
        UserError: anything wrong with files, settings or the model; then no output is there.
    """
    from xdyna.infer.session import Session

    with Session() as session:
        return session.run(job, on_progress, resume=resume, restart=restart)


def compare_path(output: Path) -> Path:
    """``out.mp4`` -> ``out.compare.mp4``."""
    return output.with_name(f"{output.stem}.compare{output.suffix}" if output.suffix else f"{output.name}-compare")


def preview_path(output: Path) -> Path:
    """``out.mp4`` -> ``out.mp4.preview.png``."""
    return output.with_name(f"{output.name}.preview.png")


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
