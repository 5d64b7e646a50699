"""Which frame is shown when: sampling a clip by its time stamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

_EARLY = Fraction(7, 16)


class Timed(NamedTuple, Generic[T]):
    """Something shown from `time` for `duration`, both seconds."""

    time: Fraction
    duration: Fraction
    item: T


def sample_by_time(
    shown: Iterable[Timed[T]], rate: Fraction, *, start: Fraction, stride: int = 1, limit: int | None = None
) -> Iterator[T]:
    """What is shown at `start`, `start + stride/rate`, `start + 2 stride/rate` ..

    A frame may take over early, by a little less than half an output frame or half its distance to the frame before,
    whichever is less. A clip of constant rate sampled at that rate hence gives every frame once, even where the
    container rounds time stamps to milliseconds; and where a sample falls half-way, rounding does not decide.

    Args:
        shown: in order of time.
        rate: samples per second before `stride`.
        start: time of the first sample, seconds.
        stride: keep every Nth sample.
        limit: at most this many.
    Yields:
        One item per sample, for the interval's length to within one sample; at least one where `start` lies before
        the end.
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
            early = min(1 / rate, max(next_up.time - held.time, Fraction(0))) * _EARLY
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
    # Half an output frame or less that is left over is not shown any more.
    yield from given_until(end - (1 - _EARLY) / rate, held.item)
