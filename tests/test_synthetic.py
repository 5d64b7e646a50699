"""The drawn world: repeatable, and what it says of itself is true of its pictures."""

from dataclasses import replace

import numpy as np
import pytest

from xdyna.data.synthetic.clips import World, clip_spec, dressed_as, render, render_index
from xdyna.data.synthetic.scenes import SCENES, build_scene
from xdyna.errors import UserError

SIZE_WH = (64, 96)


def test_same_seed_and_index_give_the_same_bytes() -> None:
    first, second = (render_index(World(seed=3), 5, 3) for _ in range(2))
    assert first.frames.tobytes() == second.frames.tobytes()
    assert first.masks.tobytes() == second.masks.tobytes()
    assert np.array_equal(first.tracks.joints_xy, second.tracks.joints_xy)
    other = render_index(World(seed=4), 5, 3)
    assert (other.frames != first.frames).mean() > 0.3


def test_a_frame_does_not_depend_on_which_others_are_drawn() -> None:
    spec = clip_spec(World(), 2)
    times_s = np.asarray([0.1, 0.9, 2.0])
    together = render(spec, times_s, SIZE_WH, 12.0).frames
    alone = [render(spec, times_s[k : k + 1], SIZE_WH, 12.0).frames[0] for k in range(3)]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.parametrize("size_wh", [(64, 96), (192, 288), (120, 90)])
def test_joints_lie_on_the_person(size_wh: tuple[int, int]) -> None:
    hits, total = 0, 0
    for index in range(8):
        clip = render_index(replace(World(size_wh=size_wh), framings={"full": 1.0}), index, 4)
        for frame in range(4):
            for (x, y), conf in zip(clip.tracks.joints_xy[frame, :14], clip.tracks.joints_conf[frame], strict=False):
                column, row = min(int(x), size_wh[0] - 1), min(int(y), size_wh[1] - 1)
                if conf:
                    total += 1
                    hits += clip.masks[frame, row, column] > 127
    assert total > 250
    assert hits / total > 0.97


def test_mask_is_where_the_person_is_drawn() -> None:
    """The same person before two scenes: pixels fully under the mask are equal, pixels outside show the scene."""
    spec = clip_spec(World(framings={"full": 1.0}), 1)
    times_s = np.asarray([0.0, 0.7])
    pictures = [render(replace(spec, scene=scene), times_s, SIZE_WH, 12.0) for scene in ("studio", "meadow")]
    masks = pictures[0].masks
    assert np.array_equal(masks, pictures[1].masks)
    covered = masks == 255
    assert 0.03 < covered.mean() < 0.5
    gap = np.abs(pictures[0].frames.astype(int) - pictures[1].frames)
    assert gap[covered].max() <= 1
    upper = gap[:, :60][masks[:, :60] == 0]  # above any shadow
    assert (upper.max(-1) > 8).mean() > 0.8


def test_face_points_and_hands_lie_near_their_joints() -> None:
    clip = render_index(World(size_wh=(384, 576), framings={"full": 1.0}), 0, 6)
    nose, hands, wrists = clip.tracks.joints_xy[:, 0], clip.tracks.hands_xy, clip.tracks.joints_xy[:, [7, 4]]
    head_px = 576 * 0.76 * 0.2
    assert np.linalg.norm(clip.tracks.face_xy.mean(1) - nose, axis=-1).max() < head_px / 2
    assert np.allclose(hands[:, :, 0], wrists, atol=1e-3)
    assert np.linalg.norm(hands - wrists[:, :, None], axis=-1).max() < head_px / 2


def test_another_person_dances_the_same_dance() -> None:
    world = World(framings={"full": 1.0})
    motion, looks = clip_spec(world, 0), clip_spec(world, 1)
    swapped = dressed_as(motion, looks)
    assert swapped.motion is motion.motion
    assert swapped.character is looks.character
    times_s = np.arange(4) / 12
    own = render(looks, times_s, SIZE_WH, 12.0)
    other = render(swapped, times_s, SIZE_WH, 12.0)
    assert np.array_equal(other.expression, render(motion, times_s, SIZE_WH, 12.0).expression)
    assert not np.array_equal(own.tracks.joints_xy, other.tracks.joints_xy)


@pytest.mark.parametrize("name", sorted(SCENES))
def test_scenes_fill_any_frame_and_only_the_studio_stands_still(name: str) -> None:
    for size_wh in ((64, 96), (97, 61)):
        scene = build_scene(name, np.random.default_rng(0), size_wh)
        early, late = scene(0.2), scene(0.9).copy()
        assert early.shape == (size_wh[1], size_wh[0], 3)
        assert early.dtype == np.uint8
        assert (early == late).all() == (name == "studio")


def test_unknown_scene_names_near_ones() -> None:
    with pytest.raises(UserError, match="did you mean fire"):
        World(scenes=("fyre",))
