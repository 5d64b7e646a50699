"""The measures on clips without a story: closed forms, other implementations, invariances, and the right direction."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from xdyna.metrics.clips import grown, mean_of_three
from xdyna.metrics.colour import colour, delta_e_76, delta_e_2000, region_colours, to_lab
from xdyna.metrics.flow import flow, optical_flow
from xdyna.metrics.lag import lag
from xdyna.metrics.motion_energy import correlation, map_correlation, motion_energy, motion_map
from xdyna.metrics.psnr import psnr
from xdyna.metrics.seam import seam, window_borders
from xdyna.metrics.ssim import ssim
from xdyna.windows import make_windows

Clip = NDArray[np.uint8]


def textured(frames: int = 8, height: int = 48, width: int = 64, *, speed: float = 0.0, seed: int = 0) -> Clip:
    """A smooth random texture that slides to the right by `speed` pixels per frame, wrapping around."""
    rng = np.random.default_rng(seed)
    tile = cv2.GaussianBlur(np.tile(rng.random((height, width, 3)), (1, 3, 1)), (0, 0), 2.0)[:, width : 2 * width]
    tile = (tile - tile.min()) / np.ptp(tile)
    columns = np.arange(width)
    clip = []
    for frame in range(frames):
        at = (columns - speed * frame) % width
        left = at.astype(int)
        part = (at - left)[None, :, None]
        clip.append(tile[:, left] * (1 - part) + tile[:, (left + 1) % width] * part)
    return np.round(np.stack(clip) * 255).astype(np.uint8)


def with_noise(clip: Clip, strength: float, seed: int = 1) -> Clip:
    noise = np.random.default_rng(seed).normal(0, strength, clip.shape)
    return np.clip(np.round(clip + noise), 0, 255).astype(np.uint8)


def blurred(clip: Clip, sigma_px: float) -> Clip:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma_px) for frame in clip])


# --- PSNR and SSIM ----------------------------------------------------------------------------------------------------


def test_psnr_of_known_errors() -> None:
    clip = np.full((3, 8, 10, 3), 100, np.uint8)
    assert psnr(clip, clip) == float("inf")
    assert psnr(clip + 10, clip) == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    noise = with_noise(np.full((4, 64, 64, 3), 128, np.uint8), 12.0)
    assert psnr(noise, np.full_like(noise, 128)) == pytest.approx(20 * np.log10(255 / 12), abs=0.05)


def test_psnr_counts_only_what_the_mask_covers() -> None:
    clip = np.full((2, 8, 8, 3), 50, np.uint8)
    made = clip.copy()
    made[:, :4] += 20
    mask = np.zeros((2, 8, 8), bool)
    mask[:, 4:] = True
    assert psnr(made, clip, mask) == float("inf")
    assert psnr(made, clip, ~mask) == pytest.approx(20 * np.log10(255 / 20))
    assert psnr(made, clip, (~mask * 255).astype(np.uint8)) == psnr(made, clip, ~mask)
    assert np.isnan(psnr(made, clip, np.zeros((2, 8, 8), bool)))


@pytest.mark.parametrize("strength", [3.0, 15.0, 60.0])
def test_psnr_and_ssim_equal_torchmetrics(strength: float) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    import torch

    truth = textured(speed=1.0)
    made = with_noise(blurred(truth, 0.8), strength)
    theirs = [torch.as_tensor(clip).permute(0, 3, 1, 2).double() for clip in (made, truth)]
    other = functional.structural_similarity_index_measure(*theirs, data_range=255.0)
    assert ssim(made, truth) == pytest.approx(float(other), abs=1e-4)
    other = functional.peak_signal_noise_ratio(*theirs, data_range=255.0)
    assert psnr(made, truth) == pytest.approx(float(other), abs=1e-4)


def test_ssim_of_flat_pictures() -> None:
    """Without contrast only the light term is left."""
    first, second = np.full((1, 16, 16, 3), 80, np.uint8), np.full((1, 16, 16, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(first, second) == pytest.approx((2 * 80 * 120 + c1) / (80**2 + 120**2 + c1), abs=1e-9)
    assert ssim(first, first) == pytest.approx(1.0)


def test_likeness_ignores_order_mirroring_and_which_clip_is_which() -> None:
    truth = textured(speed=1.0)
    made = with_noise(truth, 20)
    for measure in (psnr, ssim):
        value = measure(made, truth)
        assert measure(truth, made) == pytest.approx(value)
        assert measure(made[::-1], truth[::-1]) == pytest.approx(value)
        assert measure(made[:, :, ::-1], truth[:, :, ::-1]) == pytest.approx(value)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_likeness_falls_with_blur_noise_and_frozen_frames(measure) -> None:  # type: ignore[no-untyped-def]
    truth = textured(speed=1.5)
    grades = [
        [with_noise(truth, strength) for strength in (4, 8, 16, 32, 64)],
        [blurred(truth, sigma) for sigma in (0.7, 1.0, 1.6, 2.5, 4.0)],
        [np.concatenate([truth[:kept], np.repeat(truth[kept - 1 : kept], 8 - kept, 0)]) for kept in (7, 5, 3, 1)],
    ]
    for clips in grades:
        values = [measure(clip, truth) for clip in clips]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1]


def test_wrong_clips_are_named() -> None:
    clip = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"frames is float64 .*, wanted uint8"):
        psnr(clip.astype(float), clip)
    with pytest.raises(ValueError, match="wanted one shape"):
        psnr(clip, clip[:1])
    with pytest.raises(ValueError, match=r"masks are \[3, 16, 16\]"):
        psnr(clip, clip, np.zeros((3, 16, 16), bool))
    with pytest.raises(ValueError, match="wanted sides of at least 11 px"):
        ssim(clip[:, :8], clip[:, :8])
    with pytest.raises(ValueError, match="wanted at least 4"):
        flow(clip)


# --- colour -----------------------------------------------------------------------------------------------------------


def test_lab_of_known_colours() -> None:
    pixels = np.asarray([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    wanted = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    assert np.allclose(to_lab(pixels), wanted, atol=0.02)
    opencv = cv2.cvtColor((textured(1)[0] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)
    assert np.abs(to_lab(textured(1)[0]) - opencv).max() < 0.3  # OpenCV interpolates the curve


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.8361, -74.0200), (50.0, 0.0, -82.7485), 3.4412),
        ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_ciede2000_of_published_pairs(first, second, wanted) -> None:  # type: ignore[no-untyped-def]
    """From the test data of Sharma, Wu and Dalal (2005)."""
    for pair in ((first, second), (second, first)):
        assert delta_e_2000(np.asarray(pair[0]), np.asarray(pair[1])) == pytest.approx(wanted, abs=1e-4)
    assert delta_e_76(np.asarray(first), np.asarray(second)) == pytest.approx(
        np.linalg.norm(np.subtract(first, second))
    )


def test_colour_is_the_distance_of_the_masked_parts() -> None:
    frames, reference = np.zeros((3, 12, 12, 3), np.uint8), np.zeros((1, 12, 12, 3), np.uint8)
    frames[:, :6], reference[:, 6:] = (200, 40, 40), (180, 60, 40)
    masks, reference_mask = np.zeros((3, 12, 12), bool), np.zeros((1, 12, 12), bool)
    masks[:, :6], reference_mask[:, 6:] = True, True
    colours = to_lab(np.asarray([[200, 40, 40], [180, 60, 40]], np.uint8))
    assert colour(frames, reference, masks, reference_mask) == pytest.approx(delta_e_76(*colours))
    assert colour(frames, reference, masks, reference_mask, "2000") == pytest.approx(delta_e_2000(*colours))
    assert np.isnan(colour(frames, reference, masks, np.zeros_like(reference_mask)))
    few = np.zeros_like(masks)
    few[0, 0, :5] = True  # five pixels are no region
    assert np.isnan(region_colours(frames, few)).all()


@pytest.mark.parametrize("formula", ["76", "2000"])
def test_colour_grows_as_the_region_fades(formula) -> None:  # type: ignore[no-untyped-def]
    reference = np.full((1, 16, 16, 3), (200, 40, 60), np.uint8)
    mask = np.ones((16, 16), bool)
    values = []
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        faded = np.round(reference * (1 - share) + 128 * share).astype(np.uint8)
        values.append(colour(faded, reference, mask, mask, formula))
    assert values[0] == 0
    assert values == sorted(values)


# --- motion -----------------------------------------------------------------------------------------------------------


def test_motion_energy_of_a_ramp_and_of_noise() -> None:
    ramp = np.stack([np.full((16, 16, 3), 40 + 5 * frame, np.uint8) for frame in range(10)])
    assert motion_energy(ramp) == pytest.approx(5.0, abs=1e-4)
    assert motion_energy(ramp[:1].repeat(6, 0)) == 0
    noise = with_noise(np.full((60, 32, 32, 3), 128, np.uint8), 20.0)
    luma = 20 * np.sqrt(0.299**2 + 0.587**2 + 0.114**2)  # of three independent channels
    assert motion_energy(noise) == pytest.approx(luma * np.sqrt(2) / 3 * np.sqrt(2 / np.pi), rel=0.03)


def test_motion_map_shows_where_it_moves() -> None:
    clip = textured(12)
    clip[:, 10:30, 20:40] = textured(12, 20, 20, speed=1.0, seed=3)
    energy = motion_map(clip)
    inside = np.zeros(energy.shape, bool)
    inside[10:30, 20:40] = True
    assert energy[~inside].max() == 0
    assert energy[inside].mean() > 3
    assert map_correlation(energy, energy) == pytest.approx(1.0)
    covered = np.ones(clip.shape[:3], bool)
    covered[4:8, 10:20] = False
    known = ~np.isnan(motion_map(clip, covered))
    assert known[0].all()
    assert not known[10:20].any()  # seen in fewer than a quarter of the windows of four frames


def test_motion_map_tells_motion_from_noise_of_equal_energy() -> None:
    truth = textured(16)
    truth[:, 10:40, 10:40] = textured(16, 30, 30, speed=1.0, seed=3)
    still = truth[:1].repeat(16, 0)
    strength = np.abs(np.diff(truth.astype(float), axis=0)).mean() * np.sqrt(np.pi) / 2
    wanted = motion_map(truth, blur_px=1.5)
    assert abs(map_correlation(motion_map(with_noise(still, strength), blur_px=1.5), wanted)) < 0.2
    assert np.isnan(map_correlation(motion_map(still, blur_px=1.5), wanted))
    values = [map_correlation(motion_map(with_noise(truth, s), blur_px=1.5), wanted) for s in (2, 10, 30, 60)]
    assert values[0] > 0.95
    assert values == sorted(values, reverse=True)


def test_flow_measures_speed_and_stands_still() -> None:
    middle = np.zeros((96, 96), bool)
    middle[16:-16, 24:-24] = True  # away from where the texture wraps around
    for speed in (1.0, 2.0, 4.0):
        clip = textured(8, 96, 96, speed=speed, seed=2)
        assert flow(clip, middle) == pytest.approx(speed, rel=0.1)
        vectors = optical_flow(clip)[:, middle]
        assert np.abs(np.median(vectors, axis=(0, 1)) - [speed, 0]).max() < 0.1 * speed
    slow = flow(textured(8, 96, 96, speed=0.5, seed=2), middle)
    assert 0.25 < slow < 0.5  # what changes by less than two grey levels is not seen to move
    assert flow(textured(5)) == 0
    assert np.isnan(flow(clip, np.zeros((96, 96), bool)))


def test_flow_falls_as_frames_freeze_and_jitter_is_not_motion() -> None:
    clip = textured(13, speed=2.0, seed=2)
    values = [flow(np.repeat(clip[::held], held, 0)[:13]) for held in (1, 2, 6, 13)]  # dropped frames are held
    assert values[0] == pytest.approx(values[1], rel=0.05)  # the same way in jerks of twice the size
    assert values[1] > values[2] > values[3] == 0
    still = textured(13, seed=2)
    shaken = np.stack([np.roll(frame, (-1) ** index, 1) for index, frame in enumerate(still)])  # to and fro by 2 px
    assert flow(shaken) < 0.5 * flow(clip)


def test_smoothing_and_growing() -> None:
    assert np.allclose(mean_of_three(np.asarray([0, 3, 6, 0])), [3, 3])
    dot = np.zeros((1, 7, 7), bool)
    dot[0, 3, 3] = True
    assert grown(dot, 2).sum() == 25
    assert np.isnan(correlation(np.ones(5), np.arange(5.0)))


# --- seams and lag ----------------------------------------------------------------------------------------------------


def test_seam_is_the_ratio_of_differences() -> None:
    steps = np.asarray([0, 2, 4, 8, 10, 12])  # a jump of 4 among steps of 2
    clip = np.stack([np.full((8, 8, 3), 100 + step, np.uint8) for step in steps])
    assert seam(clip, [2]) == pytest.approx(2.0)
    assert seam(clip, [0, 4]) == pytest.approx(2 / ((2 + 4 + 2) / 3))
    with pytest.raises(ValueError, match=r"wanted some, not all, of 0\.\.4"):
        seam(clip, [5])


def test_seam_grows_with_the_jump() -> None:
    clip = textured(24, speed=1.0).astype(int)
    values = []
    for jump in (0, 5, 15, 40):
        joined = clip.copy()
        joined[12:] += jump
        values.append(seam(np.clip(joined, 0, 255).astype(np.uint8), [11]))
    assert values[0] == pytest.approx(1, abs=0.1)
    assert values == sorted(values)
    assert values[-1] > 2


def test_borders_lie_where_the_windows_change() -> None:
    assert window_borders([[0, 1, 2, 3], [2, 3, 4, 5]], 6) == [1, 3]
    for schedule in ("open", "grid"):
        borders = window_borders(make_windows(schedule, 40, 16, 4), 40)
        assert borders
        assert window_borders(make_windows(schedule, 16, 16, 4), 16) == []


def swinging(after: float, frames: int = 16, stop: int = 8) -> tuple[Clip, NDArray[np.bool_], NDArray[np.bool_]]:
    """A body that moves up to `stop` and hair below it that goes on, at `after` times its pace."""
    clip = np.zeros((frames, 40, 64, 3), np.uint8)
    moving = textured(frames, 40, 64, speed=1.0)
    clip[:] = moving[stop]
    clip[:stop] = moving[:stop]
    place = float(stop)
    for frame in range(stop, frames):
        clip[frame, 20:] = textured(2, 40, 64, speed=place)[1, 20:]
        place += after
    hair, body = np.zeros((40, 64), bool), np.zeros((40, 64), bool)
    hair[20:], body[:20] = True, True
    return clip, hair, body


def test_lag_grows_with_what_goes_on_and_flicker_has_none() -> None:
    values = [lag(*swinging(after), stop=8, fps=10.0) for after in (0.0, 0.2, 0.5, 1.0)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.7, abs=0.15)  # seven more steps of a tenth of a second at the same pace
    clip, hair, body = swinging(0.0)
    assert lag(with_noise(clip, 10.0), hair, body, stop=8, fps=10.0) < 0.05
    with pytest.raises(ValueError, match="stop is 15, wanted 3 to 13"):
        lag(clip, hair, body, stop=15, fps=10.0)
