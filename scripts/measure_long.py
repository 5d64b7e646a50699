"""Measure colour drift and seams of long clips of a model, and what the options against them do.

    python scripts/measure_long.py [--model tiny] [--frames 516] [--out FOLDER] [--only NAME ..]

Animates `examples/photo.png` with `examples/dance.tracks.npz`, played forth and back, in one go per variant, and prints
tables. What lies in the folder from an earlier call is measured again but not made again. On a free core a variant of
516 frames takes two to three minutes with `tiny`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.infer.animate import AnimateJob
from xdyna.infer.engine.long import continue_clip
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.load import choose_model, load_pipeline
from xdyna.infer.session import Session
from xdyna.infer.steady import SteadyColours
from xdyna.metrics.drift import drift
from xdyna.metrics.psnr import psnr
from xdyna.metrics.seam import frame_differences, seam, window_borders
from xdyna.photo import read_photo, write_png
from xdyna.preprocess.draw import draw_pose_map
from xdyna.preprocess.tracks import Tracks
from xdyna.windows import make_windows

Clip = NDArray[np.uint8]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: Options of the command, by variant. `continue` has none yet and goes through the library.
VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "independent": ["noise=independent"],
    "mixed": ["noise=mixed"],
    "shuffled": ["noise=shuffled"],
    "anchor": ["anchor=1"],
}
FPS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--frames", type=int, default=516)
    parser.add_argument("--out", type=Path, default=Path("long-video"))
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS, "continue"], default=[*VARIANTS, "continue"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    tracks = args.out / "long.tracks.npz"
    if not tracks.exists():
        forth_and_back(Tracks.load(EXAMPLES / "dance.tracks.npz"), args.frames).save(tracks)

    clips: dict[str, Clip] = {}
    for name in args.only:
        folder = args.out / name
        if not folder.is_dir():
            make = make_continued if name == "continue" else make_by_command
            make(name, folder, tracks, args.model)
        clips[name] = np.stack([read_photo(path) for path in sorted(folder.glob("*.png"))])
    if "continue" in clips:
        clips["continue, steady colours"] = steadied(clips["continue"])
    print_variants(clips, args.model)
    if "plain" in clips:
        print_steady(clips["plain"])


def forth_and_back(tracks: Tracks, num_frames: int) -> Tracks:
    """The first frame to the last and back, over and over: nobody jumps."""
    order = [*range(len(tracks)), *range(len(tracks) - 2, 0, -1)]
    return tracks[[order[frame % len(order)] for frame in range(num_frames)]]


def make_by_command(name: str, folder: Path, tracks: Path, model: str) -> None:
    settings = [f"model={model}", f"tracks={tracks}", *VARIANTS[name]]
    config = load_config(AnimateConfig, "infer/auto", settings)
    with Session() as session:
        session.run(AnimateJob(EXAMPLES / "photo.png", None, folder, config))


def make_continued(name: str, folder: Path, tracks: Path, model: str) -> None:
    """Windows one after the other; the skeletons as they are, not laid onto the photo's body."""
    choice = choose_model(model)
    config = AnimateConfig(model=model).with_model_defaults(choice.defaults())
    sampling = config.sampling()
    pipe = load_pipeline(choice, config, torch.device("cpu"), torch.float32)
    points = Tracks.load(tracks).resized(sampling.size_wh)
    maps = np.stack([draw_pose_map(points, frame, sampling.size_wh) for frame in range(len(points))])
    latents = continue_clip(
        pipe, read_photo(EXAMPLES / "photo.png"), maps, num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance, window=sampling.window, overlap=sampling.overlap,
        generator=torch.Generator().manual_seed(config.seed), predictor=ExactPredictor(),
    )  # fmt: skip
    folder.mkdir()
    for number, frame in enumerate(pipe.decode_frames(latents)):
        write_png(folder / f"{number:06d}.png", (frame[0] * 255).round().byte().permute(1, 2, 0).numpy())


def print_variants(clips: dict[str, Clip], model: str) -> None:
    """Drift and seams of each variant."""
    choice = choose_model(model)
    sampling = AnimateConfig(model=model).with_model_defaults(choice.defaults()).sampling()
    print("| variant | dE at the end | worst dE | dE per minute | histogram, worst | seam | elsewhere | grey levels |")
    print("|---|---|---|---|---|---|---|---|")
    for name, frames in clips.items():
        row = drift(frames, FPS).row()
        if name.startswith("continue"):  # a window's own frames begin where the finished ones end
            pieces = make_windows("continue", len(frames), sampling.window, sampling.overlap)
            borders = [piece[-1] for piece in pieces[:-1]]
        else:
            pieces = make_windows("grid", len(frames), sampling.window, sampling.overlap)
            borders = window_borders(pieces, len(frames))
        shifted = [[(b + by) % (len(frames) - 1) for b in borders] for by in (2, 5, 7, 10)]
        elsewhere = [seam(frames, other) for other in shifted]
        print(
            f"| {name} | {row['dE at the end']:.2f} | {row['worst dE']:.2f} | {row['dE per minute']:.2f} | "
            f"{row['worst histogram']:.2f} | {seam(frames, borders):.3f} | {min(elsewhere):.3f} .. "
            f"{max(elsewhere):.3f} | {frame_differences(frames).mean():.2f} |"
        )


def print_steady(plain: Clip) -> None:
    """The plain clip with drifts put in, before and after `SteadyColours`."""
    print(
        "\n| drift put in | dE at the end | after | histogram, worst | after | PSNR to the clip without, dB | after |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in ("none", "30 grey levels brighter", "30 % more contrast", "60 % more saturation", "20 levels of tint"):
        clip = put_in(plain, name)
        held = steadied(clip)
        before, after = drift(clip, FPS).row(), drift(held, FPS).row()
        print(
            f"| {name} | {before['dE at the end']:.2f} | {after['dE at the end']:.2f} | "
            f"{before['worst histogram']:.2f} | {after['worst histogram']:.2f} | {psnr(clip, plain):.1f} | "
            f"{psnr(held, plain):.1f} |"
        )
    change = np.abs(steadied(plain).astype(int) - plain)
    print(f"\nWithout drift, frames change by {change.mean():.2f} grey levels on average, {change.max()} at most.")


def steadied(clip: Clip) -> Clip:
    hold = SteadyColours(FPS)
    return np.stack([hold(frame) for frame in clip])


def put_in(clip: Clip, name: str) -> Clip:
    """A clip whose colours go off steadily from its first frame to its last."""
    far = np.linspace(0, 1, len(clip))[:, None, None, None]
    values: NDArray[Any] = clip.astype(np.float32)
    grey = values.mean(-1, keepdims=True)
    values = {
        "none": lambda: values,
        "30 grey levels brighter": lambda: values + 30 * far,
        "30 % more contrast": lambda: 128 + (values - 128) * (1 + 0.3 * far),
        "60 % more saturation": lambda: grey + (values - grey) * (1 + 0.6 * far),
        "20 levels of tint": lambda: values + 20 * far * np.asarray([1.0, 0.0, -1.0]),
    }[name]()
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
