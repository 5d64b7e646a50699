"""Writing video: what is in the file, the same bytes each time, and nothing left behind when it fails."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import loud_interval, make_clip, number_of, numbered_frame
from PIL import Image

from xdyna.errors import UserError
from xdyna.files import PartPath, written_whole
from xdyna.video import AudioCut, VideoReader, VideoWriter, check_output, known_codecs, probe, side_by_side
from xdyna.video.compare import side_by_side_size_wh


def write(path: Path, num_frames: int = 12, size_wh: tuple[int, int] = (96, 64), **options: object) -> Path:
    with VideoWriter(path, size_wh, options.pop("fps", 8), **options) as writer:  # type: ignore[arg-type]
        for number in range(num_frames):
            writer.write(numbered_frame(number, size_wh))
    return path


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- contents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9", "av1"])
def test_codecs_round_trip_and_repeat(tmp_path: Path, codec: str) -> None:
    if codec not in known_codecs():
        pytest.skip(f"this build of PyAV has no {codec} encoder")
    first = write(tmp_path / "a.mp4", codec=codec)
    reader = VideoReader(first)
    assert [number_of(frame) for frame in reader] == list(range(12))
    assert reader.fps == 8
    with av.open(str(first)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.codec_tag == {"h264": "avc1", "h265": "hvc1", "vp9": "vp09", "av1": "av01"}[codec]
        assert "creation_time" not in {**container.metadata, **stream.metadata}
    assert first.read_bytes() == write(tmp_path / "b.mp4", codec=codec).read_bytes()


def test_encoder_threads_do_not_follow_the_machine(tmp_path: Path) -> None:
    """Both encoders write their settings into the stream."""
    data = write(tmp_path / "a.mp4", size_wh=(192, 128)).read_bytes()
    assert b" threads=2 lookahead_threads=1 sliced_threads=0 " in data
    if "h265" in known_codecs():
        data = write(tmp_path / "b.mp4", size_wh=(192, 128), codec="h265").read_bytes()
        assert b"frame-threads=1" in data
        assert b"no-wpp" in data


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9", "av1"])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5])
def test_very_short(tmp_path: Path, codec: str, num_frames: int) -> None:
    """x265 leaves the decoding times of so few frames unset; see `_set_decoding_times`."""
    if codec not in known_codecs():
        pytest.skip(f"this build of PyAV has no {codec} encoder")
    path = write(tmp_path / "a.mp4", num_frames, codec=codec)
    assert [number_of(frame) for frame in VideoReader(path)] == list(range(num_frames))
    assert probe(path).duration_s == pytest.approx(num_frames / 8)
    with av.open(str(path)) as container:
        times = [(packet.dts, packet.pts) for packet in container.demux(video=0) if packet.dts is not None]
    assert all(dts <= pts for dts, pts in times)
    assert [dts for dts, _ in times] == sorted({dts for dts, _ in times})
    assert path.read_bytes() == write(tmp_path / "b.mp4", num_frames, codec=codec).read_bytes()


def moving_frames(num_frames: int, size_wh: tuple[int, int]) -> list[np.ndarray]:
    """uint8 RGB [H, W, 3]: soft blotches that move up and left, which an encoder predicts from frame to frame."""
    width, height = size_wh
    step = 4
    blotches = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    whole = Image.fromarray(blotches).resize((width + step * num_frames, height + step * num_frames))
    pixels = np.asarray(whole)
    return [pixels[at : at + height, at : at + width] for at in range(0, step * num_frames, step)]


@contextmanager
def new_memory_filled_with(value: int) -> Iterator[None]:
    """Memory that C code asks for holds this byte (1..254) first, not what lay there; only glibc can do that."""
    perturb = -6  # M_PERTURB of malloc.h: new memory gets the complement of this byte
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 1)
    assert mallopt(perturb, value ^ 0xFF)
    try:
        yield
    finally:
        mallopt(perturb, 0)


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9", "av1"])
def test_bytes_do_not_depend_on_what_lies_in_memory(tmp_path: Path, codec: str) -> None:
    """Of the usual settings of x264 (on a CPU with AVX-512) and x265 this finds that they read unwritten memory.

    The width is no multiple of 128 pixels and no more than 64: see `xdyna.video.codecs`.
    """
    if codec not in known_codecs():
        pytest.skip(f"this build of PyAV has no {codec} encoder")
    sound = AudioCut(make_clip(tmp_path / "driving.mp4", 8, tone=(0, 1)))
    frames = moving_frames(8, (64, 96))
    files = set()
    for value in (1, 0x55, 0x7F, 0xAA, 0xFE) * 3:
        with (
            new_memory_filled_with(value),
            VideoWriter(tmp_path / "a.mp4", (64, 96), 8, codec, audio_from=sound) as writer,
        ):
            for frame in frames:
                writer.write(frame)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


def test_index_comes_first(tmp_path: Path) -> None:
    """A browser can play the file while it loads."""
    data = write(tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_encoders_print_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from xdyna.video import VideoWriter, known_codecs\n"
        "for codec in known_codecs():\n"
        "    with VideoWriter(sys.argv[1] + codec + '.mp4', (96, 64), 8, codec=codec) as writer:\n"
        "        for _ in range(3):\n"
        "            writer.write(np.zeros((64, 96, 3), np.uint8))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, f"{tmp_path}/"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 12.5, 60])
def test_rates(tmp_path: Path, fps: float | Fraction) -> None:
    path = write(tmp_path / "a.mp4", fps=fps)
    assert probe(path).fps == Fraction(fps)
    assert probe(path).duration_s == pytest.approx(12 / fps, abs=1e-3)


@pytest.mark.parametrize("size_wh", [(95, 63), (96, 63), (95, 64)])
def test_odd_sizes_get_a_copied_edge(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mp4", size_wh=size_wh)
    assert probe(path).size_wh == (96, 64)
    assert [number_of(frame) for frame in VideoReader(path)] == list(range(12))
    assert abs(int(next(iter(VideoReader(path)))[63, 95, 0]) - 128) <= 3


def test_colours_survive(tmp_path: Path) -> None:
    colours = [(200, 30, 40), (20, 180, 90), (10, 20, 230), (255, 255, 255), (0, 0, 0)]
    with VideoWriter(tmp_path / "a.mp4", (96, 64), 8) as writer:
        for colour in colours:
            writer.write(np.full((64, 96, 3), colour, np.uint8))
    for frame, colour in zip(VideoReader(tmp_path / "a.mp4"), colours, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 4


def test_gif(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gif", size_wh=(95, 63))
    reader = VideoReader(path)
    assert [number_of(frame) for frame in reader] == list(range(12))
    assert reader.size_wh == (95, 63)
    assert reader.info.duration_s == pytest.approx(1.5, abs=0.02)
    with Image.open(path) as image:
        assert image.n_frames == 12  # type: ignore[attr-defined]
        assert image.info["loop"] == 0  # for ever
    assert path.read_bytes() == write(tmp_path / "b.gif", size_wh=(95, 63)).read_bytes()


def test_png_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "frames", 3, (95, 63))
    assert left_in(path) == ["000000.png", "000001.png", "000002.png"]
    with Image.open(path / "000002.png") as image:
        assert np.array_equal(np.asarray(image), numbered_frame(2, (95, 63)))
        assert image.info["fps"] == "8"
    # A second run replaces the frames, and none of the first are left.
    assert left_in(write(path, 1)) == ["000000.png"]
    assert left_in(tmp_path) == ["frames"]


def test_png_folder_with_other_files_stays(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="holiday"):
        VideoWriter(tmp_path, (96, 64), 8)


# --- sound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "loud"),
    [
        ({}, (1, 2)),
        ({"start_s": 0.5}, (0.5, 1.5)),
        ({"start_s": 1.5, "fps": 8, "stride": 2, "frames": 6}, (0, 0.5)),
        ({"start_s": 2.5}, None),
    ],
)
def test_sound_is_cut_to_the_interval(
    tmp_path: Path, options: dict[str, float], loud: tuple[float, float] | None
) -> None:
    source = make_clip(tmp_path / "driving.mp4", 80, 20, tone=(1, 2))
    reader = VideoReader(source, **options)  # type: ignore[arg-type]
    out = tmp_path / "out.mp4"
    with VideoWriter(out, reader.size_wh, reader.fps, audio_from=reader.sound()) as writer:
        for frame in reader:
            writer.write(frame)
    found = loud_interval(out)
    assert found == (None if loud is None else pytest.approx(loud, abs=0.005))
    video_s = float(writer.num_frames / writer.fps)
    chosen_s = float(options["frames"] / reader.fps) if "frames" in options else 4 - options.get("start_s", 0)
    assert video_s == pytest.approx(chosen_s, abs=float(1 / writer.fps))
    with av.open(str(out)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == "aac"
        assert float(sound.duration * sound.time_base) == pytest.approx(video_s, abs=0.001)
        assert container.duration / 1e6 == pytest.approx(video_s, abs=0.001)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.mov", "libx264"), ("a.avi", "mpeg4")])
def test_sound_of_other_containers(tmp_path: Path, name: str, codec: str) -> None:
    source = make_clip(tmp_path / name, 80, 20, codec=codec, tone=(1, 2))
    reader = VideoReader(source, start_s=0.75)
    with VideoWriter(tmp_path / "out.mp4", reader.size_wh, reader.fps, audio_from=reader.sound()) as writer:
        for frame in reader:
            writer.write(frame)
    # AVI keeps no exact time of the sound: FFmpeg places it by whole frames of 1,024 samples.
    assert loud_interval(tmp_path / "out.mp4") == pytest.approx((0.25, 1.25), abs=0.03 if name == "a.avi" else 0.005)


def test_same_sound_same_bytes(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "driving.mp4", 24, 8, tone=(1, 2))
    files = [write(tmp_path / name, 20, audio_from=AudioCut(source, 0.3)) for name in ("a.mp4", "b.mp4")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_sound_shorter_than_the_frames(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "driving.mp4", 24, 8, tone=(0, 3))
    path = write(tmp_path / "out.mp4", 40, audio_from=AudioCut(source, 1.0))
    assert probe(path).duration_s == pytest.approx(5)
    assert loud_interval(path) == pytest.approx((0, 2), abs=0.03)


def test_silent_source(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "driving.mp4", 8)
    assert VideoReader(source).sound() is None
    assert not probe(write(tmp_path / "a.mp4", audio_from=AudioCut(source))).has_audio
    with_sound = make_clip(tmp_path / "sound.mp4", 8, tone=(0, 1))
    assert not probe(write(tmp_path / "b.mp4", audio_from=AudioCut(with_sound, start_s=30))).has_audio


# --- side by side -------------------------------------------------------------------------------------------------


def test_side_by_side() -> None:
    panels = [numbered_frame(5, (96, 64)), numbered_frame(6, (60, 120)), numbered_frame(7, (33, 11))]
    row = side_by_side(panels, 64)
    assert row.shape == (64, 96 + 32 + 192, 3)
    assert (row.shape[1], row.shape[0]) == side_by_side_size_wh([(96, 64), (60, 120), (33, 11)], 64)
    assert np.array_equal(row[:, :96], panels[0])
    assert [number_of(row[:, a:b]) for a, b in ((96, 128), (128, 320))] == [6, 7]


# --- failure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), UserError("no")])
def test_an_error_leaves_nothing(tmp_path: Path, name: str, error: BaseException) -> None:
    old = write(tmp_path / name, 2)
    before = old.stat().st_mtime_ns

    def fail_half_way() -> None:
        with VideoWriter(old, (96, 64), 8) as writer:
            writer.write(numbered_frame(0))
            assert len(left_in(tmp_path)) == 2
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert left_in(tmp_path) == [name]
    assert old.stat().st_mtime_ns == before


def test_nothing_written_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frame"), VideoWriter(tmp_path / "a.mp4", (96, 64), 8):
        pass
    assert left_in(tmp_path) == []


def test_wrong_frames_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float64"), VideoWriter(tmp_path / "a.mp4", (96, 64), 8) as writer:
        writer.write(np.zeros((64, 96, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(64, 96, 3\)"), VideoWriter(tmp_path / "a.mp4", (96, 64), 8) as writer:
        writer.write(np.zeros((96, 64, 3), np.uint8))
    assert left_in(tmp_path) == []


WRITE_FOR_EVER = """
import sys, itertools
from clips import numbered_frame
from xdyna.video import VideoWriter
with VideoWriter(sys.argv[1], (96, 64), 8) as writer:
    for number in itertools.count():
        writer.write(numbered_frame(number))
"""


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
def test_ctrl_c_removes_the_part(tmp_path: Path, name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, tmp_path / name], env=environment, stderr=subprocess.PIPE
    )
    try:
        while not left_in(tmp_path) and child.poll() is None:
            time.sleep(0.02)
        time.sleep(0.1)  # in mid-work
        assert left_in(tmp_path)
        assert left_in(tmp_path) != [name]
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert b"KeyboardInterrupt" in errors
    assert left_in(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_full_disk(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is a link to a device on which every write fails for want of space."""

    def full(path: Path, folder: bool) -> Path:
        part = path.with_name(f".{path.name}")
        part.symlink_to("/dev/full")
        return part

    monkeypatch.setattr("xdyna.video.write.check_output", lambda *_, **__: None)  # it looks at the folder only
    monkeypatch.setattr("xdyna.files._create_beside", full)
    with pytest.raises(UserError, match=f"{name}: cannot write: no space left"):
        write(tmp_path / name, 40)
    assert left_in(tmp_path) == []


def test_full_disk_in_a_png_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("xdyna.video.png_folder.save_png", full)
    with pytest.raises(UserError, match="frames: cannot write: no space left"):
        write(tmp_path / "frames")
    assert left_in(tmp_path) == []


LIMIT_FILE_SIZE = """
import resource, sys
from clips import numbered_frame
from xdyna.video import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    with VideoWriter(sys.argv[1], (96, 64), 8) as writer:
        for number in range(400):
            writer.write(numbered_frame(number))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_file_that_may_not_grow(tmp_path: Path, name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", LIMIT_FILE_SIZE, tmp_path / name],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"UserError {tmp_path / name}: cannot write: the file grew past")
    assert done.stderr == ""
    assert left_in(tmp_path) == []


@contextmanager
def unprivileged_folder() -> Iterator[Path]:
    """A folder that may not be written to, looked at by a user who is not root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if was_root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
def test_read_only_folder(name: str) -> None:
    with unprivileged_folder() as folder, pytest.raises(UserError, match=f"{name}: cannot write: no permission"):
        check_output(folder / name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none/a.mp4", {}, "its folder does not exist"),
        ("file/a.mp4", {}, "a part of its path is a file"),
        ("a.avi", {}, r"cannot write .avi files; wanted .mp4, .m4v, .mov, .gif, or no suffix"),
        ("folder.mp4", {}, "is a folder"),
        ("file", {}, "is a file; wanted a new folder"),
        ("a.mp4", {"codec": "h266"}, "codec is 'h266'; wanted one of h264"),
        ("a.gif", {"fps": 60}, "at most 50 frames/s, got 60"),
    ],
)
def test_outputs_that_are_refused_at_once(tmp_path: Path, name: str, options: dict[str, object], message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match=message):
        VideoWriter(tmp_path / name, (96, 64), **{"fps": 8, **options})  # type: ignore[arg-type]
    assert left_in(tmp_path) == ["file", "folder.mp4"]


@pytest.mark.parametrize("name", [".", "..", ""])
def test_folders_without_a_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="wanted the name of a new file or folder"):
        check_output(name)


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    driving = make_clip(tmp_path / "driving.mp4", 3)
    (tmp_path / "link.mp4").symlink_to(driving)
    with pytest.raises(UserError, match=r"link\.mp4: is an input of this very run"):
        check_output(tmp_path / "link.mp4", inputs=[tmp_path / "none.png", driving])
    check_output(tmp_path / "new.mp4", inputs=[driving])


def test_size_that_the_encoder_refuses(tmp_path: Path) -> None:
    if "av1" not in known_codecs():
        pytest.skip("this build of PyAV has no av1 encoder")
    with pytest.raises(UserError, match="cannot encode 2x2 px at 8 frames/s as av1"):
        write(tmp_path / "a.mp4", size_wh=(2, 2), codec="av1")
    assert left_in(tmp_path) == []


@pytest.mark.skipif("h265" not in known_codecs(), reason="this build of PyAV has no h265 encoder")
@pytest.mark.parametrize("size_wh", [(40, 56), (48, 96), (63, 64), (64, 31)])
def test_size_at_which_x265_crashes_is_refused(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"codec h265 takes frames of 64x32 px and up, .* wanted h264"):
        write(tmp_path / "a.mp4", size_wh=size_wh, codec="h265")
    assert left_in(tmp_path) == []
    check_output(tmp_path / "a.gif", "h265", size_wh=size_wh)  # has a codec of its own


@pytest.mark.skipif("h265" not in known_codecs(), reason="this build of PyAV has no h265 encoder")
def test_the_smallest_h265(tmp_path: Path) -> None:
    """In a process of its own: what is tested for is a crash."""
    code = (
        "import sys, numpy\n"
        "from xdyna.video import VideoWriter\n"
        "with VideoWriter(sys.argv[1], (64, 32), 8, 'h265') as writer:\n"
        "    for seed in range(12):\n"
        "        writer.write(numpy.random.default_rng(seed).integers(0, 256, (32, 64, 3), numpy.uint8))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mp4")], check=True)
    assert len(list(VideoReader(tmp_path / "a.mp4"))) == 12


def test_parts_do_not_collide(tmp_path: Path) -> None:
    first, second = PartPath(tmp_path / "a.txt"), PartPath(tmp_path / "a.txt")
    first.path.write_text("1")
    second.path.write_text("2")
    second.commit()
    first.commit()
    assert (tmp_path / "a.txt").read_text() == "1"
    assert left_in(tmp_path) == ["a.txt"]


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with written_whole(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(KeyboardInterrupt), written_whole(path):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"a.txt: cannot write: no space"), written_whole(path):
        raise OSError(errno.ENOSPC, "full")
    assert path.read_text() == "whole"
    assert left_in(tmp_path) == ["a.txt"]
