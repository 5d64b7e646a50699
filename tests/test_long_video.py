"""What keeps long videos together: steady colours, noise that frames share, anchored colours, windows that go on."""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from animate_inputs import make_photo, waving_tracks
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from test_metrics_drift import FPS, drifting, scene
from tiny_models import TINY_SCHEDULER, TINY_WH, tiny_clip, tiny_inputs, tiny_photo, tiny_pipeline
from torch import Tensor

from xdyna.cli import main
from xdyna.denoise import Conditioning, predict_clip
from xdyna.infer.engine.long import (
    NOISES,
    AnchoredPredictor,
    continue_clip,
    draw_clip_noise,
    pipeline_noise_stream,
    signal_and_noise,
)
from xdyna.infer.load import build_scheduler
from xdyna.infer.steady import SteadyColours
from xdyna.latents import to_clean
from xdyna.metrics.drift import drift
from xdyna.metrics.seam import frame_differences, split_differences
from xdyna.photo import read_photo
from xdyna.pipeline import XDynaPipeline
from xdyna.windows import blend_weights, continue_windows, draw_offsets, make_windows

Clip = NDArray[np.uint8]
SCHEDULERS = ["ddim", "ddpm", "pndm", "lms", "euler", "euler-ancestral", "dpm++", "unipc", "lcm"]


@pytest.fixture(scope="module")
def pipe() -> XDynaPipeline:
    return tiny_pipeline()


CALL: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def bare() -> XDynaPipeline:
    """For predictors of the tests' own; its scheduler is replaced at will."""
    return tiny_pipeline(face=False)


def with_scheduler(pipe: XDynaPipeline, name: str, kind: str = "epsilon") -> XDynaPipeline:
    """The pipeline with a new scheduler."""
    pipe.scheduler = build_scheduler(name, DDIMScheduler(**TINY_SCHEDULER, prediction_type=kind))
    return pipe


def steadied(clip: Clip, settle_s: float = 4.0) -> Clip:
    hold = SteadyColours(FPS, settle_s)
    return np.stack([hold(frame) for frame in clip])


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- steady colours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_without_drift_no_byte_changes(seed: int) -> None:
    clip = scene(seed=seed)
    assert (steadied(clip) == clip).all()
    moving = np.stack([np.roll(frame, 3 * number, axis=1) for number, frame in enumerate(clip)])
    assert (steadied(moving) == moving).all()
    rng = np.random.default_rng(seed)
    noisy = np.clip(np.round(clip + rng.normal(0, 8, clip.shape)), 0, 255).astype(np.uint8)
    assert (steadied(noisy) == noisy).all()


def test_someone_who_walks_about_changes_nothing() -> None:
    """A red disc over the picture, now here, now there: no byte changes."""
    clip = scene(20)
    for number, frame in enumerate(clip):
        middle = (int(16 + 9 * np.sin(number * 0.9)), int(12 + 4 * np.cos(number * 0.37)))
        cv2.circle(frame, middle, 5, (200, 40, 40), -1)
    assert (steadied(clip) == clip).all()


@pytest.mark.parametrize(
    ("kind", "strength"), [("brightness", 40), ("contrast", 60), ("saturation", 100), ("tint", 40)]
)
def test_drift_is_led_back(kind: str, strength: float) -> None:
    clip = drifting(scene(40), kind, strength)
    before, after = drift(clip, FPS).row(), drift(steadied(clip), FPS).row()
    for name in ("dE at the end", "dE per minute", "histogram at the end", "worst histogram"):
        assert after[name] < 0.4 * before[name]
    assert before["worst histogram"] > 5
    assert after["worst histogram"] < 7


def test_what_is_left_is_the_lag_of_the_average_and_the_tolerance() -> None:
    """A ramp of r grey levels per second is followed `settle_s` seconds late; two grey levels are left alone."""
    clip = drifting(np.full((int(60 * FPS), 8, 8, 3), 60, np.uint8), "brightness", 120)
    left = float(steadied(clip)[-1].mean() - clip[:6].mean())
    assert left == pytest.approx(120 / 60 * 4 + 2, abs=0.6)


def test_a_flash_passes_and_a_lasting_change_fades() -> None:
    clip = scene(24)
    flash, lasting = clip.copy(), clip.copy()
    flash[60:63] += 40  # half a second
    lasting[60:] += 40
    shown = steadied(flash).astype(float).mean((1, 2, 3)) - clip[0].mean()
    assert shown[60:63].min() > 0.85 * 40
    assert shown[63:].min() > -0.15 * 40
    shown = steadied(lasting).astype(float).mean((1, 2, 3)) - clip[0].mean()
    assert shown[60] > 0.9 * 40
    assert 0.25 * 40 < shown[60 + int(4 * FPS)] < 0.5 * 40  # one time constant later
    assert (np.diff(shown[60:]) < 0.5).all()


def test_frames_depend_on_earlier_ones_only() -> None:
    clip = drifting(scene(10), "tint", 40)
    assert (steadied(clip[:30]) == steadied(clip)[:30]).all()
    assert (steadied(clip)[:6] == clip[:6]).all()  # the first second


def test_flat_frames_are_shifted_and_not_blown_up() -> None:
    rng = np.random.default_rng(0)
    clip = np.full((60, 16, 16, 3), 100.0)
    clip[:6] += rng.normal(0, 40, (6, 16, 16, 3))  # a lively first second, then a flat grey
    clip[6:] += rng.normal(0, 0.5, (54, 16, 16, 3))
    out = steadied(np.clip(np.round(clip), 0, 255).astype(np.uint8))
    assert np.abs(out[6:].astype(float) - 100).max() < 10


def test_a_rate_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="fps is 0 and settle_s 4"):
        SteadyColours(0, 4)


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NOISES)
def test_noise_is_standard_normal_and_a_longer_clip_begins_alike(kind: str) -> None:
    long, short = (draw_clip_noise(kind, count, (4, 24, 24), seeded(), 8, 2) for count in (41, 11))
    assert long.shape == (1, 4, 41, 24, 24)
    assert long.dtype == torch.float32
    assert torch.equal(long[:, :, :11], short)
    assert torch.equal(draw_clip_noise(kind, 3, (4, 24, 24), seeded(), 8, 2), short[:, :, :3])
    for frame in long[0].transpose(0, 1):
        values = frame.double().flatten()
        assert abs(values.mean()) < 4 / len(values) ** 0.5
        assert values.std() == pytest.approx(1, abs=4 / (2 * len(values)) ** 0.5)
        assert (values.abs() < 1).double().mean() == pytest.approx(0.683, abs=0.04)


def test_frames_share_as_much_noise_as_they_should() -> None:
    def correlation(kind: str, **settings: Any) -> float:
        frames = draw_clip_noise(kind, 12, (4, 32, 32), seeded(), **settings)[0].transpose(0, 1).flatten(1)
        table = torch.corrcoef(frames)
        return float(table[~torch.eye(12, dtype=torch.bool)].mean())

    assert correlation("independent") == pytest.approx(0, abs=0.01)
    assert correlation("shared") == pytest.approx(1, abs=1e-6)
    for ratio in (0.0, 0.5, 1.0, 2.0):
        assert correlation("mixed", ratio=ratio) == pytest.approx(ratio**2 / (1 + ratio**2), abs=0.03)


@pytest.mark.parametrize(("window", "overlap"), [(16, 4), (8, 0), (8, 7), (1, 0)])
def test_every_window_of_the_grid_has_the_same_shuffled_noise(window: int, overlap: int) -> None:
    noise = draw_clip_noise("shuffled", 60, (1, 2, 2), seeded(), window, overlap)[0].transpose(0, 1).flatten(1)

    def sorted_rows(frames: Tensor) -> list[list[float]]:
        return sorted(frames.tolist())

    stride = window - overlap
    for start in range(0, 60 - window + 1, stride):
        assert sorted_rows(noise[start : start + window]) == sorted_rows(noise[:window])
    if stride > 4:
        assert not torch.equal(noise[window : 2 * window], noise[:window])


def test_bad_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise is 'pink', wanted one of independent, shared, mixed, shuffled"):
        draw_clip_noise("pink", 4, (4, 2, 2), seeded())
    with pytest.raises(ValueError, match="ratio is -1"):
        draw_clip_noise("mixed", 4, (4, 2, 2), seeded(), ratio=-1)
    with pytest.raises(ValueError, match="windows of 4 frames that share 4"):
        draw_clip_noise("shuffled", 4, (4, 2, 2), seeded(), 4, 4)


@pytest.mark.parametrize("shared", [False, True])
def test_the_pipeline_s_own_noise_can_be_asked_for_by_name(bare: XDynaPipeline, shared: bool) -> None:
    pipe = with_scheduler(bare, "ddim")
    pipe.register_to_config(shared_noise=shared)
    call: dict[str, Any] = {**tiny_inputs(5, face=False), "num_inference_steps": 1, "guidance_scale": 1.0}
    latents = (TINY_WH[1] // 4, TINY_WH[0] // 4)
    noise = draw_clip_noise("shared" if shared else "independent", 5, (4, *latents), pipeline_noise_stream(seeded()))
    own = pipe(**call, generator=seeded(), output_type="latent").frames
    assert torch.equal(pipe(**call, generator=seeded(), noise=noise, output_type="latent").frames, own)
    other = draw_clip_noise("mixed", 5, (4, *latents), pipeline_noise_stream(seeded()))
    assert worst(pipe(**call, generator=seeded(), noise=other, output_type="latent").frames, own) > 0.01
    pipe.register_to_config(shared_noise=False)


# --- anchor -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [*product(SCHEDULERS, ("epsilon", "v_prediction")), ("ddim", "sample"), ("dpm++", "sample")]
)
def test_signal_and_noise_are_those_of_the_scheduler(name: str, kind: str) -> None:
    scheduler = build_scheduler(name, DDIMScheduler(**TINY_SCHEDULER, prediction_type=kind))
    scheduler.set_timesteps(6)
    clean, noise = torch.randn(2, 1, 4, 3, 6, 5, generator=seeded()).double()
    for timestep in scheduler.timesteps:
        noisy = scheduler.add_noise(clean, noise, timestep.reshape(1))
        shown = scheduler.scale_model_input(noisy, timestep)
        a, b = signal_and_noise(scheduler, timestep)
        assert worst(shown, a * clean + b * noise) < 1e-3
        predicted = {"epsilon": noise, "v_prediction": a * noise - b * clean, "sample": clean}[kind]
        assert worst(to_clean(kind, predicted, a * clean + b * noise, a, b), clean) < 1e-6
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None


class Drifting:
    """A predictor whose clean latents go off with time: frame f is the reference times (1 + gain f), plus shift f."""

    def __init__(self, kind: str, scheduler: Any, gain: float = 0.01, shift: float = 0.02, flash: int = -1) -> None:
        self.kind, self.scheduler, self.gain, self.shift, self.flash = kind, scheduler, gain, shift, flash

    def clean(self, conditioning: Conditioning, count: int) -> Tensor:
        far = torch.arange(count, dtype=torch.float32)[:, None, None]
        clean = conditioning.reference_latents * (1 + self.gain * far) + self.shift * far
        if self.flash >= 0:
            clean[:, :, self.flash] += 5
        return clean

    def __call__(self, unet: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning, *rest: Any, **_: Any):  # type: ignore[no-untyped-def]
        a, b = signal_and_noise(self.scheduler, timestep)
        clean = self.clean(conditioning, latents.shape[2])
        noise = (latents - a * clean) / b
        return {"epsilon": noise, "v_prediction": a * noise - b * clean, "sample": clean}[self.kind]


def anchored(pipe: XDynaPipeline, kind: str, name: str = "ddim", flash: int = -1, **settings: Any) -> Tensor:
    """What a pipeline makes of 40 frames with an anchored drifting predictor: [C, F, h, w]."""
    pipe = with_scheduler(pipe, name, kind)
    predictor: Any = Drifting(kind, pipe.scheduler, flash=flash)
    if settings:
        predictor = AnchoredPredictor(predictor, pipe.scheduler, span=8, **settings)
    reference = torch.randn(1, 4, 1, 12, 8, generator=seeded())
    output: Any = pipe(
        None, tiny_clip(40), reference_latents=reference, num_inference_steps=3, guidance_scale=1.0,
        generator=seeded(), predictor=predictor, output_type="latent",
    )  # fmt: skip
    return torch.as_tensor(output.frames)[0]


def off(clip: Tensor, like: Tensor) -> Tensor:
    """How far each frame's channel means and deviations are from another frame's, on average: [F]."""
    mean = (clip.mean((-2, -1)) - like.mean((-2, -1))).abs().mean(0)
    return mean + (clip.std((-2, -1)) - like.std((-2, -1))).abs().mean(0)


@pytest.mark.parametrize("anchor", ["reference", "start"])
@pytest.mark.parametrize(
    ("kind", "name"), [("epsilon", "ddim"), ("v_prediction", "dpm++"), ("sample", "ddim"), ("epsilon", "euler")]
)
def test_an_anchor_holds_what_goes_off(bare: XDynaPipeline, kind: str, name: str, anchor: str) -> None:
    free = anchored(bare, kind, name)
    first = free[:, :1]
    assert torch.equal(anchored(bare, kind, name, anchor=anchor, strength=0.0), free)
    half, full = (anchored(bare, kind, name, anchor=anchor, strength=strength) for strength in (0.5, 1.0))
    ends = [float(off(clip, first)[-12:].mean()) for clip in (free, half, full)]
    assert ends[0] > ends[1] > ends[2]
    assert ends[2] < 0.35 * ends[0]
    assert ends[1] == pytest.approx((ends[0] + ends[2]) / 2, rel=0.25)


def test_an_anchor_lets_pass_what_is_fast(bare: XDynaPipeline) -> None:
    kept = anchored(bare, "epsilon", anchor="reference", strength=1.0, flash=20)
    height = (kept[:, 20] - (kept[:, 19] + kept[:, 21]) / 2).mean()
    assert height > 0.8 * 5


def test_an_anchor_leaves_alone_what_is_there_already(bare: XDynaPipeline) -> None:
    pipe = with_scheduler(bare, "ddim")
    for anchor in ("reference", "start"):
        predictor: Any = AnchoredPredictor(Drifting("epsilon", pipe.scheduler, 0.0, 0.0), pipe.scheduler, 1.0)
        predictor.anchor = anchor
        reference = torch.randn(1, 4, 1, 12, 8, generator=seeded())
        call: dict[str, Any] = {"reference_latents": reference, "num_inference_steps": 2, "guidance_scale": 1.0}
        made = pipe(None, tiny_clip(9), **call, predictor=predictor, generator=seeded(), output_type="latent").frames
        assert worst(made, reference) < 1e-3


def test_a_real_prediction_takes_an_anchor(pipe: XDynaPipeline) -> None:
    """On the networks' own predictions: strength 0 changes no byte, 1 brings the statistics nearer."""
    call: dict[str, Any] = {**tiny_inputs(9), **CALL, "window": 6, "overlap": 2}

    def made(strength: float) -> Tensor:
        predictor = AnchoredPredictor(predict_clip, pipe.scheduler, strength, "reference", 6)
        return torch.as_tensor(pipe(**call, predictor=predictor, generator=seeded(), output_type="latent").frames)

    plain = torch.as_tensor(pipe(**call, generator=seeded(), output_type="latent").frames)
    reference = pipe.encode_reference(call["reference"], TINY_WH, seeded())
    assert torch.equal(made(0.0), plain)
    assert off(made(1.0)[0], reference[0]).mean() < 0.5 * off(plain[0], reference[0]).mean()


def test_a_bad_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strength is 1\.5"):
        AnchoredPredictor(predict_clip, None, 1.5)
    with pytest.raises(ValueError, match="prediction_type is 'flow', wanted epsilon"):
        to_clean("flow", torch.zeros(1), torch.zeros(1), 1, 0)


# --- continuation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "size", "overlap"), [(1, 16, 4), (16, 16, 4), (17, 16, 4), (60, 16, 4), (9, 3, 0)]
)
def test_windows_that_go_on(num_frames: int, size: int, overlap: int) -> None:
    pieces = make_windows("continue", num_frames, size, overlap)
    assert pieces == continue_windows(num_frames, size, overlap)
    assert sorted({frame for piece in pieces for frame in piece}) == list(range(num_frames))
    assert {len(piece) for piece in pieces} == {min(size, num_frames)}
    for before, after in pairwise(pieces[:-1]):
        assert after[:overlap] == before[size - overlap :]
    for before, after in pairwise(pieces):
        assert after[0] > before[0]
        assert before[-1] + 1 - after[0] >= overlap


def test_windows_that_go_on_are_not_denoised_together(pipe: XDynaPipeline) -> None:
    with pytest.raises(ValueError, match=r"schedule is 'continue', .*continue_clip denoises them one after the other"):
        draw_offsets(seeded(), 3, "continue")
    with pytest.raises(ValueError, match="wanted one of open, closed, grid for windows that are denoised together"):
        blend_weights([[0, 1]], 2, 0, "continue")
    with pytest.raises(ValueError, match="schedule is 'continue'"):
        pipe(**tiny_inputs(5), schedule="continue", num_inference_steps=1)


def test_one_window_is_what_the_pipeline_makes(pipe: XDynaPipeline) -> None:
    call = {**tiny_inputs(6), **CALL, "eta": 1.0}
    plain = pipe(**call, generator=seeded(), window=6, overlap=0, output_type="latent").frames
    assert torch.equal(continue_clip(pipe, **call, generator=seeded(), window=8, overlap=2), plain)


def test_given_frames_come_out_unchanged_and_longer_clips_begin_alike(pipe: XDynaPipeline) -> None:
    reference, maps, local, whole = tiny_photo(), *(tiny_clip(14, seed=seed) for seed in (1, 2, 3))
    seen: list[tuple[int, int]] = []

    def made(count: int) -> Tensor:
        seen.clear()
        return continue_clip(
            pipe, reference, maps[:count], (local[:count], whole[:count]), **CALL, generator=seeded(), window=6,
            overlap=2, on_window=lambda done, total: seen.append((done, total)),
        )  # fmt: skip

    one, two, three = made(6), made(10), made(14)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(two[:, :, :6], one)
    assert torch.equal(three[:, :, :10], two)
    assert torch.equal(made(12)[:, :, :10], two)  # the last window begins earlier and is given more frames
    assert torch.isfinite(three).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_given_frames_are_shown_with_the_noise_of_each_step(bare: XDynaPipeline, name: str) -> None:
    pipe = with_scheduler(bare, name)
    noise = torch.randn(1, 4, 10, 12, 8, generator=seeded())
    shown: list[tuple[Tensor, float, float]] = []

    def predictor(unet: Any, latents: Tensor, timestep: Tensor, *rest: Any, **more: Any) -> Tensor:
        shown.append((latents, *signal_and_noise(pipe.scheduler, timestep)))
        return torch.zeros_like(latents)

    inputs = tiny_inputs(10, face=False)
    clip = continue_clip(
        pipe, **inputs, num_inference_steps=4, guidance_scale=1.0, generator=seeded(), window=6, overlap=2, noise=noise,
        predictor=predictor,
    )  # fmt: skip
    later = shown[len(shown) // 2 :]
    assert len(later) >= 4
    for latents, a, b in later:
        assert worst(latents[:, :, :2], a * clip[:, :, 4:6] + b * noise[:, :, 4:6]) < 1e-3


class Onward:
    """A predictor that copies: each frame is the one before it, moved by `speed` to the right.

    It reads the first frame of the window, whose noise is known, unless told to look at the reference instead; then
    every window is drawn with a shade of its own, as windows that know nothing of each other are.
    """

    def __init__(self, scheduler: Any, noise: Tensor, window: int, overlap: int, *, reads_given: bool) -> None:
        self.scheduler, self.noise, self.reads_given = scheduler, noise, reads_given
        self.starts = [piece[0] for piece in continue_windows(noise.shape[2], window, overlap)]
        self.calls = 0
        self.steps = 2

    def __call__(self, unet: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning, *rest: Any, **_: Any):  # type: ignore[no-untyped-def]
        number, self.calls = self.calls // self.steps, self.calls + 1
        first, count = self.starts[number], latents.shape[2]
        a, b = signal_and_noise(self.scheduler, timestep)
        if self.reads_given and number:
            picture = (latents[:, :, :1] - b * self.noise[:, :, first : first + 1]) / a
        else:
            picture = conditioning.reference_latents.roll(first, -1) + 0.5 * number
        clean = torch.cat([picture.roll(frame, -1) for frame in range(count)], dim=2)
        return (latents - a * clean) / b


@pytest.mark.parametrize("reads_given", [True, False])
def test_a_model_that_copies_goes_on_without_a_seam(bare: XDynaPipeline, reads_given: bool) -> None:
    pipe = with_scheduler(bare, "ddim")
    noise = torch.randn(1, 4, 22, 12, 8, generator=seeded())
    rows = torch.linspace(-1, 1, 8).abs().expand(1, 4, 1, 12, 8)
    clip = continue_clip(
        pipe, None, tiny_clip(22), reference_latents=rows, num_inference_steps=2, guidance_scale=1.0,
        generator=seeded(), window=10, overlap=4, noise=noise,
        predictor=Onward(pipe.scheduler, noise, 10, 4, reads_given=reads_given),
    )  # fmt: skip
    pictures = ((clip[0].permute(1, 2, 3, 0)[..., :3] + 0.5) * 80).clamp(0, 255).round().byte().numpy()
    at, inside = split_differences(frame_differences(pictures), [9, 15])
    assert inside.mean() > 1
    if reads_given:
        assert at.max() <= inside.max() + 0.2
        exact = torch.cat([rows.roll(frame, -1) for frame in range(22)], dim=2)
        assert worst(clip, exact) < 1e-2
    else:
        assert at.min() > 1.5 * inside.max()


def test_maps_keep_the_range_of_the_whole_clip(pipe: XDynaPipeline) -> None:
    """A window of dark maps is shown to the ControlNets as dark as it is among the others."""
    maps = tiny_clip(10)
    maps[6:] //= 2
    ranges: list[tuple[float, float]] = []

    def predictor(unet: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning, *rest: Any, **more: Any):  # type: ignore[no-untyped-def]
        ranges.extend((control.clips[0].low, control.clips[0].high) for control in conditioning.controls)
        return torch.zeros_like(latents)

    continue_clip(
        pipe, tiny_photo(), maps, num_inference_steps=1, guidance_scale=1.0, window=6, overlap=2, predictor=predictor
    )
    assert ranges == [(0.0, 255.0)] * 2


def test_maps_on_disk_go_on_as_well(pipe: XDynaPipeline) -> None:
    class OnDisk:
        """A clip that is read as it is asked for."""

        size_wh = TINY_WH

        def __init__(self, clip: Clip) -> None:
            self.clip = clip

        def __len__(self) -> int:
            return len(self.clip)

        def frames(self, indices: Sequence[int]) -> Clip:
            return self.clip[list(indices)]

        def extremes(self) -> tuple[int, int]:
            return 0, 255

    call: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1.0, "window": 6, "overlap": 2}
    here = continue_clip(pipe, tiny_photo(), tiny_clip(8), **call, generator=seeded())
    assert torch.equal(continue_clip(pipe, tiny_photo(), OnDisk(tiny_clip(8)), **call, generator=seeded()), here)


def test_bad_inputs_of_a_continued_clip_are_named(pipe: XDynaPipeline) -> None:
    with pytest.raises(ValueError, match=r"noise has shape \[1, 4, 9, 12, 8\], wanted \[1, 4, 10, 12, 8\]"):
        continue_clip(pipe, tiny_photo(), tiny_clip(10), noise=torch.zeros(1, 4, 9, 12, 8))
    with pytest.raises(ValueError, match="windows of 4 frames that share 4"):
        continue_clip(pipe, tiny_photo(), tiny_clip(10), window=4, overlap=4)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Callable[..., Clip]:
    """Runs the command with some options and gives its frames; each set of options runs once."""
    folder = tmp_path_factory.mktemp("long")
    make_photo(folder / "photo.png")
    waving_tracks(8, fps=4.0).save(folder / "dance.tracks.npz")
    done: dict[tuple[str, ...], Clip] = {}

    def run(*options: str) -> Clip:
        if options not in done:
            out = folder / str(len(done))
            inputs = ["--ref", str(folder / "photo.png"), "--tracks", str(folder / "dance.tracks.npz")]
            command = [
                "animate",
                *inputs,
                "--model",
                str(tiny_folder),
                "--window",
                "6",
                "--overlap",
                "2",
                "-o",
                str(out),
            ]
            assert main([*command, *options]) == 0
            done[options] = np.stack([read_photo(path) for path in sorted(out.glob("*.png"))])
        return done[options]

    return run


@pytest.mark.slow
def test_the_command_takes_noise_and_an_anchor(made: Callable[..., Clip]) -> None:
    plain = made()
    assert (made("--noise", "independent", "--anchor", "0") == plain).all()  # what this model does anyway
    others = [made("--noise", kind) for kind in ("shared", "mixed", "shuffled")]
    others += [made("--anchor", "1"), made("--anchor", "1", "--set", "anchor_to=start")]
    for number, one in enumerate(others):
        for other in [plain, *others[:number]]:
            assert (one != other).any()


def test_the_command_steadies_colours_as_the_frames_come(made: Callable[..., Clip], monkeypatch: Any) -> None:
    plain = made()
    monkeypatch.setattr("xdyna.infer.steady.TOLERANCE", 0.01)
    hold = SteadyColours(4.0)
    wanted = np.stack([hold(frame) for frame in plain])
    assert (wanted != plain).any()
    assert (made("--steady-colours") == wanted).all()


@pytest.mark.parametrize(("option", "value"), [("--noise", "pink"), ("--anchor", "1.5")])
def test_the_command_refuses_what_makes_no_sense(
    made: Callable[..., Clip], capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main(["animate", "--ref", "photo.png", "--tracks", "dance.tracks.npz", option, value]) == 2
    assert option.strip("-") in capsys.readouterr().err
