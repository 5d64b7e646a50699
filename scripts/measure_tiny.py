"""Measure a model on held-out clips of the world it was trained on, and draw a contact sheet.

    python scripts/measure_tiny.py [MODEL_FOLDER] [SHEET.png]

Prints PSNR (whole frame and figure) of the model, of the copied reference and of the truth after the autoencoder, and
the mean difference between neighbouring frames, which shows flicker when it is far above the truth's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from xdyna.configs import load_config
from xdyna.configs.train import BringUpConfig
from xdyna.train.parts import load_parts
from xdyna.train.samples import evaluate, held_out_clips, write_sheet

CLIPS, FRAMES = 12, 16


def main(model: Path, sheet: Path | None) -> None:
    """Measure at several numbers of denoising steps."""
    torch.set_num_threads(1)
    config = load_config(BringUpConfig, "train/tiny-motion")
    parts = load_parts(model)
    batch = held_out_clips(config, CLIPS, FRAMES)
    truth = batch.frames[:, 1:].astype(float)
    print(
        f"{CLIPS} clips of {FRAMES} frames; frame difference of the truth {np.abs(np.diff(truth, axis=1)).mean():.2f}"
    )
    for steps in (4, 8):
        values, made = evaluate(parts, batch, steps, face=False)
        flicker = np.abs(np.diff(made.astype(float), axis=1)).mean()
        text = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        print(f"{steps} steps: {text}, frame difference {flicker:.2f}", flush=True)
        if sheet:
            write_sheet(sheet.with_stem(f"{sheet.stem}-{steps}"), batch, made, clips=6, frames=8)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "xdyna/weights/tiny",
        Path(sys.argv[2]) if len(sys.argv) > 2 else None,
    )
