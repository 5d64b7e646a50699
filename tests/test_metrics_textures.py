"""The texture network: its files, its training clips, its recipe, and what the shipped one can tell."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from xdyna.cli import main
from xdyna.configs.metrics_recipes import TexturesConfig
from xdyna.data.source import draw_batch
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.data.synthetic.scenes import SCENES as KINDS
from xdyna.errors import UserError
from xdyna.metrics.frechet import Moments, frechet_distance
from xdyna.metrics.textures import (
    AMOUNTS,
    ORDERS,
    SCENES,
    SPECS,
    WEIGHTS,
    WINDOW,
    TextureNet,
    TexturesShape,
    load_textures,
    texture_features,
    windows_of,
)
from xdyna.train.recipes.texture_clips import TextureSource, before_other, reordered, spoiled
from xdyna.train.recipes.textures import Report, TextureSystem

SMALL = TexturesShape((32, 32), (8, 8, 8), 12)
WORLD = World(size_wh=(32, 48), scene_only=0.5)
FIRST = 10_000_000

Frames = np.ndarray


def small_net(seed: int = 0) -> TextureNet:
    torch.manual_seed(seed)
    return TextureNet(SMALL).requires_grad_(False).eval()


def moments(rows: Frames) -> Moments:
    found = Moments()
    found.add(rows)
    return found


# --- files and features -----------------------------------------------------------------------------------------------


def test_saved_networks_give_the_same_features(tmp_path: Path) -> None:
    net = small_net().half().float()  # files hold half precision
    net.save(tmp_path / "n.safetensors", steps=3)
    again = load_textures(tmp_path / "n.safetensors")
    frames = np.random.default_rng(0).integers(0, 255, (16, 48, 32, 3), np.uint8)
    assert again.shape == SMALL
    assert np.array_equal(texture_features(frames, again), texture_features(frames, net))
    assert not any(value.requires_grad for value in again.parameters())


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors: no such file; wanted the weights of a texture network"):
        load_textures(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_textures(tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"kind": "xdyna.joints"})
    with pytest.raises(UserError, match=r"holds 'xdyna\.joints', wanted 'xdyna\.textures'"):
        load_textures(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("length", "count"), [(8, 1), (15, 1), (16, 1), (17, 2), (32, 2), (40, 3)])
def test_windows_cover_every_frame(length: int, count: int) -> None:
    windows = windows_of(length)
    assert len(windows) == count
    assert {frame for window in windows for frame in range(window.start, window.stop)} == set(range(length))
    assert {window.stop - window.start for window in windows} == {min(WINDOW, length)}
    frames = np.random.default_rng(0).integers(0, 255, (length, 32, 32, 3), np.uint8)
    rows = texture_features(frames, net := small_net())
    assert rows.shape == (count, 12)
    assert rows.dtype == np.float32
    assert np.array_equal(rows[-1:], texture_features(frames[windows[-1]], net))


def test_features_are_of_the_region_alone() -> None:
    (spec,) = SPECS
    assert spec.name == "dtfvd-synth"
    frames = np.random.default_rng(0).integers(0, 255, (16, 48, 32, 3), np.uint8)
    masks = np.zeros((16, 48, 32), np.uint8)
    masks[:, :24] = 255
    changed = frames.copy()
    changed[:, 24:] = 255 - changed[:, 24:]
    net = small_net()
    assert np.array_equal(spec.features(frames, masks, "fg", net), spec.features(changed, masks, "fg", net))
    assert not np.array_equal(spec.features(frames, masks, "bg", net), spec.features(changed, masks, "bg", net))
    with pytest.raises(ValueError, match="7 frames, wanted at least 8"):
        texture_features(frames[:7], net)


def test_order_of_the_clips_does_not_matter_to_the_distance() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (30, 6)), rng.normal(0.3, 2, (30, 6))
    there = frechet_distance(moments(first), moments(second))
    assert frechet_distance(moments(first[::-1]), moments(rng.permutation(second))) == pytest.approx(there, rel=1e-9)
    assert frechet_distance(moments(second), moments(first)) == pytest.approx(there, rel=1e-9)


# --- training clips ---------------------------------------------------------------------------------------------------


def test_what_is_known_are_the_worlds_scenes() -> None:
    assert tuple(KINDS) == SCENES


def test_orders_do_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    found = {order: reordered(order, rng) for order in ORDERS}
    steps = np.arange(WINDOW)
    assert np.array_equal(found["natural"], steps)
    assert np.array_equal(found["reversed"], steps[::-1])
    assert not found["frozen"].any()
    assert sorted(found["shuffled"]) == list(steps)
    assert (found["shuffled"] != steps).any()
    assert set(np.diff(found["held"])) >= {0, 2} or set(np.diff(found["held"])) & {3, 4}
    assert (np.diff(found["paused"]) >= 0).all()
    assert found["paused"][-1] == found["paused"][12] < 12
    with pytest.raises(ValueError, match="order is 'sideways'"):
        reordered("sideways", rng)


def test_samples_are_functions_of_their_number_and_of_every_kind() -> None:
    source, again = TextureSource(WORLD, (0.0, 1.0)), TextureSource(WORLD, (0.0, 1.0))
    assert np.array_equal(source.draw(5).frames, again.draw(5).frames)
    assert source.fingerprint == again.fingerprint != TextureSource(WORLD, (0.0,)).fingerprint
    assert [source.spec(index).loop_s for index in range(3)] == [0.0, 1.0, 0.0]
    done = [source.treatment(f"textures {index}") for index in range(300)]
    assert {one.order for one in done} == set(range(len(ORDERS)))
    assert {one.scene for one in done} == set(range(len(SCENES)))
    assert {one.shown for one in done} == {"all", "fg", "bg"}
    paces = [one.pace for one in done]
    assert min(paces) < 0.5
    assert max(paces) > 2
    assert all(one.shown == "all" for one in done if not one.person)
    still = [one for one in done if SCENES[one.scene] == "studio" and not one.person]
    assert still
    assert not any(one.order_known for one in still)
    assert not any(one.scene_known for one in done if one.shown == "fg")


def test_drawn_clips_are_what_their_treatment_says() -> None:
    source = TextureSource(replace(WORLD, scenes=("sea", "waterfall")), (0.0,))
    seen = set()
    for index in range(40):
        done, clip = source.treatment(f"textures {index}"), source.draw(index)
        behind = clip.masks.max(0) == 0
        change = np.abs(np.diff(clip.frames.astype(int), axis=0))[:, behind].max((0, 2))
        if ORDERS[done.order] == "frozen":
            assert (change <= 1).mean() > 0.9, index  # a dancer's shadow moves
            person_moves = clip.masks.std(0).max() > 0
            assert person_moves == done.scene_alone
            seen.add(("frozen", done.scene_alone))
        elif ORDERS[done.order] == "natural" and behind.mean() > 0.3:
            assert change.max() > 5, index
            seen.add(("natural", done.scene_alone))
    assert seen >= {("frozen", True), ("frozen", False), ("natural", False)}


def test_people_before_their_own_scene_stay_as_they_are() -> None:
    spec = replace(clip_spec(WORLD, 3), person=True)
    times_s = np.arange(4) / 12
    clip = render(spec, times_s, WORLD.size_wh, 12.0)
    scene = render(replace(spec, person=False), times_s, WORLD.size_wh, 12.0).frames
    assert np.array_equal(before_other(clip, scene, scene), clip.frames)
    other = before_other(clip, scene, np.zeros_like(scene))
    assert np.array_equal(other[clip.masks == 255], clip.frames[clip.masks == 255])
    assert other[clip.masks == 0].max() <= 1


def test_spoiling_repeats_and_says_what_it_did() -> None:
    clips = torch.rand(24, 3, 8, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (first, amounts), (second, same) = (spoiled(clips.clone(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(amounts, same)
    assert first.shape == clips.shape
    assert first.abs().max() <= 1
    assert amounts.shape == (24, len(AMOUNTS) - 1)
    flat = torch.zeros(24, 3, 8, 24, 24)
    out, amounts = spoiled(flat, torch.Generator().manual_seed(3))
    inside = out.diff(dim=-1).abs().mean((1, 2, 3, 4)) > 1e-5  # within a frame only noise makes a flat clip uneven
    over_time = out.mean((1, 3, 4)).std(1) > 1e-3
    assert torch.equal(inside, amounts[:, 0] > 0)
    flickers = amounts[:, 2] > 0.02
    assert over_time[flickers].all()
    assert not over_time[(amounts[:, 2] == 0) & ~inside].any()


# --- recipe -----------------------------------------------------------------------------------------------------------


@pytest.mark.recipe
def test_the_command_trains_and_starts_from_a_file(tmp_path: Path) -> None:
    small = ["widths=[8,8,8]", "size_wh=[32,32]", "features=12", "batch=4", "workers=0", "validate_clips=4"]
    small += ["world.size_wh=[32,48]", "save_every=2", "sample_every=2"]
    sets = [part for setting in small for part in ("--set", setting)]

    def train(name: str, *args: str) -> TextureNet:
        out = str(tmp_path / name)
        assert main(["train", "textures", "--out", out, "--steps", "2", "--seed", "3", *sets, *args]) == 0
        return load_textures(tmp_path / name / "model" / "textures-synth.safetensors")

    first = train("first")
    assert first.shape == SMALL
    assert "order" in (tmp_path / "first" / "report.txt").read_text()
    assert list((tmp_path / "first").rglob("*000002.png"))
    start = tmp_path / "first" / "model" / "textures-synth.safetensors"
    further = train("further", "--init", str(start), "--set", "lr=1e-9")
    for a, b in zip(first.parameters(), further.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)
    other = train("other", "--set", "loops_s=[1.0]")
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_loss_counts_only_what_can_be_known() -> None:
    """A studio without anybody has no order: the loss does not ask for one."""
    world = replace(WORLD, scenes=("studio",), scene_only=1.0)
    cfg = TexturesConfig(batch=3, validate_clips=0)
    source = TextureSource(world, (0.0,))
    net = small_net()
    values = TextureSystem(net, source, cfg)(draw_batch(source, range(3)))
    assert torch.isfinite(values["loss"])
    with torch.no_grad():
        place = len(SCENES)
        net.read.bias[place : place + len(ORDERS)] += torch.arange(len(ORDERS)) * 5.0
        net.read.bias[place + len(ORDERS)] += 5  # and no pace
    assert TextureSystem(net, source, cfg)(draw_batch(source, range(3)))["loss"] == values["loss"]
    assert Report(TextureSystem(net, source, cfg), source, cfg).figures() == {}


# --- the shipped one --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> TextureNet:
    torch.set_num_threads(1)
    return load_textures()


@pytest.fixture(scope="module")
def scenes() -> list[Frames]:
    """16 scenes that training never saw, two of each kind that moves."""
    found = []
    for number, kind in enumerate(SCENES[1:] * 2):
        world = World(scenes=(kind,), scene_only=1.0, loop_s=float(number % 2))
        found.append(render(clip_spec(world, FIRST + number), 1 + np.arange(WINDOW) / 12, world.size_wh, 12.0).frames)
    return found


@pytest.fixture(scope="module")
def truth(shipped: TextureNet, scenes: list[Frames]) -> Moments:
    return moments(np.concatenate([texture_features(clip, shipped) for clip in scenes]))


def test_shipped_weights_are_small(shipped: TextureNet) -> None:
    assert WEIGHTS.stat().st_size <= 1_000_000
    assert sum(value.numel() for value in shipped.parameters()) < 500_000
    assert shipped.shape.size_wh == (64, 64)


def test_shipped_weights_tell_scenes_and_orders(shipped: TextureNet) -> None:
    """A guard against regressions; docs/metrics.md has the figures over more clips."""
    cfg = TexturesConfig(validate_clips=48)
    source = TextureSource(World(**cfg.world.model_dump()), cfg.loops_s)
    figures = Report(TextureSystem(shipped, source, cfg), source, cfg).figures()
    assert figures["scene"] > 0.85
    assert figures["order"] > 0.6  # one in six by chance
    assert min(figures[name] for name in AMOUNTS) > 0.3


def blurred(clip: Frames, sigma_px: float) -> Frames:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma_px) for frame in clip])


def noised(clip: Frames, strength: float) -> Frames:
    grain = np.random.default_rng(0).normal(0, strength, clip.shape)
    return np.clip(np.round(clip + grain), 0, 255).astype(np.uint8)


def held(clip: Frames, times: float) -> Frames:
    return clip[np.arange(WINDOW) // int(times) * int(times)]


def still(clip: Frames, share: float) -> Frames:
    return np.round(clip + share * (clip[:1].astype(float) - clip)).astype(np.uint8)


def shaken(clip: Frames, by_px: float) -> Frames:
    shifts = np.random.default_rng(1).normal(0, by_px, (WINDOW, 2))
    size = clip.shape[2], clip.shape[1]
    moves = [np.asarray([[1, 0, x], [0, 1, y]], np.float32) for x, y in shifts]
    pairs = zip(clip, moves, strict=True)
    return np.stack([cv2.warpAffine(frame, move, size, borderMode=cv2.BORDER_REPLICATE) for frame, move in pairs])


def shuffled(clip: Frames, frames: float) -> Frames:
    """Frames are shuffled among so many neighbours."""
    rng, order = np.random.default_rng(2), np.arange(WINDOW)
    for start in range(0, WINDOW, int(frames)):
        order[start : start + int(frames)] = rng.permutation(order[start : start + int(frames)])
    return clip[order]


@pytest.mark.parametrize(
    ("spoil", "grades"),
    [
        (blurred, (1, 2, 4)),
        (noised, (6, 14, 30)),
        (held, (2, 3, 6)),
        (still, (0.33, 0.67, 1)),
        (shaken, (0.5, 1, 2)),
        (shuffled, (2, 4, 16)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_distance_grows_as_clips_get_worse(
    shipped: TextureNet,
    scenes: list[Frames],
    truth: Moments,
    spoil: Callable[[Frames, float], Frames],
    grades: tuple[float, ...],
) -> None:
    values = [frechet_distance(truth, truth)]
    for grade in grades:
        rows = [texture_features(spoil(clip, grade), shipped) for clip in scenes]
        values.append(frechet_distance(truth, moments(np.concatenate(rows))))
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values), values
