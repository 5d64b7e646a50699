"""Small video files for tests, made by PyAV; every frame carries its number as a bar code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

NUM_BITS = 12
Image = NDArray[np.uint8]


def numbered_frame(number: int, size_wh: tuple[int, int] = (96, 64)) -> Image:
    """uint8 RGB [H, W, 3]: the upper half shows `number` as black and white columns, the lower half is grey."""
    width, height = size_wh
    frame = np.full((height, width, 3), 128, np.uint8)
    for bit in range(NUM_BITS):
        frame[: height // 2, bit * width // NUM_BITS : (bit + 1) * width // NUM_BITS] = 255 * (number >> bit & 1)
    return frame


def number_of(frame: Image) -> int:
    """The number that `numbered_frame` wrote, after any lossy codec."""
    height, width = frame.shape[:2]
    columns = [(2 * bit + 1) * width // (2 * NUM_BITS) for bit in range(NUM_BITS)]
    return sum(int(frame[height // 4, column].mean() > 128) << bit for bit, column in enumerate(columns))


def make_clip(
    path: Path,
    num_frames: int = 24,
    fps: Fraction | int = 8,
    size_wh: tuple[int, int] = (96, 64),
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times_s: Sequence[Fraction] | None = None,
    turn_degrees: int | None = None,
    mirror: bool = False,
    pixel_aspect: Fraction | None = None,
    tone: tuple[float, float] | None = None,
    options: dict[str, str] | None = None,
    draw: Callable[[int, tuple[int, int]], Image] = numbered_frame,
) -> Path:
    """Write a clip.

    Args:
        times_s: time stamps of the frames; None for one every 1/fps.
        turn_degrees: rotation note for players, counter-clockwise.
        mirror: mirroring note for players, applied after the turn.
        pixel_aspect: width of a pixel over its height.
        tone: add a sound track as long as the picture that is silent but for 440 Hz between these seconds.
        draw: (number, size_wh) to uint8 RGB or RGBA.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        if codec in ("libx264", "h264"):
            stream.options = {"x264-params": "mbtree=0"}  # with it, x264 writes other bytes now and then
        stream.width, stream.height = size_wh
        stream.pix_fmt = pix_fmt
        stream.gop_size = 12
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if turn_degrees is not None:
            stream.set_display_rotation(turn_degrees, hflip=mirror)
        if pix_fmt == "yuva420p":
            stream.metadata["alpha_mode"] = "1"
        sound: Any = container.add_stream("aac", rate=44100, layout="mono") if tone else None
        for number in range(num_frames):
            image = draw(number, size_wh)
            frame = av.VideoFrame.from_ndarray(image, "rgba" if image.shape[2] == 4 else "rgb24")
            frame.time_base = Fraction(1, 90000)
            frame.pts = round((times_s[number] if times_s else number / Fraction(fps)) * 90000)
            container.mux(stream.encode(frame))
        if tone:
            for frame in _tone_frames(tone, float(num_frames / Fraction(fps))):
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        container.mux(stream.encode(None))
    return path


def _tone_frames(tone: tuple[float, float], duration_s: float) -> list[av.AudioFrame]:
    time = np.arange(round(duration_s * 44100)) / 44100
    samples = np.sin(2 * np.pi * 440 * time) * (time >= tone[0]) * (time < tone[1]) / 2
    frames = []
    for at in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, at : at + 1024].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 44100, Fraction(1, 44100), at
        frames.append(frame)
    return frames


def loud_interval(path: Path) -> tuple[float, float] | None:
    """(begin, end) of the sound above silence, seconds; None for a silent track."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    rate = frames[0].sample_rate
    begin = float(frames[0].pts * frames[0].time_base)
    loud = np.flatnonzero(np.abs(np.concatenate([frame.to_ndarray()[0] for frame in frames])) > 0.05)
    return (begin + loud[0] / rate, begin + loud[-1] / rate) if len(loud) else None
