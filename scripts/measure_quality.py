"""Measure what the quality gate in the tests holds the shipped model to, and how much of it is noise.

    python scripts/measure_quality.py [--out tests/quality.json]

The first clips of the test set `synthetic-v1`, generated once for each of several seeds. The gate fails where a figure
is worse than the mean by more than three times its spread over seeds (and by more than rounding). Run it after
training, and commit the file with the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

import torch

from xdyna.configs.animate import AnimateConfig
from xdyna.infer.evaluate.generate import Animator
from xdyna.infer.evaluate.synthetic import WORLD, entries
from xdyna.metrics.bars import identity, joint_figures, likeness, living, true_background
from xdyna.metrics.held_out import build_case
from xdyna.metrics.joints import load_regressor

ROOT = Path(__file__).resolve().parents[1]
CLIPS, SEEDS = 4, 6
#: Figures of the gate, and whether more of them is better.
FIGURES = {
    "psnr_figure": True, "psnr_background": True, "ssim": True, "joints_px": False, "de_top": False, "de_skin": False,
    "map": True,
}  # fmt: skip


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "quality.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(seed) for seed in range(SEEDS)]
    kept = {
        name: {
            "mean": round(statistics.mean(row[name] for row in rows), 5),
            "spread": round(statistics.stdev(row[name] for row in rows), 6),
            "higher_is_better": higher,
        }
        for name, higher in FIGURES.items()
    }
    options.out.write_text(json.dumps({"clips": CLIPS, "seeds": SEEDS, "figures": kept}, indent=1) + "\n")
    print(options.out.read_text())


def measure(seed: int) -> dict[str, float]:
    """Mean of every figure over the clips, made with a seed."""
    animator, regressor = Animator(AnimateConfig(model="tiny", seed=seed)), load_regressor()
    values: dict[str, list[float]] = defaultdict(list)
    for entry in entries(CLIPS):
        case = build_case(WORLD, entry.index, entry.frames, entry.mode)
        made = animator.animate(case)
        found = {**likeness(case, made), **joint_figures(case, made, regressor), **identity(case, made)}
        found |= living(made, true_background(case))
        for name in FIGURES:
            if name in found:
                values[name].append(found[name])
    return {name: statistics.mean(found) for name, found in values.items()}


if __name__ == "__main__":
    main()
