"""Score the videos of one or several methods: measure them one after the other, keep results, sum the sets up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xdyna.configs.evaluate import EvaluateConfig
from xdyna.errors import UserError
from xdyna.infer.evaluate.crew import Crew, Order, ray_actors, threads
from xdyna.infer.evaluate.frames import Image
from xdyna.infer.evaluate.measure import Plan
from xdyna.infer.evaluate.pairs import Pair
from xdyna.infer.evaluate.protocol import Protocol
from xdyna.infer.evaluate.results import FailedLine, Results, ResultsWriter
from xdyna.infer.evaluate.sets import SetState
from xdyna.metrics.registry import available
from xdyna.metrics.specs import Metric, Sample, SetMetric
from xdyna.preprocess.tracks import Tracks
from xdyna.provenance import read_provenance

logger = logging.getLogger("xdyna")

#: Called with the stage's name, how much of it is done, and of how much.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class ScoreJob:
    """What to score, by which protocol, into which file.

    Attributes:
        methods: pairs by the method's name.
        folders: of the methods' videos, for the header.
        out: file of results; one that is there goes on where it stopped.
        protocol: how clips are read.
        config: how the work is done.
        models: facts of the methods' models; read from their videos where not given.
        dataset: facts of the test set.
        command: what the user typed.
    """

    methods: Mapping[str, Sequence[Pair]]
    folders: Mapping[str, Path]
    out: Path
    protocol: Protocol
    config: EvaluateConfig = field(default_factory=EvaluateConfig)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dataset: Mapping[str, Any] | None = None
    command: str = ""


@dataclass(frozen=True)
class Scored:
    """What came of a job.

    Attributes:
        results: the whole file.
        problems: one line for each thing that went wrong with a pair or its features.
        notes: what to think of when reading the numbers.
    """

    results: Results
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def score(job: ScoreJob, on_progress: OnProgress = lambda stage, done, total: None) -> Scored:
    """Measure every pair, append to the results, and sum the sets up.

    Raises:
        UserError: no metric can be had, nothing could be measured, or the results cannot be written.
    """
    metrics, missing = metrics_for(job)
    cache = job.config.cache or job.out.with_name(f"{job.out.stem}.features")
    names = tuple(metric.name for metric in metrics)
    order = Order(job.protocol.config, job.protocol.versions, names, job.config.backbones, cache)
    plan = order.plan()
    problems: list[str] = []
    with (
        ResultsWriter(job.out, _header(job, metrics, missing, plan)) as writer,
        _threads(job.config.threads),
        _crew(job, order, plan) as crew,
    ):
        total, done = sum(len(pairs) for pairs in job.methods.values()), 0
        for method, pairs in job.methods.items():
            state, left_out = SetState(), list[str]()
            for pair, outcome in crew.in_order(pairs, method, writer.done):
                on_progress("measure", done := done + 1, total)
                if isinstance(outcome, UserError):
                    writer.failed(FailedLine(job.protocol.hash, method, pair.name, str(outcome)))
                    problems.append(f"{method}: {pair.name}: {outcome}")
                    continue
                if outcome.is_new:
                    writer.video(outcome.lines)
                for line, features in zip(outcome.lines, outcome.features, strict=True):
                    left_out += state.add(line.clip, features)
            for gone in sorted({video for whose, video in writer.done if whose == method} - {p.name for p in pairs}):
                writer.failed(
                    FailedLine(job.protocol.hash, method, gone, "was measured before and is not there any more")
                )
            problems += [f"{method}: {problem}" for problem in left_out]
            writer.set(state.line(job.protocol.hash, method, left_out))
    results = Results.read(job.out)
    if not results.clips:
        raise UserError(f"{job.out}: not one pair could be measured; the first problem: {problems[0]}")
    notes = [f"{line.method}: {warning}" for line in results.sets for warning in line.warnings]
    return Scored(results, tuple(problems), (*notes, *_without_values(results)))


def _crew(job: ScoreJob, order: Order, plan: Plan) -> AbstractContextManager[Crew]:
    config = job.config
    if config.actors is None:
        return threads(plan, config.workers)
    return ray_actors(order, config.actors, config.threads or 1)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of torch and OpenCV; None leaves them as they are."""
    if count is None:
        yield
        return
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def metrics_for(job: ScoreJob) -> tuple[list[Metric], dict[str, str]]:
    """The metrics that can be asked, and of the others why not, by name.

    Raises:
        UserError: an unknown name, or no metric is left.
    """
    here, missing = available(job.config.metrics, job.config.backbones)
    left_out = {entry.name: entry.reason for entry in missing}
    kept: list[Metric] = []
    most = _most_known(job)
    for metric in here:
        lacks = min((metric.lacks(most, region) for region in metric.regions), key=len)
        if lacks:
            left_out[metric.name] = f"needs {', '.join(lacks)}, which no pair has"
        elif job.protocol.config.frames < metric.least_frames:
            left_out[metric.name] = (
                f"needs clips of {metric.least_frames} frames, protocol {job.protocol.label} has "
                f"{job.protocol.config.frames}"
            )
        elif isinstance(metric, SetMetric) and most.truth is None:
            left_out[metric.name] = "needs truth, which no pair has"
        else:
            kept.append(metric)
    if not kept:
        raise UserError(f"no metric can be measured: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    return kept, left_out


def _most_known(job: ScoreJob) -> Sample:
    """A sample that knows all that any pair's does."""
    files = {kind for pairs in job.methods.values() for pair in pairs for kind in pair.files}
    clip: Image = np.zeros((1, 1, 1, 3), np.uint8)
    return Sample(
        "",
        clip,
        clip if "truth" in files else None,
        clip[..., 0] if "masks" in files and job.protocol.config.masks == "files" else None,
        clip[0] if "photo" in files else None,
        Tracks.empty(1, (1, 1), 1.0) if "tracks" in files else None,
        np.zeros((1, 68, 2)) if "tracks" in files else None,
        borders=(0,) if any(pair.borders for pairs in job.methods.values() for pair in pairs) else (),
    )


def _header(job: ScoreJob, metrics: Sequence[Metric], missing: Mapping[str, str], plan: Plan) -> dict[str, Any]:
    return {
        "protocol": job.protocol.to_json(),
        "protocol_hash": job.protocol.hash,
        "methods": {name: dict(job.models.get(name) or _model_of(pairs)) for name, pairs in job.methods.items()},
        "dataset": None if job.dataset is None else dict(job.dataset),
        "metrics": {
            metric.name: {
                "kind": "set" if isinstance(metric, SetMetric) else "clip", "unit": metric.unit,
                "better": metric.better, "regions": list(metric.regions), "backbone": metric.backbone,
            }
            for metric in metrics
        },
        "missing": dict(missing),
        "backbones": {m.backbone: plan.networks.sha256(m.backbone) for m in metrics if m.backbone is not None},
        "folders": {name: str(folder.absolute()) for name, folder in job.folders.items()},
        "cache": str(plan.cache.folder.absolute()),
        "command": job.command,
    }  # fmt: skip


def _model_of(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What the first video says of the model that made it; empty where it says nothing."""
    made = next((pair.generated for pair in pairs if not pair.problem), None)
    try:
        facts = read_provenance(made) if made is not None else None
    except UserError:
        return {}
    return {"model": facts.get("model"), "model_sha256": facts.get("model_hash")} if facts else {}


def _without_values(results: Results) -> list[str]:
    """A line for every figure that no clip has a value of."""
    notes = []
    for method in results.methods:
        lines = [line for line in results.clips if line.method == method]
        names = dict.fromkeys(key for line in lines for key in line.values)
        for key in names:
            values = [line.values[key] for line in lines if key in line.values]
            if all(np.isnan(values)):
                notes.append(
                    f"{method}: {key} has a value in none of {len(values)} clips: what it looks at (a face, a region, "
                    "motion) was found in none"
                )
    return notes
