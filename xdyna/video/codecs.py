"""The codecs a result can be written in, and the settings that make their bytes repeatable."""

from __future__ import annotations

from dataclasses import dataclass

import av

from xdyna.errors import UserError

#: Encoder threads. The number goes into the bytes of some encoders, so it is fixed and not taken from the machine.
NUM_THREADS = 2


@dataclass(frozen=True)
class Codec:
    """One way to write MP4.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        options: its settings; quality is fixed, so the bit rate follows the picture.
        tag: the name in the file, where FFmpeg's choice does not play everywhere.
        min_wh: least (width, height) it takes, pixels.
    """

    encoder: str
    options: dict[str, str]
    tag: str | None = None
    min_wh: tuple[int, int] = (1, 1)


_CODECS = {
    # Without macroblock-tree rate control, at the price of larger files (+43 % for examples/dance.mp4): x264's AVX-512
    # code for the tree takes 8 macroblocks at a time, so unless the width is a multiple of 128 pixels it reads past the
    # last row, in memory that was never written, and now and then the bytes differ.
    "h264": Codec("libx264", {"crf": "17", "preset": "medium", "x264-params": "mbtree=0"}),
    # x265 prints to stderr past FFmpeg's log, and its thread pool changes the bytes: both are switched off. A picture
    # only one coding block wide makes it, too, read memory that was never written, so blocks have 32 pixels, not 64.
    # Even so some sizes narrower than 56 pixels (40x56, 48x96) crash the process, and none lower than 32 is taken.
    "h265": Codec(
        "libx265",
        {"crf": "20", "preset": "medium", "x265-params": "log-level=none:pools=none:frame-threads=1:ctu=32"},
        "hvc1",
        min_wh=(64, 32),
    ),
    "vp9": Codec("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "0"}),
    "av1": Codec("libsvtav1", {"crf": "24", "preset": "8", "svtav1-params": "lp=1"}),
}


def known_codecs() -> list[str]:
    """Names for `--codec` that this machine's PyAV can encode."""
    return [name for name, codec in _CODECS.items() if _can_encode(codec.encoder)]


def find_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        UserError: unknown, or not in this build of PyAV.
    """
    known = known_codecs()
    if name not in known:
        raise UserError(f"codec is {name!r}; wanted one of {', '.join(known)}")
    return _CODECS[name]


def check_codec_size(name: str, size_wh: tuple[int, int]) -> None:
    """Refuse frames that are too small for a codec.

    Raises:
        UserError: naming a codec that takes them.
    """
    least = _CODECS[name].min_wh
    if size_wh[0] < least[0] or size_wh[1] < least[1]:
        raise UserError(
            f"codec {name} takes frames of {least[0]}x{least[1]} px and up, got {size_wh[0]}x{size_wh[1]}; "
            "wanted h264, or larger frames"
        )


def _can_encode(encoder: str) -> bool:
    try:
        av.codec.Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
