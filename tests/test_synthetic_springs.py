"""The springs behind hair, skirts and capes: their physics, and that they are seen swinging on."""

from dataclasses import replace

import numpy as np
import pytest

from xdyna.data.synthetic.clips import ClipSpec, World, clip_spec, render
from xdyna.data.synthetic.expression import Expression
from xdyna.data.synthetic.motion import Motion, pausing, random_motion
from xdyna.data.synthetic.soft import HEM, speeds, swing
from xdyna.data.synthetic.springs import Springs, follow, hang, hanging

PERIOD_S = 4.0
CHAIN = hanging(0.22, 4, drag=2.8)


def root_at(times_s: np.ndarray) -> np.ndarray:
    """A smooth motion [T, 2] that repeats after PERIOD_S."""
    turn = 2 * np.pi * np.asarray(times_s)[:, None] / PERIOD_S
    return 0.05 * np.sin(turn * [3, 2] + [0.3, 1.0]) + 0.02 * np.cos(turn * [7, 5])


def root_samples(count: int = 192) -> np.ndarray:
    return root_at(PERIOD_S * np.arange(count) / count)


@pytest.mark.parametrize("springs", [CHAIN, HEM])
def test_the_response_is_what_stepping_through_time_settles_into(springs: Springs) -> None:
    count, step_s = len(springs.pull), 2e-4
    places = np.broadcast_to(root_at(np.zeros(1)), (count, 2)).copy()
    velocity = np.zeros_like(places)
    steps = round(3 * PERIOD_S / step_s)
    roots = root_at(np.arange(steps) * step_s)
    after = np.append(springs.pull[1:], 0.0)[:, None]
    pull = springs.pull[:, None]
    for root in roots:
        before = np.concatenate([root[None], places[:-1]])
        behind = np.concatenate([places[1:], places[-1:]])
        force = pull * (before - places) + after * (behind - places) - springs.drag * velocity
        velocity = velocity + step_s * force
        places = places + step_s * velocity
    settled = follow(springs, root_samples(), PERIOD_S, np.asarray([3 * PERIOD_S]))[0]
    assert np.abs(settled - places).max() < 5e-4
    assert np.abs(settled - roots[-1]).max() > 0.01


@pytest.mark.parametrize("springs", [CHAIN, HEM])
def test_energy_changes_by_what_the_root_gives_and_the_air_takes(springs: Springs) -> None:
    times_s = np.linspace(0, 2 * PERIOD_S, 4001)
    samples = root_samples()
    root = root_at(times_s)
    places = follow(springs, samples, PERIOD_S, times_s)
    velocity = follow(springs, samples, PERIOD_S, times_s, speeds=True)
    energy = springs.energy(root, places, velocity)
    given = springs.pull[0] * ((root - places[:, 0]) * np.gradient(root, times_s, axis=0)).sum(-1)
    taken = springs.drag * (velocity**2).sum((1, 2))
    change = np.gradient(energy, times_s)
    assert np.abs(change - (given - taken))[5:-5].max() < 0.01 * np.abs(change).max()


def test_energy_is_bounded_for_ever() -> None:
    """No dance winds the springs up: each round takes as much energy as the one before."""
    for index in range(10):
        motion = random_motion(np.random.default_rng(index), energy=1.5)
        round_s = motion.period_s * np.arange(192) / 192
        samples = motion(round_s)[:, :1]
        for springs in (CHAIN, HEM):
            early, late = round_s, round_s + 1000 * motion.period_s
            values = []
            for times_s in (early, late):
                velocity = follow(springs, samples, motion.period_s, times_s, speeds=True)
                values.append(springs.energy(samples, follow(springs, samples, motion.period_s, times_s), velocity))
            assert values[1] == pytest.approx(values[0], rel=1e-6, abs=1e-9)
            reach = np.ptp(samples)
            assert values[0].max() < 20 * springs.pull.sum() * reach**2


def test_at_rest_masses_hang_below_their_root() -> None:
    still = np.broadcast_to([0.3, -0.7], (64, 2))
    assert np.allclose(follow(CHAIN, still, PERIOD_S, np.asarray([0.1, 9.0])), [0.3, -0.7])
    root = np.broadcast_to([0.3, -0.7], (2, 1, 2))
    chain = hang(root, np.full((2, 4, 1), 0.3), 0.2)
    assert np.allclose(chain[0, 0], np.stack([np.full(5, 0.3), np.linspace(-0.7, -0.5, 5)], -1))


def test_links_keep_their_length_however_far_they_swing() -> None:
    rng = np.random.default_rng(0)
    chain = hang(rng.normal(size=(50, 2, 2)), rng.normal(size=(50, 4, 2)), 0.2)
    links = np.linalg.norm(np.diff(chain, axis=2), axis=-1)
    assert np.allclose(links, 0.05)
    assert (np.diff(chain[..., 1], axis=2) > 0).all()


def test_masses_come_later_the_farther_from_the_root_they_are() -> None:
    slow = 0.1 * np.sin(2 * np.pi * np.arange(64) / 64)[:, None]
    times_s = np.linspace(0, PERIOD_S, 2001)
    places = follow(CHAIN, slow, PERIOD_S, times_s)[..., 0]
    peaks = times_s[places.argmax(0)]
    assert (np.diff(np.append(PERIOD_S / 4, peaks)) > 0).all()


def paused(spec: ClipSpec) -> ClipSpec:
    """The clip whose dance pauses for four beats, with a face that never moves."""
    still_face = Expression(np.asarray([[0.0, 0.3, 0.0, 1.0]]), 1.0, 0.0, 1e9)
    motion = random_motion(np.random.default_rng(spec.scene_key[1]))
    keys = np.unique(motion.keys, axis=0)
    motion = replace(motion, keys=keys, beat_s=0.5, phase_s=0.0, expression=still_face)
    return replace(spec, motion=pausing(motion, len(keys) - 1, 4), scene="studio")


def stop_s(motion: Motion) -> tuple[float, float]:
    return max(motion.stops(2 * motion.period_s), key=lambda stop: stop[1] - stop[0])


def test_hair_hem_and_cape_go_on_after_the_body_has_stopped_and_calm_down() -> None:
    kept: dict[str, list[float]] = {"hair": [], "cape": [], "hem": []}
    left: dict[str, list[float]] = {"hair": [], "cape": [], "hem": []}
    for index in range(12):
        spec = paused(clip_spec(World(), index))
        person = replace(spec.character, hair_style="long", cape=(200, 0, 0), bottom_kind="skirt")
        start, end = stop_s(spec.motion)
        assert end - start == pytest.approx(2.0)
        truth = speeds(person, spec.motion, start + np.asarray([-0.15, 0.08, 0.2, 1.8]))
        assert truth.body[0] > 0.01
        assert truth.body[1:].max() < 1e-9
        for name, ratios in kept.items():
            speed = getattr(truth, name)
            assert speed is not None
            ratios.append(speed[1:3].max() / truth.body[0])
            left[name].append(speed[3] / speed[1:3].max())
    for name, ratios in kept.items():
        assert np.median(ratios) > 0.1, name
        assert np.median(left[name]) < 0.35, name


def test_what_is_not_worn_has_no_truth() -> None:
    spec = clip_spec(World(), 0)
    person = replace(spec.character, hair_style="short", cape=None, bottom_kind="trousers")
    soft, truth = swing(person, spec.motion, np.zeros(1)), speeds(person, spec.motion, np.zeros(1))
    assert soft.hair is soft.cape is soft.hem is None
    assert truth.hair is truth.cape is truth.hem is None


@pytest.mark.parametrize(
    "worn",
    [
        {"hair_style": "long"},
        {"hair_style": "pigtails"},
        {"hair_style": "ponytail"},
        {"bottom_kind": "skirt"},
        {"bottom_kind": "dress"},
        {"cape": (230, 30, 30)},
    ],
)
def test_the_swinging_on_is_seen(worn: dict[str, object]) -> None:
    """After the body has stopped only pictures with something loose still change, and less and less."""
    early, late = [], []
    for index in range(4):
        spec = paused(clip_spec(World(framings={"full": 1.0}), index))
        stiff = replace(spec.character, hair_style="short", cape=None, bottom_kind="trousers", hair=(250, 210, 60))
        start, _ = stop_s(spec.motion)
        times_s = start + np.asarray([0.01, 0.21, 1.79, 1.99])
        frames = [
            render(replace(spec, character=person), times_s, (64, 96), 12.0).frames.astype(int)
            for person in (stiff, replace(stiff, **worn))  # type: ignore[arg-type]
        ]
        assert np.array_equal(frames[0], np.broadcast_to(frames[0][:1], frames[0].shape))
        early.append(np.abs(frames[1][1] - frames[1][0]).sum())
        late.append(np.abs(frames[1][3] - frames[1][2]).sum())
    assert sum(early) > 1000
    assert sum(late) < 0.6 * sum(early)
