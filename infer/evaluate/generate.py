"""Videos of a model for a test set: drawn cases straight through the pipeline, files as `xdyna animate` runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xdyna.configs.animate import AnimateConfig
from xdyna.configs.fast import with_preset
from xdyna.errors import UserError
from xdyna.files import make_folder, written_whole
from xdyna.infer.engine.long import anchored, chosen_noise
from xdyna.infer.engine.presets import build_predictor, check_fast
from xdyna.infer.load import ModelChoice, build_scheduler, choose_device, choose_dtype, choose_model, load_pipeline
from xdyna.metrics.held_out import Case
from xdyna.metrics.seam import window_borders
from xdyna.windows import make_windows

RECORD = "model.json"
#: Settings that change no pixel by more than rounding, or not at all; a run may go on with others.
_FREE = ("device", "window_batch", "vae_batch", "vram", "deterministic")

OnProgress = Callable[[str, int, int], None]


class Animator:
    """A model with the settings that all clips are made with.

    Args:
        config: its `model` is loaded; presets and the model's own defaults are filled in.
    Raises:
        UserError: no such model, or settings that it does not take.
    """

    def __init__(self, config: AnimateConfig) -> None:
        self.choice: ModelChoice = choose_model(config.model)
        config, self.notes = with_preset(config, self.choice.defaults())
        self.config = config.with_model_defaults(self.choice.defaults())
        device = choose_device(self.config.device)
        dtype = choose_dtype(self.config.dtype, device)
        self.pipe = load_pipeline(self.choice, self.config.model_copy(update={"scheduler": None}), device, dtype)
        self._scheduler = self.pipe.scheduler
        self._fresh_scheduler()
        check_fast(self.pipe, self.config)

    def _fresh_scheduler(self) -> None:
        fresh = type(self._scheduler).from_config(self._scheduler.config)
        self.pipe.scheduler = build_scheduler(self.config.scheduler, fresh, self.config.fast.spacing)

    @torch.no_grad()
    def animate(self, case: Case) -> NDArray[np.uint8]:
        """The case's clip, uint8 RGB [F, H, W, 3]; the seed is the config's for every clip.

        Raises:
            UserError: a size that the model does not take, or values that are not finite.
        """
        config = self.config
        height, width = case.truth.frames.shape[1:3]
        try:
            self.choice.check_size((width, height))
        except UserError as error:
            raise UserError(f"the test set is {width}x{height} px: {error}") from None
        self._fresh_scheduler()
        windows = 1 if config.window_batch == "auto" else config.window_batch
        face = case.face_maps if config.face is not False and self.choice.has("face_controlnet") else None
        output: Any = self.pipe(
            case.reference.frames[0],
            case.pose_maps,
            face,
            config.prompt or None,
            config.negative_prompt or None,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(config.seed),
            **config.call_settings(),
            window_batch=windows,
            vae_batch=16 if config.vae_batch == "auto" else config.vae_batch,
            predictor=anchored(build_predictor(config), self.pipe.scheduler, config),
            noise=chosen_noise(config, self.pipe, len(case.pose_maps)),
            output_type="np",
        )
        made = np.asarray(output.frames[0])
        if not np.isfinite(made).all():
            raise UserError(f"{self.choice.folder}: the model gave NaN or infinite values; try --set dtype=float32")
        return np.asarray(np.round(made * 255), np.uint8)

    def borders(self, num_frames: int) -> tuple[int, ...]:
        """Borders of context windows in a clip of so many frames."""
        sampling = self.config.sampling()
        schedule = self.config.schedule or self.pipe.config.get("schedule", "open")
        windows = make_windows(schedule, num_frames, sampling.window, sampling.overlap)
        return tuple(window_borders(windows, num_frames))

    def facts(self) -> dict[str, Any]:
        """For the header of results."""
        return model_facts(self.choice, self.config)


def model_facts(choice: ModelChoice, config: AnimateConfig) -> dict[str, Any]:
    """Name, hash and settings of a model, as plain values."""
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key not in _FREE}
    settings["model"] = choice.name
    return {"model": choice.name, "model_sha256": choice.sha256, "settings": settings}


def keep_to_model(folder: Path, facts: Mapping[str, Any]) -> None:
    """Make a folder for a model's videos, or check that those in it are this model's.

    Raises:
        UserError: they were made by another model, or with other settings.
    """
    make_folder(folder)
    record = folder / RECORD
    wanted = json.loads(json.dumps(facts))
    if record.is_file():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{record}: cannot be read ({error}); remove the folder to begin anew") from None
        if before != wanted:
            other = [key for key in wanted if before.get(key) != wanted[key]]
            raise UserError(
                f"{folder}: holds videos of another run (other {', '.join(other)}); name another --out, or remove it "
                "to begin anew"
            )
        return
    with written_whole(record) as part:
        part.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
