"""From latents to files: decoding, and writing meanwhile what is decoded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import xdyna
from xdyna.configs.animate import AnimateConfig
from xdyna.files import written_whole
from xdyna.infer.animate import AnimateJob, OnProgress, Result, compare_path
from xdyna.infer.finish import Finisher, Image
from xdyna.infer.load import ModelChoice
from xdyna.infer.profile import NoProfile
from xdyna.infer.sources import Sources
from xdyna.infer.steady import SteadyColours
from xdyna.infer.threads import Ahead
from xdyna.preprocess.prepare import Prepared
from xdyna.provenance import provenance
from xdyna.video import VideoWriter, side_by_side

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny
    from torch import Tensor

    from xdyna.infer.engine.fit import Fitted
    from xdyna.pipeline import XDynaPipeline


@dataclass(frozen=True, eq=False)
class Clip:
    """A job whose latents are there.

    Attributes:
        job: as it was asked for.
        config: all settings in force.
        choice: the model.
        sources: the opened inputs.
        prepared: what the model read.
        finish: what is done to each frame.
        pipe: decodes.
        latents: [1, C, F, h, w].
        decoder: decodes in the VAE's place, if there is one.
        fitted: the memory plan in force, if there is one.
        profile: measures.
    """

    job: AnimateJob
    config: AnimateConfig
    choice: ModelChoice
    sources: Sources
    prepared: Prepared
    finish: Finisher
    pipe: XDynaPipeline
    latents: Tensor
    decoder: AutoencoderTiny | None = None
    fitted: Fitted | None = None
    profile: NoProfile = field(default_factory=NoProfile)


def write_clip(clip: Clip, on_progress: OnProgress, began_s: float, *, beside: bool = True) -> Result:
    """Decode into the output, its record and what else was asked for; each appears whole or not at all.

    Args:
        clip: what to write.
        on_progress: called with stage, done and total.
        began_s: when the job began, on the monotonic clock.
        beside: write in a thread of its own while the next frames are decoded.
    Raises:
        UserError: a full disk, a file that cannot be encoded.
    """
    job, config, prepared, finish = clip.job, clip.config, clip.prepared, clip.finish
    more = [compare_path(job.output)] if config.compare else []
    num_frames = clip.latents.shape[2]
    with ExitStack() as stack:
        record = stack.enter_context(written_whole(job.record))
        video = stack.enter_context(_writer(clip, job.output, finish.size_wh))
        add_row = _row_writer(clip, more[0], stack) if more else None

        def write(frame: Image) -> None:
            with clip.profile.span("write"):
                shown = finish(frame)
                video.write(shown)
                if add_row is not None:
                    add_row(shown)

        with Ahead(write, beside=beside) as ahead:
            for frame in clip.profile.each("decode", _decoded(clip)):
                ahead.put(frame)
                on_progress("write", ahead.num_done, num_frames)
        on_progress("write", num_frames, num_frames)
        if config.save_maps is not None:
            more += clip.sources.save_maps(config.save_maps, prepared)
        result = Result(
            job.output, job.record, num_frames, float(prepared.fps), finish.size_wh, config.seed, clip.choice.name,
            clip.choice.sha256, time.monotonic() - began_s, tuple(more),
        )  # fmt: skip
        record.write_text(_record_text(clip, result), encoding="utf-8")
    return result


def _writer(clip: Clip, path: Path, size_wh: tuple[int, int]) -> VideoWriter:
    """A writer with the job's rate, codec, sound and marks."""
    metadata = provenance(model=clip.choice.name, model_hash=clip.choice.sha256, seed=clip.config.seed)
    sound = clip.sources.sound(clip.prepared) if clip.config.audio else None
    return VideoWriter(path, size_wh, clip.prepared.fps, clip.config.codec, sound, metadata, clip.profile.span)


def _row_writer(clip: Clip, path: Path, stack: ExitStack) -> Callable[[Image], None]:
    """What writes each frame once more, beside the photo, the driving frame and the pose map."""
    panels = clip.sources.panels(clip.prepared)
    writer: VideoWriter | None = None

    def add(frame: Image) -> None:
        nonlocal writer
        row = side_by_side([*next(panels), frame], frame.shape[0])
        if writer is None:
            writer = stack.enter_context(_writer(clip, path, (row.shape[1], row.shape[0])))
        writer.write(row)

    return add


def _decoded(clip: Clip) -> Iterator[Image]:
    """uint8 RGB [H, W, 3], one after the other."""
    import torch

    # A batch of one is the one size that no last batch falls short of.
    batch = 1 if clip.config.deterministic else clip.config.vae_batch
    assert batch != "auto"
    steady = SteadyColours(float(clip.prepared.fps)) if clip.config.steady_colours else None
    with torch.no_grad():
        if clip.fitted is None:
            decoded = clip.pipe.decode_frames(clip.latents, batch, clip.decoder)
        else:
            decoded = clip.fitted.decode(clip.latents, clip.decoder)
        for frames in decoded:
            pixels = (frames * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            yield from pixels if steady is None else map(steady, pixels)


def _record_text(clip: Clip, result: Result) -> str:
    """Settings in force, seed and model. No times: the same job writes the same bytes here too."""
    record = {
        "tool": "xdyna",
        "version": xdyna.__version__,
        "asked": clip.job.description(),
        "resolved": clip.config.model_dump(mode="json"),
        "seed": clip.config.seed,
        "model": {"name": clip.choice.name, "folder": str(clip.choice.folder), "sha256": clip.choice.sha256},
        "align": clip.prepared.align,
        "start_frame": clip.prepared.start_frame,
        "frames": result.num_frames,
        "fps": str(Fraction(clip.prepared.fps)),
        "size": list(result.size_wh),
        "warnings": clip.prepared.warnings,
    }
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
