"""Shards: written from a folder, read like it, and refused where somebody meddled with them."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from clip_folders import SIZE_WH, damage, put_video
from clips import number_of

from xdyna.data.folder import FolderSource
from xdyna.data.pack import pack
from xdyna.data.recorded import Cut
from xdyna.data.shards import ShardSource, find_shards, scan_shards
from xdyna.errors import UserError

CUT = Cut(4, sizes=(SIZE_WH,), face=True)


@pytest.fixture(scope="module")
def dances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dances")
    for name in ("a", "b.take2", "sub/c"):
        put_video(folder, name)
    put_video(folder, "scenes/sea", maps=(), size_wh=(64, 48))
    return folder


@pytest.fixture(scope="module")
def shards(dances: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list(pack(dances, tmp_path_factory.mktemp("shards"), 1).shards)


def test_shards_give_the_samples_of_their_folder(dances: Path, shards: list[Path]) -> None:
    cut = Cut(4, sizes=(SIZE_WH, (64, 48)), face=True, group=2)
    filmed, packed = FolderSource(dances, cut), ShardSource(shards, cut)
    assert packed.check() == []
    assert packed.num_clips == filmed.num_clips == 3
    for index in (0, 1, 2, 3, cut.held_out):
        one, other = filmed.draw(index), packed.draw(index)
        assert (one.name, one.is_scene, one.size_wh) == (other.name, other.is_scene, other.size_wh)
        assert one.face_maps is not None
        assert other.face_maps is not None
        for a, b in ((one.frames, other.frames), (one.pose_maps, other.pose_maps), (one.face_maps, other.face_maps)):
            assert [number_of(frame[..., :3]) for frame in a] == [number_of(frame[..., :3]) for frame in b]


def test_shards_follow_the_layout_of_webdataset(shards: list[Path]) -> None:
    with tarfile.open(shards[0]) as archive:
        names = archive.getnames()
    keys = [name.partition(".")[0] for name in names]
    assert keys == sorted(keys)  # a sample's members lie together
    assert sorted(name for name in names if name.startswith("00000000.")) == [
        "00000000.face_global.mp4",
        "00000000.face_local.mp4",
        "00000000.json",
        "00000000.mp4",
        "00000000.pose.mp4",
    ]
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    samples = list(webdataset.WebDataset(str(shards[0]), shardshuffle=False))
    assert len(samples) == 4
    assert json.loads(samples[0]["json"])["num_frames"] == 24
    assert {"mp4", "pose.mp4", "face_local.mp4"} <= set(samples[0])


def test_packing_twice_gives_the_same_bytes(dances: Path, shards: list[Path], tmp_path: Path) -> None:
    assert pack(dances, tmp_path, 1).shards[0].read_bytes() == shards[0].read_bytes()


def test_ranges_and_folders_name_shards(dances: Path, shards: list[Path], tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"x-{number:02d}.tar").write_bytes(b"")
    assert [path.name for path in find_shards(f"{tmp_path}/x-{{00..01}}.tar")] == ["x-00.tar", "x-01.tar"]
    assert find_shards(str(shards[0].parent)) == shards
    assert find_shards("synthetic") == find_shards(str(dances)) == []
    with pytest.raises(UserError, match=r"x-02\.tar: no such shard \(1 of 3 are missing\)"):
        find_shards(f"{tmp_path}/x-{{00..02}}.tar")
    with pytest.raises(UserError, match=r"\{5\.\.3\} is no range"):
        find_shards("x-{5..3}.tar")


def test_shards_close_at_their_size_and_names_count_on(dances: Path, tmp_path: Path) -> None:
    from xdyna.data import pack as packing

    writer = packing._ShardWriter(tmp_path, num_bytes=1)
    recordings = packing.scan_folder(dances, whatever=True)
    with writer:
        for number, item in enumerate(recordings.items):
            writer.add(f"{number:08d}", item, packing.recording_files(dances / item.name, list(item.files)))
    assert [path.name for path in writer.shards] == [f"clips-{number:06d}.tar" for number in range(4)]
    assert not list(tmp_path.glob(".*"))


def test_a_failed_pack_leaves_no_half_shard(dances: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(dances, tmp_path, 1, stop)
    assert not list(tmp_path.iterdir())


def test_a_damaged_video_is_not_packed_and_named(tmp_path: Path) -> None:
    put_video(tmp_path / "in", "a", maps=("pose",))
    bad = put_video(tmp_path / "in", "b", maps=("pose",))
    data = bytearray(bad.read_bytes())
    data[800:1300] = bytes(500)
    bad.write_bytes(bytes(data))
    packed = pack(tmp_path / "in", tmp_path / "out", 1)
    assert packed.num_clips == 1
    assert len(packed.problems) == 1
    assert "b.mp4" in packed.problems[0]
    with pytest.raises(UserError, match="holds shards already"):
        pack(tmp_path / "in", tmp_path / "out", 1)


def test_a_shard_cut_short_keeps_what_is_whole(shards: list[Path], tmp_path: Path) -> None:
    with tarfile.open(shards[0]) as archive:
        third = next(member for member in archive if member.name == "00000002.mp4")
    short = tmp_path / "short.tar"
    short.write_bytes(shards[0].read_bytes()[: third.offset_data + 100])
    found = scan_shards([short], True)
    assert len(found.items) == 2
    assert any("damaged or cut short" in line and str(short) in line for line in found.problems)
    (tmp_path / "none.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(UserError, match=r"none\.tar: no usable clips \(first problem: .*damaged or cut short"):
        ShardSource([tmp_path / "none.tar"], CUT)


def test_missing_maps_and_doubles_are_named(dances: Path, shards: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.tar"
    copy.write_bytes(shards[0].read_bytes())
    found = scan_shards([shards[0], copy], True)
    assert len(found.items) == 4
    assert sum("is in clips-000000.tar already" in line for line in found.problems) == 4
    found = scan_shards(shards, "swapped")
    assert [item.name for item in found.items] == ["scenes/sea.mp4"]
    assert sum("swapped.face_local.mp4" in line for line in found.problems) == 3


def _tar(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for header, data in members:
            entry = tarfile.TarInfo(header) if isinstance(header, str) else header
            entry.size = len(data) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(data))
    return path


def _link(name: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../evil.mp4", "wanted plain names"),
        ("/etc/evil.mp4", "wanted plain names"),
        ("a/b.mp4", "wanted plain names"),
        ("a..mp4", "wanted plain names"),
        ("0.pkl", "may hold a pickle"),
        ("0.pose.pickle", "may hold a pickle"),
        ("0.pt", "may hold a pickle"),
        (_link("0.mp4", tarfile.SYMTYPE), "is a link, a folder or a device"),
        (_link("0.mp4", tarfile.LNKTYPE), "is a link, a folder or a device"),
        (_link("0.mp4", tarfile.CHRTYPE), "is a link, a folder or a device"),
    ],
)
def test_archives_that_somebody_meddled_with_are_refused(
    tmp_path: Path, member: tarfile.TarInfo | str, message: str
) -> None:
    shard = _tar(tmp_path / "x.tar", (member, b"data"))
    with pytest.raises(UserError, match=message) as caught:
        scan_shards([shard])
    assert str(shard) in str(caught.value)


def test_a_huge_json_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 70000 bytes; wanted at most 65536"):
        scan_shards([_tar(tmp_path / "x.tar", ("0.json", b" " * 70_000))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is not JSON of the format xdyna-clips-1"),
        ({"format": "other"}, "is not JSON of the format"),
        ({"num_frames": 0}, "num_frames is 0; wanted a whole number of 1 to"),
        ({"num_frames": True}, "num_frames is True"),
        ({"width": 100_000}, "width is 100000; wanted a whole number of 1 to 8192"),
        ({"height": "64"}, "height is '64'"),
        ({"fps_denominator": 0}, "fps_denominator is 0"),
        ({"fps_numerator": 1000}, "1000 frames per second; wanted at most 240"),
        ({"is_scene": "no"}, "is_scene is 'no'; wanted true or false"),
        ({"name": ""}, "name is ''; wanted a text"),
    ],
)
def test_facts_are_believed_only_in_the_right_form(
    tmp_path: Path, change: dict[str, object] | None, message: str
) -> None:
    facts = {"format": "xdyna-clips-1", "name": "a", "num_frames": 9, "fps_numerator": 8, "fps_denominator": 1}
    facts |= {"width": 96, "height": 64, "is_scene": True, **(change or {})}
    text = json.dumps(facts).encode() if change is not None else b"\x80\x04pickle"
    found = scan_shards([_tar(tmp_path / "x.tar", ("0.json", text), ("0.mp4", b"data"))])
    assert not found.items
    assert len(found.problems) == 1
    assert message in found.problems[0]


def test_a_member_that_is_no_video_is_passed_over(shards: list[Path], tmp_path: Path) -> None:
    facts = {"format": "xdyna-clips-1", "name": "zz", "num_frames": 9, "fps_numerator": 8, "fps_denominator": 1}
    facts |= {"width": 96, "height": 64, "is_scene": True}
    bad = _tar(tmp_path / "x.tar", ("0.json", json.dumps(facts).encode()), ("0.mp4", b"data"), ("0.txt", b"words"))
    found = scan_shards([bad])
    assert found.problems == (f"{bad}: 0.txt is not used; wanted .json, .mp4, .pose.mp4, .mask.mp4, .face_local.mp4, "
                              ".face_global.mp4, .swapped.face_local.mp4, .swapped.face_global.mp4",)  # fmt: skip
    with pytest.raises(UserError, match="8 recordings in a row cannot be read"):
        ShardSource([bad], CUT).draw(0)


def test_damage_after_the_scan_does_not_stop_a_run(dances: Path, tmp_path: Path) -> None:
    shards = list(pack(dances, tmp_path / "out", 1).shards)
    source = ShardSource(shards, Cut(4, sizes=(SIZE_WH,), skipped=tmp_path / "skipped.txt"))
    damage(shards[0], 0.6)
    names = {source.draw(index).name for index in range(6)}
    assert names
    assert names <= {item.name for item in scan_shards(shards).items}  # those before the cut
    assert "is cut short" in (tmp_path / "skipped.txt").read_text()
    shards[0].unlink()
    with pytest.raises(UserError, match=r"clips-000000\.tar: .* cannot be copied: .*No such file"):
        source.draw(0)
