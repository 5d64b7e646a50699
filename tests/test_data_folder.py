"""A folder of videos with maps beside them: which are taken, what samples hold, and what is said of bad ones."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from clip_folders import FACES, FPS, NUM_FRAMES, SIZE_WH, damage, plain, put_video
from clips import make_clip, number_of

from xdyna.data.folder import FolderSource, scan_folder
from xdyna.data.recorded import Cut
from xdyna.data.source import draw_batch
from xdyna.errors import UserError

CUT = Cut(4, sizes=(SIZE_WH,), face=True)


@pytest.fixture(scope="module")
def dances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dances")
    for name in ("a", "b.take2", "sub/c"):
        put_video(folder, name)
    put_video(folder, "scenes/sea", maps=())
    return folder


def test_every_map_belongs_to_its_frame(dances: Path) -> None:
    source = FolderSource(dances, CUT)
    assert source.check() == []
    assert source.num_clips == 3  # the fourth is kept for validation
    names = Counter()
    for index in range(12):
        clip = source.draw(index)
        names[clip.name] += 1
        shown = [number_of(frame) for frame in clip.frames]
        assert clip.face_maps is not None
        assert shown[1:] == list(range(shown[1], shown[1] + 4))
        assert shown[0] not in shown[1:]
        if not clip.is_scene:
            assert [number_of(frame) for frame in clip.pose_maps] == shown
            assert [number_of(frame) for frame in clip.face_maps[..., :3]] == shown
            assert [number_of(frame) for frame in clip.face_maps[..., 3:]] == shown
            assert (clip.masks == 255).all()
    assert set(names.values()) == {4}


def test_scenes_have_blank_maps(dances: Path) -> None:
    recordings = scan_folder(dances, True).only(scenes=True)
    clip = FolderSource(dances, CUT, recordings).draw(0)
    assert clip.is_scene
    assert clip.name == "scenes/sea.mp4"
    assert clip.face_maps is not None
    for maps in (clip.pose_maps, clip.masks, clip.face_maps):
        assert not maps.any()


def test_a_sample_is_a_function_of_its_number_in_any_process(dances: Path) -> None:
    source = FolderSource(dances, CUT)
    other = pickle.loads(pickle.dumps(FolderSource(dances, CUT)))  # noqa: S301 - our own bytes
    for index in (5, 0, 40):
        one, two = source.draw(index), other.draw(index)
        assert one.name == two.name
        assert (one.frames == two.frames).all()
    assert source.fingerprint == other.fingerprint
    assert source.fingerprint != FolderSource(dances, Cut(5, sizes=(SIZE_WH,), face=True)).fingerprint


def test_validation_videos_are_never_trained_on(dances: Path) -> None:
    source = FolderSource(dances, CUT)
    trained = {source.draw(index).name for index in range(20)}
    kept = {source.draw(CUT.held_out + index).name for index in range(6)}
    assert len(trained) == 3
    assert len(kept) == 1
    assert not trained & kept


def test_a_single_video_serves_for_both_and_says_so(tmp_path: Path) -> None:
    put_video(tmp_path, maps=("pose",))
    source = FolderSource(tmp_path, Cut(4, sizes=(SIZE_WH,)))
    assert source.check() == ["a.mp4: the only recording serves for validation too"]
    assert source.draw(0).name == source.draw(10_000_000).name == "a.mp4"


@pytest.mark.parametrize("strides", [(3,), (1, 2, 5)])
def test_strides_are_kept_where_the_video_is_long_enough(dances: Path, strides: tuple[int, ...]) -> None:
    source = FolderSource(dances, Cut(4, strides=strides, sizes=(SIZE_WH,)))
    seen = set()
    for index in range(8):
        shown = [number_of(frame) for frame in source.draw(index).frames[1:]]
        seen |= set(np.diff(shown).tolist())
    assert seen <= set(strides)
    assert len(seen) > len(strides) // 2
    short = Cut(4, strides=(9, 30), sizes=(SIZE_WH,)).moments(6, np.random.default_rng(0))
    assert np.diff(short[1:]).tolist() == [1, 1, 1]


def test_random_moments_are_all_different(dances: Path) -> None:
    source = FolderSource(dances, Cut(6, consecutive=False, sizes=(SIZE_WH,)))
    shown = [[number_of(frame) for frame in source.draw(index).frames] for index in range(4)]
    assert all(len(set(numbers)) == 7 for numbers in shown)
    assert any((np.diff(numbers) != 1).any() for numbers in shown)


def test_maps_at_another_rate_set_the_pace(tmp_path: Path) -> None:
    put_video(tmp_path, "fast", maps=(), fps=24, num_frames=72)
    make_clip(tmp_path / "fast.pose.mp4", 24, 8, SIZE_WH, draw=lambda number, size: plain(40))
    clip = FolderSource(tmp_path, Cut(4, sizes=(SIZE_WH,))).draw(0)
    shown = [number_of(frame) for frame in clip.frames]
    assert np.diff(shown[1:]).tolist() == [3, 3, 3]
    assert all(number % 3 == 0 for number in shown)


def test_frames_are_cut_as_the_maps_were(tmp_path: Path) -> None:
    video = put_video(tmp_path, maps=("pose",), map_wh=(64, 64))
    make_clip(video, NUM_FRAMES, FPS, (192, 64), draw=lambda n, wh: _thirds(wh))
    clip = FolderSource(tmp_path, Cut(2, sizes=((32, 32),))).draw(0)
    assert clip.size_wh == (32, 32)
    assert clip.frames.mean() == pytest.approx(150, abs=4)
    assert clip.frames.std() < 8


def _thirds(size_wh: tuple[int, int]) -> np.ndarray:
    frame = np.full((size_wh[1], size_wh[0], 3), 150, np.uint8)
    frame[:, : size_wh[0] // 3], frame[:, -size_wh[0] // 3 :] = 50, 250
    return frame


def test_masks_are_read_at_the_maps_or_the_videos_size(tmp_path: Path) -> None:
    for name, mask_wh in (("a", (48, 64)), ("b", SIZE_WH)):
        put_video(tmp_path, name, maps=("pose",), map_wh=(48, 64))
        make_clip(tmp_path / f"{name}.mask.mp4", NUM_FRAMES, FPS, mask_wh, draw=lambda n, wh: _half(wh))
    source = FolderSource(tmp_path, Cut(2, sizes=((48, 64),)))
    for index in (0, 10_000_000):
        masks = source.draw(index).masks
        assert masks[:, :, :16].mean() < 5
        assert masks[:, :, 32:].mean() > 250


def _half(size_wh: tuple[int, int]) -> np.ndarray:
    frame = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    frame[:, size_wh[0] // 2 :] = 255
    return frame


def test_a_step_holds_one_bucket(tmp_path: Path) -> None:
    for number in range(5):
        put_video(tmp_path, f"tall{number}", maps=("pose",), size_wh=(48, 64), num_frames=8)
    for number in range(3):
        put_video(tmp_path, f"wide{number}", maps=("pose",), size_wh=(80, 48), num_frames=8)
    cut = Cut(2, sizes=((32, 48), (64, 32)), group=2)
    source = FolderSource(tmp_path, cut)
    sizes = [draw_batch(source, [first, first + 1]).frames.shape[2:4] for first in range(0, 16, 2)]
    assert set(sizes) == {(48, 32), (32, 64)}
    assert source.sizes == ((32, 48), (64, 32))
    assert len({source.draw(cut.held_out + index).size_wh for index in range(6)}) == 1


def test_swapped_face_maps_are_those_of_the_other_face(tmp_path: Path) -> None:
    put_video(tmp_path)
    swapped = Cut(2, sizes=(SIZE_WH,), face="swapped")
    with pytest.raises(UserError, match=r"no a\.swapped\.face_local\.mp4 beside it; put a\.swapped\.mp4"):
        FolderSource(tmp_path, swapped)
    put_video(tmp_path, "a.swapped", maps=())
    for kind in FACES:
        make_clip(tmp_path / f"a.swapped.{kind}.mp4", NUM_FRAMES, FPS, SIZE_WH, draw=lambda n, wh: plain(200))
    source = FolderSource(tmp_path, swapped)
    faces = source.draw(0).face_maps
    assert source.num_clips == 1
    assert faces is not None
    assert faces.mean() == pytest.approx(200, abs=4)


def test_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    put_video(tmp_path, "good1")
    put_video(tmp_path, "good2")
    put_video(tmp_path, "bare", maps=())
    put_video(tmp_path, "faceless", maps=("pose",))
    put_video(tmp_path, "brief", num_frames=4)
    put_video(tmp_path, "foreign", map_frames=60)
    put_video(tmp_path, "part", map_frames=10)
    put_video(tmp_path, "uneven", maps=("pose", "face_local"))
    make_clip(tmp_path / "uneven.face_global.mp4", NUM_FRAMES, FPS, (64, 64))
    put_video(tmp_path, "paces", maps=("pose", "face_local"))
    make_clip(tmp_path / "paces.face_global.mp4", NUM_FRAMES, 2 * FPS, SIZE_WH)
    damage(put_video(tmp_path, "broken"), 0.02)
    put_video(tmp_path, "empty").write_bytes(b"")
    make_clip(tmp_path / "good1.mkv", NUM_FRAMES, FPS, SIZE_WH)
    put_video(tmp_path, "lost").unlink()
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    source = FolderSource(tmp_path, CUT)
    wanted = {
        "bare.mp4": "no bare.pose.mp4 beside it; make it: xdyna data maps",
        "faceless.mp4": "no faceless.face_local.mp4 beside it",
        "brief.mp4": f"left out: {tmp_path}: brief.mp4: 4 frames; wanted 5 or more",
        "foreign.mp4": "60 pose maps for 24 frames at 8 fps; wanted maps of this very video",
        "part.mp4": "its maps have 10 of 24 frames; the rest is not used",
        "uneven.mp4": "its face_global maps are 64x64 px, its pose maps 96x64; wanted one size",
        "paces.mp4": "its face_global maps run at 16 fps, its pose maps at 8",
        "broken.mp4": "wanted a video file",
        "empty.mp4": "is empty (0 bytes)",
        "good1.mp4": "left out: good1.mkv has the same maps",
        "lost.mp4": "no such file",
    }
    lines = source.check()
    for name, reason in wanted.items():
        assert [name in line and reason in line for line in lines].count(True) == 1, (name, lines)
    assert len(lines) == len(wanted)
    assert all("\n" not in line for line in lines)
    assert {source.draw(index).name for index in range(8)} <= {"good1.mkv", "good2.mp4", "part.mp4"}


def test_a_video_damaged_further_on_is_passed_over_and_noted(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        put_video(tmp_path, name, maps=("pose",))
    cut = Cut(4, sizes=(SIZE_WH,), skipped=tmp_path / "skipped.txt")
    whole = FolderSource(tmp_path, cut)
    names = [whole.draw(index).name for index in range(9)]
    video = tmp_path / names[0]
    data = bytearray(video.read_bytes())
    start, end = data.find(b"mdat") + 4, data.find(b"moov") - 4  # of the pictures; what is behind tells their number
    middle = start + (end - start) * 6 // 10
    data[middle:end] = bytes(end - middle)  # all frames but the first few
    video.write_bytes(bytes(data))
    source = FolderSource(tmp_path, cut)
    again = [source.draw(index).name for index in range(9)]
    assert source.draw(0).name == again[0]
    assert [new for new, old in zip(again, names, strict=True) if old != names[0]] == [
        n for n in names if n != names[0]
    ]
    lines = (tmp_path / "skipped.txt").read_text().splitlines()
    assert len(lines) == 1
    assert str(video) in lines[0]


def test_one_that_can_be_read_is_found_among_seven_that_cannot(tmp_path: Path) -> None:
    for number in range(9):
        put_video(tmp_path, str(number), maps=("pose",), num_frames=6)
    source = FolderSource(tmp_path, Cut(4, sizes=(SIZE_WH,), skipped=tmp_path / "run/skipped.txt"))
    first, *others = {source.draw(index).name for index in range(8)}
    for name in others:
        (tmp_path / name).unlink()
    assert {source.draw(index).name for index in range(16)} == {first}
    assert not (tmp_path / "run").exists()  # a dry run makes none, and is not stopped by that


def test_where_nothing_can_be_read_the_run_stops(tmp_path: Path) -> None:
    videos = [put_video(tmp_path, name, maps=("pose",)) for name in ("a", "b")]
    source = FolderSource(tmp_path, Cut(4, sizes=(SIZE_WH,)))
    for video in videos:
        video.unlink()
    with pytest.raises(UserError, match=r"sample 0: 8 recordings in a row cannot be read; the last: .*no such file"):
        source.draw(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such folder; wanted a folder of videos"),
        ("nothing", "no video in it"),
        ("maps only", "no video in it"),
        ("no maps", r"no usable clips \(first problem: .*\); maps are made by: xdyna data maps"),
        ("scenes only", "no usable clips"),
    ],
)
def test_a_folder_without_a_usable_clip_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    folder = tmp_path / "data"
    if content:
        folder.mkdir()
    if content == "maps only":
        make_clip(folder / "a.pose.mp4", 4, FPS, SIZE_WH)
    if content == "no maps":
        put_video(folder, maps=())
    if content == "scenes only":
        put_video(folder, "scenes/a", num_frames=2, maps=())
    with pytest.raises(UserError, match=message) as caught:
        FolderSource(folder, CUT)
    assert str(folder) in str(caught.value)
