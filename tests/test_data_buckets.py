"""Which recording a sample number stands for: sizes, rounds and shares."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdyna.data.buckets import BucketPlan, nearest_bucket
from xdyna.data.mix import MixedSource
from xdyna.data.source import TrainingClip


@pytest.mark.parametrize(
    ("size_wh", "wanted"),
    [((1080, 1920), 3), ((1920, 1080), 1), ((700, 700), 2), ((510, 770), 0), ((1024, 1536), 3)],
)
def test_the_nearest_bucket_is_nearest_in_shape_then_in_area(size_wh: tuple[int, int], wanted: int) -> None:
    assert nearest_bucket(size_wh, [(512, 768), (768, 512), (640, 640), (768, 1152)]) == wanted


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any), st.integers(1, 5), st.integers(0, 3))
def test_a_group_holds_one_bucket_and_members_come_equally_often(sizes: list[int], group: int, seed: int) -> None:
    plan = BucketPlan(sizes, group, seed)
    cycle = sum(sizes) * group
    for start in (0, cycle):
        samples = [plan(index) for index in range(start, start + cycle)]
        for first in range(0, cycle, group):
            assert len({bucket for bucket, _ in samples[first : first + group]}) == 1
        seen = Counter(samples)
        assert seen == {(b, m): group for b, size in enumerate(sizes) for m in range(size)}


def test_one_bucket_gives_shuffled_rounds() -> None:
    plan = BucketPlan([10], group=4, seed=1)
    rounds = [[plan(index)[1] for index in range(10 * lap, 10 * lap + 10)] for lap in range(3)]
    assert all(sorted(members) == list(range(10)) for members in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert rounds[0] != [BucketPlan([10], 4, 2)(index)[1] for index in range(10)]


def test_the_plan_is_the_same_in_every_process_and_in_any_order() -> None:
    plan = BucketPlan([5, 0, 9], group=3, seed=0)
    forward = [plan(index) for index in range(200)]
    other = pickle.loads(pickle.dumps(BucketPlan([5, 0, 9], group=3, seed=0)))  # noqa: S301 - our own bytes
    assert [other(index) for index in reversed(range(200))] == forward[::-1]


class _Counting:
    """A source whose clips are named after it and the sample number."""

    def __init__(self, name: str, num_clips: int | None) -> None:
        self.fingerprint, self.num_clips, self.name = name, num_clips, name

    def draw(self, index: int) -> TrainingClip:
        blank = np.zeros((2, 8, 8, 3), np.uint8)
        return TrainingClip(f"{self.name} {index}", blank, blank[..., 0], blank, None, False)

    def check(self) -> list[str]:
        return [f"{self.name}: odd", "both: odd"]


@pytest.mark.parametrize("shares", [(0.75, 0.25), (3, 1), (0.7, 0.2, 0.1), (1 / 3, 2 / 3)])
def test_every_stretch_holds_the_shares_and_no_sample_is_left_out(shares: tuple[float, ...]) -> None:
    mixed = MixedSource([_Counting(str(number), 5) for number in range(len(shares))], shares)
    turns = [mixed.turn(index) for index in range(1200)]
    for number, share in enumerate(shares):
        own = [sample for source, sample in turns if source == number]
        assert own == list(range(len(own)))
        for end in (10, 100, 1200):
            count = sum(source == number for source, _ in turns[:end])
            assert abs(count - end * share / sum(shares)) <= len(shares) - 1 + 1e-6


def test_a_mix_draws_checks_and_counts_its_sources() -> None:
    mixed = MixedSource([_Counting("a", 3), _Counting("b", 4)], [1, 1])
    assert sorted(mixed.draw(index).name for index in range(4)) == ["a 0", "a 1", "b 0", "b 1"]
    assert mixed.num_clips == 7
    assert mixed.check() == ["a: odd", "both: odd", "b: odd"]
    assert MixedSource([_Counting("a", 3), _Counting("b", None)], [1, 1]).num_clips is None
    assert mixed.fingerprint != MixedSource([_Counting("a", 3), _Counting("b", 4)], [1, 2]).fingerprint


def test_groups_come_from_one_source_and_validation_from_all_or_the_largest() -> None:
    sources = [_Counting("a", 3), _Counting("b", 4)]
    mixed = MixedSource(sources, [2, 1], group=4, held_out=1000)
    for first in range(0, 60, 4):
        turns = [mixed.turn(index) for index in range(first, first + 4)]
        assert len({source for source, _ in turns}) == 1
        assert [sample % 4 for _, sample in turns] == [0, 1, 2, 3]
    assert {mixed.turn(index)[0] for index in range(1000, 1020)} == {0}
    mixed = MixedSource(sources, [2, 1], held_out=1000)
    assert {mixed.turn(index)[0] for index in range(1000, 1020)} == {0, 1}
    assert min(mixed.turn(index)[1] for index in range(1000, 1020)) == 1000


def test_a_share_of_nothing_leaves_a_source_out() -> None:
    mixed = MixedSource([_Counting("a", 3), _Counting("b", 4)], [1, 0])
    assert {mixed.turn(index)[0] for index in range(50)} == {0}
    assert mixed.num_clips == 3
    with pytest.raises(ValueError, match="wanted a share"):
        MixedSource([_Counting("a", 3)], [1, 2])
    with pytest.raises(ValueError, match="wanted a share"):
        MixedSource([_Counting("a", 3)], [0])
