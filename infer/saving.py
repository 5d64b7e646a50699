"""When a job's work is saved, and what tells one job's work from another's."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import xdyna
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer.kept import array_sha256, file_sha256
from xdyna.infer.load import ModelChoice, choose_dtype, split_lora
from xdyna.infer.processes import Team
from xdyna.infer.sources import Sources
from xdyna.infer.work import Work
from xdyna.preprocess.prepare import Prepared

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from xdyna.pipeline import XDynaPipeline
    from xdyna.resume import DenoiseState

#: Jobs that will take longer are saved after each step.
LONG_S = 60.0
#: Settings that are not compared: what becomes of the frames may differ from one attempt to the next; which files are
#: read and how is told by what the model reads, which is compared itself.
_NOT_COMPARED = {
    "model", "lora", "device", "dtype", "window_batch", "vae_batch", "start", "fps", "stride", "frames", "detector",
    "dwpose_det", "dwpose_pose", "tracks", "pose_maps", "person", "smooth", "align", "face", "official_maps", "codec",
    "audio", "compare", "watermark", "upscale", "save_maps", "preset", "small_decoder",
}  # fmt: skip

logger = logging.getLogger("xdyna")


class Saving:
    """Saves a job's work after each step, from the first on or once the job turns out to be long.

    Args:
        work: where.
        facts: gives what tells the job from others; asked once, when it is needed, since it reads the model.
        always: true saves from the first step on, None where the job is long, false never.
        team: processes that share the job; the first one saves.
    """

    def __init__(
        self, work: Work, facts: Callable[[], Mapping[str, Any]], *, always: bool | None, team: Team | None = None
    ) -> None:
        self._team = team or Team()
        self._work, self._make_facts, self._always = work, facts, always if self._team.leads else False
        self._facts: Mapping[str, Any] | None = None
        self._on = bool(self._always)
        self._first_step = 0
        self._began_s = time.monotonic()

    @property
    def is_on(self) -> bool:
        """Whether steps are saved by now."""
        return self._on

    def begin(self) -> DenoiseState | None:
        """Where to go on from, if this job's work was saved.

        Raises:
            UserError: another job's was.
        """
        state = None
        if self._always is not False and self._work.has_state():
            self._work.check(self._known_facts())
            state = self._work.load()
        state = self._team.broadcast(state)
        if state is not None:
            self._on, self._first_step = self._team.leads, state.step
            logger.info("%s: goes on after step %d", self._work.folder, state.step)
        self._began_s = time.monotonic()
        return state

    def after_step(self, pipe: XDynaPipeline, step: int, latents: Tensor) -> None:
        """Save, if it is time to."""
        done = step + 1 - self._first_step
        expected_s = (time.monotonic() - self._began_s) / done * pipe.num_timesteps
        if not self._on and self._always is None and expected_s > LONG_S:
            self._on = True
            logger.info("%s: the work is saved here; after a stop the same command goes on with it", self._work.folder)
        if self._on:
            self._work.save(pipe.state_after(step, latents, copy=False), self._known_facts())

    def _known_facts(self) -> Mapping[str, Any]:
        if self._facts is None:
            self._facts = self._make_facts()
        return self._facts


def job_facts(config: AnimateConfig, device: torch.device) -> dict[str, Any]:
    """What tells a job from others before its files are read: settings, versions, the machine's device.

    Args:
        config: with the model's defaults filled in.
        device: that it runs on.
    """
    import torch

    settings = config.model_dump(mode="json", exclude=_NOT_COMPARED)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"version": xdyna.__version__, "torch": torch.__version__}
    loras = [[file_sha256(path), scale] for path, scale in map(split_lora, config.lora)]
    dtype = str(choose_dtype(config.dtype, device))
    return _plain({**settings, **versions, "device": machine, "dtype": dtype, "lora": loras})


def all_facts(
    config: AnimateConfig, device: torch.device, choice: ModelChoice, sources: Sources, prepared: Prepared
) -> dict[str, Any]:
    """All that the latents depend on: `job_facts`, the model, and what it reads.

    Args:
        config: with batches decided.
        device: as for `job_facts`.
        choice: the model.
        sources: the photo.
        prepared: the maps.
    """
    local, whole = prepared.face_maps or (None, None)
    hashes = {
        "photo": array_sha256(sources.photo),
        "reference": array_sha256(prepared.reference),
        "pose maps": array_sha256(prepared.pose_maps),
        "local face maps": None if local is None else array_sha256(local),
        "global face maps": None if whole is None else array_sha256(whole),
    }
    facts = {**job_facts(config, device), **hashes, "window_batch": config.window_batch, "model": choice.sha256}
    return _plain(facts)


def see_same_job(team: Team, facts: Callable[[], Mapping[str, Any]]) -> None:
    """See that all processes of a team read the same and would do the same.

    Args:
        team: the processes.
        facts: gives those of this process's job, see `all_facts`.
    Raises:
        UserError: they differ, as where files on two machines do.
    """
    if team.size == 1:
        return
    first, *others = team.gather(dict(facts()))
    for rank, other in enumerate(others, 1):
        names = [name for name, value in first.items() if other.get(name) != value and name != "device"]
        if names:
            raise UserError(
                f"process {rank} has another {names[0]} than process 0: wanted the same command, files, model and "
                "versions everywhere"
            )


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain
