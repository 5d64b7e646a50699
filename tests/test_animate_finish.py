"""Enlarging and the visible mark."""

import numpy as np
import pytest

from xdyna.errors import UserError
from xdyna.infer.finish import Finisher


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
@pytest.mark.parametrize("text", ["AI", "AI-made by xdyna"])
def test_the_mark_is_seen_and_lies_inside(size_wh: tuple[int, int], text: str) -> None:
    marked = Finisher(size_wh, watermark=text)(grey(size_wh))
    assert marked.dtype == np.uint8
    rows, columns = np.nonzero((marked != 100).any(axis=2))
    assert len(rows) > 20
    assert rows.min() > size_wh[1] * 0.6, "only at the bottom"
    assert rows.max() < size_wh[1] - 1, "not cut off"
    assert columns.max() < size_wh[0] - 1
    if text == "AI":
        assert columns.min() > size_wh[0] * 0.4, "at the right"
    assert marked.max() > 150, "white on grey is seen"
    assert marked.min() < 90, "and has a dark edge"


@pytest.mark.parametrize("text", ["made with xdyna by somebody with a very long name", "  ", "\u6d41"])
def test_a_mark_that_could_not_be_read_is_refused_before_the_work(text: str) -> None:
    with pytest.raises(UserError, match=r"^--watermark: .*--upscale"):
        Finisher((64, 96), watermark=text)
