"""Open a video file, whatever is wrong with it, and say what it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from xdyna.errors import UserError
from xdyna.files import check_is_file
from xdyna.video.picture import Turn

MAX_SIDE_PX = 8192
Decode = Callable[["av.Packet[VideoStream]"], list[VideoFrame]]

WANTED = "wanted a video file such as MP4, MOV, MKV, WebM, AVI or GIF"

# Only containers that hold pictures themselves. FFmpeg would also follow play lists to other files and to the
# network, and would draw a text file as a video of text.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,asf,flv,ogg,ivf,apng,mjpeg,dv,mxf,nut,rm,"
    "h264,hevc,av1,obu,m4v,yuv4mpegpipe"
)
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        size_wh: (width, height) as shown: after rotation and with square pixels.
        fps: frames per second; the mean of a clip of variable rate.
        num_frames: frames according to the file's header, None where it does not say.
        duration_s: seconds from the first frame to the end of the last.
        has_audio: whether there is a sound track.
        start: time stamp of the first frame, seconds (not always 0).
        codec: FFmpeg's name of the video codec.
        turn: what makes the coded frames upright.
    """

    size_wh: tuple[int, int]
    fps: Fraction
    num_frames: int | None
    duration_s: float
    has_audio: bool
    start: Fraction
    codec: str
    turn: Turn


def probe(path: str | Path) -> VideoInfo:
    """Look at a video without reading it all: header and first frame.

    Raises:
        UserError: not a video file, or not one frame of it can be decoded.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        _check_coded_size(path, stream)
        frame = _first_frame(path, container, stream)
        turn = Turn.of(frame)
        fps = _frame_rate(stream)
        start = _start_of(stream, frame)
        duration = _declared_duration(container, stream)
        info = VideoInfo(
            size_wh=_shown_size_wh(frame, stream, turn),
            fps=fps,
            num_frames=stream.frames or None,
            duration_s=0.0,
            has_audio=sound_stream(container) is not None,
            start=start,
            codec=stream.codec_context.name,
            turn=turn,
        )
    if duration is None:
        duration = _end_of_packets(path) - start
    return _with_duration(info, max(duration, 1 / fps))


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened file and its video stream.

    Raises:
        UserError: missing, a folder, empty, not a video, or without a picture track.
    """
    check_is_file(path, WANTED)
    if path.suffix.lower() in _PICTURE_SUFFIXES:  # HEIC would open, as a video of its tiles
        raise UserError(f"{path}: is a picture; {WANTED}")
    try:
        container = av.open(
            str(path),
            options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = (
            "no permission to read it"
            if isinstance(error, PermissionError)
            else "not a readable video (damaged, cut short, or something else under this name)"
        )
        raise UserError(f"{path}: {reason}; {WANTED}") from error
    with container:
        yield container, _video_stream(path, container)


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The first sound track that can be decoded; phones put others in for their own use."""
    return next((stream for stream in container.streams.audio if _has_decoder(stream)), None)


def open_decoder(stream: VideoStream) -> Decode:
    """What turns the packets of a stream into frames."""
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    if stream.codec_context.name == "vp9" and tags.get("alpha_mode") == "1":
        # FFmpeg's own VP9 decoder leaves out the transparency that WebM keeps beside the colours.
        context = av.CodecContext.create("libvpx-vp9", "r")
        return lambda packet: context.decode(packet if packet.size else None)
    return lambda packet: packet.decode()


def packet_frames(decode: Decode, packet: av.Packet[VideoStream]) -> list[VideoFrame] | None:
    """The frames that a packet completes; None where the packet is damaged."""
    try:
        frames = decode(packet)
    except av.error.InvalidDataError:
        return None
    return None if any(frame.is_corrupt for frame in frames) else frames


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    known = [stream for stream in streams if _has_decoder(stream)]
    if streams and not known:
        raise UserError(f"{path}: is in a video codec that FFmpeg cannot decode here; {WANTED}, for example in H.264")
    if not known:
        kind = "only sound" if container.streams.audio else "no picture track"
        raise UserError(f"{path}: holds {kind}; {WANTED}")
    return known[0]


def _has_decoder(stream: VideoStream | AudioStream) -> bool:
    # PyAV leaves the context out where FFmpeg knows no decoder; its type hints do not say so.
    context: object = stream.codec_context
    return context is not None


def _check_coded_size(path: Path, stream: VideoStream) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if max(width, height) > MAX_SIDE_PX:
        raise UserError(f"{path}: {width}x{height} px; wanted at most {MAX_SIDE_PX} px a side; make it smaller first")


def _first_frame(path: Path, container: InputContainer, stream: VideoStream) -> VideoFrame:
    try:
        decode = open_decoder(stream)
        for packet in container.demux(stream):
            for frame in packet_frames(decode, packet) or []:
                return frame
    except (av.error.FFmpegError, OSError):
        pass  # reported below, as a file in which nothing decodes
    raise UserError(f"{path}: not one frame of it can be decoded (no frames, damaged or cut short); {WANTED}")


def _shown_size_wh(frame: VideoFrame, stream: VideoStream, turn: Turn) -> tuple[int, int]:
    width, height = frame.width, frame.height
    pixel_aspect = stream.sample_aspect_ratio  # width of a pixel over its height
    if pixel_aspect and pixel_aspect > 0:
        width = max(1, round(width * pixel_aspect))
    return (height, width) if turn.swap else (width, height)


def _frame_rate(stream: VideoStream) -> Fraction:
    if stream.codec_context.name == "gif" and stream.frames and stream.duration and stream.time_base:
        # FFmpeg guesses from the first delays, which are whole hundredths of a second.
        return simple_rate(stream.frames / (stream.duration * stream.time_base))
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= 1000:
            return simple_rate(rate)
    return Fraction(25)


def simple_rate(fps: float | Fraction) -> Fraction:
    """The nearest rate with a denominator of at most 1001, so 30000/1001 stays and 29.9998 becomes 30."""
    return Fraction(fps).limit_denominator(1001)


def _start_of(stream: VideoStream, first: VideoFrame) -> Fraction:
    # Not `stream.start_time`: AVI states 0 where reordered frames begin later, and the first may be unreadable.
    return Fraction(first.pts or 0) * (first.time_base or stream.time_base or Fraction(1))


def _declared_duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return stream.frames / stream.average_rate  # FFmpeg shortens the duration of a file that is cut short
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    written = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))  # Matroska
    if written:
        hours, minutes, seconds = written.groups()
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    if container.duration and len(container.streams) == 1:  # else it may be another stream's
        return Fraction(container.duration, 1_000_000)
    return None


def _end_of_packets(path: Path) -> Fraction:
    """The end of the last packet, seconds, for files whose header holds no duration (nothing is decoded)."""
    end = Fraction(0)
    with open_video(path) as (container, stream):
        time_base = stream.time_base or Fraction(1)
        rate = _frame_rate(stream)
        try:
            for number, packet in enumerate(container.demux(stream)):
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * time_base)
                elif packet.size:
                    end = max(end, (number + 1) / rate)
        except (av.error.FFmpegError, OSError):
            pass  # a file cut short: what came before counts
    return end


def _with_duration(info: VideoInfo, duration: Fraction) -> VideoInfo:
    return VideoInfo(**{**info.__dict__, "duration_s": float(duration)})
