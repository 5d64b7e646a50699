"""What the pipeline computes: randomness, windows, guidance, control, outputs."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_unet
from tiny_models import TINY_WH, tiny_clip, tiny_inputs, tiny_photo, tiny_pipeline
from torch import Tensor, nn

from xdyna import XDynaPipeline
from xdyna.controlnets.residuals import control_residuals
from xdyna.denoise import Conditioning, predict_clip, predict_windows
from xdyna.latents import draw_mask, draw_noise, split_generator
from xdyna.windows import blend_weights, closed_windows, draw_offsets, make_windows, open_windows

LATENT_SHAPE = (4, TINY_WH[1] // 4, TINY_WH[0] // 4)
#: Frames of a clip that takes several windows of this size and overlap.
LONG = {"window": 4, "overlap": 2}


@pytest.fixture(scope="module")
def pipeline() -> XDynaPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def full_pipeline() -> XDynaPipeline:
    """With text encoder, image prompt and image encoder."""
    return tiny_pipeline(text=True, image_prompt=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(pipeline: XDynaPipeline, num_frames: int = 5, seed: int = 0, face: bool = True, **settings: Any) -> Any:
    """Frames of a short call, latents unless asked otherwise."""
    settings = {"num_inference_steps": 2, "output_type": "latent", "generator": seeded(seed), **settings}
    return pipeline(**{**tiny_inputs(num_frames, face), **settings}).frames


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Arguments of every call of a module: positional ones by index."""
    calls: list[dict[str, Any]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append({**{str(i): arg for i, arg in enumerate(args)}, **kwargs})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


# --- randomness -----------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(pipeline: XDynaPipeline) -> None:
    first, again, other = (run(pipeline, output_type="np", seed=seed) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


def test_nothing_is_drawn_but_from_the_generator(pipeline: XDynaPipeline) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = run(pipeline, 9, **LONG)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(99)
    assert torch.equal(first, run(pipeline, 9, **LONG))


def test_without_a_generator_the_global_one_seeds(pipeline: XDynaPipeline) -> None:
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(run(pipeline, generator=None))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_longer_clip_starts_from_the_same_noise(pipeline: XDynaPipeline) -> None:
    starts = []
    for num_frames in (3, 7):
        with recorded(pipeline.unet) as calls:
            run(pipeline, num_frames, guidance_scale=1.0, num_inference_steps=1)
        starts.append(calls[0]["0"])
    assert torch.equal(starts[0], starts[1][:, :, :4])


def test_frames_of_a_still_clip_are_equal_when_they_share_their_noise(pipeline: XDynaPipeline) -> None:
    """Without motion modules and with one pose, only the noise could tell frames apart."""
    shared = XDynaPipeline(**pipeline.components, shared_noise=True, schedule="grid")
    assert shared.config.shared_noise
    assert shared.config.schedule == "grid"
    starts = []
    for pipe in (pipeline, shared):
        with recorded(pipe.unet) as calls:
            run(pipe, 5, guidance_scale=1.0, num_inference_steps=1)
        starts.append(calls[0]["0"][:, :, 1:])
    assert not torch.equal(starts[0][:, :, :1], starts[0][:, :, 1:2])
    assert torch.equal(starts[1], starts[1][:, :, :1].expand_as(starts[1]))


def test_a_start_that_keeps_everything_is_the_noised_reference(pipeline: XDynaPipeline) -> None:
    keeping = XDynaPipeline(**pipeline.components, start_keep=1.0)
    reference = torch.randn(1, LATENT_SHAPE[0], 1, *LATENT_SHAPE[1:], generator=seeded(4))
    noise = draw_noise(3, LATENT_SHAPE, seeded(1))
    starts = []
    for pipe in (pipeline, keeping):
        with recorded(pipe.unet) as calls:
            run(pipe, 3, guidance_scale=1.0, num_inference_steps=1, reference_latents=reference, noise=noise)
        starts.append(calls[0]["0"][:, :, 1:])
    scheduler = keeping.scheduler
    wanted = scheduler.add_noise(reference.expand_as(noise), noise, scheduler.timesteps[:1])
    assert not torch.allclose(starts[0], wanted, atol=1e-3)
    torch.testing.assert_close(starts[1], wanted)


def test_streams_do_not_shift_each_other(pipeline: XDynaPipeline) -> None:
    """What is passed instead of being drawn changes nothing that is still drawn."""
    settings = {"num_inference_steps": 2, **LONG}
    drawn = run(pipeline, 9, **settings)
    generator = seeded()
    vae_generator = generator.clone_state()
    noise_stream, mask_stream, offset_stream, _ = split_generator(generator, 4)
    hooks = {
        "reference_latents": pipeline.encode_reference(tiny_photo(), TINY_WH, vae_generator),
        "noise": draw_noise(9, LATENT_SHAPE, noise_stream),
        "mask": draw_mask(9, LATENT_SHAPE, mask_stream),
        "window_offsets": draw_offsets(offset_stream, 2, "open", 4, 2),
    }
    for name, value in hooks.items():
        assert torch.equal(drawn, run(pipeline, 9, **settings, **{name: value})), name
    assert torch.equal(drawn, run(pipeline, 9, **settings, **hooks))


def test_noise_and_mask_may_include_the_reference_frame(pipeline: XDynaPipeline) -> None:
    noise, mask = draw_noise(6, LATENT_SHAPE, seeded(1)), draw_mask(6, LATENT_SHAPE, seeded(2))
    with_reference = run(pipeline, 5, noise=noise, mask=mask)
    assert torch.equal(with_reference, run(pipeline, 5, noise=noise[:, :, 1:], mask=mask[:, :, 1:]))


def test_results_do_not_depend_on_batching(pipeline: XDynaPipeline) -> None:
    plain = run(pipeline, 9, output_type="pt", **LONG)
    batched = run(pipeline, 9, output_type="pt", window_batch=3, vae_batch=4, **LONG)
    torch.testing.assert_close(plain, batched, rtol=0, atol=1e-5)


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "make"), [("open", open_windows), ("closed", closed_windows), (None, open_windows)]
)
def test_windows_of_the_schedule_are_run(pipeline: XDynaPipeline, schedule: str, make: Callable[..., Any]) -> None:
    """Every UNet call is the clean reference and one window's frames, at the given offsets."""
    offsets, seen = [1, 3], []

    def keep(_: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return tensors

    reference = torch.randn(1, LATENT_SHAPE[0], 1, *LATENT_SHAPE[1:], generator=seeded(4))
    start = torch.randn(1, LATENT_SHAPE[0], 9, *LATENT_SHAPE[1:], generator=seeded(5))
    with recorded(pipeline.unet) as calls:
        run(pipeline, 9, schedule=schedule, window_offsets=offsets, reference_latents=reference, latents=start,
            callback_on_step_end=keep, **LONG)  # fmt: skip
    wanted = [(step, window) for step in range(2) for window in make(9, 4, 2, offsets[step])]
    assert len(calls) == len(wanted)
    for call, (step, window) in zip(calls, wanted, strict=True):
        latents = [start, *seen][step]
        assert torch.equal(call["0"], torch.cat([reference, latents[:, :, window]], dim=2).repeat(2, 1, 1, 1, 1))


class CountingUNet(nn.Module):
    """Stands in for a UNet: its k-th call predicts k everywhere, 100 k in the conditional half."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Any:
        self.calls += 1
        halves = torch.tensor([1.0, 100.0])[: len(sample)].reshape(-1, 1, 1, 1, 1)
        return type("Output", (), {"sample": self.calls * halves * torch.ones_like(sample)})


@pytest.mark.parametrize("schedule", ["open", "closed", "grid"])
def test_predictions_are_blended_by_the_weights(schedule: str) -> None:
    clip_windows = make_windows(schedule, 9, 4, 2, 1)
    assert (clip_windows[-1][-2:] == [8, 8]) == (schedule == "grid")  # which shows its last frame twice
    weights = blend_weights(clip_windows, 9, 2, schedule)
    text, none = torch.zeros(1, 4, 16), torch.zeros(1, 0, 16)
    conditioning = Conditioning(torch.zeros(1, 4, 1, 6, 5), text, text, none, none, [])
    got = predict_clip(
        CountingUNet(), torch.zeros(1, 4, 9, 6, 5), torch.tensor(1), conditioning, clip_windows, weights, 7.5
    )
    wanted = np.zeros(9)
    for call, (window, weight) in enumerate(zip(clip_windows, weights, strict=True), start=1):
        np.add.at(wanted, window, call * weight)
    wanted *= 1 + 7.5 * (100 - 1)
    torch.testing.assert_close(got[0, 0, :, 0, 0], torch.from_numpy(wanted).float(), rtol=1e-5, atol=0)
    assert (got == got[:, :1, :, :1, :1]).all()


def test_a_long_clip_is_finite_and_every_frame_moves(pipeline: XDynaPipeline) -> None:
    frames = run(pipeline, 40, face=False, num_inference_steps=1)
    assert frames.shape == (1, LATENT_SHAPE[0], 40, *LATENT_SHAPE[1:])
    assert torch.isfinite(frames).all()
    assert (frames[:, :, 1:] - frames[:, :, :-1]).abs().amax(dim=(0, 1, 3, 4)).min() > 0


# --- guidance -------------------------------------------------------------------------------------------------------


def test_guidance_of_one_runs_one_half_and_equals_both(full_pipeline: XDynaPipeline) -> None:
    """The official code runs both halves at 1.0; uncond + 1 (cond - uncond) is cond."""
    texts = {"prompt": "abc", "negative_prompt": "xyz"}
    with recorded(full_pipeline.unet) as one_half:
        single = run(full_pipeline, guidance_scale=1.0, **texts)
    with recorded(full_pipeline.unet) as both_halves:
        double = run(full_pipeline, guidance_scale=float(np.nextafter(1.0, 2.0)), **texts)
    assert {len(call["0"]) for call in one_half} == {1}
    assert {len(call["0"]) for call in both_halves} == {2}
    assert (single - double).abs().max() <= 1e-5


def test_one_prediction_at_guidance_of_one_equals_both(full_pipeline: XDynaPipeline) -> None:
    unet = full_pipeline.unet
    draws = [torch.randn(1, n, 16, generator=seeded(i)) for i, n in enumerate((4, 4, 3, 3))]
    reference = torch.randn(1, 4, 1, 12, 8, generator=seeded(9))
    conditioning = Conditioning(reference, *draws, [])
    latents, t = torch.randn(1, 4, 3, 12, 8, generator=seeded(8)), torch.tensor(500)
    with torch.no_grad():
        single = predict_windows(unet, latents, t, conditioning, [[0, 1, 2]], guided=False)
        uncond, cond = predict_windows(unet, latents, t, conditioning, [[0, 1, 2]], guided=True)
    assert (single[0] - (uncond + 1.0 * (cond - uncond))).abs().max() <= 1e-5
    assert (cond - uncond).abs().max() > 1e-3


def test_guidance_can_change_in_a_callback(pipeline: XDynaPipeline) -> None:
    def off(pipe: XDynaPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = 1.0
        return tensors

    with recorded(pipeline.unet) as calls:
        run(pipeline, callback_on_step_end=off)
    assert [len(call["0"]) for call in calls] == [2, 1]


# --- text and image tokens ------------------------------------------------------------------------------------------


def test_prompts_and_their_embeddings(full_pipeline: XDynaPipeline) -> None:
    empty, written = run(full_pipeline), run(full_pipeline, prompt="dance", negative_prompt="blur")
    assert not torch.equal(empty, written)
    assert torch.equal(empty, run(full_pipeline, prompt="", negative_prompt=""))
    embeds = {
        "prompt_embeds": full_pipeline.encode_prompt("dance"),
        "negative_prompt_embeds": full_pipeline.encode_prompt("blur"),
    }
    assert torch.equal(written, run(full_pipeline, **embeds))
    assert torch.equal(
        written, run(full_pipeline, prompt="dance", negative_prompt_embeds=embeds["negative_prompt_embeds"])
    )


def test_stored_prompt_stands_for_the_empty_one(pipeline: XDynaPipeline) -> None:
    embedding = pipeline.stored_prompt(1)
    wanted = run(pipeline, prompt_embeds=embedding, negative_prompt_embeds=embedding)
    assert torch.equal(run(pipeline), wanted)
    assert torch.equal(run(pipeline, prompt="", negative_prompt=""), wanted)


def test_image_tokens_come_after_the_text(full_pipeline: XDynaPipeline) -> None:
    with recorded(full_pipeline.unet) as calls:
        run(full_pipeline, prompt="abc")
    context = calls[0]["encoder_hidden_states"]
    embeds, zeros = full_pipeline.encode_image(tiny_photo())
    with torch.no_grad():
        tokens, negative_tokens = full_pipeline.image_prompt(embeds), full_pipeline.image_prompt(zeros)
    assert context.shape == (2, 4 + 3, 16)
    torch.testing.assert_close(context[0], torch.cat([full_pipeline.encode_prompt(""), negative_tokens], dim=1)[0])
    torch.testing.assert_close(context[1], torch.cat([full_pipeline.encode_prompt("abc"), tokens], dim=1)[0])


def test_unconditional_image_is_zero_after_normalisation(full_pipeline: XDynaPipeline) -> None:
    embeds, zeros = full_pipeline.encode_image(tiny_photo())
    with torch.no_grad():
        states = full_pipeline.image_encoder(torch.zeros(1, 3, 16, 16), output_hidden_states=True).hidden_states
    assert torch.equal(zeros, states[-2])
    assert not torch.allclose(embeds, zeros)


def test_image_embeddings_and_tokens_can_be_passed(full_pipeline: XDynaPipeline) -> None:
    drawn = run(full_pipeline)
    embeds, zeros = full_pipeline.encode_image(tiny_photo())
    with torch.no_grad():
        tokens, negative_tokens = full_pipeline.image_prompt(embeds), full_pipeline.image_prompt(zeros)
    assert torch.equal(drawn, run(full_pipeline, image_embeds=embeds, negative_image_embeds=zeros))
    assert torch.equal(drawn, run(full_pipeline, image_embeds=embeds))
    assert torch.equal(drawn, run(full_pipeline, image_tokens=tokens, negative_image_tokens=negative_tokens))
    assert torch.equal(drawn, run(full_pipeline, prompt_image=Image.fromarray(tiny_photo())))
    assert not torch.equal(drawn, run(full_pipeline, prompt_image=tiny_photo(seed=7)))


def test_the_whole_photo_is_the_image_prompt(full_pipeline: XDynaPipeline) -> None:
    """Only the latents see the crop."""
    wide = tiny_photo((96, 48), seed=3)
    with recorded(full_pipeline.image_encoder) as calls:
        run(full_pipeline, reference=wide)
    wanted = full_pipeline.feature_extractor(images=Image.fromarray(wide), return_tensors="pt").pixel_values
    assert torch.equal(calls[0]["0"], wanted)


def test_a_detached_image_prompt_is_off(full_pipeline: XDynaPipeline) -> None:
    full_pipeline.image_prompt.detach()
    try:
        with recorded(full_pipeline.unet) as calls:
            run(full_pipeline)
        assert calls[0]["encoder_hidden_states"].shape == (2, 4, 16)
    finally:
        full_pipeline.image_prompt.attach(full_pipeline.unet)


# --- control --------------------------------------------------------------------------------------------------------


def test_equal_prompts_are_controlled_once(full_pipeline: XDynaPipeline) -> None:
    for prompt, halves in (("", 1), ("abc", 2)):
        with recorded(full_pipeline.pose_controlnet) as pose, recorded(full_pipeline.face_controlnet) as face:
            run(full_pipeline, prompt=prompt)
        for calls in (pose, face):
            assert {len(call["0"]) for call in calls} == {5 * halves}
            assert {call["encoder_hidden_states"].shape[1] for call in calls} == {4}  # text tokens only


def test_controlled_once_equals_controlled_twice(pipeline: XDynaPipeline) -> None:
    """The residuals that reach the UNet are those of both halves run in full."""
    with recorded(pipeline.unet) as calls:
        run(pipeline, face=False, num_inference_steps=1)
    sample = calls[0]["0"]
    maps = torch.from_numpy(tiny_clip(5)).permute(3, 0, 1, 2)[None].float() / 255
    with torch.no_grad():
        wanted = control_residuals(
            pipeline.pose_controlnet,
            sample[:, :, 1:],
            calls[0]["1"],
            calls[0]["encoder_hidden_states"],
            maps,
        ).with_reference()
    for got, residual in zip(calls[0]["down_block_additional_residuals"], wanted.down, strict=True):
        torch.testing.assert_close(got, residual, rtol=0, atol=1e-5)
        assert not got[:, :, 0].any()
    torch.testing.assert_close(calls[0]["mid_block_additional_residual"], wanted.mid, rtol=0, atol=1e-5)


def test_face_condition_is_local_then_global(pipeline: XDynaPipeline) -> None:
    with recorded(pipeline.face_controlnet) as calls:
        run(pipeline)
    local, whole = (torch.from_numpy(tiny_clip(5, seed=seed)).permute(0, 3, 1, 2) / 255 for seed in (2, 3))
    torch.testing.assert_close(calls[0]["controlnet_cond"], torch.cat([local, whole], dim=1))


def test_a_face_controlnet_needs_no_face_maps(pipeline: XDynaPipeline) -> None:
    with recorded(pipeline.face_controlnet) as calls:
        without = run(pipeline, face=False)
    assert not calls
    assert torch.equal(without, run(tiny_pipeline(face=False), face=False))
    assert torch.equal(without, run(pipeline, face_scale=0.0))
    assert not torch.equal(without, run(pipeline))


def test_control_has_a_strength_and_a_start_and_an_end(pipeline: XDynaPipeline) -> None:
    plain = run(pipeline)
    halved = run(pipeline, pose_scale=0.5)
    assert not torch.equal(plain, halved)
    assert torch.equal(halved, run(pipeline, controlnet_conditioning_scale=(0.5, 1.0)))
    assert torch.equal(run(pipeline, pose_scale=2, face_scale=2), run(pipeline, controlnet_conditioning_scale=2))
    with recorded(pipeline.pose_controlnet) as pose, recorded(pipeline.face_controlnet) as face:
        run(pipeline, num_inference_steps=4, control_guidance_start=(0.0, 0.5), control_guidance_end=(0.25, 1.0))
    timesteps = pipeline.scheduler.timesteps
    assert [call["1"] for call in pose] == [timesteps[0]]
    assert [call["1"] for call in face] == [timesteps[2], timesteps[3]]


def test_no_control_at_all(pipeline: XDynaPipeline) -> None:
    with recorded(pipeline.pose_controlnet) as calls:
        frames = run(pipeline, face=False, pose_scale=0.0)
    assert not calls
    assert torch.isfinite(frames).all()


def test_adapter_strength_holds_for_the_call_only() -> None:
    pipeline = tiny_pipeline(face=False)
    pipeline.dynamics_adapter.scale = 0.7
    full, off = run(pipeline, face=False), run(pipeline, face=False, adapter_scale=0.0)
    assert pipeline.dynamics_adapter.scale == 0.7
    with pytest.raises(ZeroDivisionError):
        run(pipeline, face=False, adapter_scale=0.5, callback_on_step_end=lambda *_: 1 / 0)
    assert pipeline.dynamics_adapter.scale == 0.7
    assert not torch.equal(full, off)
    assert torch.equal(off, run(tiny_pipeline(face=False, adapter=False), face=False))


# --- reference, outputs, callbacks ----------------------------------------------------------------------------------


def test_every_form_of_reference_gives_the_same(pipeline: XDynaPipeline) -> None:
    photo = tiny_photo()
    floats = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    plain = run(pipeline, reference=photo)
    for form in (Image.fromarray(photo), torch.from_numpy(photo), Image.fromarray(photo).convert("RGBA")):
        assert torch.equal(plain, run(pipeline, reference=form))
    for form in (floats, floats[None]):
        torch.testing.assert_close(plain, run(pipeline, reference=form), rtol=0, atol=1e-5)


def test_reference_is_cut_about_its_centre(pipeline: XDynaPipeline) -> None:
    photo = tiny_photo()
    wide = np.pad(photo, ((0, 0), (10, 10), (0, 0)))
    assert torch.equal(run(pipeline, reference=photo), run(pipeline, reference=wide))
    big = Image.fromarray(photo).resize((TINY_WH[0] * 3, TINY_WH[1] * 3), Image.Resampling.NEAREST)
    latents = [pipeline.encode_reference(image, TINY_WH) for image in (photo, big)]
    assert latents[0].shape == latents[1].shape == (1, LATENT_SHAPE[0], 1, *LATENT_SHAPE[1:])


def test_reference_latents_are_a_scaled_sample_of_the_posterior(pipeline: XDynaPipeline) -> None:
    pixels = torch.from_numpy(tiny_photo()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        sample = pipeline.vae.encode(pixels).latent_dist.sample(seeded(3))
    got = pipeline.encode_reference(tiny_photo(), TINY_WH, seeded(3))
    torch.testing.assert_close(got[:, :, 0], sample * pipeline.vae.config.scaling_factor)


def test_size_follows_the_maps_or_is_given(pipeline: XDynaPipeline) -> None:
    odd = tiny_clip(3, (37, 53))
    assert run(pipeline, face=False, pose_maps=odd).shape[-2:] == (48 // 4, 32 // 4)
    assert run(pipeline, face=False, pose_maps=odd, width=40, height=64).shape[-2:] == (64 // 4, 40 // 4)


def test_output_types_agree(pipeline: XDynaPipeline) -> None:
    latents = run(pipeline)
    assert latents.shape == (1, LATENT_SHAPE[0], 5, *LATENT_SHAPE[1:])
    tensor, array, images = (run(pipeline, output_type=kind) for kind in ("pt", "np", "pil"))
    assert tensor.shape == (1, 5, 3, TINY_WH[1], TINY_WH[0])
    assert array.shape == (1, 5, TINY_WH[1], TINY_WH[0], 3)
    assert array.dtype == np.float32
    assert array.min() >= 0
    assert array.max() <= 1
    np.testing.assert_array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    assert [image.size for image in images[0]] == [TINY_WH] * 5
    np.testing.assert_array_equal(np.asarray(images[0][2]), (array[0, 2] * 255).round().astype(np.uint8))


def test_decoding_can_stream(pipeline: XDynaPipeline) -> None:
    latents = run(pipeline)
    parts = list(pipeline.decode_frames(latents, vae_batch=2))
    assert [len(part) for part in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(parts)[None], run(pipeline, output_type="pt"), rtol=0, atol=1e-5)


def test_a_tuple_when_asked(pipeline: XDynaPipeline) -> None:
    out = pipeline(**tiny_inputs(3), num_inference_steps=1, generator=seeded(), output_type="latent", return_dict=False)
    assert isinstance(out, tuple)
    assert torch.equal(out[0], run(pipeline, 3, num_inference_steps=1))


def test_latents_start_the_denoising(pipeline: XDynaPipeline) -> None:
    start = torch.randn(1, LATENT_SHAPE[0], 5, *LATENT_SHAPE[1:], generator=seeded(6))
    with recorded(pipeline.unet) as calls:
        run(pipeline, latents=start)
    assert torch.equal(calls[0]["0"][:1, :, 1:], start)


def test_callback_sees_and_replaces_tensors(pipeline: XDynaPipeline) -> None:
    seen: list[tuple[int, int, set[str]]] = []

    def replace(_: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, int(timestep), set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"]), "prompt_embeds": tensors["prompt_embeds"] + 1}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    with recorded(pipeline.unet) as calls:
        frames = run(pipeline, callback_on_step_end=replace, callback_on_step_end_tensor_inputs=names)
    assert seen == [(0, 501, set(names)), (1, 1, set(names))]
    assert not frames.any()
    assert not calls[1]["0"][:, :, 1:].any()
    stored = pipeline.stored_prompt(1)[0]
    torch.testing.assert_close(calls[1]["encoder_hidden_states"][0], stored)
    torch.testing.assert_close(calls[1]["encoder_hidden_states"][1], stored + 1)


def test_interrupt_stops(pipeline: XDynaPipeline) -> None:
    def stop(pipe: XDynaPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = step == 0
        return tensors

    with recorded(pipeline.unet) as calls:
        run(pipeline, num_inference_steps=3, callback_on_step_end=stop)
    assert len(calls) == 1
    assert pipeline.num_timesteps == 3


def test_progress_bar_counts_steps(pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []
    build = pipeline.progress_bar

    def keep(*args: Any, **kwargs: Any) -> Any:
        bars.append(build(*args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(pipeline, "progress_bar", keep)
    monkeypatch.setattr(pipeline, "_progress_bar_config", {"disable": False})
    run(pipeline, num_inference_steps=3)
    assert [(bar.n, bar.total) for bar in bars] == [(3, 3)]


def test_reference_at_timestep_zero_and_pooling_are_the_unet_s_business() -> None:
    frames = [
        run(tiny_pipeline(**settings)) for settings in ({}, {"reference_timestep": "zero"}, {"pool_group_norm": False})
    ]
    assert len({float(f.sum()) for f in frames}) == 3
    assert small_unet().config.pool_group_norm
