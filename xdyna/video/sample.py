"""Which frame is shown when: sampling a clip by its time stamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Timed(NamedTuple, Generic[T]):
    """Something shown from `time` for `duration`, both seconds."""

    time: Fraction
    duration: Fraction
    item: T


def sample_by_time(
    shown: Iterable[Timed[T]], rate: Fraction, *, start: Fraction, stride: int = 1, limit: int | None = None
) -> Iterator[T]:
    """What is shown at `start`, `start + stride/rate`, `start + 2 stride/rate` ..

    A frame takes over where its time stamp, rounded to the nearer side, says so: it may be up to half an output
    frame (or half its own distance to the frame before) early. A clip of constant rate sampled at that rate hence
    gives every frame once even where the container rounds time stamps to milliseconds.

    Args:
        shown: in order of time.
        rate: samples per second before `stride`.
        start: time of the first sample, seconds.
        stride: keep every Nth sample.
        limit: at most this many.
    Yields:
        One item per sample; `round((end - start) * rate)` samples before `stride`, but at least one where `start`
        lies before the end.
    """
    step = stride / rate
    num_given = 0
    held: Timed[T] | None = None

    def given_until(time: Fraction, item: T) -> Iterator[T]:
        nonlocal num_given
        while start + num_given * step <= time and num_given != limit:
            num_given += 1
            yield item

    for next_up in shown:
        if held is not None:
            early = min(1 / rate, max(next_up.time - held.time, Fraction(0))) / 2
            yield from given_until(next_up.time - early, held.item)
        if num_given == limit:
            return
        held = next_up
    if held is None:
        return
    end = held.time + held.duration
    if num_given == 0 and start < end:
        num_given = 1
        yield held.item
    # Half an output frame or less left over is not shown any more; at exactly half, `<=` above must not count.
    last = end - Fraction(1, 2) / rate
    yield from given_until(last - Fraction(1, 10**9), held.item)
