"""Which recording a sample number stands for, so that all samples of a step have one size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SizeWH = tuple[int, int]


def nearest_bucket(size_wh: SizeWH, buckets: Sequence[SizeWH]) -> int:
    """The bucket that a picture of `size_wh` loses least in: nearest in shape, then in area.

    Args:
        size_wh: (width, height), pixels.
        buckets: sizes to choose from, one at least.
    Returns:
        Its place in `buckets`.
    """
    if not buckets:
        raise ValueError("wanted one bucket at least")

    def distance(number: int) -> tuple[float, float]:
        width, height = buckets[number]
        shape = math.log(size_wh[0] / size_wh[1]) - math.log(width / height)
        area = math.log(size_wh[0] * size_wh[1]) - math.log(width * height)
        return round(abs(shape), 6), abs(area)

    return min(range(len(buckets)), key=distance)


class BucketPlan:
    """Sample number -> (bucket, member): a pure function, the same in every process.

    Sample numbers come in groups of `group` (a step's global batch); a group holds one bucket. Buckets take turns as
    often as they have members, and each bucket's members come in shuffled rounds, so over a long run every member is
    seen equally often, whatever the sizes of buckets and groups.

    Args:
        sizes: members per bucket; empty buckets never come.
        group: samples that share a bucket.
        seed: of the order.
    """

    def __init__(self, sizes: Sequence[int], group: int, seed: int) -> None:
        if sum(sizes) < 1 or group < 1:
            raise ValueError(f"got {sum(sizes)} members and groups of {group}, wanted one at least of both")
        self.sizes, self.group, self.seed = tuple(sizes), group, seed
        self._orders: dict[tuple[int, ...], NDArray[np.int64]] = {}

    def __call__(self, index: int) -> tuple[int, int]:
        """Bucket and member of sample number `index`."""
        bucket, turn = self._turn(index // self.group)
        position = turn * self.group + index % self.group
        lap, place = divmod(position, self.sizes[bucket])
        return bucket, int(self._order((1, bucket, lap), np.arange(self.sizes[bucket]))[place])

    def _turn(self, group: int) -> tuple[int, int]:
        """The bucket of a group, and how many groups this bucket had before."""
        cycle, place = divmod(group, sum(self.sizes))
        buckets = self._order((0, 0, cycle), np.repeat(np.arange(len(self.sizes)), self.sizes))
        bucket = int(buckets[place])
        return bucket, cycle * self.sizes[bucket] + int((buckets[:place] == bucket).sum())

    def _order(self, key: tuple[int, ...], values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The values shuffled by seed and key; the last few orders are kept, as neighbouring samples ask for them."""
        if key not in self._orders:
            while len(self._orders) > 2 * len(self.sizes) + 2:
                self._orders.pop(next(iter(self._orders)))
            self._orders[key] = np.random.default_rng([self.seed, *key]).permutation(values)
        return self._orders[key]
