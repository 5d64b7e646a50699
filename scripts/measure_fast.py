"""Measure what the fast presets save, and what they cost in quality against the drawn truth.

    python scripts/measure_fast.py [MODEL] [--clips 6] [--steps 25] [--out fast.json]

Quality is that of a model of the synthetic world on held-out clips, every preset on every clip, beside `exact` with
`--steps` steps. Savings are of counted operations on SD1.5-size networks without values, at `--size`, per whole clip
with its decoding; seconds are of the quality runs, in turn on every clip.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from xdyna.configs import find_preset, load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.configs.fast import with_preset
from xdyna.configs.train import WorldConfig
from xdyna.data.synthetic.clips import World
from xdyna.infer.bench.flops import EqualWhenEmpty, flop_counter
from xdyna.infer.bench.models import StillScheduler, draw_inputs, empty_model
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.engine.presets import build_predictor
from xdyna.infer.load import build_scheduler
from xdyna.metrics.clips import Frames
from xdyna.metrics.held_out import Case, held_out_cases
from xdyna.metrics.motion_energy import map_correlation, motion_energy, motion_map
from xdyna.metrics.psnr import psnr
from xdyna.metrics.ssim import ssim
from xdyna.pipeline import XDynaPipeline

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("exact", "balanced", "fast", "turbo", "turbo + LoRA")
FRAMES = 16
#: Ingredients alone, laid over `exact`.
ALONE: dict[str, dict[str, Any]] = {
    "dpm++, 12 steps": {"steps": 12, "scheduler": "dpm++", "fast": {"spacing": "trailing"}},
    "unipc, 12 steps": {"steps": 12, "scheduler": "unipc", "fast": {"spacing": "trailing"}},
    "dpm++, 8 steps": {"steps": 8, "scheduler": "dpm++", "fast": {"spacing": "trailing"}},
    "guidance to 0.5": {"fast": {"guidance_to": 0.5}},
    "residuals every 2": {"fast": {"residuals_every": 2}},
    "features every 2": {"fast": {"reuse_every": 2}},
    "features every 3": {"fast": {"reuse_every": 3}},
    "features every 2, depth 2": {"fast": {"reuse_every": 2, "reuse_depth": 2}},
    "tokens merged 0.5": {"fast": {"merge_tokens": 0.5}},
}


def settings(name: str, model: AnimateConfig) -> AnimateConfig:
    """A preset's, or an ingredient's, in force on a model."""
    if name in ALONE:
        return load_config(AnimateConfig, values=ALONE[name]).with_model_defaults(model)
    lora = ("distilled.safetensors",) if name.endswith("LoRA") else ()
    asked = load_config(AnimateConfig, values={"preset": name.partition(" ")[0], "lora": lora})
    return with_preset(asked, model)[0].with_model_defaults(model)


# --- what is saved ----------------------------------------------------------------------------------------------------


def operations(names: list[str], size_wh: tuple[int, int], frames: int, steps: int) -> dict[str, float]:
    """Counted operations of a clip on SD1.5-size networks under guidance, decoding included."""
    pipe = empty_model("random-sd15")
    inputs = draw_inputs(pipe, frames, size_wh)
    model = load_config(AnimateConfig, "infer/x-dyna", values={"steps": steps})
    return {name: _counted(pipe, inputs, settings(name, model)) for name in names}


@torch.no_grad()
def _counted(pipe: XDynaPipeline, inputs: dict[str, Any], config: AnimateConfig) -> float:
    pipe.scheduler = StillScheduler()
    sampling = config.sampling()
    steps = sampling.steps
    predictor = build_predictor(config)
    # After the first, exact steps are alike, and two tell it all; others come round after six at the latest.
    alike = type(predictor) is ExactPredictor and steps > 2
    run = 2 if alike else 6 if steps > 12 else steps
    marks: list[int] = []

    def after_step(pipe: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        marks.append(counter.get_total_flops())
        return {}

    with EqualWhenEmpty(), flop_counter() as counter:
        latents: Any = pipe(
            **inputs, num_inference_steps=run, guidance_scale=sampling.guidance, schedule="open",
            generator=torch.Generator().manual_seed(0), predictor=predictor, output_type="latent",
            callback_on_step_end=after_step,
        ).frames  # fmt: skip
        for _ in pipe.decode_frames(latents, 8):
            pass
    total = float(counter.get_total_flops())
    return total + (steps - 2) * (marks[1] - marks[0]) if alike else total + marks[-1] * (steps / run - 1)


# --- what it costs ----------------------------------------------------------------------------------------------------


class Quality:
    """A model of the synthetic world under one setting after the other."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.pipe = XDynaPipeline.from_pretrained(folder)
        self.pipe.set_progress_bar_config(disable=True)
        self.scheduler = self.pipe.scheduler
        self.model = load_config(AnimateConfig, "infer/tiny", values={"steps": steps})

    def animate(self, case: Case, name: str) -> tuple[Frames, float]:
        """uint8 [F, H, W, 3], and seconds of denoising."""
        config = settings(name, self.model)
        fresh = type(self.scheduler).from_config(self.scheduler.config)
        self.pipe.scheduler = build_scheduler(config.scheduler, fresh, config.fast.spacing)
        began_s = time.perf_counter()
        latents: Any = self.pipe(
            case.reference.frames[0], case.pose_maps, case.face_maps, num_inference_steps=config.sampling().steps,
            guidance_scale=config.sampling().guidance, generator=torch.Generator().manual_seed(1),
            predictor=build_predictor(config), output_type="latent",
        ).frames  # fmt: skip
        taken_s = time.perf_counter() - began_s
        made = torch.cat(list(self.pipe.decode_frames(latents, 16)))
        return np.asarray((made * 255).round().byte().permute(0, 2, 3, 1)), taken_s


def measured(made: Frames, case: Case, exact: Frames) -> dict[str, float]:
    """Figures of one clip: against the truth, and against `exact`."""
    truth = case.truth.frames
    return {
        "psnr": psnr(made, truth),
        "ssim": ssim(made, truth),
        "motion": map_correlation(motion_map(made), motion_map(truth)),
        "energy": motion_energy(made) / motion_energy(truth),
        "psnr_exact": min(psnr(made, exact), 99.0),
    }


def quality(folder: Path, names: list[str], clips: int, steps: int) -> dict[str, dict[str, float]]:
    """Means over clips, by setting."""
    model = Quality(folder, steps)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    given = yaml.safe_load(find_preset("train/tiny-motion").read_text(encoding="utf-8")).get("world", {})
    world = World(**WorldConfig(**{**given, "loop_s": 1.0, "scene_only": 0.0}).model_dump())
    for number, case in enumerate(held_out_cases(world, clips, FRAMES)):
        exact: Frames | None = None
        for name in names:
            made, taken_s = model.animate(case, name)
            exact = made if exact is None else exact
            rows[name].append({**measured(made, case, exact), "seconds": taken_s})
        print(f"\r{number + 1}/{clips}", end="", flush=True)
    print()
    return {name: {key: float(np.mean([row[key] for row in own])) for key in own[0]} for name, own in rows.items()}


def table(saved: dict[str, float], cost: dict[str, dict[str, float]], names: list[str]) -> str:
    """Rows of a Markdown table."""
    lines = [
        "| | operations | seconds, tiny | PSNR to truth | SSIM | motion map | motion energy | PSNR to exact |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base, first = saved.get("exact"), cost.get("exact")
    for name in names:
        times = f"{base / saved[name]:.2f}x" if base and name in saved else ""
        row = cost.get(name)
        if row is None or first is None:
            lines.append(f"| {name} | {times} | | | | | | |")
            continue
        lines.append(
            f"| {name} | {times} | {first['seconds'] / row['seconds']:.2f}x | {row['psnr']:.2f}"
            f" ({row['psnr'] - first['psnr']:+.2f}) | {row['ssim']:.3f} | {row['motion']:.3f} | {row['energy']:.2f}"
            f" | {row['psnr_exact']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    options = parse()
    torch.set_num_threads(1)
    names = [*PRESETS, *(ALONE if options.alone else ())]
    # A LoRA for the synthetic world does not exist: with one, `turbo` is counted, not judged.
    judged = [name for name in names if not name.endswith("LoRA")]
    cost = quality(options.model, judged, options.clips, options.steps) if options.clips else {}
    saved = operations(names, options.size, options.frames, options.steps) if options.frames else {}
    print(table(saved, cost, names))
    report = {
        "model": str(options.model), "clips": options.clips, "steps": options.steps,
        "operations": saved, "quality": cost,
    }  # fmt: skip
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def parse() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    pair: Callable[[str], tuple[int, ...]] = lambda text: tuple(int(side) for side in text.split("x"))  # noqa: E731
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "xdyna/weights/tiny", help="pipeline folder")
    parser.add_argument("--clips", type=int, default=6, help="held-out clips; 0 measures no quality")
    parser.add_argument("--steps", type=int, default=25, help="steps of `exact`")
    parser.add_argument("--size", type=pair, default=(512, 896), help="WxH that operations are counted at")
    parser.add_argument("--frames", type=int, default=16, help="frames that operations are counted for; 0 counts none")
    parser.add_argument("--alone", action="store_true", help="every ingredient alone as well")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
