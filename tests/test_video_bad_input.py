"""Driving videos that are missing, damaged or something else: one line that says so, and nothing on stderr."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from clips import Image as Image8
from clips import make_clip, number_of, numbered_frame
from PIL import Image

from xdyna.errors import UserError
from xdyna.video import VideoReader, probe


def missing(folder: Path) -> Path:
    return folder / "clip.mp4"


def a_folder(folder: Path) -> Path:
    (folder / "clip.mp4").mkdir()
    return folder / "clip.mp4"


def empty(folder: Path) -> Path:
    (folder / "clip.mp4").touch()
    return folder / "clip.mp4"


def text(folder: Path) -> Path:
    (folder / "clip.mp4").write_text("Not a video at all.\n" * 100)
    return folder / "clip.mp4"


def noise(folder: Path) -> Path:
    (folder / "clip.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    return folder / "clip.mp4"


def play_list(folder: Path) -> Path:
    make_clip(folder / "real.mp4")
    (folder / "clip.mp4").write_text(f"#EXTM3U\n#EXTINF:3,\n{folder}/real.mp4\n")
    return folder / "clip.mp4"


def concat_list(folder: Path) -> Path:
    make_clip(folder / "real.mp4")
    (folder / "clip.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")
    return folder / "clip.mp4"


def picture(folder: Path) -> Path:
    Image.new("RGB", (64, 64)).save(folder / "photo.jpg")
    return folder / "photo.jpg"


def heic_picture(folder: Path) -> Path:
    """HEIC is the container of MP4 with H.265 inside: FFmpeg would read its tiles as a video."""
    heif = pytest.importorskip("pillow_heif", reason="extra 'heic' is not installed")
    heif.from_pillow(Image.new("RGB", (96, 64))).save(folder / "photo.heic")
    return folder / "photo.heic"


def picture_under_another_name(folder: Path) -> Path:
    return picture(folder).rename(folder / "clip.mp4")


def index_lost(folder: Path) -> Path:
    """An MP4 keeps its index at the end: cut short, nothing of it can be read."""
    path = make_clip(folder / "clip.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"moov") - 100])
    return path


def frames_lost(folder: Path) -> Path:
    """The index is there, but every frame is overwritten."""
    path = make_clip(folder / "clip.mp4", options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    at = data.find(b"mdat") + 4
    data[at:] = bytes(len(data) - at)
    path.write_bytes(data)
    return path


def no_frames(folder: Path) -> Path:
    with av.open(str(folder / "clip.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()
    return folder / "clip.mkv"


def sound_only(folder: Path) -> Path:
    with av.open(str(folder / "clip.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return folder / "clip.m4a"


CASES: list[tuple[Callable[[Path], Path], str]] = [
    (missing, "no such file"),
    (a_folder, "is a folder"),
    (empty, "is empty"),
    (text, "not a readable video"),
    (noise, "not a readable video"),
    (play_list, "not a readable video"),
    (concat_list, "not a readable video"),
    (picture, "is a picture"),
    (heic_picture, "is a picture"),
    (picture_under_another_name, "not a readable video"),
    (index_lost, "not a readable video .damaged, cut short"),
    (frames_lost, "not one frame of it can be decoded"),
    (no_frames, "not a readable video"),
    (sound_only, "holds only sound"),
]


@pytest.mark.parametrize(("make", "reason"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    path = make(tmp_path)
    for use in (probe, VideoReader):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{reason}.*wanted a video file") as caught:
            use(path)
        assert "\n" not in str(caught.value)


def rename_codec(path: Path, old: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, b"zzzz"))
    return path


def test_unknown_video_codec(tmp_path: Path) -> None:
    path = rename_codec(make_clip(tmp_path / "clip.mp4"), b"avc1")
    with pytest.raises(UserError, match="is in a video codec that FFmpeg cannot decode here"):
        probe(path)


def test_unknown_sound_codec_is_no_sound(tmp_path: Path) -> None:
    path = rename_codec(rename_codec(make_clip(tmp_path / "clip.mp4", 8, tone=(0, 1)), b"mp4a"), b"esds")
    assert not probe(path).has_audio
    reader = VideoReader(path)
    assert [number_of(frame) for frame in reader] == list(range(8))
    assert reader.sound() is None


def test_too_large(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mkv", 2, size_wh=(8200, 16), codec="mjpeg", pix_fmt="yuvj420p")
    with pytest.raises(UserError, match="8200x16 px; wanted at most 8192 px a side"):
        probe(path)


def test_a_device_is_not_read() -> None:
    with pytest.raises(UserError, match="is a device or a pipe"):
        probe("/dev/zero")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_s": 3.0}, r"start is 3 s; wanted less than its duration, 3.000 s"),
        ({"start_s": -1.0}, "start is -1 s; wanted 0 or more"),
        ({"start_s": float("nan")}, "start is nan s"),
        ({"fps": 0.0}, "fps is 0; wanted more than 0 and at most 240"),
        ({"fps": 1000.0}, "fps is 1000; wanted"),
        ({"stride": 0}, "stride is 0; wanted 1 or more"),
        ({"frames": 0}, "frames is 0; wanted 1 or more"),
    ],
)
def test_options_that_cannot_be_met(tmp_path: Path, options: dict[str, float], message: str) -> None:
    path = make_clip(tmp_path / "clip.mp4")
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: {message}"):
        VideoReader(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", {"movflags": "faststart"}),
        ("clip.mkv", "libx264", {}),
        ("clip.avi", "mpeg4", {}),
        ("clip.webm", "libvpx-vp9", {}),
    ],
)
def test_cut_short_gives_what_is_there_and_a_warning(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = make_clip(tmp_path / name, 120, 20, codec=codec, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    reader = VideoReader(path)
    found = [number_of(frame) for frame in reader]
    assert found == list(range(len(found)))
    assert 20 < len(found) < 110
    assert reader.warnings == [
        f"{path}: only {len(found)} of 120 frames could be read; the file is damaged or cut short"
    ]
    part = VideoReader(path, frames=10)  # stops before the damage: nothing to warn of
    assert len(list(part)) == 10
    assert part.warnings == []


def noisy_frame(number: int, size_wh: tuple[int, int]) -> Image8:
    frame = numbered_frame(number, size_wh)
    noise = np.random.default_rng(number).integers(0, 256, frame.shape, dtype=np.uint8)
    half = len(frame) // 2
    frame[half:] = noise[half:]
    return frame


def test_damage_in_the_middle_keeps_the_time(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mkv", 60, 20, draw=noisy_frame)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    reader = VideoReader(path)
    found = [number_of(frame) for frame in reader]
    assert len(found) == 60  # a lost frame is stood in for by the one before
    assert found[:20] == list(range(20))
    assert found[48:] == list(range(48, 60))  # from the next key frame on
    assert len(reader.warnings) == 1
    assert re.search(r"only 5\d of 60 frames could be read", reader.warnings[0])


def test_ffmpeg_stays_quiet(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    cut = make_clip(folder / "cut.mp4", 60, options={"movflags": "faststart"})
    cut.write_bytes(cut.read_bytes()[:-300])
    shutil.copy(index_lost(tmp_path), folder / "lost.mp4")
    code = (
        "import sys\n"
        "from xdyna.video import VideoReader\n"
        "from xdyna.errors import UserError\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        reader = VideoReader(path)\n"
        "        print(len(list(reader)), len(reader.warnings))\n"
        "    except UserError:\n"
        "        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cut, folder / "lost.mp4"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"\d+ 1\nrefused\n", done.stdout)
    assert done.stderr == ""
