"""Generate a model's videos for a test set, then score them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xdyna.configs.animate import AnimateConfig
from xdyna.configs.evaluate import EvaluateConfig
from xdyna.errors import UserError
from xdyna.files import make_folder
from xdyna.infer.animate import AnimateJob, finished
from xdyna.infer.evaluate.datasets import Dataset, Item, open_dataset
from xdyna.infer.evaluate.frames import open_source
from xdyna.infer.evaluate.generate import Animator, keep_to_model, model_facts
from xdyna.infer.evaluate.pairs import Pair
from xdyna.infer.evaluate.protocol import Protocol
from xdyna.infer.evaluate.score import OnProgress, Scored, ScoreJob, score
from xdyna.infer.evaluate.synthetic import NAME, WORLD, SyntheticFolder, write_frames
from xdyna.infer.load import choose_model
from xdyna.photo import write_png
from xdyna.provenance import provenance
from xdyna.video import VideoWriter

RESULTS, VIDEOS, DATA = "results.jsonl", "videos", "data"


@dataclass(frozen=True, eq=False)
class ModelJob:
    """Which model to score on what.

    Attributes:
        animate: the model and how it runs.
        dataset: `synthetic-v1`, a folder of a known layout, or a manifest of jobs.
        out: folder of videos and results; an unfinished run there goes on.
        protocol: how clips are read.
        config: how the scoring is done.
        name: of the method in the results; None: the model's.
        clips: of the first clips of the test set; None for all.
        data: folder of drawn clips, which several models may share; None: within `out`.
        command: what the user typed.
    """

    animate: AnimateConfig
    dataset: str
    out: Path
    protocol: Protocol
    config: EvaluateConfig = field(default_factory=EvaluateConfig)
    name: str | None = None
    clips: int | None = None
    data: Path | None = None
    command: str = ""


def evaluate_model(job: ModelJob, on_progress: OnProgress = lambda stage, done, total: None) -> Scored:
    """Make the videos that are not there yet, then score all of them.

    Raises:
        UserError: no such model or test set, or nothing could be made.
    """
    make_folder(job.out)
    drawn = job.dataset == NAME
    pairs, model, dataset = _drawn(job, on_progress) if drawn else _filmed(job, on_progress)
    name = job.name or str(model["model"])
    scoring = ScoreJob(
        {name: pairs}, {name: job.out / VIDEOS}, job.out / RESULTS, job.protocol, job.config, {name: model}, dataset,
        job.command,
    )  # fmt: skip
    return score(scoring, on_progress)


def _drawn(job: ModelJob, on_progress: OnProgress) -> tuple[list[Pair], dict[str, Any], dict[str, Any]]:
    """The drawn test set: the model is given its photo and maps, as it would be after a perfect detector."""
    animator = Animator(job.animate)
    model, videos = animator.facts(), job.out / VIDEOS
    keep_to_model(job.out, {**model, "dataset": NAME})
    make_folder(videos)
    data = SyntheticFolder(job.data or job.out / DATA, job.clips)
    mark = provenance(model=model["model"], model_hash=model["model_sha256"], seed=animator.config.seed)
    pairs = []
    for number, (entry, case) in enumerate(data.cases(lambda entry: not (videos / entry.name).is_dir()), 1):
        if case is not None and not (videos / entry.name).is_dir():
            write_frames(videos / entry.name, animator.animate(case), WORLD.fps, mark)
        pairs.append(data.pair(entry, videos / entry.name, animator.borders(entry.frames)))
        on_progress("generate", number, len(data.entries))
    return pairs, model, data.facts()


def _filmed(job: ModelJob, on_progress: OnProgress) -> tuple[list[Pair], dict[str, Any], dict[str, Any]]:
    """A test set of files: every clip is a job as `xdyna animate` runs it."""
    from xdyna.infer.session import Session

    dataset = open_dataset(Path(job.dataset))
    items = dataset.items[: job.clips]
    choice = choose_model(job.animate.model)
    model = model_facts(choice, job.animate)
    keep_to_model(job.out, {**model, "dataset": str(dataset.folder.absolute())})
    pairs = []
    with Session() as session:
        for number, item in enumerate(items, 1):
            output, photo, problem = job.out / VIDEOS / item.name, item.photo, ""
            make_folder(output.parent)
            try:
                still, driving = _inputs(item, job)
                photo = still
                config = job.animate.model_copy(update={"tracks": item.tracks} if item.tracks else {})
                one = AnimateJob(still, driving, output, config)
                if finished(one) is None:
                    session.run(one)
            except UserError as error:
                problem = str(error)
            pair = Pair(item.name, output, item.truth, item.masks, photo, item.tracks, item.driving, item.scene)
            pairs.append(replace(pair, problem=problem))
            on_progress("generate", number, len(items))
    return pairs, model, _facts(dataset, items)


def _inputs(item: Item, job: ModelJob) -> tuple[Path, Path]:
    """Photo and driving video; where the test set has no such file, one is made of its frames."""
    config = job.protocol.config
    photo, driving = item.photo, item.driving
    if driving.is_dir():
        driving = job.out / DATA / "driving" / f"{item.name}.mp4"
        if not driving.is_file():
            make_folder(driving.parent)
            frames = open_source(item.driving, config)
            with VideoWriter(driving, frames.size_wh, config.fps) as writer:
                for picture in frames.pictures():
                    writer.write(picture())
    if photo is None:
        photo = job.out / DATA / "photos" / f"{item.name}.png"
        if not photo.is_file():
            make_folder(photo.parent)
            first = next(open_source(item.driving, config).pictures())
            write_png(photo, first())
    return photo, driving


def _facts(dataset: Dataset, items: Sequence[Item]) -> dict[str, Any]:
    names = hashlib.sha256("\n".join(item.name for item in items).encode()).hexdigest()
    return {"name": dataset.folder.name, "layout": dataset.layout, "clips": len(items), "names_sha256": names}
