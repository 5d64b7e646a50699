"""Reference photos of every common kind come out as a viewer shows them; the rest is refused by name."""

import os
import re
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip
from PIL import Image, ImageCms

from xdyna.errors import UserError
from xdyna.photo import read_photo, write_png

ORIENTATION = 0x0112


def corner_photo() -> Image.Image:
    """48x32, black, with a white upper left corner."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:8, :12] = 255
    return Image.fromarray(pixels)


def white_corner(image: np.ndarray) -> str:
    rows, columns = np.nonzero(image[..., 1] > 128)
    upper, left = rows.mean() < image.shape[0] / 2, columns.mean() < image.shape[1] / 2
    return ("upper " if upper else "lower ") + ("left" if left else "right")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".bmp", ".gif"])
def test_common_kinds(tmp_path: Path, suffix: str) -> None:
    corner_photo().save(tmp_path / f"photo{suffix}")
    image = read_photo(tmp_path / f"photo{suffix}")
    assert image.shape == (32, 48, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert white_corner(image) == "upper left"


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [
        (1, "upper left"), (2, "upper right"), (3, "lower right"), (4, "lower left"),
        (5, "upper left"), (6, "upper right"), (7, "lower right"), (8, "lower left"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_exif_orientation(tmp_path: Path, orientation: int, corner: str, suffix: str) -> None:
    photo = corner_photo()
    exif = photo.getexif()
    exif[ORIENTATION] = orientation
    photo.save(tmp_path / f"photo{suffix}", exif=exif)
    image = read_photo(tmp_path / f"photo{suffix}")
    assert image.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    assert white_corner(image) == corner


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic(tmp_path: Path, orientation: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="extra 'heic' is not installed")
    photo = corner_photo().resize((96, 64))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    heif = pillow_heif.from_pillow(photo)
    heif.save(tmp_path / "photo.heic", exif=exif.tobytes(), quality=95)
    (tmp_path / "photo.heic").rename(tmp_path / "photo.jpg")  # phones and messengers rename: the content decides
    image = read_photo(tmp_path / "photo.jpg")
    assert image.shape == ((96, 64, 3) if orientation == 6 else (64, 96, 3))
    assert white_corner(image) == ("upper right" if orientation == 6 else "upper left")


def test_missing_heic_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(100))
    with pytest.raises(UserError, match=r"photo.heic: HEIC needs one more package; run: pip install 'xdyna\[heic\]'"):
        read_photo(tmp_path / "photo.heic")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_modes(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.arange(256, dtype=np.uint8)[None, ::8], (32, 1))  # 0, 8, .. 248
    if mode == "I;16":
        photo = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        photo = Image.fromarray(grey.astype(np.int32) * 257)
    else:
        photo = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("photo.tiff" if mode in {"CMYK", "F", "I"} else "photo.png")
    photo.save(path)
    image = read_photo(path)
    assert image.shape == (32, 32, 3)
    if mode != "1":
        assert np.abs(image[..., 0].astype(int) - grey).max() <= 1


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, 16:, 3] = 255
    pixels[:, 8:16, 3] = 51
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    image = read_photo(tmp_path / "photo.png")
    assert image[5, [0, 10, 20]].tolist() == [[255, 255, 255], [244, 204, 204], [200, 0, 0]]
    Image.fromarray(pixels).quantize(8).save(tmp_path / "palette.png")
    assert read_photo(tmp_path / "palette.png")[5, 0].tolist() == [255, 255, 255]


def test_colour_profile_of_a_transparent_picture(tmp_path: Path) -> None:
    """A profile that swaps nothing but the curve: linear light, so a stored 128 is shown as 188."""
    linear = linear_profile()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(tmp_path / "opaque.png", icc_profile=linear)
    Image.new("RGBA", (32, 32), (128, 128, 128, 255)).save(tmp_path / "clear.png", icc_profile=linear)
    for name in ("opaque.png", "clear.png"):
        assert np.abs(read_photo(tmp_path / name)[0, 0].astype(int) - 188).max() <= 2


def linear_profile() -> bytes:
    """sRGB's profile with its three tone curves replaced by straight lines."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    straight = b"curv" + bytes(4) + struct.pack(">I", 0)
    for entry in range(struct.unpack_from(">I", data, 128)[0]):
        tag, at, _ = struct.unpack_from(">4sII", data, 132 + 12 * entry)
        if tag in {b"rTRC", b"gTRC", b"bTRC"}:
            data[at : at + len(straight)] = straight
    return bytes(data)


def test_colour_profile_is_followed(tmp_path: Path) -> None:
    photo = Image.new("RGB", (32, 32), (200, 30, 40))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.save(tmp_path / "srgb.png", icc_profile=srgb)
    assert np.abs(read_photo(tmp_path / "srgb.png")[0, 0].astype(int) - (200, 30, 40)).max() <= 1
    photo.save(tmp_path / "broken.png", icc_profile=b"not a profile")
    assert read_photo(tmp_path / "broken.png")[0, 0].tolist() == [200, 30, 40]
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # of another colour space than the pixels
    photo.save(tmp_path / "other.png", icc_profile=lab)
    assert read_photo(tmp_path / "other.png")[0, 0].tolist() == [200, 30, 40]


# --- refused ------------------------------------------------------------------------------------------------------


def png_that_states(size_wh: tuple[int, int], path: Path) -> Path:
    """A PNG file of a hundred bytes with this size in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">II", *size_wh) + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize(
    ("size_wh", "reason"),
    [
        ((20_000, 20_000), "far too many pixels|20000x20000 px; wanted at most 16384 px a side"),
        ((20_000, 100), "20000x100 px; wanted at most 16384 px a side and 128 million pixels"),
        ((13_000, 10_000), "13000x10000 px; wanted at most"),
        ((1, 1), "1x1 px; wanted at least 16 px a side"),
        ((300, 2), "300x2 px; wanted at least 16 px a side"),
    ],
)
def test_sizes_are_refused_before_decoding(tmp_path: Path, size_wh: tuple[int, int], reason: str) -> None:
    path = png_that_states(size_wh, tmp_path / "photo.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*({reason})"):
            read_photo(path)
    assert not caught


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.jpg", "no such file"),
        ("folder.jpg", "is a folder"),
        ("empty.jpg", "is empty"),
        ("text.jpg", "not a picture"),
        ("video.mp4", "not a picture"),
        ("cut.jpg", "damaged or cut short"),
        ("cut.png", "damaged or cut short"),
        ("cut.heic", "damaged or cut short|HEIC needs one more package"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    if name == "folder.jpg":
        path.mkdir()
    elif name == "empty.jpg":
        path.touch()
    elif name == "text.jpg":
        path.write_text("Not a picture.\n" * 50)
    elif name == "video.mp4":
        make_clip(path, 3)
    elif name == "cut.heic":
        path.write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(200))
    elif name.startswith("cut"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*({reason})") as caught:
        read_photo(path)
    assert "\n" not in str(caught.value)


def test_write_png(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 21, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    assert np.array_equal(read_photo(tmp_path / "a.png"), image)
    write_png(tmp_path / "b.png", image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(UserError, match=r"none/a.png: cannot write: its folder does not exist"):
        write_png(tmp_path / "none" / "a.png", image)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "b.png"]
