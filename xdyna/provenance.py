"""The mark that every output carries: made by AI, by which tool, version, weights and seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from xdyna import __version__
from xdyna.errors import UserError

if TYPE_CHECKING:
    from PIL import ImageFont

#: What `content` says in every output.
AI_GENERATED = "AI-generated"
#: IPTC's name for media made by a trained model; platforms and search engines look for it.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_MIN_LETTER_PX = 6
_CLEAR_LETTER_PX = 8  # where the width has room, also on small frames
_COMMENT_BLOCK = b"\x21\xfe"
_READABLE = "wanted a video (MP4, MOV), a PNG or GIF file, or a folder of PNG files"


def provenance(*, model: str, model_hash: str, seed: int, **more: str) -> dict[str, str]:
    """What to store in an output, for `VideoWriter` and `write_png`.

    Args:
        model: name of the weights.
        model_hash: SHA-256 of the weights, or another text that names them exactly.
        seed: seed of the run.
        more: further facts, all text.
    Returns:
        The facts by name, and under `comment` all of them as one line of JSON, because a comment survives where
        names of our own are dropped.
    """
    facts = {
        "content": AI_GENERATED,
        "tool": "xdyna",
        "version": __version__,
        "model": model,
        "model_hash": model_hash,
        "seed": str(seed),
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        **more,
    }
    return {**facts, "comment": json.dumps(facts)}


def read_provenance(path: str | Path) -> dict[str, str] | None:
    """The facts that `provenance` put into a file, without `comment`; None where there are none.

    Args:
        path: MP4, MOV, PNG or GIF file, or a folder of PNG files (its first is read).
    Raises:
        UserError: missing, empty, or of no kind that can carry them.
    """
    path = Path(path)
    if path.is_dir():
        first = min(path.glob("*.png"), default=None)
        if first is None:
            raise UserError(f"{path}: holds no PNG file; {_READABLE}")
        path = first
    if not path.is_file():
        raise UserError(f"{path}: no such file; {_READABLE}")
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"\x89PNG"):
        comments = _png_comments(path)
    elif head.startswith(b"GIF8"):
        comments = _gif_comments(path)
    else:
        comments = _container_comments(path)
    return next(filter(None, map(_facts_in, comments)), None)


def watermark(frame: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A copy of the frame with `text` written into its lower right corner, visible on light and on dark.

    Args:
        frame: uint8 RGB [H, W, 3], 0..255.
        text: one line; its height is a 25th of the frame's, at least 8 px, less where it would be too wide.
    Raises:
        UserError: empty, too long to be read at this size, or with letters that the built-in font lacks.
    """
    from PIL import Image, ImageDraw

    height, width = frame.shape[:2]
    font = _fitting_font(text, width, height)
    picture = Image.fromarray(frame)
    layer = Image.new("RGBA", picture.size)
    margin = max(1, round(font.size / 3))
    ImageDraw.Draw(layer).text(
        (width - margin, height - margin),
        text,
        font=font,
        anchor="rd",
        fill=(255, 255, 255, 200),
        stroke_width=max(1, round(font.size / 12)),
        stroke_fill=(0, 0, 0, 200),
    )
    picture.paste(layer, mask=layer)
    return np.array(picture, dtype=np.uint8)


def comment_of(metadata: Mapping[str, str]) -> str:
    """The one text for formats that hold nothing else: the comment, or all of `metadata` as JSON."""
    return metadata.get("comment") or json.dumps(dict(metadata))


def gif_comment(text: str) -> bytes:
    """A GIF comment extension (in UTF-8; GIF itself says ASCII, which JSON as written here is)."""
    data = text.encode()
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)]
    return _COMMENT_BLOCK + b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


def xmp_packet(digital_source_type: str) -> str:
    """An XMP packet with IPTC's digital source type, the form in which image tools look for it."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f"Iptc4xmpExt:DigitalSourceType={quoteattr(digital_source_type)}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _fitting_font(text: str, width: int, height: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    if not text.strip() or not text.isprintable():
        raise UserError(f"watermark text is {text!r}; wanted one line of letters")
    for size in range(max(_CLEAR_LETTER_PX, round(height / 25)), _MIN_LETTER_PX - 1, -1):
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise UserError("a watermark needs Pillow with FreeType, which this build of it lacks")
        unknown = "".join(sorted({letter for letter in text if _is_missing(font, letter)}))
        if unknown:
            raise UserError(f"watermark text is {text!r}: the built-in font has no {unknown!r}; use Latin letters")
        if font.getlength(text) <= 0.94 * width:
            return font
    raise UserError(f"watermark text is {text!r}: too long for frames {width} px wide; shorten it")


def _is_missing(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    return not letter.isspace() and bytes(font.getmask(letter)) == bytes(font.getmask("\uffff"))


def _facts_in(comment: str) -> dict[str, str] | None:
    try:
        facts = json.loads(comment)
    except ValueError:
        return None
    if not isinstance(facts, dict) or facts.get("content") != AI_GENERATED:
        return None
    return {str(name): str(value) for name, value in facts.items()}


def _png_comments(path: Path) -> list[str]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return [str(value) for value in image.info.values() if isinstance(value, str)]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable PNG file; {_READABLE}") from error


def _container_comments(path: Path) -> list[str]:
    import av

    try:
        # Only the containers that `VideoWriter` makes: FFmpeg would take a text file for a video too.
        with av.open(str(path), options={"format_whitelist": "mov"}, metadata_errors="replace") as container:
            return list(container.metadata.values())
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable file of a kind that can carry facts; {_READABLE}") from error


def _gif_comments(path: Path) -> list[str]:
    with path.open("rb") as file:
        header = file.read(13)
        if len(header) == 13:
            _skip_colours(file, header[10])
        return list(_walk_gif(file))


def _walk_gif(file: BinaryIO) -> Iterator[str]:
    """The comments of a GIF, from behind its header on; stops at the trailer or where the file is cut short."""
    while (kind := file.read(1)) in (b"\x21", b"\x2c"):
        if kind == b"\x21":
            label = file.read(1)
            data = _sub_blocks(file)
            if label == _COMMENT_BLOCK[1:]:
                yield data.decode(errors="replace")
        else:
            descriptor = file.read(9)
            if len(descriptor) < 9:
                return
            _skip_colours(file, descriptor[8])
            file.read(1)  # the code size, ahead of the picture's blocks
            _sub_blocks(file)


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.read(3 << ((flags & 7) + 1))


def _sub_blocks(file: BinaryIO) -> bytes:
    pieces = []
    while size := int.from_bytes(file.read(1)):
        pieces.append(file.read(size))
    return b"".join(pieces)
