"""Context windows: the official lists, and what holds for every open schedule."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from xdyna.windows import (
    blend_weights,
    closed_windows,
    draw_offsets,
    make_windows,
    mirrored_bits,
    open_windows,
    uniform_windows,
)

# A folder named by the environment may hold sets of recorded models only; this file then lies in the default one.
DEFAULT_GOLDENS = Path(__file__).resolve().parents[2] / "shared" / "goldens"
GOLDENS = Path(os.environ.get("XDYNA_GOLDENS") or DEFAULT_GOLDENS)


in_any_time = hypothesis_settings(deadline=None)  # other work may hold the processor


@st.composite
def window_settings(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(number of frames, size, overlap, offset)."""
    size = draw(st.integers(1, 24))
    return (
        draw(st.integers(1, 120)),
        size,
        draw(st.integers(0, size - 1)),
        draw(st.integers(0, 200)),
    )


@in_any_time
@given(window_settings())
def test_open_windows_cover_every_frame_and_never_wrap(settings: tuple[int, int, int, int]) -> None:
    num_frames, size, overlap, offset = settings
    windows = open_windows(num_frames, size, overlap, offset)
    assert {frame for window in windows for frame in window} == set(range(num_frames))
    for window in windows:
        assert window == list(range(window[0], window[0] + min(size, num_frames)))
    for left, right in pairwise(windows):
        assert left[0] < right[0]
        assert left[-1] + 1 - right[0] >= overlap


@in_any_time
@given(window_settings(), st.sampled_from(["open", "closed", "grid"]))
def test_weights_sum_to_one(settings: tuple[int, int, int, int], schedule: str) -> None:
    num_frames, size, overlap, offset = settings
    windows = make_windows(schedule, num_frames, size, overlap, offset)
    weights = blend_weights(windows, num_frames, overlap, schedule)
    total = np.zeros(num_frames)
    for window, weight in zip(windows, weights, strict=True):
        assert len(window) == len(weight)
        first = [frame not in window[:place] for place, frame in enumerate(window)]
        assert ((weight > 0) == first).all()
        np.add.at(total, window, weight)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@in_any_time
@given(window_settings())
def test_open_needs_at_most_one_window_more_than_the_shortest_cover(settings: tuple[int, int, int, int]) -> None:
    num_frames, size, overlap, offset = settings
    stride = size - overlap
    fewest = max(1, -(-(num_frames - overlap) // stride))
    assert len(open_windows(num_frames, size, overlap, offset)) <= fewest + 1


@in_any_time
@given(window_settings())
def test_grid_windows_begin_at_fixed_frames(settings: tuple[int, int, int, int]) -> None:
    num_frames, size, overlap, offset = settings
    windows = make_windows("grid", num_frames, size, overlap, offset)
    assert {frame for window in windows for frame in window} == set(range(num_frames))
    assert [window[0] for window in windows] == [k * (size - overlap) for k in range(len(windows))]
    for window in windows:
        whole = range(window[0], window[0] + min(size, num_frames))
        assert window == [min(frame, num_frames - 1) for frame in whole]


def test_seams_move_with_the_offset() -> None:
    starts = {tuple(window[0] for window in open_windows(100, offset=offset)) for offset in range(12)}
    assert len(starts) == 12


def test_a_wide_overlap_drops_the_window_between() -> None:
    assert [window[0] for window in open_windows(24, offset=5)] == [0, 8]
    assert [window[0] for window in open_windows(28, offset=5)] == [0, 5, 12]


def test_weights_ramp_over_the_overlap() -> None:
    first, second = blend_weights([list(range(8)), list(range(5, 13))], 13, overlap=3)
    np.testing.assert_allclose(first, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25], atol=1e-6)
    np.testing.assert_allclose(second, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1], atol=1e-6)


def test_closed_weights_are_coverage_counts() -> None:
    windows = closed_windows(20, 16, 4, offset=3)
    count = np.zeros(20)
    for window in windows:
        count[window] += 1
    for window, weight in zip(windows, blend_weights(windows, 20, 4, "closed"), strict=True):
        np.testing.assert_allclose(weight, 1 / count[window], rtol=1e-6)


def test_uncovered_frame_is_named() -> None:
    with pytest.raises(ValueError, match="frame 2 of 4 is in no window"):
        blend_weights([[0, 1], [3]], 4)


def test_offsets_are_seeded_and_in_range() -> None:
    def drawn(schedule: str) -> list[int]:
        return draw_offsets(torch.Generator().manual_seed(3), 500, schedule)

    assert drawn("open") == drawn("open")
    assert set(drawn("open")) == set(range(12))
    assert set(drawn("closed")) == set(range(16))
    assert set(drawn("grid")) == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 16, 4, 0), "0 driving frames, wanted at least 1"),
        ((9, 0, 0, 0), "wanted 0 <= overlap < size"),
        ((9, 4, 4, 0), "windows of 4 frames that share 4"),
        ((9, 4, 1, -1), "offset is -1, wanted 0 or more"),
    ],
)
@pytest.mark.parametrize("schedule", ["open", "closed", "grid"])
def test_bad_sizes_are_refused(schedule: str, arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_windows(schedule, *arguments)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule is 'ring', wanted one of open, closed"):
        make_windows("ring", 20)


def test_mirrored_bits() -> None:
    assert [mirrored_bits(step) for step in range(6)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625]


@pytest.mark.parity
def test_official_lists_are_exact() -> None:
    path = next(
        (f / "context_uniform.json" for f in (GOLDENS, DEFAULT_GOLDENS) if (f / "context_uniform.json").is_file()), None
    )
    if path is None:
        pytest.skip("context_uniform.json is neither in XDYNA_GOLDENS nor in the default folder")
    golden = json.loads(path.read_text())
    for step, fraction in golden["ordered_halving"].items():
        assert mirrored_bits(int(step)) == fraction
    for case in golden["cases"]:
        got = uniform_windows(
            case["num_frames"],
            case["context_size"],
            case["context_overlap"],
            stride=case["context_stride"],
            step=case["step"],
            closed_loop=case["closed_loop"],
            offset=case["offset"],
        )
        assert got == case["windows"], {key: value for key, value in case.items() if key != "windows"}
        if (case["context_stride"], case["step"], case["closed_loop"]) == (1, 0, True):
            plain = closed_windows(case["num_frames"], case["context_size"], case["context_overlap"], case["offset"])
            assert plain == case["windows"]
