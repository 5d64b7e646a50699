"""Reading video: which frames come, upright and in the right colours, in flat memory."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import Image, make_clip, number_of, numbered_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from xdyna.errors import UserError
from xdyna.video import VideoReader, probe
from xdyna.video.sample import Timed, sample_by_time


def numbers(path: Path, **options: object) -> list[int]:
    return [number_of(frame) for frame in VideoReader(path, **options)]  # type: ignore[arg-type]


# --- sampling -----------------------------------------------------------------------------------------------------


def constant(num_frames: int, fps: Fraction, round_to: int | None = None) -> list[Timed[int]]:
    times = [index / fps for index in range(num_frames)]
    if round_to:
        times = [Fraction(round(time * round_to), round_to) for time in times]
    return [Timed(time, 1 / fps, index) for index, time in enumerate(times)]


@settings(max_examples=60, deadline=None)
@given(
    num_frames=st.integers(1, 60),
    fps=st.sampled_from([Fraction(8), Fraction(24000, 1001), Fraction(25), Fraction(30), Fraction(60)]),
    round_to=st.sampled_from([None, 1000, 600]),
)
def test_own_rate_gives_every_frame_once(num_frames: int, fps: Fraction, round_to: int | None) -> None:
    assert list(sample_by_time(constant(num_frames, fps, round_to), fps, start=Fraction(0))) == list(range(num_frames))


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 2000).map(lambda ms: Fraction(ms, 1000)), min_size=1, max_size=20),
    rate=st.integers(1, 60).map(Fraction),
    stride=st.integers(1, 5),
    start_part=st.integers(0, 99).map(lambda percent: Fraction(percent, 100)),
)
def test_sampling_follows_the_time_stamps(
    gaps: list[Fraction], rate: Fraction, stride: int, start_part: Fraction
) -> None:
    times = [sum(gaps[:index], Fraction(0)) for index in range(len(gaps))]
    end = sum(gaps, Fraction(0))
    start = start_part * end
    shown = [Timed(time, gap, index) for index, (time, gap) in enumerate(zip(times, gaps, strict=True))]
    every = list(sample_by_time(shown, rate, start=start))
    assert abs(len(every) / rate - (end - start)) <= 1 / rate
    for sample, index in enumerate(every):
        time = start + sample / rate
        assert times[index] <= time + 1 / rate / 2  # at most half an output frame early
        assert index + 1 == len(times) or times[index + 1] >= time  # never late
    assert every == sorted(every)
    assert list(sample_by_time(shown, rate, start=start, stride=stride)) == every[::stride]
    assert list(sample_by_time(shown, rate, start=start, stride=stride, limit=2)) == every[::stride][:2]


def test_twice_the_rate_shows_each_frame_twice() -> None:
    assert list(sample_by_time(constant(3, Fraction(10)), Fraction(20), start=Fraction(0))) == [0, 0, 1, 1, 2, 2]


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "fps"),
    [
        ("clip.mp4", "libx264", 8),
        ("clip.mkv", "libx264", 30),  # time stamps in whole milliseconds
        ("clip.webm", "libvpx-vp9", 24),
        ("clip.avi", "mpeg4", 25),
        ("clip.mov", "libx264", 60),
        ("clip.ts", "libx264", 25),  # begins at 1.4 s
    ],
)
def test_every_frame_once(tmp_path: Path, name: str, codec: str, fps: int) -> None:
    path = make_clip(tmp_path / name, 40, fps, codec=codec)
    reader = VideoReader(path)
    assert [number_of(frame) for frame in reader] == list(range(40))
    assert [number_of(frame) for frame in reader] == list(range(40))  # a second time too
    assert reader.fps == fps
    assert reader.size_wh == (96, 64)
    assert reader.num_expected == 40
    assert reader.warnings == []
    assert probe(path).duration_s == pytest.approx(40 / fps, abs=1 / fps / 2)


def test_broken_rate_is_kept(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 10, Fraction(30000, 1001))
    assert VideoReader(path).fps == Fraction(30000, 1001)
    assert numbers(path) == list(range(10))


def test_start_stride_and_frames(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 80, 20)
    assert numbers(path, start_s=3.0) == list(range(60, 80))  # behind several key frames
    assert numbers(path, start_s=0.25, frames=3) == [5, 6, 7]
    reader = VideoReader(path, start_s=1.0, stride=4, frames=5)
    assert [number_of(frame) for frame in reader] == [20, 24, 28, 32, 36]
    assert reader.fps == 5
    assert reader.num_expected == 5


def test_resampling_is_by_time(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 60, 30)
    assert numbers(path, fps=10) == list(range(0, 60, 3))
    assert numbers(path, fps=60)[:6] == [0, 0, 1, 1, 2, 2]
    reader = VideoReader(path, fps=15, stride=5)  # stride comes after fps, so it is every 10th of 30
    assert [number_of(frame) for frame in reader] == list(range(0, 60, 10))
    assert reader.fps == 3


def test_variable_rate(tmp_path: Path) -> None:
    # Ten frames in the first second, then one that stands for a second, then ten more.
    times = [Fraction(index, 10) for index in range(11)] + [2 + Fraction(index, 10) for index in range(10)]
    path = make_clip(tmp_path / "clip.mp4", 21, 10, times_s=times)
    shown = numbers(path, fps=10)
    assert shown == [*range(10), *[10] * 10, *range(11, 21)]
    assert numbers(path, fps=10, start_s=1.5, frames=6) == [10] * 5 + [11]
    own = VideoReader(path)  # the mean rate, over the same three seconds
    assert len(list(own)) / own.fps == pytest.approx(3, abs=float(1 / own.fps))


def corner_frame(_: int, size_wh: tuple[int, int]) -> Image:
    frame = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    frame[:16, :24] = 255  # upper left
    return frame


def white_corner(frame: Image) -> str:
    rows, columns = np.nonzero(frame[..., 1] > 128)
    upper, left = rows.mean() < frame.shape[0] / 2, columns.mean() < frame.shape[1] / 2
    return ("upper " if upper else "lower ") + ("left" if left else "right")


@pytest.mark.parametrize(
    ("degrees", "mirror", "size_wh", "corner"),
    [
        (0, False, (96, 64), "upper left"),
        (90, False, (64, 96), "lower left"),  # counter-clockwise
        (180, False, (96, 64), "lower right"),
        (270, False, (64, 96), "upper right"),
        (0, True, (96, 64), "upper right"),
        (90, True, (64, 96), "lower right"),
    ],
)
def test_rotation_note(tmp_path: Path, degrees: int, mirror: bool, size_wh: tuple[int, int], corner: str) -> None:
    path = make_clip(tmp_path / "clip.mp4", 3, turn_degrees=degrees, mirror=mirror, draw=corner_frame)
    reader = VideoReader(path)
    frames = list(reader)
    assert reader.size_wh == size_wh
    assert [frame.shape for frame in frames] == [(size_wh[1], size_wh[0], 3)] * 3
    assert white_corner(frames[0]) == corner


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("clip.mkv", "ffv1", "gray"), ("clip.mkv", "ffv1", "gray10le"), ("clip.mkv", "ffv1", "yuv444p10le")],
)
def test_grey_and_deep_colour(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = make_clip(tmp_path / name, 5, codec=codec, pix_fmt=pix_fmt)
    frames = list(VideoReader(path))
    assert [number_of(frame) for frame in frames] == list(range(5))
    assert all(frame.dtype == np.uint8 and frame.shape == (64, 96, 3) for frame in frames)
    assert abs(int(frames[0][60, 50, 0]) - 128) <= 1


def half_clear(_: int, size_wh: tuple[int, int]) -> Image:
    frame = np.zeros((size_wh[1], size_wh[0], 4), np.uint8)
    frame[..., 0] = 200
    frame[:, size_wh[0] // 2 :, 3] = 255
    return frame


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("clip.mov", "qtrle", "argb"), ("clip.webm", "libvpx-vp9", "yuva420p")]
)
def test_transparent_pixels_are_white(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = make_clip(tmp_path / name, 3, codec=codec, pix_fmt=pix_fmt, draw=half_clear)
    frames = list(VideoReader(path))
    assert len(frames) == 3
    assert np.abs(frames[1][32, 20].astype(int) - 255).max() <= 2
    assert np.abs(frames[1][32, 70].astype(int) - (200, 0, 0)).max() <= 3


def test_odd_sizes(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mkv", 3, size_wh=(97, 65), codec="ffv1", pix_fmt="bgr0")
    frames = list(VideoReader(path))
    assert np.array_equal(frames[2], numbered_frame(2, (97, 65)))


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 4, pixel_aspect=Fraction(3, 2))
    reader = VideoReader(path)
    assert reader.size_wh == (144, 64)
    assert [number_of(frame) for frame in reader] == [0, 1, 2, 3]


def test_colour_tags_are_followed(tmp_path: Path) -> None:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    colour = np.full((64, 96, 3), (200, 30, 40), np.uint8)
    for tag, space, span in ((1, Colorspace.ITU709, 1), (6, Colorspace.ITU601, 1), (1, Colorspace.ITU709, 2)):
        path = tmp_path / f"{tag}_{span}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=8, options={"crf": "5"})
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            stream.codec_context.colorspace, stream.codec_context.color_range = tag, span
            frame = av.VideoFrame.from_ndarray(colour, "rgb24")
            container.mux(
                stream.encode(frame.reformat(format="yuv420p", dst_colorspace=space, dst_color_range=ColorRange(span)))
            )
            container.mux(stream.encode(None))
        assert np.abs(next(iter(VideoReader(path)))[30, 40].astype(int) - (200, 30, 40)).max() <= 4


@pytest.mark.parametrize("num_frames", [1, 3])
def test_very_short(tmp_path: Path, num_frames: int) -> None:
    path = make_clip(tmp_path / "clip.mp4", num_frames)
    assert numbers(path) == list(range(num_frames))
    assert numbers(path, fps=3) == [0]
    assert numbers(path, stride=5) == [0]


MEASURE_MEMORY = """
import sys
from xdyna.video import VideoReader, VideoWriter
def rss_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
reader = VideoReader(sys.argv[1])
with VideoWriter(sys.argv[2], reader.size_wh, reader.fps) as writer:
    for number, frame in enumerate(reader):
        writer.write(frame)
        if number == 200:
            before = rss_mb()
    print(writer.num_frames, rss_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_2000_frames_in_flat_memory(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "long.mp4", 2000, 25, (160, 96), codec="mpeg4")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, path, tmp_path / "out.mp4"], capture_output=True, text=True, check=True
    )
    num_frames, growth_mb = done.stdout.split()
    assert int(num_frames) == 2000
    assert float(growth_mb) < 20  # 1,800 frames are 83 MB
    assert done.stderr == ""


# --- decord -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"start_s": 1.3, "fps": 5, "stride": 2}, {"fps": 30}, {"start_s": 4.0, "stride": 30}]
)
def test_decord_gives_the_same_frames(tmp_path: Path, options: dict[str, float]) -> None:
    pytest.importorskip("decord", reason="extra 'video' is not installed")
    path = make_clip(tmp_path / "clip.mp4", 160, 20)
    ours = list(VideoReader(path, **options))  # type: ignore[arg-type]
    theirs = list(VideoReader(path, backend="decord", **options))  # type: ignore[arg-type]
    assert np.array_equal(ours, theirs)


def test_decord_gives_way_where_it_reads_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="extra 'video' is not installed")
    path = make_clip(tmp_path / "clip.mp4", 3, turn_degrees=0, mirror=True, draw=corner_frame)
    assert white_corner(next(iter(VideoReader(path, backend="decord")))) == "upper right"


def test_missing_decord_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    path = make_clip(tmp_path / "clip.mp4", 3)
    with pytest.raises(UserError, match=r"pip install 'xdyna\[video\]'"):
        list(VideoReader(path, backend="decord"))
