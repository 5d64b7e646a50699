"""Draw docs/images/scenes.png: every kind of scene at three moments of a loop, and where it moves.

python scripts/make_scene_sheet.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.data.synthetic.flow import scene_motion_mask
from xdyna.data.synthetic.scenes import SCENES
from xdyna.photo import write_png

SIZE_WH = (80, 120)
TIMES_S = np.asarray([0.0, 0.25, 0.5])
GAP_PX = 3
OUT = Path(__file__).parents[1] / "docs" / "images" / "scenes.png"


def main() -> None:
    """Write the picture."""
    columns = []
    for number, name in enumerate(SCENES):
        spec = clip_spec(World(seed=12, scenes=(name,), loop_s=1.0, framings={"full": 1.0}), number)
        frames = list(render(spec, TIMES_S, SIZE_WH, 12.0).frames)
        moving = np.repeat((scene_motion_mask(spec, SIZE_WH) * 255).astype(np.uint8)[..., None], 3, -1)
        framed = [np.pad(tile, ((0, GAP_PX), (0, GAP_PX), (0, 0)), constant_values=255) for tile in (*frames, moving)]
        columns.append(np.concatenate(framed))
    write_png(OUT, np.concatenate(columns, 1)[:-GAP_PX, :-GAP_PX])
    print(f"{OUT}: {', '.join(SCENES)}")


if __name__ == "__main__":
    main()
