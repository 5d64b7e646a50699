"""Folders of tiny clips for tests of evaluation, and a set metric that needs no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xdyna.metrics import registry
from xdyna.metrics.registry import SetMetric
from xdyna.photo import save_png

WIDTH, HEIGHT, FRAMES = 24, 32, 16
SET = "grid-frechet"


def true_clip(seed: int, frames: int = FRAMES, size_wh: tuple[int, int] = (WIDTH, HEIGHT)) -> NDArray[np.uint8]:
    """A smooth texture that slides, uint8 [F, H, W, 3]."""
    rng = np.random.default_rng(seed)
    width, height = size_wh
    x, y, t = np.meshgrid(np.arange(width), np.arange(height), np.arange(frames), indexing="xy")
    clip = np.zeros((frames, height, width, 3))
    for channel in range(3):
        fx, fy, speed = rng.uniform(0.1, 0.5, 3)
        clip[..., channel] = 128 + 90 * np.sin(fx * x + fy * y + speed * t + rng.uniform(0, 6)).transpose(2, 0, 1)
    return clip.round().astype(np.uint8)


def noisy(clip: NDArray[np.uint8], strength: float, seed: int) -> NDArray[np.uint8]:
    """The clip with normal noise of so many grey levels."""
    noise = np.random.default_rng(seed).normal(0, strength, clip.shape)
    return np.clip(np.round(clip + noise), 0, 255).astype(np.uint8)


def put_frames(folder: Path, clip: NDArray[np.uint8]) -> Path:
    """A folder of PNG files, colour or grey."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(clip):
        save_png(folder / f"{number:06d}.png", frame)
    return folder


def left_half(frames: int = FRAMES, size_wh: tuple[int, int] = (WIDTH, HEIGHT)) -> NDArray[np.uint8]:
    """Masks [F, H, W]: the person stands on the left."""
    masks = np.zeros((frames, size_wh[1], size_wh[0]), np.uint8)
    masks[:, :, : size_wh[0] // 2] = 255
    return masks


def put_set(root: Path, names: str = "abcd", *, strength: float = 8.0, seed: int = 0, method: str = "made") -> Path:
    """`root/truth`, `root/masks` and `root/METHOD`, a clip for each letter; truth and masks are kept where they are."""
    for number, name in enumerate(names):
        truth = true_clip(100 + number)
        if not (root / "truth" / name).exists():
            put_frames(root / "truth" / name, truth)
            put_frames(root / "masks" / name, left_half())
        put_frames(root / method / name, noisy(truth, strength + number, seed + number))
    return root


def grid_features(frames: NDArray[np.uint8], masks: Any, region: str, backbone: Any) -> NDArray[np.float32]:
    """Mean colours of four parts of each frame, [F, 12]; what is outside the region is grey."""
    del backbone
    shown = frames.astype(np.float32)
    if region != "all":
        inside = (masks >= 128) == (region == "fg")
        shown = np.where(inside[..., None], shown, 128)
    height, width = frames.shape[1] // 2, frames.shape[2] // 2
    parts = shown[:, : 2 * height, : 2 * width].reshape(len(frames), 2, height, 2, width, 3)
    return parts.mean((2, 4)).reshape(len(frames), 12).astype(np.float32)


def add_grid_metric(patched: pytest.MonkeyPatch) -> None:
    """Put a Frechet distance of `grid_features` among the metrics."""
    metric = SetMetric(
        name=SET, unit="", better="lower", needs=frozenset({"truth"}), regions=("all", "fg", "bg"),
        features=grid_features,
    )  # fmt: skip
    patched.setitem(registry.METRICS, SET, metric)  # type: ignore[arg-type]


@pytest.fixture
def grid_metric(monkeypatch: pytest.MonkeyPatch) -> str:
    """`add_grid_metric` for one test; its name."""
    add_grid_metric(monkeypatch)
    return SET
