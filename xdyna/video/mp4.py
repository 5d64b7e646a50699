"""MP4 output: one encoder with fixed settings, the sound beside it, text metadata that survives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import ThreadType
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from xdyna.spans import Span, no_span
from xdyna.video.codecs import NUM_THREADS, Codec
from xdyna.video.picture import Image
from xdyna.video.sound import AudioCut, SoundTrack

_MAX_REORDERED = 4  # no encoder here gives its first packet before it has more frames than this


class Mp4Sink:
    """See `VideoWriter`."""

    def __init__(
        self,
        path: Path,
        size_wh: tuple[int, int],
        fps: Fraction,
        codec: Codec,
        audio_from: AudioCut | None,
        metadata: Mapping[str, str],
        span: Span = no_span,
    ) -> None:
        self._fps, self._span = fps, span
        self._num_frames = 0
        # use_metadata_tags keeps keys of our own; faststart lets a browser play while it loads.
        options = {"movflags": "use_metadata_tags+faststart"}
        self._container = av.open(str(path), "w", format="mp4", options=options)
        try:
            self._container.metadata.update(metadata)
            self._add_video(size_wh, codec)
            sound = SoundTrack(audio_from, self._container) if audio_from else None
            self._sound = sound if sound and sound.found else None
            with _quiet_svt_av1():
                self._container.start_encoding()
        except BaseException:
            self._container.close()
            raise

    def write(self, frame: Image) -> None:
        picture = VideoFrame.from_ndarray(_even(frame), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
        )
        picture.pts = self._num_frames
        picture.time_base = 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self._num_frames += 1
        if self._sound:
            with self._span("sound"):
                self._sound.write_until(self._num_frames / self._fps)

    def close(self) -> None:
        packets = self._stream.encode(None)
        if self._num_frames <= _MAX_REORDERED:
            _set_decoding_times(packets)
        self._container.mux(packets)
        if self._sound:
            with self._span("sound"):
                self._sound.close(self._num_frames / self._fps)
        self._container.close()

    def abort(self) -> None:
        if self._sound:
            self._sound.stop()
        with suppress(Exception):  # the file is thrown away
            self._container.close()

    def _add_video(self, size_wh: tuple[int, int], codec: Codec) -> None:
        stream = self._container.add_stream(codec.encoder, rate=self._fps, options=dict(codec.options))
        assert isinstance(stream, VideoStream)
        self._stream = stream
        self._stream.width, self._stream.height = (side + side % 2 for side in size_wh)
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.thread_count = NUM_THREADS
        context.thread_type = ThreadType.FRAME  # else x264 cuts each frame into slices, which costs quality
        if codec.tag:
            context.codec_tag = codec.tag
        # BT.601 is what readers assume that do not look at the tag (OpenCV, decord); the tag tells the others.
        context.colorspace = Colorspace.SMPTE170M
        context.color_range = ColorRange.MPEG
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709


def _set_decoding_times(packets: list[Packet[VideoStream]]) -> None:
    """Give all the packets of a very short clip decoding times anew, counted in frames like their `pts`.

    x265 works out its first decoding times from a frame that such a clip does not have, and gives whatever lies in
    memory there.
    """
    delay = max((index - (packet.pts or 0) for index, packet in enumerate(packets)), default=0)
    for index, packet in enumerate(packets):
        packet.dts = index - delay


def _even(frame: Image) -> Image:
    """The frame with its last row or column doubled where the height or width is odd: yuv420p halves both."""
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)


@contextmanager
def _quiet_svt_av1() -> Iterator[None]:
    """SVT-AV1 prints to stderr past FFmpeg's log; it takes its level from the environment when it is opened."""
    before = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SVT_LOG"]
        else:
            os.environ["SVT_LOG"] = before
