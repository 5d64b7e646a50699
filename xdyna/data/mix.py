"""Several sources as one, with set shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction

from xdyna.data.source import ClipSource, TrainingClip


class MixedSource:
    """Samples of several sources in turn, such that every stretch of samples holds each source's share.

    Which source sample number n comes from is a function of n alone. The sources' own samples come in their own order,
    none left out.

    Args:
        sources: two or more.
        shares: how much of each; only their ratios count, a share of 0 leaves the source out.
        group: samples in a row that come from one source: 1 where all have one size, else those of a step.
        held_out: sample number from which on validation samples are drawn. They come from every source, or, where
            sizes differ (`group` above 1), from the one with the largest share: they must fit one batch.
    Raises:
        ValueError: shares that do not fit.
    """

    def __init__(
        self, sources: Sequence[ClipSource], shares: Sequence[float], *, group: int = 1, held_out: int = 10_000_000
    ) -> None:
        if len(sources) != len(shares) or min(shares, default=0) < 0 or not sum(shares) > 0:
            raise ValueError(f"got {len(sources)} sources and shares {list(shares)}, wanted a share of 0 or more each")
        kept = [(source, share) for source, share in zip(sources, shares, strict=True) if share > 0]
        self.sources = tuple(source for source, _ in kept)
        self.group, self.held_out = group, held_out
        # Exact fractions: sums of floats would let a turn come twice or never.
        exact = [Fraction(share).limit_denominator(10_000) or Fraction(1, 10_000) for _, share in kept]
        self._largest = exact.index(max(exact))
        self._of_rest = tuple(share / sum(exact[place:]) for place, share in enumerate(exact))
        counts = [source.num_clips for source in self.sources]
        self.num_clips = None if None in counts else sum(count for count in counts if count is not None)
        described = [(source.fingerprint, str(share)) for source, share in zip(self.sources, exact, strict=True)]
        self.fingerprint = "mixed-" + hashlib.sha256(repr((described, group)).encode()).hexdigest()[:16]

    def turn(self, index: int) -> tuple[int, int]:
        """The source of sample number `index`, and that source's own sample number."""
        first = self.held_out if index >= self.held_out else 0
        if first and self.group > 1:
            return self._largest, index
        turn, place = divmod(index - first, self.group)
        for number, share in enumerate(self._of_rest):
            before = int(turn * share)
            if int((turn + 1) * share) > before:
                return number, first + before * self.group + place
            turn -= before
        raise AssertionError("the last source has all that is left")

    def draw(self, index: int) -> TrainingClip:
        """Sample number `index`."""
        number, own = self.turn(index)
        return self.sources[number].draw(own)

    def check(self) -> list[str]:
        """What is wrong with any of the sources."""
        return list(dict.fromkeys(line for source in self.sources for line in source.check()))
