"""Enlarging, the visible mark and the side-by-side picture."""

import numpy as np
import pytest

from xdyna.errors import UserError
from xdyna.infer.finish import Finisher, draw_mark, side_by_side


def grey(size_wh: tuple[int, int], value: int = 100) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((size_wh[1], size_wh[0], 3), value, np.uint8)


def test_nothing_asked_for_changes_nothing() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (48, 32, 3), np.uint8)
    finish = Finisher((32, 48))
    assert finish(frame) is frame
    assert finish.size_wh == (32, 48)


def test_upscale_keeps_flat_colours() -> None:
    finish = Finisher((32, 48), upscale=3)
    assert finish.size_wh == (96, 144)
    assert (finish(grey((32, 48))) == 100).all()


@pytest.mark.parametrize("size_wh", [(64, 96), (128, 192), (512, 896), (896, 512)])
@pytest.mark.parametrize("text", ["AI", "AI-made by pyxis"])
def test_the_mark_is_seen_and_lies_inside(size_wh: tuple[int, int], text: str) -> None:
    color, opacity = draw_mark(text, size_wh)
    assert color.shape == (size_wh[1], size_wh[0], 3)
    rows, columns = np.nonzero(opacity[..., 0])
    assert len(rows) > 20
    assert rows.min() > size_wh[1] * 0.6, "only at the bottom"
    assert rows.max() < size_wh[1] - 1, "not cut off"
    assert columns.max() < size_wh[0] - 1
    if text == "AI":
        assert columns.min() > size_wh[0] * 0.4, "at the right"

    marked = Finisher(size_wh, watermark=text)(grey(size_wh))
    assert marked.dtype == np.uint8
    untouched = opacity[..., 0] == 0
    assert (marked[untouched] == 100).all()
    assert marked.max() > 150, "white on grey is seen"
    assert marked.min() < 90, "and has a dark edge"


def test_a_mark_that_could_not_be_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"does not fit a frame 64 px wide.*--upscale"):
        draw_mark("made with xdyna by somebody with a very long name", (64, 96))


def test_side_by_side_scales_to_one_height() -> None:
    row = side_by_side([grey((64, 96), 10), grey((30, 24), 20), grey((32, 48), 30)], 48)
    assert row.shape == (48, 32 + 2 + 60 + 2 + 32, 3)
    assert [int(row[0, x, 0]) for x in (0, 33, 34, 95, 96)] == [10, 0, 20, 0, 30]
