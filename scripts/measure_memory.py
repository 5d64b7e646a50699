"""How much memory a whole `xdyna animate` takes for clips of several lengths: each runs in a process of its own.

    python scripts/measure_memory.py --frames 200 2000 --steps 2
    python scripts/measure_memory.py --frames 60 --batches 1 4 8

Prints, for each, the most memory that was resident at once and how long it took, and how much more a frame more took.
With several batches (`--window-batch`) it prints what the plan counts for each beside what was resident. The clip is
drawn: a figure that waves, with its tracks beside it, so that no detector's memory is in the figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np

from xdyna.configs.animate import AnimateConfig
from xdyna.photo import write_png
from xdyna.preprocess.draw import draw_pose_map
from xdyna.preprocess.tracks import NUM_FACE_POINTS, SUFFIX, Tracks
from xdyna.video import VideoWriter

# Shares of the frame's width and height, in the order of JOINT_NAMES.
_STANDING = (
    (0.50, 0.15), (0.50, 0.25),
    (0.40, 0.25), (0.36, 0.38), (0.33, 0.50), (0.60, 0.25), (0.64, 0.38), (0.67, 0.50),
    (0.44, 0.52), (0.43, 0.70), (0.42, 0.90), (0.56, 0.52), (0.57, 0.70), (0.58, 0.90),
    (0.48, 0.13), (0.52, 0.13), (0.46, 0.14), (0.54, 0.14),
)  # fmt: skip


def figure(num_frames: int, size_wh: tuple[int, int], fps: float = 15.0) -> Tracks:
    """A standing person whose hands go up and down."""
    tracks = Tracks.empty(num_frames, size_wh, fps)
    tracks.joints_xy[:] = np.asarray(_STANDING, np.float32) * np.asarray(size_wh, np.float32)
    tracks.joints_xy[:, [4, 7], 1] -= 0.08 * size_wh[1] * np.abs(np.sin(0.3 * np.arange(num_frames)))[:, None]
    tracks.joints_conf[:] = 1
    angle = np.linspace(0, 2 * np.pi, NUM_FACE_POINTS, endpoint=False)
    tracks.face_xy[:] = tracks.joints_xy[:, :1] + np.stack([np.cos(angle), np.sin(angle)], -1) * size_wh[1] * 0.05
    tracks.face_conf[:] = 1
    return tracks


def draw(folder: Path, num_frames: int, size_wh: tuple[int, int]) -> tuple[Path, Path]:
    """Write photo and driving video, with tracks beside them."""
    tracks = figure(num_frames, size_wh)
    photo, video = folder / "photo.png", folder / f"driver{num_frames}.mp4"
    write_png(photo, np.maximum(draw_pose_map(tracks, 0, size_wh), np.uint8(90)))
    tracks[:1].save(photo.with_name(f"photo{SUFFIX}"))
    with VideoWriter(video, size_wh, tracks.fps) as writer:
        for index in range(num_frames):
            writer.write(np.maximum(draw_pose_map(tracks, index, size_wh), np.uint8(64)))
    tracks.save(video.with_name(f"{video.stem}{SUFFIX}"))
    return photo, video


def run(command: list[str]) -> tuple[float, float]:
    """The most resident memory (MiB) and the time (s) of a command that must succeed."""
    began_s = time.monotonic()
    pid = os.spawnv(os.P_NOWAIT, command[0], command)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return usage.ru_maxrss / 1024, time.monotonic() - began_s


def counted(num_frames: int, batch: int) -> float:
    """What the plan of `tiny` on a CPU counts for a clip with face maps, MiB."""
    import torch

    from xdyna.infer.engine.memory import Shapes
    from xdyna.infer.engine.plan import make_plan, work_of
    from xdyna.infer.engine.predict import DEFAULT_FEATURES_BYTES
    from xdyna.infer.load import choose_model, load_pipeline

    choice = choose_model("tiny")
    config = AnimateConfig(model="tiny").with_model_defaults(choice.defaults())
    pipe = load_pipeline(choice, config, torch.device("cpu"), torch.float32)
    work = work_of(config, num_frames, face=pipe.face_controlnet is not None, schedule=pipe.config.schedule)
    plan = make_plan(Shapes(pipe), work, torch.device("cpu"), window_batch=batch, features_bytes=DEFAULT_FEATURES_BYTES)
    return plan.peak / (1 << 20)


def main() -> None:
    """Draw, run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="windows per call of the UNet")
    parser.add_argument("--driver", type=int, nargs=2, default=[192, 288], metavar=("W", "H"))
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder, last = Path(name), None
        for number, batch in product(args.frames, args.batches):
            photo, video = draw(folder, number, tuple(args.driver))
            files = ["--ref", photo, "--pose-video", video, "-o", folder / f"out{number}-{batch}.mp4"]
            settings = ["--model", "tiny", "--steps", args.steps, "--window-batch", batch]
            command = [sys.executable, "-m", "xdyna.cli", "animate", *map(str, files + settings), *more]
            memory_mib, seconds = run(command)
            beside = f", {counted(number, batch):.0f} MiB counted" if len(args.batches) > 1 else ""
            print(
                f"{number} frames, {batch} at once: {memory_mib:.0f} MiB resident at most{beside}, {seconds:.0f} s",
                flush=True,
            )
            if last is not None and number > last[0]:
                print(
                    f"    {1024 * (memory_mib - last[1]) / (number - last[0]):.1f} KiB for each frame more", flush=True
                )
            last = number, memory_mib


if __name__ == "__main__":
    main()
