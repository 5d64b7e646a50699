"""From a recipe's settings to clips: synthetic, folder, shards, several of them, people and scenes by share."""

from pathlib import Path
from typing import Any

import pytest
from clip_folders import SIZE_WH, put_video

from xdyna.configs.train import TrainConfig
from xdyna.data.build import parse_data
from xdyna.data.mix import MixedSource
from xdyna.data.pack import pack
from xdyna.data.source import ClipSource, build_source, draw_batch
from xdyna.data.synthetic_source import SyntheticSource
from xdyna.errors import UserError


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name in ("a", "b", "c"):
        put_video(folder / "people", name, maps=("pose",), num_frames=8)
    for name in ("x", "y"):
        put_video(folder / "nature/scenes", name, maps=(), num_frames=8)
    return folder


def config(**values: Any) -> TrainConfig:
    values = {"world": {"size_wh": (32, 48)}, "buckets": (SIZE_WH,), "batch": 2, **values}
    return TrainConfig.model_validate(values)


def shares(source: ClipSource, number: int = 12) -> float:
    """Share of samples without a person."""
    return sum(source.draw(index).is_scene for index in range(number)) / number


def test_synthetic_data_follows_world_and_share() -> None:
    source = build_source(config(), frames=2)
    assert isinstance(source, SyntheticSource)
    assert source.draw(0).size_wh == (32, 48)
    assert shares(build_source(config(scene_share=0), frames=1)) == 0
    assert shares(build_source(config(scene_share=1), frames=1)) == 1
    assert shares(build_source(config(scene_share=0.25), frames=1)) == 0.25
    own = shares(build_source(config(world={"size_wh": (32, 48), "scene_only": 0.5}), frames=1))
    assert 0 < own < 1


def test_a_folder_is_taken_as_it_is_or_by_share(films: Path) -> None:
    whole = build_source(config(data=str(films)), frames=3)
    assert whole.num_clips == 4  # five, one of them held out
    assert shares(build_source(config(data=str(films), scene_share=0.5), frames=3), 8) == 0.5
    people = build_source(config(data=str(films), scene_share=0), frames=3)
    assert shares(people, 8) == 0
    assert len({whole.fingerprint, people.fingerprint}) == 2


def test_shards_are_told_from_folders(films: Path, tmp_path: Path) -> None:
    pack(films, tmp_path, 1)
    for text in (str(tmp_path), str(tmp_path / "clips-000000.tar"), str(tmp_path / "clips-{000000..000000}.tar")):
        assert shares(build_source(config(data=text, scene_share=0.5), frames=3), 4) == 0.5


def test_several_sources_have_their_shares(films: Path) -> None:
    text = f"{films / 'people'}=3,{films / 'nature'}=1"
    source = build_source(config(data=text), frames=3)
    assert isinstance(source, MixedSource)
    assert shares(source, 16) == 0.25
    assert shares(build_source(config(data=text, scene_share=0.5), frames=3), 16) == 0.5
    batch = draw_batch(source, range(4))
    assert sorted(batch.is_scene.tolist()) == [False, False, False, True]


def test_sources_of_other_sizes_never_share_a_step(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    source = build_source(config(data=f"synthetic,{films / 'nature'}", accumulate=2), frames=3)
    for first in range(0, 32, 8):  # 2 clips x 2 processes x 2 passes
        draw_batch(source, range(first, first + 8))
    assert {source.draw(index).size_wh for index in range(0, 32, 8)} == {(32, 48), SIZE_WH}
    draw_batch(source, range(10_000_000, 10_000_008))


def test_validation_clips_fit_one_batch_where_only_they_have_another_size(films: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_video(tmp_path, name, maps=("pose",), num_frames=8)
    kept = build_source(config(data=str(tmp_path)), frames=3).draw(10_000_000).name
    put_video(tmp_path, Path(kept).stem, maps=("pose",), num_frames=8, size_wh=(64, 64))
    source = build_source(config(data=f"{films / 'people'},{tmp_path}", buckets=(SIZE_WH, (64, 64))), frames=3)
    assert len(draw_batch(source, range(10_000_000, 10_000_004))) == 4


def test_videos_beside_shards_are_told_of(films: Path, tmp_path: Path) -> None:
    pack(films, tmp_path, 1)
    put_video(tmp_path, maps=())
    source = build_source(config(data=str(tmp_path)), frames=3)
    assert source.check() == [f"{tmp_path}: holds shards; videos beside them (1) are not used"]


def test_processes_agree_on_every_sample(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process with batches of 4 and two with batches of 2 see the same samples."""
    values = {"data": str(films), "buckets": (SIZE_WH, (48, 48)), "scene_share": 0.5}
    one = build_source(config(batch=4, **values), frames=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    two = build_source(config(batch=2, **values), frames=2)
    for index in range(8):
        assert (one.draw(index).frames == two.draw(index).frames).all()


def test_what_turns_out_unreadable_is_noted_in_the_run_folder(films: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put_video(tmp_path / "in", name, maps=("pose",), num_frames=8)
    run = tmp_path / "run"
    run.mkdir()
    source = build_source(config(data=str(tmp_path / "in"), out=run), frames=3)
    lost = tmp_path / "in" / source.draw(0).name
    lost.unlink()
    assert source.draw(0).name != lost.name
    assert str(lost) in (run / "skipped.txt").read_text()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("synthetic", [("synthetic", 1.0)]),
        ("dance=0.7, nature=.3", [("dance", 0.7), ("nature", 0.3)]),
        ("c-{00..03}.tar=2,synthetic", [("c-{00..03}.tar", 2.0), ("synthetic", 1.0)]),
    ],
)
def test_data_is_one_source_or_several_with_shares(text: str, wanted: list[tuple[str, float]]) -> None:
    assert parse_data(text) == wanted


def test_a_path_with_odd_signs_is_one_source(tmp_path: Path) -> None:
    odd = tmp_path / "a=1,b"
    odd.mkdir()
    assert parse_data(str(odd)) == [(str(odd), 1.0)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "nowhere"}, "data nowhere: no such file or folder; wanted synthetic, a folder of videos, or shards"),
        ({"data": "x-{0..1}.tar"}, r"x-0\.tar: no such shard \(2 of 2 are missing\)"),
        ({"data": "dance=0"}, "'dance=0' is not SOURCE or SOURCE=SHARE"),
        ({"data": "a,,b"}, "'' is not SOURCE or SOURCE=SHARE"),
        ({"data": "{films}/people", "scene_share": 0.5}, "no clips without a person; put such videos into a folder"),
        ({"data": "{films}/nature", "scene_share": 0.0}, "no usable clips with a person"),
        ({"buckets": ((50, 64),)}, "frames of 50x64 px: wanted sides that are multiples of 8"),
    ],
)
def test_wrong_settings_are_one_line(films: Path, values: dict[str, Any], message: str) -> None:
    values = {**values, "data": values.get("data", "synthetic").replace("{films}", str(films))}
    with pytest.raises(UserError, match=message):
        build_source(config(**values), frames=2)
