"""Initial latents and condition maps: the official values, and what never depends on batching or length."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from xdyna.latents import (
    MIN_LATENT_SIDE,
    clip_size,
    condition_maps,
    downgrade_input,
    draw_mask,
    draw_noise,
    gaussian_blur,
    initial_latents,
    split_generator,
)

# A folder named by the environment may hold sets of recorded models only; this file then lies in the default one.
DEFAULT_GOLDENS = Path(__file__).resolve().parents[2] / "shared" / "goldens"
GOLDENS = Path(os.environ.get("XDYNA_GOLDENS") or DEFAULT_GOLDENS)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    path = next(
        (
            f / "latent_and_condition.safetensors"
            for f in (GOLDENS, DEFAULT_GOLDENS)
            if (f / "latent_and_condition.safetensors").is_file()
        ),
        None,
    )
    if path is None:
        pytest.skip("latent_and_condition.safetensors is neither in XDYNA_GOLDENS nor in the default folder")
    return load_file(path)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parity
def test_official_blur_and_mix(golden: dict[str, Tensor]) -> None:
    impulse = torch.zeros(1, 1, 21, 21)
    impulse[..., 10, 10] = 1
    assert (gaussian_blur(impulse) - golden["gaussian_blur_impulse_response"]).abs().max() <= 1e-6
    for i in range(4):
        frame, mask, out = (golden[f"downgrade.{i}.{name}"] for name in ("in_frame", "mask", "out"))
        assert (gaussian_blur(frame[:, :, 0]) - golden[f"downgrade.{i}.blurred_frame"]).abs().max() <= 1e-6
        # The official function draws for the reference frame too and then leaves that frame alone.
        assert (downgrade_input(frame, mask[:, :, 1:]) - out[:, :, 1:]).abs().max() <= 1e-6
        assert torch.equal(frame[:, :, 0], out[:, :, 0])


@pytest.mark.parity
def test_official_condition_maps(golden: dict[str, Tensor]) -> None:
    for i in range(2):
        images, out = golden[f"condition.{i}.images"], golden[f"condition.{i}.out"]
        maps = condition_maps(images, (images.shape[2], images.shape[1]))
        got = maps.window(range(len(images)), "cpu", torch.float32)
        for half in out.chunk(2):  # the official tensor repeats the maps for both halves of guidance
            assert (got[0].transpose(0, 1) - half).abs().max() <= 1e-6
    resized = condition_maps(golden["preprocess_resize.images"], (40, 24))
    assert (resized.frames.float() / 127.5 - 1 - golden["preprocess_resize.out"]).abs().max() <= 1e-6


def test_constant_maps_are_zeros() -> None:
    maps = condition_maps(np.full((2, 8, 8, 3), 77, np.uint8), (8, 8))
    assert torch.equal(maps.window([0, 1], "cpu", torch.float32), torch.zeros(1, 3, 2, 8, 8))


def test_maps_are_stretched_by_the_whole_clip() -> None:
    clip = np.full((3, 8, 8, 3), 50, np.uint8)
    clip[0, 0, 0, 0], clip[2, 1, 1, 2] = 20, 200
    window = condition_maps(clip, (8, 8)).window([2, 0], "cpu", torch.float32)
    assert window.shape == (1, 3, 2, 8, 8)
    assert window[0, 2, 0, 1, 1] == 1
    assert window[0, 0, 1, 0, 0] == 0
    torch.testing.assert_close(window[0, 0, 0, 0, 0], torch.tensor(30 / 180))


def test_reversed_and_read_only_arrays_are_taken(recwarn: pytest.WarningsRecorder) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    backwards = clip[::-1]
    clip.flags.writeable = False
    plain, turned = (condition_maps(form, (8, 8)).window(range(3), "cpu", torch.float32) for form in (clip, backwards))
    assert torch.equal(plain, turned.flip(2))
    assert not recwarn.list


def test_every_form_of_maps_gives_the_same_condition() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 16, 8, 3), np.uint8)
    floats = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
    forms = [clip, torch.from_numpy(clip), [Image.fromarray(frame) for frame in clip], list(clip), floats]
    forms.append(clip.astype(np.float64) / 255)
    windows = [condition_maps(form, (8, 16)).window([0, 2], "cpu", torch.float32) for form in forms]
    for form, window in zip(forms, windows, strict=True):
        assert clip_size(form) == (3, (8, 16))
        torch.testing.assert_close(window, windows[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), r"pose_maps has shape \[2, 8, 8\] and type uint8; wanted uint8"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \[2, 8, 8, 4\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \[0, 8, 8, 3\]"),
        (np.zeros((2, 8, 8, 3), np.int64), "type int64"),
        (np.full((2, 8, 8, 3), "a"), "type <U1"),
        ([], "pose_maps is empty"),
        (["a.png"], "pose_maps lists a str"),
        ("a.mp4", "pose_maps is a str"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))], "pictures of several shapes"),
        (torch.zeros(2, 3, 16, 8), r"floats of width, height \(8, 16\), wanted \(8, 8\)"),
        (torch.full((2, 3, 8, 8), torch.nan), "not finite"),
    ],
)
def test_bad_maps_are_refused(maps: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        condition_maps(maps, (8, 8))


def test_latents_too_small_to_blur_are_refused() -> None:
    with pytest.raises(ValueError, match="too small to blur, wanted sides of 5 up"):
        gaussian_blur(torch.zeros(1, 4, MIN_LATENT_SIDE - 1, 8))
    assert gaussian_blur(torch.zeros(1, 4, MIN_LATENT_SIDE, 8)).shape == (1, 4, MIN_LATENT_SIDE, 8)


def test_a_longer_clip_begins_with_the_same_draws() -> None:
    for draw in (draw_noise, draw_mask):
        short, long = draw(3, (4, 5, 7), seeded()), draw(9, (4, 5, 7), seeded())
        assert torch.equal(short, long[:, :, :3])
        assert not torch.equal(long[:, :, 0], long[:, :, 1])
    assert 0.4 < draw_mask(9, (4, 8, 8), seeded()).float().mean() < 0.6


def test_split_generators_are_seeded_and_differ() -> None:
    first, again = split_generator(seeded(), 3), split_generator(seeded(), 3)
    assert [g.initial_seed() for g in first] == [g.initial_seed() for g in again]
    assert len({g.initial_seed() for g in first}) == 3
    assert split_generator(seeded(1), 1)[0].initial_seed() != first[0].initial_seed()


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_initial_latents_restated(kind: type) -> None:
    """signal * (reference or its blur) + sigma * noise, with the scheduler's own two factors."""
    scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", steps_offset=1)
    scheduler.set_timesteps(4)
    reference = torch.randn(1, 4, 1, 6, 5, generator=seeded())
    noise, mask = draw_noise(3, (4, 6, 5), seeded(1)), draw_mask(3, (4, 6, 5), seeded(2))
    got = initial_latents(reference, noise, mask, scheduler, scheduler.timesteps[0])
    if kind is DDIMScheduler:
        alpha = scheduler.alphas_cumprod[scheduler.timesteps[0]]
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    else:
        signal, sigma = torch.tensor(1.0), scheduler.sigmas[0]
    clean = torch.where(mask, reference, gaussian_blur(reference[:, :, 0])[:, :, None])
    torch.testing.assert_close(got, signal * clean + sigma * noise)
