"""Train the embedded model from nothing and write xdyna/weights/tiny again.

    python scripts/make_tiny.py [--resume]

Runs the presets train/tiny-* one after the other in runs/; how the shipped weights came about is in
xdyna/weights/tiny/TRAINING.md.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from xdyna.configs import load_config
from xdyna.configs.recipes import RECIPES
from xdyna.train.export import export_pipeline

ROOT = Path(__file__).resolve().parents[1]
STAGES = (
    ("vae", "train/tiny-vae"),
    ("image", "train/tiny-image"),
    ("image", "train/tiny-motion"),
)


def main(*, resume: bool) -> None:
    """Run every stage, then export."""
    for recipe, preset in STAGES:
        config = load_config(RECIPES[recipe], preset)
        import_module(f"xdyna.train.recipes.{recipe}").train(config, resume=resume)
    out = ROOT / "xdyna" / "weights" / "tiny"
    # Its scenes repeat every 12 frames: windows of 16 that share 4 have to begin at whole loops.
    count = export_pipeline(Path("runs/tiny-motion/model"), out, {"schedule": "grid"})
    print(f"{out}: {count:,} parameters")


if __name__ == "__main__":
    main(resume="--resume" in sys.argv)
