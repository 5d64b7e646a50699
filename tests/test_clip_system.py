"""The module that recipes on clips share: its parts, its draws, its loss, and that an adapter learns by it."""

import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny_models import tiny_pipeline

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.configs.clips import ClipConfig
from xdyna.configs.recipes import DynamicsAdapterConfig, Part, SFaceControlNetConfig
from xdyna.configs.train import WorldConfig
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.data.source import Batch, build_source, draw_batch
from xdyna.errors import UserError
from xdyna.latents import draw_mask, draw_noise, initial_latents
from xdyna.pipeline import XDynaPipeline
from xdyna.prompts import StoredPrompt
from xdyna.train.parts import Parts, controlnet_from_unet, count_parameters, encode, load_base, load_init, renew, thaw
from xdyna.train.samples import animate
from xdyna.train.system import ClipSystem, to_unit
from xdyna.unet import XDynaUNet

WORLD = WorldConfig(size_wh=(32, 48), framings={"full": 1.0})
PLAIN: dict[str, Any] = {"world": WORLD, "start": 0.0, "figure": 0.0, "early": 1.0}


def system_of(folder: Path, trains: tuple[Part, ...] = (), *, face: bool = False, **settings: Any) -> ClipSystem:
    return ClipSystem(load_base(folder), ClipConfig(**{**PLAIN, **settings}), trains, face=face)


def batch_of(count: int = 2, first: int = 0, frames: int = 2, **settings: Any) -> Batch:
    cfg = ClipConfig(world=WORLD, **settings)
    return draw_batch(build_source(cfg, frames=frames), range(first, first + count))


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as `xdyna convert` makes it of SD1.5 and motion modules: a text encoder, image tokens, no X-Dyna parts."""
    folder = tmp_path_factory.mktemp("bases") / "bare"
    tiny_pipeline(face=False, adapter=False, text=True, image_prompt=True).save_pretrained(folder)
    for path in (folder / "pose_controlnet").iterdir():
        path.unlink()
    (folder / "pose_controlnet").rmdir()
    return folder


# -- parts -----------------------------------------------------------------------------------------------------------


def test_what_a_base_lacks_is_made_and_changes_nothing(bare_folder: Path) -> None:
    parts = load_base(bare_folder)
    assert parts.new == {"dynamics_adapter", "pose_controlnet", "face_controlnet"}
    batch = batch_of()
    system = ClipSystem(parts, ClipConfig(**PLAIN), (), face=False)
    with torch.no_grad():
        loss = system(batch)["loss"]
        parts.dynamics_adapter.scale = 0.0
        assert torch.equal(system(batch)["loss"], loss)
        blank = replace(batch, pose_maps=np.zeros_like(batch.pose_maps))
        assert torch.equal(system(blank)["loss"], loss)
    shared = parts.unet.state_dict()
    own = parts.pose_controlnet.state_dict()
    assert all(torch.equal(own[key], shared[key]) for key in own if not key.startswith("controlnet_"))


def test_a_text_encoder_embeds_the_empty_prompt(bare_folder: Path) -> None:
    expected = tiny_pipeline(text=True).encode_prompt("")
    torch.testing.assert_close(load_base(bare_folder).stored_prompt(1), expected, rtol=0, atol=1e-6)


def test_a_base_without_needed_parts_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").symlink_to(tiny_folder / "unet")
    with pytest.raises(UserError, match=r"has no vae/; wanted a model folder"):
        load_base(tmp_path)
    (tmp_path / "vae").mkdir()
    with pytest.raises(UserError, match=r"vae: not a AutoencoderKL that can be loaded"):
        load_base(tmp_path)


def test_weights_of_another_model_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    parts = load_base(tiny_folder)
    with pytest.raises(UserError, match=r"tensors of dynamics_adapter do not fit; .*: got nothing, wanted shape"):
        load_init(parts, tmp_path / "other.safetensors", ["dynamics_adapter"])
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(UserError, match=r"text.safetensors: cannot be read as safetensors"):
        load_init(parts, tmp_path / "text.safetensors", ["motion"])
    with pytest.raises(UserError, match=r"holds no weights of motion, dynamics_adapter; wanted a model folder"):
        load_init(parts, tmp_path / "other.safetensors", ["motion", "dynamics_adapter"])


def test_init_fills_only_the_named_parts(tiny_folder: Path) -> None:
    parts = load_base(tiny_folder)
    with torch.no_grad():
        for parameter in parts.unet.parameters():
            parameter.fill_(7.0)
    assert load_init(parts, tiny_folder, ["motion"]) == ["motion"]
    for key, value in parts.unet.named_parameters():
        assert bool((value == 7.0).all()) == (".motion_modules." not in key), key


@pytest.mark.parametrize("name", ["dynamics_adapter", "motion", "pose_controlnet", "face_controlnet"])
def test_renewed_parts_change_nothing(tiny_folder: Path, name: Any) -> None:
    """The loss with the part made new is that of a model in which it is silenced by hand."""
    batch = draw_batch(build_source(ClipConfig(world=WORLD), frames=2, face=True), range(2))
    silenced, renewed = (system_of(tiny_folder, face=True) for _ in range(2))
    with torch.no_grad():
        before = silenced(batch)["loss"]
        for module in _last_layers(silenced.parts, name):
            for parameter in module.parameters():
                parameter.zero_()
        renew(renewed.parts, [name])
        assert torch.equal(silenced(batch)["loss"], renewed(batch)["loss"])
        assert not torch.equal(silenced(batch)["loss"], before)


def _last_layers(parts: Parts, name: str) -> Iterator[torch.nn.Module]:
    part: Any = parts.unet if name == "motion" else getattr(parts, name)
    if name == "motion":
        yield from (
            m.proj_out for key, m in part.named_modules() if ".motion_modules." in key and hasattr(m, "proj_out")
        )
    elif name == "dynamics_adapter":
        yield from (m for key, m in part.named_modules() if key.endswith("to_out_ref"))
    else:
        yield from (part.controlnet_down_blocks, part.controlnet_mid_block)


def test_adapter_of_full_size_has_as_many_parameters_as_the_paper_says() -> None:
    with torch.device("meta"):
        unet = XDynaUNet()
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        parts = Parts(
            vae=vae,
            unet=unet,
            dynamics_adapter=DynamicsAdapter.from_unet(unet),
            pose_controlnet=PoseControlNet(attention_head_dim=8, cross_attention_dim=768),
            face_controlnet=SFaceControlNet(attention_head_dim=8),
            stored_prompt=StoredPrompt(),
            scheduler=None,
        )
        made = controlnet_from_unet(PoseControlNet, unet, vae)
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (made, parts.pose_controlnet)]
    assert shapes[0] == shapes[1]
    thaw(parts, ["dynamics_adapter"])
    assert count_parameters(*parts.modules().values(), trainable=True) == 24_793_280
    thaw(parts, ["motion"])
    assert count_parameters(parts.unet, trainable=True) == 24_793_280 + 417_137_600


# -- draws -----------------------------------------------------------------------------------------------------------


SHAPE = torch.Size((400, 4, 2, 5, 5))  # [B, 1+F, C, h, w]


def test_draws_depend_on_seed_and_sample_alone(tiny_folder: Path) -> None:
    system = system_of(tiny_folder, start=0.5, reference_dropout=0.5)
    both = system.draw(np.asarray([3, 8]), torch.Size((2, 4, 2, 5, 5)))
    one = system.draw(np.asarray([8]), torch.Size((1, 4, 2, 5, 5)))
    for name, value in vars(both).items():
        assert torch.equal(value[1:], vars(one)[name]), name
    assert not torch.equal(both.noise[0], both.noise[1])


def test_shares_are_what_the_settings_say(tiny_folder: Path) -> None:
    system = system_of(tiny_folder, start=0.4, reference_dropout=0.25, early=1.0)
    draws = system.draw(np.arange(400), SHAPE)
    assert float(draws.dropped.float().mean()) == pytest.approx(0.25, abs=0.06)
    kept = ~draws.dropped
    assert float(draws.from_reference[kept].float().mean()) == pytest.approx(0.4, abs=0.08)
    assert not draws.from_reference[draws.dropped].any()  # nothing of a dropped reference is left
    assert float(draws.timesteps.float().mean()) == pytest.approx(499.5, abs=60)
    assert set(draws.reference.tolist()) == {0, 1, 2, 3}
    later = system_of(tiny_folder, early=3.0).draw(np.arange(400), SHAPE)
    assert float(later.timesteps.float().mean()) == pytest.approx(749, abs=40)


def test_a_start_keeps_as_much_of_the_reference_as_set(tiny_folder: Path) -> None:
    for keep in (0.0, 0.5, 1.0):
        mask = system_of(tiny_folder, start_keep=keep).draw(np.arange(100), SHAPE).mask
        assert float(mask.float().mean()) == pytest.approx(keep, abs=0.02)


def test_shared_noise_is_one_frame_for_all(tiny_folder: Path) -> None:
    own = system_of(tiny_folder).draw(np.arange(2), torch.Size((2, 4, 2, 5, 5)))
    shared = system_of(tiny_folder, shared_noise=True).draw(np.arange(2), torch.Size((2, 4, 2, 5, 5)))
    for name in ("noise", "mask"):
        assert torch.equal(vars(shared)[name][:, :, 0], vars(shared)[name][:, :, 2])
        assert not torch.equal(vars(own)[name][:, :, 0], vars(own)[name][:, :, 2])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_starting_from_the_reference_still_asks_for_the_truth(tiny_folder: Path, prediction: str) -> None:
    """Where noisy latents come from the reference, a perfect prediction leads to the clean driving frames."""
    system = system_of(tiny_folder, start=1.0, prediction=prediction)
    reference, clean = torch.randn(2, 4, 1, 6, 6), torch.randn(2, 4, 3, 6, 6)
    drawn = system.draw(np.arange(2), torch.Size((2, 4, 4, 6, 6)))
    draws = replace(drawn, timesteps=torch.full_like(drawn.timesteps, 999))
    noise = system._explaining_noise(reference, clean, draws)
    noisy = system.objective.add_noise(clean, noise, draws.timesteps)
    signal = float(system.objective.alphas_cumprod[-1])
    expected = signal**0.5 * reference + (1 - signal) ** 0.5 * draws.noise
    torch.testing.assert_close(noisy[draws.mask], expected[draws.mask], rtol=0, atol=1e-5)
    target = system.objective.target(clean, noise, draws.timesteps)
    restored = system.objective.to_clean(target, noisy, draws.timesteps)
    torch.testing.assert_close(restored, clean, rtol=0, atol=2e-3)


def test_training_sees_what_a_perfect_model_would_meet(tiny_folder: Path) -> None:
    """DDIM from the noised reference, given the truth in every step, passes through the training's noisy latents."""
    system = system_of(tiny_folder, start=1.0, start_keep=1.0, terminal_signal=0.9, prediction="sample")
    reference, clean = torch.randn(1, 4, 1, 6, 6), torch.randn(1, 4, 3, 6, 6)
    draws = system.draw(np.arange(1), torch.Size((1, 4, 4, 6, 6)))
    noise = system._explaining_noise(reference, clean, draws)
    settings = {"clip_sample": False, "timestep_spacing": "trailing", "steps_offset": 0}
    scheduler = DDIMScheduler.from_config(system.objective.scheduler.config, **settings)
    scheduler.set_timesteps(5)
    mask = torch.ones_like(clean, dtype=torch.bool)
    latents = initial_latents(reference, draws.noise, mask, scheduler, scheduler.timesteps[0])
    for timestep in scheduler.timesteps:
        expected = system.objective.add_noise(clean, noise, timestep.reshape(1))
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
        latents = scheduler.step(clean, timestep, latents).prev_sample


@pytest.mark.parametrize("signal", [0.1, 0.9, 0.99])
def test_a_schedule_ends_at_the_signal_that_is_asked_for(tiny_folder: Path, signal: float) -> None:
    objective = system_of(tiny_folder, terminal_signal=signal).objective
    assert float(objective.alphas_cumprod[-1]) == pytest.approx(signal, abs=1e-4)
    assert (objective.alphas_cumprod.diff() <= 0).all()


# -- loss ------------------------------------------------------------------------------------------------------------


def with_other_reference(batch: Batch) -> Batch:
    frames = batch.frames.copy()
    frames[:, 0] = 255 - frames[:, 0]
    return replace(batch, frames=frames)


def test_a_dropped_reference_is_not_seen(bare_folder: Path, tiny_folder: Path) -> None:
    """Neither through its latents nor through its image tokens."""
    batch = batch_of()
    for folder in (tiny_folder, bare_folder):
        for dropout, seen in ((0.0, True), (1.0, False)):
            system = system_of(folder, reference_dropout=dropout)
            with torch.no_grad():
                losses = [system(clips)["loss"] for clips in (batch, with_other_reference(batch))]
            assert torch.equal(*losses) != seen


def test_image_tokens_of_a_dropped_reference_are_the_pipelines_unconditional_ones(bare_folder: Path) -> None:
    pipe = tiny_pipeline(text=True, image_prompt=True)
    system = system_of(bare_folder)
    picture = batch_of(count=1).frames[:, 0]
    found = [system.image_tokens(picture, torch.tensor([dropped])) for dropped in (False, True)]
    for got, hidden in zip(found, pipe.encode_image(picture[0]), strict=True):
        torch.testing.assert_close(got, pipe.image_prompt(hidden), rtol=0, atol=1e-5)


def test_loss_of_a_batch_is_the_mean_of_its_samples(tiny_folder: Path) -> None:
    system = system_of(tiny_folder, start=0.5, figure=2.0)
    batch = batch_of(count=3, frames=3)
    with torch.no_grad():
        whole = system(batch)["loss"]
        each = [system(draw_batch(build_source(system.cfg, frames=3), [index]))["loss"] for index in range(3)]
    torch.testing.assert_close(whole, torch.stack(each).mean(), rtol=1e-4, atol=1e-5)


def test_figure_weighs_where_the_person_is(tiny_folder: Path) -> None:
    batch = batch_of()
    nobody = replace(batch, masks=np.zeros_like(batch.masks))
    everybody = replace(batch, masks=np.full_like(batch.masks, 255))
    with torch.no_grad():
        plain = system_of(tiny_folder)(batch)["loss"]
        weighted = system_of(tiny_folder, figure=2.0)
        torch.testing.assert_close(weighted(nobody)["loss"], plain)
        torch.testing.assert_close(weighted(everybody)["loss"], 3 * plain)
        assert plain < weighted(batch)["loss"] < 3 * plain


def test_without_motion_frames_do_not_see_each_other(tiny_folder: Path) -> None:
    parts = load_base(tiny_folder)
    system = ClipSystem(parts, ClipConfig(**PLAIN), (), motion=False)
    batch = batch_of()
    with torch.no_grad():
        loss = system(batch)["loss"]
        for key, value in parts.unet.named_parameters():
            if ".motion_modules." in key:
                value.fill_(float("nan"))
        assert torch.equal(system(batch)["loss"], loss)


def test_face_maps_are_needed_where_the_face_is_read(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="reads face maps, the batch has none"):
        system_of(tiny_folder, face=True)(batch_of())


@pytest.mark.parametrize("shared", [False, True])
def test_samples_are_what_the_pipeline_makes(tiny_folder: Path, shared: bool) -> None:
    """Conditions, reference, ControlNets, start and steps: training and inference do the same with them."""
    system = system_of(tiny_folder, face=True, shared_noise=shared, start_keep=0.7)
    batch = draw_batch(build_source(ClipConfig(world=WORLD), frames=4, face=True), [5])
    assert batch.face_maps is not None
    made = animate(system, batch, 3, seed=9)[0]
    pipe = XDynaPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    source, shape = torch.Generator().manual_seed(9), (4, 12, 8)
    drawn = 1 if shared else 4
    noise = draw_noise(drawn, shape, source).expand(-1, -1, 4, -1, -1)
    mask = draw_mask(drawn, shape, source, 0.7).expand(-1, -1, 4, -1, -1)
    faces = batch.face_maps[0, 1:]
    frames = pipe(
        reference=None, reference_latents=encode(pipe.vae, to_unit(batch.frames[:, 0]))[:, :, None],
        pose_maps=batch.pose_maps[0, 1:], face_maps=(faces[..., :3], faces[..., 3:]), noise=noise, mask=mask,
        num_inference_steps=3, guidance_scale=1.0, window=4, overlap=0, output_type="np",
    ).frames[0]  # fmt: skip
    assert made.std() > 5
    assert np.abs(frames * 255 - made).max() <= 1


# -- data as the recipes ask for it ----------------------------------------------------------------------------------


def test_scenes_are_mixed_in_with_blank_maps() -> None:
    cfg = DynamicsAdapterConfig(world=WORLD, scene_share=0.4)
    batch = draw_batch(build_source(cfg, frames=1), range(60))
    assert float(batch.is_scene.mean()) == pytest.approx(0.4, abs=0.15)
    assert not batch.pose_maps[batch.is_scene].any()
    assert not batch.masks[batch.is_scene].any()
    assert batch.pose_maps[~batch.is_scene].any((1, 2, 3, 4)).all()
    assert not draw_batch(build_source(SFaceControlNetConfig(world=WORLD), frames=1), range(30)).is_scene.any()


def test_swapped_face_maps_reach_the_face_controlnet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the recipe feeds is the source's swapped maps: another face, in the same place at the same time."""
    from xdyna.train.recipes import s_face_controlnet

    seen: list[NDArray[np.uint8]] = []

    def forward(self: ClipSystem, batch: Batch) -> dict[str, torch.Tensor]:
        assert batch.face_maps is not None
        seen.append(batch.face_maps)
        return {"loss": sum(p.sum() for p in self.parts.face_controlnet.parameters()) * 0.0}  # type: ignore[dict-item]

    monkeypatch.setattr(ClipSystem, "forward", forward)
    busts = WorldConfig(size_wh=(64, 96), framings={"bust": 1.0})
    cfg = SFaceControlNetConfig(
        out=tmp_path, steps=1, batch=2, frames=1, world=busts, workers=0, sample_every=0, validate_clips=0
    )
    with redirect_stderr(io.StringIO()):
        s_face_controlnet.train(cfg, quiet=True)
    own = draw_batch(build_source(cfg, frames=1, face=True), range(2))
    swapped = draw_batch(build_source(cfg, frames=1, face="swapped"), range(2))
    assert own.face_maps is not None
    assert np.array_equal(seen[0], swapped.face_maps)
    assert not np.array_equal(seen[0], own.face_maps)
    assert np.array_equal(own.frames, swapped.frames)
    globals_ = [maps[..., 3:].any(-1) for maps in (own.face_maps, seen[0])]
    overlap = (globals_[0] & globals_[1]).sum() / max(1, (globals_[0] | globals_[1]).sum())
    assert overlap > 0.3


# -- learning --------------------------------------------------------------------------------------------------------


def learn(system: ClipSystem, batch: Batch, rate: float, steps: int = 30) -> list[float]:
    """Losses on one fixed batch, whose noise and timesteps are fixed by its sample numbers."""
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=rate, weight_decay=0)
    losses = []
    for _ in range(steps):
        loss = system(batch)["loss"]
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_adapter_learns_one_batch(tiny_folder: Path) -> None:
    torch.set_num_threads(1)
    batch = batch_of(frames=2)
    losses = learn(system_of(tiny_folder, ("dynamics_adapter",)), batch, 0.01)
    assert losses[-1] < 0.8 * losses[0]
    still = learn(system_of(tiny_folder, ("dynamics_adapter",)), batch, 0.0, steps=3)
    assert still[0] == still[-1] == losses[0]
