"""Clips of the drawn world as samples: what they hold, and where the reference comes from."""

import pickle

import numpy as np
import pytest

from xdyna.data.source import ClipSource, TrainingClip, draw_batch, stack
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.data.synthetic_source import SPAN_S, SyntheticSource

WORLD = World(seed=5, size_wh=(32, 48))


def test_a_sample_is_a_function_of_its_number() -> None:
    source = SyntheticSource(WORLD, frames=3, face=True)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes: workers get sources this way
    assert isinstance(source, ClipSource)
    one, other = source.draw(7), again.draw(7)
    assert one.frames.shape == (4, 48, 32, 3)
    assert one.masks.shape == (4, 48, 32)
    assert one.face_maps is not None
    assert one.face_maps.shape == (4, 48, 32, 6)
    for name in ("frames", "masks", "pose_maps", "face_maps"):
        assert (getattr(one, name) == getattr(other, name)).all()
    assert (one.frames != source.draw(8).frames).any()
    assert source.draw(7).name == "synthetic 7"


def test_maps_and_masks_belong_to_the_frames() -> None:
    world = World(seed=5, framings={"full": 1.0})
    source = SyntheticSource(world, frames=2)
    clip = source.draw(1)
    drawn = render(clip_spec(world, 1), source.times_s(1), world.size_wh, world.fps)
    assert (clip.frames == drawn.frames).all()
    assert (clip.masks == drawn.masks).all()
    assert clip.face_maps is None
    shown = clip.pose_maps.max(-1) > 100
    assert shown.any()
    assert clip.masks[shown].mean() > 200  # limbs lie on the person


def test_consecutive_frames_follow_each_other_and_others_do_not() -> None:
    times_s = SyntheticSource(WORLD, frames=6).times_s(3)
    np.testing.assert_allclose(np.diff(times_s[1:]), 1 / WORLD.fps)
    times_s = SyntheticSource(WORLD, frames=6, consecutive=False).times_s(3)
    assert (times_s < SPAN_S).all()
    assert np.abs(np.diff(times_s) - 1 / WORLD.fps).min() > 1e-3


def test_in_a_looping_world_the_scene_goes_on_from_the_reference() -> None:
    world = World(seed=5, size_wh=(32, 48), loop_s=2.0)
    source = SyntheticSource(world, frames=4)
    num_same = 0
    for index in range(40):
        reference_s, first_s = source.times_s(index)[:2]
        loops = (first_s - 1 / world.fps - reference_s) / world.loop_s
        assert loops == pytest.approx(round(loops), abs=1e-9)
        assert -1e-9 <= reference_s < SPAN_S or round(loops) == 0
        num_same += round(loops) == 0
    assert num_same == 0  # six seconds have room for another loop


def test_the_reference_of_a_looping_scene_is_the_frame_before_the_first() -> None:
    world = World(seed=5, size_wh=(32, 48), loop_s=2.0, scene_only=1.0, scenes=("sea",))
    source = SyntheticSource(world, frames=4)
    clip = source.draw(0)
    before_s = source.times_s(0)[1] - 1 / world.fps
    shown = render(clip_spec(world, 0), np.asarray([before_s]), world.size_wh, world.fps).frames[0].astype(int)
    assert np.abs(clip.frames[0] - shown).max() <= 1
    assert np.abs(clip.frames[1] - shown).max() > 10


def test_random_moments_of_a_looping_world_show_one_moment_of_its_scene() -> None:
    world = World(seed=5, size_wh=(32, 48), loop_s=2.0)
    source = SyntheticSource(world, frames=12, consecutive=False)
    for index in range(5):
        times_s = source.times_s(index)
        loops = (times_s - times_s[0]) / world.loop_s
        assert loops == pytest.approx(loops.round(), abs=1e-9)
        assert len(set(loops.round())) == 13


def test_a_swapped_face_lies_in_the_same_place_and_looks_other() -> None:
    world = World(seed=5, size_wh=(48, 72), framings={"bust": 1.0})
    own = SyntheticSource(world, frames=2, face=True).draw(0)
    swapped = SyntheticSource(world, frames=2, face="swapped").draw(0)
    assert (own.frames == swapped.frames).all()
    assert (own.pose_maps == swapped.pose_maps).all()
    assert own.face_maps is not None
    assert swapped.face_maps is not None
    shown, other = (maps[..., 3:].max(-1) > 0 for maps in (own.face_maps, swapped.face_maps))
    assert (shown & other).sum() > 0.6 * (shown | other).sum()
    both = shown & other
    difference = np.abs(own.face_maps[..., 3:].astype(int) - swapped.face_maps[..., 3:])[both]
    assert difference.mean() > 10


def test_scenes_without_a_person_have_blank_maps() -> None:
    clip = SyntheticSource(World(seed=5, size_wh=(32, 48), scene_only=1.0), frames=2, face="swapped").draw(3)
    assert clip.is_scene
    assert clip.name == "synthetic scene 3"  # in a mix it stands beside "synthetic 3" of a world with people
    assert clip.face_maps is not None
    for maps in (clip.masks, clip.pose_maps, clip.face_maps):
        assert not maps.any()


def test_fingerprints_tell_worlds_apart() -> None:
    prints = {SyntheticSource(world, frames=f).fingerprint for world in (WORLD, World(seed=6)) for f in (2, 3)}
    assert len(prints) == 4
    assert SyntheticSource(WORLD, frames=2).fingerprint in prints


def test_a_batch_keeps_names_and_numbers() -> None:
    batch = draw_batch(SyntheticSource(WORLD, frames=2), [4, 9])
    assert batch.names == ("synthetic 4", "synthetic 9")
    assert batch.indices.tolist() == [4, 9]
    assert batch.frames.shape == (2, 3, 48, 32, 3)
    assert len(batch) == 2


def test_clips_of_other_sizes_do_not_go_into_one_batch() -> None:
    small = SyntheticSource(WORLD, frames=2).draw(0)
    large = SyntheticSource(World(size_wh=(48, 48)), frames=2).draw(0)
    with pytest.raises(ValueError, match=r"synthetic 0 has frames \(3, 48, 48, 3\).*wanted clips that fit one batch"):
        stack([0, 1], [small, large])


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    frames, masks = np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"x: pose_maps have shape \(2, 8, 8, 3\), wanted \(3, 8, 8, 3\)"):
        TrainingClip("x", frames, masks, frames[:2], None, False)
    with pytest.raises(ValueError, match="x: masks are float64, wanted uint8"):
        TrainingClip("x", frames, masks.astype(float), frames, None, False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wanted \[1\+F, H, W, 3\]"):
        TrainingClip("x", frames[:1], masks[:1], frames[:1], None, False)
