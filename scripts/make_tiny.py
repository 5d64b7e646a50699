"""Train the embedded model from nothing and write xdyna/weights/tiny again.

    python scripts/make_tiny.py [--resume]

Runs the presets train/tiny-* one after the other in runs/; see xdyna/weights/tiny/TRAINING.md for how long each took.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from xdyna.configs import load_config
from xdyna.configs.train import RECIPES
from xdyna.train.export import export_pipeline

ROOT = Path(__file__).resolve().parents[1]
STAGES = (
    ("vae", "train/tiny-vae"),
    ("bring_up", "train/tiny-image"),
    ("bring_up", "train/tiny-motion"),
    ("bring_up", "train/tiny-face"),
)


def main(*, resume: bool) -> None:
    """Run every stage, then export."""
    for recipe, preset in STAGES:
        config = load_config(RECIPES[recipe], preset)
        import_module(f"xdyna.train.recipes.{recipe}").train(config, resume=resume)
    out = ROOT / "xdyna" / "weights" / "tiny"
    count = export_pipeline(Path("runs/tiny-face/model"), out)
    print(f"{out}: {count:,} parameters")


if __name__ == "__main__":
    main(resume="--resume" in sys.argv)
