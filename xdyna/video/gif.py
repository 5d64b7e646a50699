"""GIF output: a palette for each frame, text metadata as a comment."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.filter
import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from xdyna.provenance import comment_of, gif_comment
from xdyna.video.picture import Image

MAX_GIF_FPS = 50  # GIF counts in hundredths of a second, and browsers slow down anything under two of them


class GifSink:
    """See `VideoWriter`."""

    def __init__(self, path: Path, size_wh: tuple[int, int], fps: Fraction, metadata: Mapping[str, str]) -> None:
        self._fps = fps
        self._num_frames = 0
        self._file = path.open("wb")
        target = _WithComment(self._file, comment_of(metadata)) if metadata else self._file
        self._container = av.open(target, "w", format="gif")
        self._stream = self._container.add_stream("gif", rate=fps)
        self._stream.width, self._stream.height = size_wh
        self._stream.pix_fmt = "pal8"
        self._graph = _palette_graph(size_wh, fps)

    def write(self, frame: Image) -> None:
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = self._num_frames
        picture.time_base = 1 / self._fps
        self._graph.push(picture)
        self._num_frames += 1
        self._encode_ready()

    def close(self) -> None:
        self._graph.push(None)
        self._encode_ready()
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._file.close()

    def abort(self) -> None:
        for opened in (self._container, self._file):
            with suppress(Exception):  # the file is thrown away
                opened.close()

    def _encode_ready(self) -> None:
        while True:
            try:
                paletted = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(paletted, VideoFrame)
            self._container.mux(self._stream.encode(paletted))


class _WithComment:
    """Passes a GIF on as it is written, with a comment behind its header and its loop count.

    FFmpeg's GIF writer has no comments of its own.
    """

    def __init__(self, file: BinaryIO, text: str) -> None:
        self._file = file
        self._comment = gif_comment(text)
        self._head = b""

    def write(self, data: bytes) -> int:
        if not self._comment:
            return self._file.write(data)
        self._head += bytes(data)
        at = _end_of_header(self._head)
        if at is not None:
            self._file.write(self._head[:at] + self._comment + self._head[at:])
            self._comment = self._head = b""
        return len(data)


def _end_of_header(head: bytes) -> int | None:
    """Where the first picture's blocks begin; None until enough is there to tell."""
    if len(head) < 13:
        return None
    at = 13 + (3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0)
    loop_block = 19  # Netscape's extension, which comes first where there is one
    if len(head) < at + loop_block:
        return None
    return at + loop_block if head[at : at + 2] == b"\x21\xff" else at


def _palette_graph(size_wh: tuple[int, int], fps: Fraction) -> av.filter.Graph:
    """rgb24 in, pal8 out, 256 colours chosen for each frame."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=size_wh[0], height=size_wh[1], format=VideoFormat("rgb24"), time_base=1 / fps)
    split = graph.add("split")
    choose = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(choose, 1, 0)
    split.link_to(use, 0, 0)
    choose.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph
