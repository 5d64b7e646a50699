"""The same base, data, steps and test clips for several ways to show a model its reference: who does what better.

A plan (`configs/ablation/*.yaml`) names methods and seeds. Every run is one training and one evaluation, and leaves one
JSON record, so that a plan may take days. The page of whatever records there are is `xdyna.train.ablation_page`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from xdyna.configs.ablation import AblationConfig
from xdyna.configs.animate import AnimateConfig
from xdyna.configs.evaluate import EvaluateConfig
from xdyna.configs.recipes import RECIPES
from xdyna.configs.train import TrainConfig
from xdyna.errors import UserError
from xdyna.infer.bench.machine import describe_machine
from xdyna.infer.evaluate.model import ModelJob, evaluate_model
from xdyna.infer.evaluate.protocol import load_protocol
from xdyna.infer.evaluate.records import read_record, record_of, write_record
from xdyna.infer.load import choose_model

OnProgress = Callable[[str, int, int], None]

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Trial:
    """One run of a plan.

    Attributes:
        method: its name in the plan.
        seed: of its training.
    """

    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}"


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where a plan is carried out.

    Attributes:
        plan: what is compared.
        records: folder of one JSON per finished run.
        work: folder of training runs, videos and test clips.
    """

    plan: AblationConfig
    records: Path
    work: Path

    def trials(self) -> list[Trial]:
        """Every run: the first seed of every method, then the second of those that have one, and so on."""
        methods = self.plan.methods
        most = max(len(method.seeds) for method in methods)
        return [
            Trial(method.name, method.seeds[turn]) for turn in range(most) for method in methods
            if turn < len(method.seeds)
        ]  # fmt: skip

    def record_path(self, trial: Trial) -> Path:
        return self.records / f"{trial.name}.json"

    def videos(self, trial: Trial) -> Path:
        """Folder of a trial's generated clips."""
        return self.work / trial.name / "evaluation" / "videos"

    @property
    def data(self) -> Path:
        """Folder of the test clips, which all trials share."""
        return self.work / "data"


def waiting(shop: Workshop, *, resume: bool = False, most: int | None = None) -> dict[Trial, dict[str, Any]]:
    """The runs that have no record yet, with their terms.

    Args:
        resume: go on with a plan of which records are there.
        most: not more than so many.

    Raises:
        UserError: records are there and `resume` is off; one was made under another plan; no base.
    """
    base = choose_model(str(shop.plan.base))
    known = {trial: terms_of(shop.plan, trial, base.sha256) for trial in shop.trials()}
    there = [trial for trial in known if shop.record_path(trial).exists()]
    if there and not resume:
        raise UserError(f"{shop.records}: holds records of {len(there)} runs; add --resume to go on, or name --records")
    for trial in there:
        check_record(shop.record_path(trial), known[trial])
    return {trial: known[trial] for trial in [trial for trial in known if trial not in there][:most]}


def terms_of(plan: AblationConfig, trial: Trial, base_sha256: str) -> dict[str, Any]:
    """What makes two runs comparable: a record of other terms is refused."""
    method = plan.method(trial.method)
    protocol = load_protocol(plan.protocol)
    return {
        "method": trial.method,
        "recipe": method.recipe,
        "seed": trial.seed,
        "train": json.loads(json.dumps({**plan.train, **method.train})),
        "animate": json.loads(json.dumps(method.animate)),
        "base_sha256": base_sha256,
        "dataset": plan.dataset,
        "clips": plan.clips,
        "protocol": protocol.hash,
    }


def check_record(path: Path, terms: dict[str, Any]) -> dict[str, Any]:
    """A run's record.

    Raises:
        UserError: it cannot be read, or is of a run under other terms.
    """
    record = read_record(path, ("terms", "training", "clips", "sets", "metrics"))
    before: dict[str, Any] = record["terms"]
    other = sorted(key for key in {*terms, *before} if terms.get(key) != before.get(key))
    if other:
        raise UserError(f"{path}: was run under another plan (other {', '.join(other)}); remove it to run again")
    return record


def train_config(shop: Workshop, trial: Trial) -> TrainConfig:
    """Settings of a trial's training."""
    method = shop.plan.method(trial.method)
    given = {**shop.plan.train, **method.train, "seed": trial.seed, "base": shop.plan.base}
    return RECIPES[method.recipe].model_validate({**given, "out": shop.work / trial.name / "training"})


def train_trial(shop: Workshop, trial: Trial) -> Path:
    """Train, or go on with a training that was stopped; returns the model's folder.

    Raises:
        UserError: what the recipe refuses, or the training was stopped by SIGTERM.
    """
    cfg = train_config(shop, trial)
    model = cfg.out / "model"
    if model.is_dir():
        return model
    recipe = import_module(f"xdyna.train.recipes.{shop.plan.method(trial.method).recipe}")
    result: Path = recipe.train(cfg, resume=cfg.out.exists())
    if result != model:
        raise UserError(f"{trial.name}: training was stopped, its last checkpoint is {result}; --resume goes on")
    return model


def score_trial(
    shop: Workshop, trial: Trial, model: Path, terms: dict[str, Any], on_progress: OnProgress | None = None
) -> Path:
    """Generate and measure the test clips; write and return the run's record."""
    plan, method = shop.plan, shop.plan.method(trial.method)
    settings = AnimateConfig.model_validate({**method.animate, "model": str(model)})
    out = shop.videos(trial).parent
    measured = EvaluateConfig(metrics=tuple(dict.fromkeys(figure.key.rpartition("/")[0] for figure in plan.figures)))
    job = ModelJob(
        settings, plan.dataset, out, load_protocol(plan.protocol), measured, trial.name, plan.clips, shop.data,
        f"xdyna bench ablation: {trial.name}",
    )  # fmt: skip
    scored = evaluate_model(job, on_progress or (lambda stage, done, total: None))
    if scored.problems:
        raise UserError(f"{trial.name}: not every clip could be measured: {scored.problems[0]}")
    path = shop.record_path(trial)
    figures = record_of(scored.results, trial.name)
    write_record(path, {"terms": terms, "training": _training(model.parent), **figures})
    return path


def _training(folder: Path) -> dict[str, Any]:
    """What a training run says of itself: parameters, seconds and the loss of its last steps."""
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last = lines[-50:]
    return {
        "steps": lines[-1]["step"],
        "seconds": round(_busy_seconds([line["time"] for line in lines]), 1),
        "loss_of_last_steps": round(sum(line["loss"] for line in last) / len(last), 6),
        "log_sha256": hashlib.sha256((folder / "log.jsonl").read_bytes()).hexdigest(),
        "machine": describe_machine("cpu"),
    }


def _busy_seconds(times: list[float]) -> float:
    """Time between steps, without the breaks of a run that was resumed."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    usual = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
    return sum(gap for gap in gaps if gap < 20 * usual)
