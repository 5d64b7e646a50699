"""Every kind of output says that it was made by AI, by what, and with which seed."""

import json
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from clips import make_clip, numbered_frame
from PIL import Image

from xdyna import __version__
from xdyna.errors import UserError
from xdyna.photo import write_png
from xdyna.provenance import (
    DIGITAL_SOURCE_TYPE,
    gif_comment,
    provenance,
    read_provenance,
    watermark,
)
from xdyna.video import VideoWriter, known_codecs

FACTS = provenance(model="tiny", model_hash="0123abcd", seed=7, prompt="größer – 舞")
EXPECTED = {
    "content": "AI-generated",
    "tool": "xdyna",
    "version": __version__,
    "model": "tiny",
    "model_hash": "0123abcd",
    "seed": "7",
    "digital_source_type": DIGITAL_SOURCE_TYPE,
    "prompt": "größer – 舞",
}


def write(path: Path, metadata: dict[str, str] | None, codec: str = "h264") -> Path:
    with VideoWriter(path, (96, 64), 8, codec=codec, metadata=metadata) as writer:
        for number in range(3):
            writer.write(numbered_frame(number))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.m4v", "a.mov", "a.gif", "frames"])
def test_outputs_carry_the_facts(tmp_path: Path, name: str) -> None:
    assert read_provenance(write(tmp_path / name, FACTS)) == EXPECTED
    assert read_provenance(write(tmp_path / name, None)) is None


@pytest.mark.parametrize("codec", ["h265", "vp9", "av1"])
def test_every_codec_carries_them(tmp_path: Path, codec: str) -> None:
    if codec not in known_codecs():
        pytest.skip(f"this build of PyAV has no {codec} encoder")
    assert read_provenance(write(tmp_path / "a.mp4", FACTS, codec)) == EXPECTED


def test_mp4_keys_can_be_read_by_any_tool(tmp_path: Path) -> None:
    with av.open(str(write(tmp_path / "a.mp4", FACTS))) as container:
        tags = container.metadata
    assert {name: tags[name] for name in EXPECTED} == EXPECTED
    assert json.loads(tags["comment"]) == EXPECTED


def test_facts_survive_a_plain_remux(tmp_path: Path) -> None:
    """Without the option for names of our own, FFmpeg keeps the comment."""
    path = write(tmp_path / "a.mp4", FACTS)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        target.metadata.update(source.metadata)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_provenance(tmp_path / "b.mp4") == EXPECTED


def test_png_names_the_source_type_in_xmp(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", numbered_frame(1), FACTS)
    assert read_provenance(tmp_path / "a.png") == EXPECTED
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Comment"]
        packet = ElementTree.fromstring(image.info["XML:com.adobe.xmp"].encode())
    (description,) = packet.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert description.attrib[name] == DIGITAL_SOURCE_TYPE


def test_gif_comment_is_where_viewers_look(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gif", FACTS)
    with Image.open(path) as image:
        assert json.loads(image.info["comment"]) == EXPECTED
        assert image.n_frames == 3  # type: ignore[attr-defined]
    # Long texts are cut into blocks of 255 bytes.
    long = provenance(model="m" * 1000, model_hash="", seed=0)
    facts = read_provenance(write(tmp_path / "long.gif", long))
    assert facts is not None
    assert facts["model"] == "m" * 1000


def test_gif_comment_blocks() -> None:
    block = gif_comment("x" * 300)
    assert block == b"\x21\xfe\xff" + b"x" * 255 + b"\x2d" + b"x" * 45 + b"\0"


def test_other_files_carry_nothing(tmp_path: Path) -> None:
    assert read_provenance(make_clip(tmp_path / "a.mp4", 3)) is None
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert read_provenance(tmp_path / "a.png") is None
    Image.new("L", (32, 32)).save(tmp_path / "a.gif", comment=b"holiday")
    assert read_provenance(tmp_path / "a.gif") is None
    (tmp_path / "cut.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:20])
    assert read_provenance(tmp_path / "cut.gif") is None


@pytest.mark.parametrize(("name", "reason"), [("none.mp4", "no such file"), ("folder", "holds no PNG"), ("a.txt", "")])
def test_what_cannot_carry_facts_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=f"{name}: .*{reason}.*wanted a video"):
        read_provenance(tmp_path / name)


# --- watermark ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_wh", [(128, 192), (512, 896), (1920, 1080)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_watermark_is_seen_and_scales(size_wh: tuple[int, int], level: int) -> None:
    width, height = size_wh
    frame = np.full((height, width, 3), level, np.uint8)
    marked = watermark(frame, "AI-generated")
    assert (frame == level).all()  # the given frame is left alone
    changed = np.abs(marked.astype(int) - level).max(axis=2) > 60
    rows, columns = np.nonzero(changed)
    assert 0.015 < (rows.max() - rows.min()) / height < 0.08
    assert rows.min() > 0.9 * height
    assert columns.max() > 0.9 * width
    assert np.array_equal(marked, watermark(frame, "AI-generated"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "wanted one line"),
        (" ", "wanted one line"),
        ("a\nb", "wanted one line"),
        ("舞", "no '舞'"),
        ("x" * 99, "too long"),
    ],
)
def test_watermarks_that_cannot_be_read(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"watermark text is .*{reason}"):
        watermark(np.zeros((96, 64, 3), np.uint8), text)
