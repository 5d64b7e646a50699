"""Pictures of one person: what is read, what is left out and said, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from animate_inputs import make_photo

from xdyna.cli import main
from xdyna.data.album import AlbumSource, draw_album, read_album
from xdyna.data.source import ClipSource
from xdyna.data.synthetic.clips import World
from xdyna.errors import UserError

WORLD = World(size_wh=(32, 48), framings={"full": 1.0})


def photos(folder: Path, count: int, *, with_tracks: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        make_photo(folder / f"{number:02}.png", (40 + number, 60), with_tracks=with_tracks)
    return folder


def test_photos_with_tracks(tmp_path: Path) -> None:
    folder = photos(tmp_path / "anna", 5)
    (folder / "notes.txt").write_text("not a picture")
    album = read_album(folder, (32, 48), detect=False)
    assert album.frames.shape == (5, 48, 32, 3)
    assert album.pose_maps.shape == (5, 48, 32, 3)
    assert album.pose_maps.reshape(5, -1).any(1).all()
    assert (album.masks == 255).all()
    assert album.problems == ()


def test_a_pose_map_lies_on_its_person(tmp_path: Path) -> None:
    """The photo's figure was drawn with the map's own colours, at the same place, before both were cut."""
    for number in range(5):
        make_photo(tmp_path / f"{number}.png", (300, 260))  # wider than the wanted shape: the sides are cut
    album = read_album(tmp_path, (128, 192), detect=False)
    drawn = album.pose_maps.max(-1) > 150
    assert drawn.sum() > 500
    frame, pose = album.frames[drawn].astype(int), album.pose_maps[drawn].astype(int)
    strongest = pose.argmax(-1)[:, None]
    assert np.median(np.abs(np.take_along_axis(frame - pose, strongest, 1))) < 40


def test_photos_without_poses_get_blank_maps(tmp_path: Path) -> None:
    album = read_album(photos(tmp_path / "anna", 5, with_tracks=False), (32, 48), detect=False)
    assert not album.pose_maps.any()


def test_a_broken_photo_is_left_out_and_listed(tmp_path: Path) -> None:
    folder = photos(tmp_path / "anna", 6)
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:200])
    album = read_album(folder, (32, 48), detect=False)
    assert len(album) == 5
    (line,) = AlbumSource(album, frames=2, seed=0).check()
    assert line.startswith("left out: ")
    assert "03.png" in line


def test_four_photos_are_refused_and_sixty_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 of 4 photos can be read; wanted 5 to 50 of one person"):
        read_album(photos(tmp_path / "few", 4), (32, 48), detect=False)
    folder = photos(tmp_path / "broken", 5)
    (folder / "00.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"4 of 5 photos can be read \(left out: .*00.png.*wanted 5 to 50"):
        read_album(folder, (32, 48), detect=False)
    album = read_album(photos(tmp_path / "many", 51), (32, 48), detect=False)
    assert len(album) == 51
    assert "51 photos, 5 to 50 are usual" in album.problems[0]


def test_the_command_refuses_too_few(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--set", f"base={tiny_folder}", "--out", str(tmp_path / "out"), "--set", "detect=false"]
    assert main(["train", "character_lora", *base, "--set", f"data={photos(tmp_path / 'few', 4)}"]) == 2
    assert "wanted 5 to 50 of one person" in capsys.readouterr().err
    assert main(["train", "character_lora", *base, "--set", f"data={tmp_path / 'none'}"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["train", "character_lora", *base, "--set", "pictures=4"]) == 2
    assert "greater than or equal to 5" in capsys.readouterr().err


def test_a_drawn_person_stays_the_same_person() -> None:
    album = draw_album(WORLD, 3, 6)
    assert len(album) == 6
    assert album.pose_maps.reshape(6, -1).any(1).all()
    assert len({frame.tobytes() for frame in album.frames}) == 6
    again = draw_album(WORLD, 3, 6)
    assert np.array_equal(again.frames, album.frames)
    assert not np.array_equal(draw_album(WORLD, 4, 6).frames, album.frames)
    inside = [frame[mask > 250].mean(0) for frame, mask in zip(album.frames, album.masks, strict=True)]
    assert np.std(inside, axis=0).max() < 25


def test_samples_are_functions_of_their_numbers() -> None:
    source = AlbumSource(draw_album(WORLD, 3, 6), frames=3, seed=1)
    assert isinstance(source, ClipSource)
    assert source.num_clips == 6
    first, again, other = source.draw(7), source.draw(7), source.draw(8)
    assert np.array_equal(first.frames, again.frames)
    assert first.name == again.name != other.name
    assert len({frame.tobytes() for frame in first.frames}) == 4
    assert source.fingerprint != AlbumSource(draw_album(WORLD, 4, 6), frames=3, seed=1).fingerprint
    with pytest.raises(UserError, match=r"frames=6: a sample would show 7 pictures .* has 6; wanted frames=5 or less"):
        AlbumSource(draw_album(WORLD, 3, 6), frames=6, seed=1)
