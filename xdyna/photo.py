"""Read a reference photo of any common kind as upright RGB, and write PNG."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from xdyna.errors import UserError
from xdyna.files import check_is_file, written_whole
from xdyna.provenance import xmp_packet

MIN_SIDE_PX = 16
MAX_SIDE_PX = 16_384
MAX_PIXELS = 128_000_000
WANTED = "wanted a picture such as JPEG, PNG, WebP, TIFF, BMP or HEIC"
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def read_photo(path: str | Path) -> NDArray[np.uint8]:
    """A photo as a viewer shows it: turned by its EXIF note, in sRGB, transparent pixels over white.

    Returns:
        uint8 RGB [H, W, 3], 0..255.
    Raises:
        UserError: missing, a folder, empty, not a picture, cut short, or of a size that makes no sense here; the size
            is looked at before the pixels are decoded.
    """
    path = Path(path)
    check_is_file(path, WANTED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size is stricter
            with _open(path) as image:
                _check_size(path, image.size)
                return _upright_rgb(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: has far too many pixels; wanted at most {MAX_PIXELS // 10**6} million") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture (or a kind that cannot be read); {WANTED}") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(f"{path}: cannot be decoded, damaged or cut short ({error}); {WANTED}") from error


def write_png(path: str | Path, image: NDArray[np.uint8], metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG file that appears complete or not at all.

    Args:
        path: where to; the folder must exist.
        image: uint8 RGB [H, W, 3] or grey [H, W].
        metadata: text chunks (see `xdyna.provenance`).
    Raises:
        UserError: read-only or missing folder, full disk.
    """
    with written_whole(Path(path)) as part:
        save_png(part, image, metadata)


def save_png(path: Path, image: NDArray[np.uint8], metadata: Mapping[str, str] | None = None) -> None:
    """`write_png` straight to `path`, for callers that take care of the rest themselves."""
    Image.fromarray(np.ascontiguousarray(image)).save(path, format="PNG", pnginfo=_text_chunks(metadata or {}))


def _text_chunks(metadata: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for name, value in metadata.items():
        # The PNG standard gives the comment a name of its own, with a capital.
        chunks.add_text("Comment" if name == "comment" else name, value)
    if "digital_source_type" in metadata:
        chunks.add_itxt("XML:com.adobe.xmp", xmp_packet(metadata["digital_source_type"]))
    return chunks


def _open(path: Path) -> Image.Image:
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS:
        return _open_heif(path)
    return Image.open(path)


def _open_heif(path: Path) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        raise UserError(f"{path}: HEIC needs one more package; run: pip install 'xdyna[heic]'") from None
    heif = pillow_heif.open_heif(path)
    _check_size(path, heif.size)
    image: Image.Image = heif.to_pillow()  # upright already, and its EXIF note reset
    return image


def _check_size(path: Path, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    if min(size_wh) < MIN_SIDE_PX:
        raise UserError(f"{path}: {width}x{height} px; wanted at least {MIN_SIDE_PX} px a side")
    if max(size_wh) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        limit = f"at most {MAX_SIDE_PX} px a side and {MAX_PIXELS // 10**6} million pixels"
        raise UserError(f"{path}: {width}x{height} px; wanted {limit}; make it smaller first")


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16-bit grey at 255.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    if profile and image.mode in {"RGB", "CMYK"}:
        image = _to_srgb(image, profile)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):
        return image  # an unusable profile: the numbers as they are
    assert converted is not None
    return converted
