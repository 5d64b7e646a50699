"""Scenes: they loop exactly, move only where they say, and their motion is the one they tell."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xdyna.data.synthetic.clips import World, clip_spec, render, render_index
from xdyna.data.synthetic.flow import clip_flow, scene_motion_mask, scene_paths, warped
from xdyna.data.synthetic.scenes import SCENES, Scene, build_scene
from xdyna.data.synthetic.scenes_base import UNKNOWN
from xdyna.errors import UserError

SIZE_WH = (64, 96)
FPS = 12.0
MOVING = sorted(set(SCENES) - {"studio"})
#: What is left of the difference to the next frame after warping it back; brightness changes on the way in fire
#: (flames redden as they rise) and grass (gusts brighten it).
LEFT = {"sea": 0.25, "waterfall": 0.1, "fire": 0.5, "snow": 0.2, "meadow": 0.1, "rain": 0.12, "grass": 0.7}


def _scene(name: str, seed: int = 0, loop_s: float = 1.0, size_wh: tuple[int, int] = SIZE_WH) -> Scene:
    return build_scene(name, np.random.default_rng(seed), size_wh, loop_s)


def _frames(scene: Scene, count: int = 12) -> NDArray[np.int16]:
    return np.stack([scene(k / FPS) for k in range(count)]).astype(np.int16)


@pytest.mark.parametrize("name", sorted(SCENES))
def test_the_same_seed_gives_the_same_bytes_at_any_size(name: str) -> None:
    for size_wh in (SIZE_WH, (97, 61)):
        for loop_s in (0.0, 1.0):
            first, second = (_scene(name, 4, loop_s, size_wh)(0.3) for _ in range(2))
            assert first.tobytes() == second.tobytes()
            assert first.shape == (size_wh[1], size_wh[0], 3)
            assert first.dtype == np.uint8
    assert (_scene(name, 5)(0.3) != _scene(name, 4)(0.3)).any(-1).mean() > 0.2


@pytest.mark.parametrize("loop_s", [1.0, 0.75, 2.5])
@pytest.mark.parametrize("name", sorted(SCENES))
def test_loops_close(name: str, loop_s: float) -> None:
    scene = _scene(name, 1, loop_s)
    for time_s in (0.0, 1 / 12, 0.37, 4.21):
        assert np.array_equal(scene(time_s), scene(time_s + loop_s))
        assert np.array_equal(scene(time_s), scene(time_s - 3 * loop_s))


@pytest.mark.parametrize("name", MOVING)
def test_a_loop_goes_on_evenly_over_its_end(name: str) -> None:
    """No jump where the loop begins anew, and nothing stands still for long."""
    scene = _scene(name, 2)
    frames = np.concatenate([_frames(scene), scene(1.0)[None]])
    steps = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert steps.max() < 2.5 * steps.min()
    assert 0.4 < steps[-1] / np.median(steps) < 1.8


@pytest.mark.parametrize("loop_s", [0.0, 1.0])
@pytest.mark.parametrize("name", sorted(SCENES))
def test_scenes_move_where_they_say_and_nowhere_else(name: str, loop_s: float) -> None:
    for size_wh in (SIZE_WH, (120, 170)):
        scene = _scene(name, 3, loop_s, size_wh)
        frames = _frames(scene, 24 if loop_s == 0 else 12)
        change = np.ptp(frames, axis=0).max(-1)
        assert scene.moving.shape == change.shape
        assert 0 <= scene.moving.min() <= scene.moving.max() <= 1
        assert change[scene.moving == 0].max(initial=0) == 0
        if name == "studio":
            assert not scene.moving.any()
        else:
            assert (change[scene.moving > 0.5] > 6).mean() > 0.55
            assert (scene.moving == 0).mean() > 0.05 or name in ("snow", "rain")


@pytest.mark.parametrize("name", MOVING)
def test_motion_is_clearly_visible(name: str) -> None:
    """Mean frame difference in the moving region, levels of 255, at 64x96 and 12 frames per second."""
    steps = []
    for seed in range(3):
        scene = _scene(name, seed)
        steps.append(np.abs(np.diff(_frames(scene), axis=0))[:, scene.moving > 0.5].mean())
    assert np.mean(steps) > 5


@pytest.mark.parametrize("name", MOVING)
def test_pace_is_fixed_by_the_kind_in_loops_only(name: str) -> None:
    """Two looping scenes of a kind go equally far; free ones do not."""

    def gone(seed: int, loop_s: float) -> list[float]:
        scene = _scene(name, seed, loop_s)
        return [float(np.abs(path(0.0, 0.1)).max()) for path in scene.paths]

    if name == "fireworks":
        assert not _scene(name).paths
        return
    # the path of a falling flake may bend as it likes, and grass leans as its gusts are
    tolerance = 0.02 if name not in ("snow", "rain", "grass") else 0.5
    assert gone(0, 1.0) == pytest.approx(gone(1, 1.0), rel=tolerance)
    free = np.asarray([gone(seed, 0.0) for seed in range(6)])
    assert (free.std(0) / free.mean(0)).min() > 0.05


@pytest.mark.parametrize("name", sorted(LEFT))
def test_warping_the_next_frame_back_gives_this_one(name: str) -> None:
    without, left, known = [], [], []
    for index in range(6):
        world = World(seed=9, scenes=(name,), scene_only=1.0, loop_s=1.0)
        spec = clip_spec(world, index)
        times_s = np.asarray([0.25, 0.25 + 1 / FPS])
        now, after = render(spec, times_s, SIZE_WH, FPS).frames
        (flow,), (valid,) = clip_flow(spec, times_s, SIZE_WH)
        moves = valid & (np.abs(flow).max(-1) > 0.3)
        without.append(np.abs(after.astype(int) - now)[moves])
        left.append(np.abs(warped(after, flow).astype(int) - now)[moves])
        still = valid & (scene_motion_mask(spec, SIZE_WH) == 0)
        assert (now[still] == after[still]).all()
        assert (flow[~valid] == 0).all()
        known.append(moves.mean())
    assert np.concatenate(left).mean() < LEFT[name] * np.concatenate(without).mean()
    assert np.mean(known) > 0.03


def test_what_is_not_known_is_said_to_be_so() -> None:
    """Sparks fade: nothing is claimed where they fly. A looping scene's paths add up over the loop's end."""
    scene = _scene("fireworks")
    assert not scene_paths(scene, 0.0, 0.1).known[scene.moving > 0].any()
    assert (scene.parts(0.0)[scene.moving == 0] != UNKNOWN).all()
    fall = _scene("waterfall").paths[0]
    assert np.allclose(fall(0.95, 1.05), fall(0.05, 0.15))


def test_flow_of_the_person() -> None:
    """On the person too the next frame warped back is this one, far nearer than unwarped."""
    without, left, share = [], [], []
    for index in range(8):
        spec = clip_spec(World(seed=2, scenes=("studio",)), index)
        times_s = 0.5 + np.arange(3) / FPS
        clip = render(spec, times_s, SIZE_WH, FPS)
        flow, valid = clip_flow(spec, times_s, SIZE_WH)
        assert flow.shape == (2, 96, 64, 2)
        assert valid.shape == flow.shape[:3]
        for k in range(2):
            now, after = clip.frames[k].astype(int), clip.frames[k + 1]
            person = clip.masks[k] == 255
            moves = valid[k] & person & (np.linalg.norm(flow[k], axis=-1) > 0.7)
            without.append(np.abs(after - now)[moves])
            left.append(np.abs(warped(after, flow[k]) - now)[moves])
            share.append((valid[k] & person).sum() / person.sum())
            outside = valid[k] & (clip.masks[k] == 0)
            assert np.abs(after - now)[outside].max() <= 1  # the studio stands still
    assert np.concatenate(left).mean() < 0.35 * np.concatenate(without).mean()
    assert np.mean(share) > 0.4


def test_clips_of_the_scene_alone() -> None:
    world = World(seed=1, scene_only=0.5, loop_s=1.0)
    specs = [clip_spec(world, index) for index in range(40)]
    assert 8 < sum(spec.person for spec in specs) < 32
    index = next(number for number, spec in enumerate(specs) if not spec.person and spec.scene != "studio")
    clip = render_index(world, index, 13)
    assert not clip.masks.any()
    assert not clip.tracks.joints_conf.any()
    assert not clip.tracks.face_conf.any()
    assert np.array_equal(clip.frames[0], clip.frames[12])
    assert (clip.frames[0] != clip.frames[3]).any()
    scene = build_scene(specs[index].scene, np.random.default_rng(specs[index].scene_key), SIZE_WH, 1.0)
    assert np.array_equal(clip.frames[3], scene(3 / FPS))
    others = [clip_spec(World(seed=1), number) for number in range(3)]  # the share changes nothing else
    assert [spec.scene for spec in others] == [spec.scene for spec in specs[:3]]
    assert all(spec.person for spec in others)


def test_the_dance_does_not_loop_with_the_scene() -> None:
    spec = clip_spec(World(seed=3, loop_s=1.0, scenes=("sea",), framings={"full": 1.0}), 0)
    now, later = render(spec, np.asarray([0.2, 1.2]), SIZE_WH, FPS).frames.astype(int)
    masks = render(spec, np.asarray([0.2, 1.2]), SIZE_WH, FPS).masks
    sky = (masks == 0).all(0)[:50]
    assert np.array_equal(now[:50][sky], later[:50][sky])
    assert not np.array_equal(masks[0], masks[1])
    free = render(replace(spec, loop_s=0.0), np.asarray([0.2, 1.2]), SIZE_WH, FPS).frames.astype(int)
    assert (free[0][:70] != free[1][:70]).any(-1)[(masks == 0).all(0)[:70]].mean() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loop_s": -1.0}, "loop_s is -1.0, wanted seconds"),
        ({"loop_s": float("nan")}, "loop_s is nan"),
        ({"scene_only": 1.5}, "scene_only is 1.5, wanted the share"),
        ({"scenes": ("watterfall",)}, "did you mean waterfall"),
        ({"scenes": ()}, "none is named, wanted some of studio, sea"),
        ({"size_wh": (64, 8)}, "size_wh is 64x8, wanted sides of 16"),
        ({"energy": float("nan")}, "energy is nan"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"seed": -1}, "seed is -1, wanted 0 or more"),
    ],
)
def test_worlds_that_cannot_be(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        World(**settings)  # type: ignore[arg-type]


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "synthetic.md").read_text()
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found
    code = found[1].replace("(192, 288)", "(64, 96)").replace("np.arange(24)", "np.arange(4)")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["flow"].shape == (3, 96, 64, 2)
    assert names["target"].frames.shape == names["clip"].frames.shape == (4, 96, 64, 3)
    assert all(f"| {name} |" in page for name in SCENES)
