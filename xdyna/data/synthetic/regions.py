"""Which pixels of a drawn person show skin, hair, top and bottom.

A clip is drawn again with colours that name its parts; nothing else about it changes, so the regions lie where the
colours do, whatever draws them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.character import Character, Colour
from xdyna.data.synthetic.clips import ClipSpec, render

#: Regions by name, in the order of the channels that code them.
REGIONS = ("skin", "hair", "top", "bottom")
#: A pixel belongs to a region that gives it this share of its colour. Shading takes up to 0.4 of the darkest part's.
LEAST_SHARE = 0.55


def region_masks(
    spec: ClipSpec, times_s: NDArray[np.float64], size_wh: tuple[int, int]
) -> dict[str, NDArray[np.bool_]]:
    """Where each region of `REGIONS` shows in a clip.

    Args:
        spec: what is drawn.
        times_s: [F] seconds.
        size_wh: (width, height), pixels.

    Returns:
        Bool [F, H, W] by name. Eyes, lips, shoes, hats and patterns belong to no region.
    """

    def draw(**colours: Colour) -> NDArray[np.int16]:
        painted = replace(spec, character=_painted(spec.character, colours), scene="studio", scene_key=(0,))
        return render(painted, times_s, size_wh, 1.0).frames.astype(np.int16)

    # What is drawn is linear in a part's colour: the difference to black is that part alone.
    black = draw()
    first = draw(skin=(255, 0, 0), hair=(0, 255, 0), top=(0, 0, 255)) - black
    second = draw(bottom=(255, 0, 0)) - black
    shares = (first[..., 0], first[..., 1], first[..., 2], second[..., 0])
    return {name: share >= LEAST_SHARE * 255 for name, share in zip(REGIONS, shares, strict=True)}


def _painted(character: Character, colours: dict[str, Colour]) -> Character:
    """The character in black but for the given parts."""
    black = (0, 0, 0)
    skin, hair, top, bottom = (colours.get(name, black) for name in REGIONS)
    return replace(character, skin=skin, hair=hair, top=top, bottom=bottom)
