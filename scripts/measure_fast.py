"""Measure what the fast presets save, and what they cost in quality against the drawn truth.

    python scripts/measure_fast.py [MODEL] [--clips 6] [--steps 25] [--timed 96x96] [--json fast.json]

Quality is that of a model of the synthetic world on held-out clips, every preset on every clip, against the truth and
against two kinds of `exact`: with `--steps` steps, and with the preset's own steps and scheduler, which tells the price
of what the preset leaves out of a step from that of fewer steps. Savings are of counted operations on SD1.5-size
networks without values, at `--size`, per whole clip with its decoding; seconds are of the quality runs, in turn on
every clip, and with `--timed` of SD1.5-size networks with random weights (8 GB). The bars are judged at the end.
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
from torch import nn

from xdyna.configs import find_preset, load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.configs.fast import FastConfig, with_preset
from xdyna.configs.train import WorldConfig
from xdyna.data.synthetic.clips import World
from xdyna.infer.bench.flops import EqualWhenEmpty, flop_counter
from xdyna.infer.bench.machine import describe_machine
from xdyna.infer.bench.models import StillScheduler, draw_inputs, empty_model, filled
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
#: What is `exact` but for a preset's steps and scheduler.
SAME = " without its switches"
#: Of each preset: how many times faster at least, and less than how many dB lost.
BARS = {"balanced": (2.5, 0.3), "fast": (5.0, 1.0)}
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
    if name.endswith(SAME):
        preset = settings(name.removesuffix(SAME), model)
        return preset.model_copy(update={"fast": FastConfig(spacing=preset.fast.spacing)})
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


@torch.no_grad()
def seconds(names: list[str], size_wh: tuple[int, int], frames: int, steps: int) -> dict[str, float]:
    """Seconds of a clip on SD1.5-size networks of random weights under guidance, decoding included.

    Steps of `exact` are alike: three are run, and those after the first counted for the others.
    """
    pipe = _random_model("random-sd15")
    inputs = draw_inputs(pipe, frames, size_wh)
    model = load_config(AnimateConfig, "infer/x-dyna", values={"steps": steps})
    found = {}
    for name in names:
        config = settings(name, model)
        predictor, sampling = build_predictor(config), config.sampling()
        alike = type(predictor) is ExactPredictor and sampling.steps > 3
        marks = [time.perf_counter()]

        def after_step(pipe: Any, step: int, timestep: Any, tensors: Any, marks: list[float] = marks) -> dict[str, Any]:
            marks.append(time.perf_counter())
            return {}

        latents: Any = pipe(
            **inputs, num_inference_steps=3 if alike else sampling.steps, guidance_scale=sampling.guidance,
            schedule="open", generator=torch.Generator().manual_seed(0), predictor=predictor, output_type="latent",
            callback_on_step_end=after_step,
        ).frames  # fmt: skip
        for _ in pipe.decode_frames(latents, 1):
            pass
        found[name] = time.perf_counter() - marks[0]
        if alike:
            found[name] += (sampling.steps - 3) * (marks[3] - marks[1]) / 2
        print(f"{name}: {found[name]:.1f} s", flush=True)
    return found


def _random_model(name: str) -> XDynaPipeline:
    """In memory, of one seed."""
    pipe = empty_model(name)
    pipe.scheduler = StillScheduler()
    for part in pipe.components.values():
        if isinstance(part, nn.Module) and next(part.parameters()).is_meta:
            part.to_empty(device="cpu")
            for buffer in part.buffers():
                buffer.zero_()
            filled(part, 0)
    return pipe


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


def measured(made: Frames, wanted: Frames) -> dict[str, float]:
    """Figures of one clip against another."""
    return {
        "psnr": min(psnr(made, wanted), 99.0),
        "ssim": ssim(made, wanted),
        "motion": map_correlation(motion_map(made), motion_map(wanted)),
        "energy": motion_energy(made) / motion_energy(wanted),
    }


def quality(folder: Path, names: list[str], clips: int, steps: int) -> dict[str, dict[str, Any]]:
    """Means over clips, by setting: `truth`, `exact` and `same` (see the top of the file), and `seconds`."""
    model = Quality(folder, steps)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    given = yaml.safe_load(find_preset("train/tiny-motion").read_text(encoding="utf-8")).get("world", {})
    world = World(**WorldConfig(**{**given, "loop_s": 1.0, "scene_only": 0.0}).model_dump())
    for number, case in enumerate(held_out_cases(world, clips, FRAMES)):
        made = {name: model.animate(case, name) for name in names}
        for name, (frames, taken_s) in made.items():
            row: dict[str, Any] = {"seconds": taken_s, "truth": measured(frames, case.truth.frames)}
            for kind, other in (("exact", "exact"), ("same", name + SAME)):
                if other in made and name != other:
                    row[kind] = measured(frames, made[other][0])
            rows[name].append(row)
        print(f"\r{number + 1}/{clips}", end="", flush=True)
    print()
    return {name: _mean(own) for name, own in rows.items()}


def _mean(rows: list[Any]) -> Any:
    """Of numbers, or of mappings number by number."""
    if isinstance(rows[0], dict):
        return {key: _mean([row[key] for row in rows]) for key in rows[0]}
    return float(np.mean(rows))


def tables(report: dict[str, Any]) -> str:
    """Two Markdown tables: against the truth, and against `exact`'s pictures."""
    cost, saved, timed = report["quality"], report["operations"], report["seconds"]
    names = [name for name in dict.fromkeys([*saved, *timed, *cost]) if not name.endswith(SAME)]
    first = cost.get("exact", {})

    def times(found: dict[str, float], name: str) -> str:
        return f"{found['exact'] / found[name]:.2f}x" if name in found else ""

    def change(row: dict[str, Any], key: str, places: int) -> str:
        value, base = row["truth"][key], first["truth"][key]
        return f"{value:.{places}f}" + (f" ({value - base:+.{places}f})" if row is not first else "")

    lines = [
        "| | operations | seconds, SD1.5 size | seconds, tiny | PSNR to truth (to exact's) | to its own steps' | SSIM"
        " | motion map | motion energy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    seconds_of = {name: row["seconds"] for name, row in cost.items()}
    for name in names:
        cells = [name, times(saved, name), times(timed, name), times(seconds_of, name)]
        if name in cost:
            row, same = cost[name], cost.get(name + SAME)
            cells.append(change(row, "psnr", 2))
            cells.append("" if same is None else f"{row['truth']['psnr'] - same['truth']['psnr']:+.2f}")
            cells += [change(row, key, places) for key, places in (("ssim", 3), ("motion", 3), ("energy", 2))]
        lines.append("| " + " | ".join([*cells, *[""] * (9 - len(cells))]) + " |")
    lines += [
        "",
        "| its pictures against | exact's: PSNR | SSIM | motion map | motion energy | its own steps': PSNR | SSIM"
        " | motion map | motion energy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        if "exact" not in cost.get(name, {}):
            continue
        cells = [name]
        for kind in ("exact", "same"):
            row = cost[name].get(kind)
            cells += [""] * 4 if row is None else [
                f"{row['psnr']:.1f}", f"{row['ssim']:.3f}", f"{row['motion']:.3f}", f"{row['energy']:.2f}"
            ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def judged(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar with what was measured, and whether it is met; those that nothing was measured for are left out."""
    bars: list[dict[str, Any]] = []
    cost = report["quality"]

    def add(name: str, what: str, value: float, wanted: str, met: bool) -> None:
        bars.append({"preset": name, "what": what, "value": round(value, 3), "wanted": wanted, "met": bool(met)})

    for name, (faster, lost) in BARS.items():
        for what, found in (("operations", report["operations"]), ("seconds, SD1.5 size", report["seconds"])):
            if name in found:
                value = found["exact"] / found[name]
                add(name, what, value, f"at least {faster}x", value >= faster)
        for what, other in (("dB lost to exact", "exact"), ("dB lost to exact in its own steps", name + SAME)):
            if name in cost and other in cost:
                value = cost[other]["truth"]["psnr"] - cost[name]["truth"]["psnr"]
                add(name, what, value, f"less than {lost}", value < lost)
    return bars


def main() -> None:
    """Measure, print, judge, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    names = [*PRESETS, *(ALONE if options.alone else ())]
    # A LoRA for the synthetic world does not exist: with one, `turbo` is counted, not judged.
    shown = [name for name in names if not name.endswith("LoRA")]
    shown += [name + SAME for name in PRESETS[1:] if name in shown]
    report: dict[str, Any] = {
        "model": str(options.model), "clips": options.clips, "steps": options.steps, "size": options.size,
        "timed": options.timed, "frames": options.frames, "machine": describe_machine("cpu"),
        "quality": quality(options.model, shown, options.clips, options.steps) if options.clips else {},
        "operations": operations(names, options.size, options.frames, options.steps) if options.frames else {},
        "seconds": seconds(list(PRESETS), options.timed, FRAMES, options.steps) if options.timed else {},
    }  # fmt: skip
    report["bars"] = judged(report)
    print(tables(report))
    print()
    for bar in report["bars"]:
        met = "met" if bar["met"] else "NOT MET"
        print(f"{bar['preset']}: {bar['what']}: {bar['value']:.2f}, wanted {bar['wanted']}: {met}")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


def parse() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    pair: Callable[[str], tuple[int, ...]] = lambda text: tuple(int(side) for side in text.split("x"))  # noqa: E731
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "xdyna/weights/tiny", help="pipeline folder")
    parser.add_argument("--clips", type=int, default=6, help="held-out clips; 0 measures no quality")
    parser.add_argument("--steps", type=int, default=25, help="steps of `exact`")
    parser.add_argument("--size", type=pair, default=(512, 896), help="WxH that operations are counted at")
    parser.add_argument("--frames", type=int, default=16, help="frames that operations are counted for; 0 counts none")
    parser.add_argument("--alone", action="store_true", help="every ingredient alone as well")
    parser.add_argument("--timed", type=pair, help="WxH of clips timed on networks of SD1.5's size (8 GB of memory)")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
