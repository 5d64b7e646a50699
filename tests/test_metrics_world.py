"""The measures on the drawn world, where everything is known: regions, test cases, faces, living scenes, the bars."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from xdyna.configs import PRESETS, load_config
from xdyna.configs.recipes import RECIPES
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.data.synthetic.regions import REGIONS, region_masks
from xdyna.metrics import bars
from xdyna.metrics.colour import delta_e_76, region_colours, to_lab
from xdyna.metrics.expression import expression, openness, pooled_correlation
from xdyna.metrics.held_out import (
    FIRST,
    FIRST_BUST,
    FIRST_LONG,
    FIRST_STOP,
    build_case,
    case_times_s,
    held_out_cases,
    loose_regions,
    stopped_cases,
    swapped_case,
)
from xdyna.metrics.lag import lag
from xdyna.metrics.motion_energy import correlation

WORLD = World(loop_s=1.0, scenes=("sea", "waterfall", "fire", "meadow"), framings={"full": 1.0})
CLOSE = replace(WORLD, framings={"bust": 1.0})


@pytest.fixture(scope="module")
def cases() -> list[bars.Case]:
    return list(held_out_cases(WORLD, 4, 10))


def test_another_body_drives_in_no_close_up() -> None:
    """A close-up shows too little of a body for the alignment, which would refuse it."""
    case = build_case(CLOSE, FIRST, 3, "other body")
    assert case.pose_maps.any()
    assert case.reference.tracks.joints_conf[0, [1, 2, 5]].all()


# --- regions ----------------------------------------------------------------------------------------------------------


def test_regions_have_their_colours() -> None:
    for index in range(6):
        spec = clip_spec(WORLD, index)
        times_s = np.asarray([0.0, 0.9])
        frames, regions = render(spec, times_s, WORLD.size_wh, 12.0).frames, region_masks(spec, times_s, WORLD.size_wh)
        assert np.sum([regions[name] for name in REGIONS], axis=0).max() == 1  # no pixel has two
        for name in REGIONS:
            colours = region_colours(frames, regions[name])
            own = to_lab(np.asarray([getattr(spec.character, name)], np.uint8))
            if not np.isnan(colours).any():  # shading darkens; the hue stays
                assert np.abs(colours - own)[:, 1:].max() < 22, (index, name)
                assert delta_e_76(colours, own).max() < 35, (index, name)


def test_regions_lie_on_the_person_and_move_along() -> None:
    spec = clip_spec(WORLD, 1)
    times_s = np.arange(4) / 4
    masks = render(spec, times_s, WORLD.size_wh, 12.0).masks
    regions = region_masks(spec, times_s, WORLD.size_wh)
    everything = np.any(list(regions.values()), axis=0)
    assert not (everything & (masks < 100)).any()
    assert everything.sum() > 0.6 * (masks > 127).sum()
    assert (regions["top"][0] != regions["top"][2]).any()


# --- cases ------------------------------------------------------------------------------------------------------------


def test_no_run_draws_or_shows_what_is_measured() -> None:
    """Training counts its samples from 0, what it validates on and shows from `held_out`; measured clips lie beyond."""
    tiny = {"tiny-vae": "vae", "tiny-image": "image", "tiny-motion": "image"}
    configs = [kind() for kind in RECIPES.values()]
    configs += [
        load_config(RECIPES[tiny.get(path.stem, path.stem)], path)
        for path in sorted((PRESETS / "train").glob("*.yaml"))
    ]
    assert min(FIRST_BUST, FIRST_STOP, FIRST_LONG) > FIRST
    for config in configs:
        assert config.steps * config.batch * config.accumulate < config.held_out
        assert config.held_out + config.validate_clips + config.batch < FIRST - 1_000_000


def test_cases_are_repeatable_and_of_three_kinds(cases: list[bars.Case]) -> None:
    assert [case.mode for case in cases] == ["self", "cross", "self", "other body"]
    again = build_case(WORLD, FIRST + 1, 10, "cross")
    assert np.array_equal(again.truth.frames, cases[1].truth.frames)
    assert np.array_equal(again.pose_maps, cases[1].pose_maps)
    for case in cases:
        assert case.truth.frames.shape == case.pose_maps.shape == (10, 96, 64, 3)
        assert case.regions["skin"].shape == (11, 96, 64)


def test_the_scene_goes_on_from_the_reference(cases: list[bars.Case]) -> None:
    for case in cases:
        alone = case.scene_alone()
        before = render(
            replace(case.spec, person=False), case.times_s[1:2] - 1 / WORLD.fps, WORLD.size_wh, WORLD.fps
        ).frames
        assert np.abs(alone[0].astype(int) - before[0]).max() <= 1  # a looping scene one frame earlier
        assert abs(case.times_s[0] - case.times_s[1]) > 0.5  # while the dance is elsewhere
    times_s = case_times_s(replace(WORLD, loop_s=0.0), FIRST, 4)
    assert np.allclose(np.diff(times_s[1:]), 1 / WORLD.fps)


def test_drivers_lend_motion_and_face(cases: list[bars.Case]) -> None:
    own = build_case(WORLD, FIRST + 1, 10)
    cross = cases[1]
    assert cross.spec.character is not None
    assert cross.spec.character == own.spec.character
    assert not np.array_equal(cross.wanted.joints_xy, own.wanted.joints_xy)
    assert np.array_equal(cross.wanted.joints_xy, cross.truth.tracks.joints_xy)
    other = cases[3]
    gap = np.linalg.norm(other.wanted.joints_xy - other.truth.tracks.joints_xy, axis=-1)
    assert 0.1 < gap.mean() < 3  # the truth stands where the alignment puts the dance; limbs are of other lengths
    case = build_case(CLOSE, FIRST_BUST, 3)
    swapped = swapped_case(CLOSE, case, 0)
    assert case.face_maps is not None
    assert swapped.face_maps is not None
    assert np.abs(case.face_maps[1].astype(int) - swapped.face_maps[1]).mean() > 3
    assert np.array_equal(case.truth.frames, swapped.truth.frames)


# --- faces ------------------------------------------------------------------------------------------------------------


def test_openness_follows_mouth_and_eyes() -> None:
    read: dict[str, list[np.ndarray]] = {name: [] for name in ("mouth", "eyes", "true mouth", "true eyes")}
    for index in range(6):
        clip = render(clip_spec(CLOSE, index), np.arange(16) / 12, CLOSE.size_wh, 12.0)
        face = clip.tracks.face_xy
        found = openness(clip.frames, face)
        read["mouth"].append(found.mouth)
        read["eyes"].append(found.eyes)
        read["true mouth"].append(np.linalg.norm(face[:, 62] - face[:, 66], axis=-1))
        read["true eyes"].append(np.linalg.norm(face[:, [37, 44]] - face[:, [41, 46]], axis=-1).mean(1))
    assert pooled_correlation(read["mouth"], read["true mouth"]) > 0.85
    assert pooled_correlation(read["eyes"], read["true eyes"]) > 0.85


def test_openness_reads_pixels_and_not_the_points_it_is_given() -> None:
    """Points of a talking face over a picture that does not change tell nothing of talking."""
    clip = render(clip_spec(CLOSE, 0), np.arange(12) / 12, CLOSE.size_wh, 12.0)
    face = clip.tracks.face_xy
    still = np.repeat(face[:1], 12, 0)
    talking = still.copy()
    talking[:, 48:] += (face - face.mean(1, keepdims=True))[:, 48:]
    frozen = np.repeat(clip.frames[:1], 12, 0)
    assert np.ptp(openness(frozen, talking).mouth) == 0
    assert np.ptp(openness(frozen, talking).eyes) == 0


def test_expression_falls_with_noise_and_for_other_faces() -> None:
    spec = clip_spec(CLOSE, 3)
    clip = render(spec, np.arange(24) / 12, CLOSE.size_wh, 12.0)
    face, rng = clip.tracks.face_xy, np.random.default_rng(0)
    assert expression(clip.frames, face, clip.frames) == pytest.approx(1.0)
    noise = rng.normal(0, 1, clip.frames.shape)
    values = [
        expression(np.clip(clip.frames + strength * noise, 0, 255).astype(np.uint8), face, clip.frames)
        for strength in (5, 40, 160)
    ]
    assert values == sorted(values, reverse=True)
    assert expression(clip.frames[::-1].copy(), face[::-1], clip.frames) < 0.7


# --- living scenes ----------------------------------------------------------------------------------------------------


def test_truth_passes_and_frozen_and_noise_fail(cases: list[bars.Case]) -> None:
    rng = np.random.default_rng(0)
    rows: dict[str, list[bars.Figures]] = {"truth": [], "frozen": [], "noise": []}
    for case in cases:
        background = bars.true_background(case)
        rows["truth"].append(bars.living(case.truth.frames, background))
        rows["frozen"].append(bars.living(bars.frozen(case), background))
        rows["noise"].append(bars.living(bars.noise_of_equal_energy(case, rng), background))
    scenes = [case.spec.scene for case in cases]
    assert all(bar.passed is not False for bar in bars.living_bars(rows["truth"], scenes))
    for name in ("frozen", "noise"):
        failed = [bar.name for bar in bars.living_bars(rows[name], scenes) if bar.passed is False]
        assert any("motion map" in one for one in failed), name
        assert any("moving regions" in one for one in failed), name
    noise = {bar.name: bar for bar in bars.living_bars(rows["noise"], scenes)}
    assert noise["flow on still regions / truth's on moving"].passed is False


def test_living_scene_fades_as_it_freezes() -> None:
    """Mixing in more and more of a still picture lowers energy; slowing the scene down lowers its flow."""
    case = build_case(WORLD, 10_000_000, 10)
    background, still = bars.true_background(case), bars.frozen(case)
    mixes = [np.round(case.truth.frames * (1.0 - s) + still * s).astype(np.uint8) for s in (0.0, 0.3, 0.6, 0.9)]
    values = [bars.living(made, background)["energy"] for made in mixes]
    assert values == sorted(values, reverse=True)
    held = [np.repeat(case.truth.frames[::k], k, 0)[:10] for k in (1, 3, 5)]
    values = [bars.living(made, background)["speed"] for made in held]
    assert values == sorted(values, reverse=True)


def test_ranks_need_the_order_of_truth() -> None:
    def row(made: float, true: float) -> bars.Figures:
        return {"energy": made, "true_energy": true}

    rows, scenes = [row(1, 1), row(4, 5), row(8, 9)], ["meadow", "sea", "fire"]
    assert bars.ranks_as_in_truth(rows, scenes)[0] == 1
    assert bars.ranks_as_in_truth([row(5, 1), row(4, 5), row(8, 9)], scenes)[0] == pytest.approx(2 / 3)
    assert bars.ranks_as_in_truth([row(5, 5.0), row(4, 5.2), row(8, 9)], scenes)[0] == 1  # nearly equal in truth
    assert np.isnan(bars.ranks_as_in_truth(rows[:1], scenes[:1])[0])


# --- people -----------------------------------------------------------------------------------------------------------


def test_likeness_and_identity_of_the_truth_and_of_a_stranger(cases: list[bars.Case]) -> None:
    case, other = cases[0], cases[2]
    own, stranger = bars.identity(case, case.truth.frames), bars.identity(case, other.truth.frames)
    assert set(own) >= {"de_skin", "de_top", "de2000_skin"}
    assert max(own.values()) < 12
    assert np.mean(list(stranger.values())) > 3 * np.mean(list(own.values()))
    assert bars.likeness(case, case.truth.frames)["psnr_figure"] == float("inf")
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in case.truth.frames])
    assert bars.likeness(case, soft)["ssim"] < 0.95


def test_loose_parts_go_on_after_the_stop() -> None:
    found = list(stopped_cases(WORLD, 3, 16))
    assert len(found) == 3
    truth, halted = [], []
    for case, stop in found:
        assert loose_regions(case.spec)
        joints = case.truth.tracks.joints_xy[:, 1:14]
        assert np.abs(np.diff(joints[stop : stop + 6], axis=0)).max() < 1e-3
        assert np.abs(np.diff(joints[:stop], axis=0)).max() > 0.5
        loose, firm = bars.loose_and_firm(case)
        truth.append(lag(case.truth.frames, loose, firm, stop, WORLD.fps))
        dead = case.truth.frames.copy()
        dead[stop:] = dead[stop]
        halted.append(lag(dead, loose, firm, stop, WORLD.fps))
    assert np.mean(truth) > 0.03
    assert max(halted) == 0


def test_pooled_correlation_takes_out_each_clips_mean() -> None:
    wave = np.sin(np.arange(12.0))
    assert pooled_correlation([wave + 5, wave - 3], [wave, wave + 9]) == pytest.approx(1.0)
    assert np.isnan(correlation(wave, np.zeros(12)))
