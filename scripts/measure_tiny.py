"""Measure a model of the synthetic world on held-out clips against every bar it is held to.

    python scripts/measure_tiny.py [MODEL] [--without-adapter MODEL] [--config train/tiny-motion] [--out FOLDER]

Runs the pipeline of the model's folder, as a user does. Prints a table of bars, and writes `bars.json`, `sheet.png`
(per clip: truth, pose map, model; the reference first) and some MP4s. On one core 64 clips in one step take some three
minutes; `--quick` measures 12.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from xdyna.configs import find_preset
from xdyna.configs.train import WorldConfig
from xdyna.data.synthetic.clips import World
from xdyna.metrics.bars import (
    Bar,
    Figures,
    frozen,
    identity,
    joint_figures,
    likeness,
    living,
    living_bars,
    loose_and_firm,
    means,
    noise_of_equal_energy,
    true_background,
)
from xdyna.metrics.clips import Frames
from xdyna.metrics.expression import openness, pooled_correlation
from xdyna.metrics.held_out import (
    FIRST_BUST,
    FIRST_LONG,
    Case,
    build_case,
    held_out_cases,
    stopped_cases,
    swapped_case,
)
from xdyna.metrics.joints import WEIGHTS, load_regressor
from xdyna.metrics.lag import lag
from xdyna.metrics.seam import frame_differences, split_differences, window_borders
from xdyna.pipeline import XDynaPipeline
from xdyna.video.write import VideoWriter
from xdyna.windows import make_windows

ROOT = Path(__file__).resolve().parents[1]
FRAMES, LONG_FRAMES = 16, 40


class Model:
    """A pipeline with the settings that all clips are made with."""

    def __init__(self, folder: Path, steps: int, guidance: float) -> None:
        self.pipe = XDynaPipeline.from_pretrained(folder)
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.guidance = steps, guidance

    def animate(self, case: Case, *, face: bool = True, seed: int = 1) -> Frames:
        """uint8 RGB [F, H, W, 3]."""
        made = self.pipe(
            case.reference.frames[0],
            case.pose_maps,
            case.face_maps if face else None,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=torch.Generator().manual_seed(seed),
            vae_batch=16,
            output_type="np",
        ).frames[0]
        return np.asarray(np.round(made * 255), np.uint8)

    def round_trip(self, frames: Frames) -> Frames:
        """The frames after the autoencoder: what no model of these latents can beat."""
        vae = self.pipe.vae
        with torch.no_grad():
            pictures = torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
            decoded = vae.decode(vae.encode(pictures.to(vae.dtype)).latent_dist.mode()).sample.float()
        return np.asarray(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1))


@torch.no_grad()
def main() -> None:
    """Measure, print, write."""
    options = parse()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    began_s = time.monotonic()
    world = read_world(options.config)
    model = Model(options.model, options.steps, options.guidance)
    other = Model(options.without_adapter, options.steps, options.guidance) if options.without_adapter else None
    options.out.mkdir(parents=True, exist_ok=True)
    bars, clips = held_out_bars(model, other, world, options)
    bars += expression_bars(model, world, options.bust)
    bars += lag_bars(model, world, options.stops)
    bars += seam_bars(model, world, options.long)
    taken_s = time.monotonic() - began_s
    print(table(bars))
    failed = sum(bar.passed is False for bar in bars)
    print(f"{failed} of {sum(bar.passed is not None for bar in bars)} bars not reached")
    print(f"{options.clips} clips of {FRAMES} frames, {options.steps} steps, {taken_s:.0f} s")
    report = {
        "model": str(options.model), "clips": options.clips, "steps": options.steps, "guidance": options.guidance,
        "seconds": round(taken_s), "bars": [asdict(bar) for bar in bars], "per_clip": clips,
    }  # fmt: skip
    (options.out / "bars.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def parse() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "xdyna/weights/tiny", help="pipeline folder")
    parser.add_argument("--without-adapter", type=Path, help="the same model trained without an adapter")
    parser.add_argument("--config", default="train/tiny-motion", help="training preset or YAML whose world is used")
    parser.add_argument("--out", type=Path, default=Path("measured"), help="folder for JSON, sheet and videos")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--bust", type=int, default=16, help="close-ups for the expression bars")
    parser.add_argument("--stops", type=int, default=8, help="clips of people who stop")
    parser.add_argument("--long", type=int, default=4, help="clips of 40 frames for the seam")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="12 clips, 4 close-ups, 2 that stop, 1 long one")
    options = parser.parse_args()
    if options.quick:
        options.clips, options.bust, options.stops, options.long = 12, 4, 2, 1
    return options


def read_world(config: str) -> World:
    """The world of a training preset (configs/train) or YAML file, looping each second whatever it says."""
    given = yaml.safe_load(find_preset(config).read_text(encoding="utf-8")).get("world", {})
    return World(**WorldConfig(**{**given, "loop_s": 1.0, "scene_only": 0.0}).model_dump())


# --- self- and cross-driven clips -------------------------------------------------------------------------------------


def held_out_bars(model: Model, other: Model | None, world: World, options: Any) -> tuple[list[Bar], list[Figures]]:
    """Likeness, joints, identity and the living scene; and every clip's figures."""
    regressor = load_regressor() if WEIGHTS.is_file() else None
    rng = np.random.default_rng(0)
    rows: dict[str, list[Figures]] = {
        name: [] for name in ("model", "truth", "copy", "vae", "without", "frozen", "noise")
    }
    scenes, modes, sheet = [], [], []
    for number, case in enumerate(held_out_cases(world, options.clips, FRAMES)):
        made, truth = model.animate(case), case.truth.frames
        copied = np.broadcast_to(case.reference.frames, truth.shape)
        decoded, background = model.round_trip(truth), true_background(case)
        shown = {"model": made, "truth": truth, "copy": copied, "vae": decoded}
        if other is not None:
            shown["without"] = other.animate(case)
        for name, frames in shown.items():
            figures = likeness(case, frames) | identity(case, frames) | living(frames, background)
            rows[name].append(figures | (joint_figures(case, frames, regressor) if regressor else {}))
        rows["frozen"].append(living(frozen(case), background))
        rows["noise"].append(living(noise_of_equal_energy(case, rng), background))
        scenes.append(case.spec.scene)
        modes.append(case.mode)
        if number < 8:
            sheet.append(strip(case, made))
            write_video(options.out / f"{case.name.replace(' ', '-')}.mp4", case, made, world.fps)
        print(f"\r{number + 1}/{options.clips}", end="", flush=True)
    print()
    cv2.imwrite(str(options.out / "sheet.png"), np.concatenate(sheet)[..., ::-1])
    bars = likeness_bars(rows) + person_bars(rows, modes)
    for label, name in (("", "model"), ("[VAE of truth] ", "vae"), ("[frozen] ", "frozen"), ("[noise] ", "noise")):
        found = living_bars(rows[name], scenes, label)
        bars += found if not label else [replace(bar, passed=None, wanted=f"({bar.wanted})") for bar in found]
        if label in ("[frozen] ", "[noise] "):
            failed = sum(bar.passed is False for bar in found)
            bars.append(Bar(f"{label}bars of the living scene that it fails", failed, ">= 1", failed >= 1))
    named = [
        {"mode": mode, "scene": scene, **row} for mode, scene, row in zip(modes, scenes, rows["model"], strict=True)
    ]
    return bars, named


def likeness_bars(rows: dict[str, list[Figures]]) -> list[Bar]:
    """PSNR of the figure and SSIM against the copied reference and the model without adapter, beside the ceiling."""
    found = {name: means(row) for name, row in rows.items() if row}
    rivals = [name for name in ("copy", "without") if name in found]
    bars = []
    for key, title, margin in (("psnr_figure", "PSNR of the figure, dB", 3.0), ("ssim", "SSIM, whole", 0.0)):
        best = max(found[name][key] for name in rivals)
        value = found["model"][key]
        beside = {name: found[name][key] for name in (*rivals, "vae")}
        passed = value >= best + margin if margin else value > best
        bars.append(Bar(title, value, f">= {best + margin:.2f}" if margin else f"> {best:.3f}", passed, beside))
    for key, title in (("psnr_whole", "PSNR, whole, dB"), ("psnr_background", "PSNR of the background, dB")):
        beside = {name: found[name][key] for name in (*rivals, "vae")}
        bars.append(Bar(title, found["model"][key], "-", None, beside))
    return bars


def person_bars(rows: dict[str, list[Figures]], modes: list[str]) -> list[Bar]:
    """Joints and identity, over all clips and by mode."""

    def by_mode(key: str) -> Figures:
        table = rows["model"]
        parts = {mode: [r[key] for r, m in zip(table, modes, strict=True) if m == mode and key in r] for mode in modes}
        beside = {mode: float(np.mean(values)) for mode, values in parts.items() if values}
        return beside | {name: rival[key] for name, rival in others.items() if key in rival}

    def colours(figures: Figures) -> Figures:
        return {key: value for key, value in figures.items() if key.startswith("de_")}

    others = {name: means(rows[name]) for name in ("truth", "vae", "copy", "without") if rows[name]}
    found, bars = means(rows["model"]), []
    if "joints_px" in found:
        px, pck = found["joints_px"], found["pck"]
        bars += [
            Bar("joints: distance to the driving ones, px", px, "<= 3", px <= 3, by_mode("joints_px")),
            Bar("joints: PCK at 0.1 of the height", pck, ">= 0.9", pck >= 0.9, by_mode("pck")),
        ]
    overall, *rivals = (float(np.mean(list(colours(one).values()))) for one in (found, *others.values()))
    beside = dict(zip(others, rivals, strict=True))
    bars.append(Bar("identity: colour distance, mean of regions, dE76", overall, "<= 10", overall <= 10, beside))
    for key, value in colours(found).items():
        beside = by_mode(key) | {"CIEDE2000": found[key.replace("de_", "de2000_")]}
        bars.append(Bar(f"identity: {key.removeprefix('de_')}, dE76", value, "<= 10", value <= 10, beside))
    return bars


# --- faces ------------------------------------------------------------------------------------------------------------


def expression_bars(model: Model, world: World, count: int) -> list[Bar]:
    """Openness of mouth and eyes on close-ups with and without the face ControlNet, and whether a stranger shows."""
    if not count:
        return []
    close = replace(world, framings={"bust": 1.0})
    read: dict[str, list[Any]] = {name: [] for name in ("truth", "vae", "with", "without", "swapped")}
    colours: dict[str, list[Figures]] = {"with": [], "swapped": []}
    lowest_px = np.inf
    for number in range(count):
        case = build_case(close, FIRST_BUST + number, FRAMES)
        lowest_px = min(lowest_px, float(np.ptp(case.truth.tracks.face_xy[..., 1], axis=1).min()))
        swapped = swapped_case(close, case, number)
        clips = {
            "truth": case.truth.frames, "vae": model.round_trip(case.truth.frames), "with": model.animate(case),
            "without": model.animate(case, face=False), "swapped": model.animate(swapped),
        }  # fmt: skip
        for name, frames in clips.items():
            read[name].append(openness(frames, case.truth.tracks.face_xy))
        for name, found in colours.items():
            found.append(identity(case, clips[name]))
    bars = []
    for part in ("mouth", "eyes"):
        truth = [getattr(one, part) for one in read["truth"]]
        match = {
            name: pooled_correlation([getattr(one, part) for one in read[name]], truth)
            for name in ("with", "without", "swapped", "vae")
        }
        wanted = min(0.7, 0.85 * match["vae"])
        passed = match["with"] >= wanted and match["without"] < match["with"]
        words = f">= {wanted:.2f}, lower without"
        value = match.pop("with")
        beside = match | {"lowest face, px": lowest_px}
        bars.append(Bar(f"expression: {part}, correlation with truth", value, words, passed, beside))
    own, leaked = means(colours["with"]), means(colours["swapped"])
    leaks = {key.removeprefix("de_"): leaked[key] - own[key] for key in own if key.startswith("de_")}
    worst = max(leaks.values())
    bars.append(Bar("identity leak of a swapped face, worst region, dE76", worst, "<= 2", worst <= 2, leaks))
    return bars


# --- time -------------------------------------------------------------------------------------------------------------


def lag_bars(model: Model, world: World, count: int) -> list[Bar]:
    """How long hair and skirts go on after the body has stopped."""
    found: dict[str, list[float]] = {"model": [], "truth": [], "vae": []}
    for case, stop in stopped_cases(world, count, FRAMES):
        loose, firm = loose_and_firm(case)
        clips = {"model": model.animate(case), "truth": case.truth.frames, "vae": model.round_trip(case.truth.frames)}
        for name, frames in clips.items():
            found[name].append(lag(frames, loose, firm, stop, world.fps))
    if not found["truth"]:
        return []
    value, truth, decoded = (float(np.nanmean(found[name])) for name in ("model", "truth", "vae"))
    passed = 0.5 * truth <= value <= 2 * truth
    beside = {"truth": truth, "vae": decoded, "clips": len(found["truth"])}
    return [
        Bar("lag: loose parts go on after the stop, s", value, f"{0.5 * truth:.3f} .. {2 * truth:.3f}", passed, beside)
    ]


def seam_bars(model: Model, world: World, count: int) -> list[Bar]:
    """Frame differences across the windows' borders against those inside; beside it those of the truth."""
    if not count:
        return []
    pipe = model.pipe
    schedule = pipe.config.get("schedule", "open")
    borders = window_borders(make_windows(schedule, LONG_FRAMES), LONG_FRAMES)
    parts: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {"model": [], "truth": []}
    for number in range(count):
        case = build_case(world, FIRST_LONG + number, LONG_FRAMES)
        for name, frames in (("model", model.animate(case)), ("truth", case.truth.frames)):
            parts[name].append(split_differences(frame_differences(frames), borders))
    ratios = {
        name: float(np.mean([a.mean() for a, _ in found]) / np.mean([b.mean() for _, b in found]))
        for name, found in parts.items()
    }
    value = ratios.pop("model")
    return [Bar("seam: difference across window borders / inside", value, "0.9 .. 1.1", 0.9 <= value <= 1.1, ratios)]


# --- output -----------------------------------------------------------------------------------------------------------


def table(bars: list[Bar]) -> str:
    """The bars as aligned text."""
    lines = []
    for bar in bars:
        verdict = {True: "pass", False: "FAIL", None: ""}[bar.passed]
        beside = ", ".join(f"{name} {value:.3g}" for name, value in bar.beside.items())
        lines.append(f"{verdict:4}  {bar.name:58} {bar.value:8.3f}  {bar.wanted:22}  {beside}")
    return "\n".join(lines)


def strip(case: Case, made: Frames, columns: int = 8) -> Frames:
    """Rows of a contact sheet [H, W, 3]: truth, pose map and model, the reference in front of each."""
    picked = np.linspace(0, len(made) - 1, columns).round().astype(int)
    rows = [
        np.concatenate([case.reference.frames[0], *clip[picked]], 1)
        for clip in (case.truth.frames, case.pose_maps, made)
    ]
    return np.repeat(np.repeat(np.concatenate(rows), 2, 0), 2, 1)


def write_video(path: Path, case: Case, made: Frames, fps: float) -> None:
    """Reference, truth and model side by side."""
    reference = np.broadcast_to(case.reference.frames, made.shape)
    frames = np.concatenate([reference, case.truth.frames, made], 2).repeat(3, 1).repeat(3, 2)
    with VideoWriter(path, (frames.shape[2], frames.shape[1]), fps) as writer:
        for frame in frames:
            writer.write(frame)


if __name__ == "__main__":
    main()
