"""The engine's prediction against the plain one: the same numbers with fewer evaluations."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_controlnet
from tiny_models import tiny_inputs, tiny_pipeline
from torch import Tensor, nn

from xdyna import SFaceControlNet, XDynaPipeline
from xdyna.adapters.reference_net import ReferenceNet
from xdyna.controlnets.residuals import condition_features, control_residuals, frame_residuals
from xdyna.denoise import predict_clip, shown_later
from xdyna.infer.engine.halves import HalvesApart
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.engine.small_frames import cpu_batches
from xdyna.windows import make_windows

CALL_TOLERANCE = 1e-5  # of one call of the UNet
CLIP_TOLERANCE = 1e-3  # of the final latents
MODELS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "per frame": {"pool_group_norm": False},
    "fixed reference": {"pool_group_norm": False, "reference_timestep": "zero"},
    "no adapter": {"pool_group_norm": False, "adapter": False},
    "no attention above": {
        "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
        "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"),
    },
}


@pytest.fixture(scope="module")
def pipelines() -> dict[str, XDynaPipeline]:
    return {name: tiny_pipeline(image_prompt=True, text=True, **settings) for name, settings in MODELS.items()}


def run(pipeline: XDynaPipeline, predictor: Any, num_frames: int = 11, face: bool = True, **settings: Any) -> Tensor:
    """Final latents of a short call."""
    defaults = {"num_inference_steps": 2, "output_type": "latent", "window": 4, "overlap": 2}
    generator = torch.Generator().manual_seed(0)
    call = {**tiny_inputs(num_frames, face), **defaults, **settings}
    latents: Tensor = pipeline(**call, generator=generator, predictor=predictor).frames
    return latents


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """Rows that a module is called with, call by call."""
    rows: list[int] = []
    handle = module.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prompt": "b", "negative_prompt": "a"},
        {"guidance_scale": 1.0, "schedule": "grid"},
        {"schedule": "closed", "window_batch": 3},
        {"control_guidance_end": (0.5, 1.0), "pose_scale": 0.7, "schedule": "closed"},
        {"face": False, "pose_scale": 0.0},
        {"num_frames": 3},
    ],
    ids=["same text", "other text", "unguided", "closed", "controls change", "no control", "one window"],
)
def test_exact_is_the_plain_pipeline(pipelines: dict[str, XDynaPipeline], model: str, settings: dict[str, Any]) -> None:
    pipeline = pipelines[model]
    steps: list[tuple[Tensor, Tensor]] = []
    exact = ExactPredictor()

    def both(*args: Any, **kwargs: Any) -> Tensor:
        steps.append((predict_clip(*args, **kwargs), exact(*args, **kwargs)))
        return steps[-1][0].clone()

    plain = run(pipeline, both, **settings)
    scale = settings.get("guidance_scale", 7.5) * 2 + 1  # an error of a call is multiplied by guidance
    assert all(worst(a, b) < CALL_TOLERANCE * scale for a, b in steps)
    assert worst(plain, run(pipeline, ExactPredictor(), **settings)) < CLIP_TOLERANCE


def test_each_frame_is_evaluated_once_a_step_by_each_controlnet(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["pooled"]
    for net in (pipeline.pose_controlnet, pipeline.face_controlnet):
        stem = net.controlnet_cond_embedding.conv_in
        with counted(net.conv_in) as frames, counted(net.controlnet_mid_block) as ends, counted(stem) as maps:
            run(pipeline, ExactPredictor(), schedule="closed")
        assert sum(frames) == sum(ends) == 2 * 11
        assert sum(maps) == 11  # once a job
        with counted(net.conv_in) as frames, counted(net.controlnet_mid_block) as ends:
            run(pipeline, ExactPredictor(), schedule="closed", negative_prompt="a")
        assert sum(frames) == 2 * 11
        assert sum(ends) == 2 * 2 * 11
        with counted(net.conv_in) as frames:
            run(pipeline, predict_clip, schedule="closed")
        assert sum(frames) > 2 * 2 * 11 * 0.9


def test_controlnets_see_the_frames_of_as_many_windows_at_once(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["pooled"]
    for batch, deterministic, wanted in ((1, False, [4, 4, 3]), (2, False, [8, 3]), (2, True, [4, 4, 4])):
        with counted(pipeline.pose_controlnet.conv_in) as frames:
            exact = ExactPredictor(deterministic=deterministic)
            run(pipeline, exact, face=False, window_batch=batch, num_inference_steps=1)
        assert frames == wanted


def test_a_cpu_takes_more_at_once_where_frames_are_small() -> None:
    def part(count: int, width: int) -> Any:
        weights = [torch.empty(count, device="meta")]
        return SimpleNamespace(parameters=lambda: weights, config=SimpleNamespace(block_out_channels=(width,)))

    vae = part(0, 128)
    vae.decoder = part(49_490_179, 128)
    sd15: Any = SimpleNamespace(unet=part(1_275_000_000, 320), vae=vae, vae_scale_factor=8)
    sizes = [(40, 40), (96, 64), (192, 128), (256, 256), (896, 512)]
    batches = [tuple(cpu_batches(sd15, size, 16, guided=True)) for size in sizes]
    assert batches == [(8, 8), (5, 3), (2, 1), (1, 1), (1, 1)]
    assert cpu_batches(sd15, (192, 128), 16, guided=False).windows == 3
    assert cpu_batches(tiny_pipeline(), (32, 48), 16, guided=True) == (1, 1)


def test_features_beyond_the_budget_are_made_again(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["pooled"]
    stem = pipeline.pose_controlnet.controlnet_cond_embedding.conv_in
    with counted(stem) as maps:
        without = run(pipeline, ExactPredictor(features_bytes=0), face=False)
    assert sum(maps) == 2 * 11
    assert torch.equal(without, run(pipeline, ExactPredictor(), face=False))


def test_halves_part_at_the_first_cross_attention(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["pooled"]
    layer = pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    with counted(layer.attn1.to_q) as own, counted(layer.attn2.to_q) as cross:
        run(pipeline, ExactPredictor(), num_frames=4)
    assert [own, cross] == [[5, 5], [10, 10]]  # the reference and four frames, in two steps


def test_the_reference_runs_once_where_it_can(pipelines: dict[str, XDynaPipeline]) -> None:
    for model, rows in (("pooled", 2 * 5 * 5), ("per frame", 2 * (5 * 4 + 1)), ("fixed reference", 2 * 5 * 4 + 1)):
        pipeline = pipelines[model]
        assert len(make_windows("grid", 11, 4, 2)) == 5
        with counted(pipeline.unet.conv_in) as frames:
            run(pipeline, ExactPredictor(), schedule="grid")
        assert sum(frames) == rows, model


def test_a_new_reference_is_not_taken_from_the_job_before(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline, exact = pipelines["fixed reference"], ExactPredictor()
    first = run(pipeline, exact)
    other = run(pipeline, exact, reference=255 - tiny_inputs(1)["reference"])
    assert torch.equal(first, run(pipeline, exact))
    assert worst(first, other) > 0.01


def test_a_strength_changed_between_jobs_counts(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline, exact = pipelines["fixed reference"], ExactPredictor()
    first = run(pipeline, exact)
    assert worst(first, run(pipeline, exact, adapter_scale=0.0)) > 0.01
    assert worst(run(pipeline, exact, adapter_scale=0.5), run(pipeline, predict_clip, adapter_scale=0.5)) < 1e-3


def test_a_reference_network_works_too() -> None:
    pipeline = tiny_pipeline(adapter=False, pool_group_norm=False)
    ReferenceNet.from_unet(pipeline.unet).attach(pipeline.unet)
    assert worst(run(pipeline, predict_clip), run(pipeline, ExactPredictor())) < CLIP_TOLERANCE


def test_near_reference_is_near_and_less_work(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["pooled"]
    exact = run(pipeline, ExactPredictor())
    with counted(pipeline.unet.conv_in) as frames:
        near = run(pipeline, ExactPredictor(near_reference=True))
    windows = len(make_windows("open", 11, 4, 2))
    assert sum(frames) <= 2 * (4 * windows + 4 + 1)
    error = float((near - exact).pow(2).mean().sqrt() / exact.std())
    assert 0 < error < 0.1
    one = {"num_frames": 4}  # nothing follows the first window
    assert torch.equal(
        run(pipeline, ExactPredictor(near_reference=True), **one), run(pipeline, ExactPredictor(), **one)
    )


def test_window_batch_changes_rounding_only(pipelines: dict[str, XDynaPipeline]) -> None:
    for pipeline in pipelines.values():
        one, many = (run(pipeline, ExactPredictor(), window_batch=n) for n in (1, 4))
        assert worst(one, many) < CLIP_TOLERANCE


@pytest.mark.parametrize("model", ["pooled", "per frame", "no attention above"])
def test_halves_apart_give_the_same_numbers(pipelines: dict[str, XDynaPipeline], model: str) -> None:
    pipeline, exact = pipelines[model], ExactPredictor()

    def apart(unet: Any, *args: Any, **kwargs: Any) -> Tensor:
        return exact(HalvesApart(unet), *args, **kwargs)

    for texts in ({}, {"prompt": "b", "negative_prompt": "a"}):
        together = run(pipeline, ExactPredictor(), **texts)
        for window_batch in (1, 2, 3):  # two windows are as many as there are halves
            assert worst(together, run(pipeline, apart, window_batch=window_batch, **texts)) < CLIP_TOLERANCE


def test_deterministic_gives_the_same_bytes_for_every_window_batch(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["per frame"]
    rows = []
    for window_batch in (1, 3, 16):
        with counted(pipeline.pose_controlnet.conv_in) as frames, counted(pipeline.unet.conv_in) as windows:
            latents = run(pipeline, ExactPredictor(deterministic=True), window_batch=window_batch)
        assert set(frames) == {4}  # also for the last three frames of the eleven
        assert set(windows) == {1, 4}
        rows.append(latents.numpy().tobytes())
    assert len(set(rows)) == 1


def test_progress_within_a_step(pipelines: dict[str, XDynaPipeline]) -> None:
    told: list[tuple[int, int]] = []
    predictor = ExactPredictor(on_window=lambda done, total: told.append((done, total)))
    run(pipelines["pooled"], predictor, schedule="grid", window_batch=2)
    assert told == [(2, 5), (4, 5), (5, 5)] * 2


@pytest.mark.parametrize("attention", ["everywhere", "in the middle", "nowhere"])
def test_frame_residuals_are_the_controlnets(attention: str) -> None:
    shape: dict[str, Any] = {} if attention == "everywhere" else {"down_block_types": ("DownBlock2D", "DownBlock2D")}
    if attention == "nowhere":
        shape["mid_block_type"] = "UNetMidBlock2D"
    net = small_controlnet(SFaceControlNet, 7, **shape)
    source = torch.Generator().manual_seed(1)
    latents, maps = (torch.randn(1, *s, generator=source) for s in ((4, 3, 12, 8), (6, 3, 24, 16)))
    text = torch.randn(2, 4, 16, generator=source)
    with torch.no_grad():
        plain = control_residuals(net, latents.repeat(2, 1, 1, 1, 1), torch.tensor(7), text, maps, 0.3)
        features = condition_features(net, maps[0].transpose(0, 1))
        ours = frame_residuals(net, latents[0].transpose(0, 1), torch.tensor(7), text, features, 0.3)
    for a, b in zip([*plain.down, plain.mid], ours, strict=True):
        assert worst(a.transpose(1, 2).flatten(0, 1), b) < CALL_TOLERANCE


def test_a_controlnet_that_reads_more_is_refused(pipelines: dict[str, XDynaPipeline]) -> None:
    net = pipelines["pooled"].pose_controlnet
    net.register_to_config(global_pool_conditions=True)
    try:
        with pytest.raises(ValueError, match="conditioned on more than"):
            frame_residuals(net, torch.zeros(1, 4, 8, 8), torch.tensor(7), torch.zeros(1, 4, 16), torch.zeros(1))
    finally:
        net.register_to_config(global_pool_conditions=False)


def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[1]
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "engine.md").read_text(), re.DOTALL)
    monkeypatch.chdir(root)
    found: dict[str, Any] = {}
    exec(compile(code, "docs/engine.md", "exec"), found)
    assert len(found["frames"]) == 20


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 16), st.data(), st.sampled_from(["open", "closed", "grid"]))
def test_nothing_is_dropped_that_a_later_window_shows(
    num_frames: int, size: int, data: st.DataObject, schedule: str
) -> None:
    overlap, batch = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, 5))
    windows = make_windows(schedule, num_frames, size, overlap, data.draw(st.integers(0, size - 1)))
    groups = [windows[i : i + batch] for i in range(0, len(windows), batch)]
    later = shown_later(groups)
    for i, kept in enumerate(later):
        assert {frame for frame in range(num_frames) if frame in kept} == {
            frame for group in groups[i + 1 :] for window in group for frame in window
        }
