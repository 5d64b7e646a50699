"""Where the official files lie: the folder that the official README describes, and what `xdyna models pull` makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from xdyna.errors import UserError

#: Patterns below the official `pretrained_weights` folder, tried in order, per field of `OfficialFiles`.
LAYOUT: dict[str, tuple[str, ...]] = {
    "unet": ("unet/unet-checkpoint-epoch-*.ckpt", "unet/*.ckpt"),
    "pose_controlnet": ("controlnet/controlnet-checkpoint-epoch-*.ckpt", "controlnet/*.ckpt"),
    "face_controlnet": ("controlnet_face/controlnet-face-checkpoint-epoch-*.ckpt", "controlnet_face/*.ckpt"),
    "ip_adapter": ("**/models/ip-adapter-plus_sd15.bin", "**/ip-adapter-plus_sd15.bin"),
    "image_encoder": ("**/models/image_encoder", "**/image_encoder"),
    "sd15": ("**/stable-diffusion-v1-5",),
    "motion": ("**/animatediff_v15_v1_ipplus.pth", "**/mm_sd_v15.ckpt"),
}

#: Where the same things go when we write official files.
UNET_FILE = "unet/unet-checkpoint-epoch-5.ckpt"
POSE_FILE = "controlnet/controlnet-checkpoint-epoch-5.ckpt"
FACE_FILE = "controlnet_face/controlnet-face-checkpoint-epoch-2.ckpt"
IP_ADAPTER = "initialization/unet_initialization/IP-Adapter/IP-Adapter/models"
IP_ADAPTER_FILE = f"{IP_ADAPTER}/ip-adapter-plus_sd15.bin"
IMAGE_ENCODER = f"{IP_ADAPTER}/image_encoder"
SD15 = "initialization/unet_initialization/SD/stable-diffusion-v1-5"


@dataclass(frozen=True)
class OfficialFiles:
    """The files of one conversion; None where there is none.

    Attributes:
        unet: X-Dyna's UNet checkpoint, complete or partial.
        pose_controlnet: X-Dyna's pose ControlNet checkpoint.
        face_controlnet: X-Dyna's S-Face ControlNet checkpoint; may be absent.
        ip_adapter: `ip-adapter-plus_sd15.bin`: the Resampler, and image-prompt layers for a UNet without.
        image_encoder: folder of the CLIP vision encoder.
        sd15: folder of Stable Diffusion 1.5; its UNet fills a partial checkpoint.
        motion: AnimateDiff motion modules for a partial checkpoint; may be absent.
    """

    unet: Path | None = None
    pose_controlnet: Path | None = None
    face_controlnet: Path | None = None
    ip_adapter: Path | None = None
    image_encoder: Path | None = None
    sd15: Path | None = None
    motion: Path | None = None

    def with_given(self, **paths: Path | None) -> OfficialFiles:
        """The same with those paths replaced that are not None."""
        return replace(self, **{name: path for name, path in paths.items() if path is not None})

    def given(self) -> dict[str, Path]:
        """The paths that are set, by field name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: path for name, path in pairs if path is not None}


def find_official_files(folder: Path) -> OfficialFiles:
    """Look the official files up in a folder laid out as the official README says.

    Raises:
        UserError: no such folder, nothing of X-Dyna's in it, or two files fit one place.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; wanted one with {UNET_FILE}, {POSE_FILE} ..")
    found = {name: _only(folder, name, patterns) for name, patterns in LAYOUT.items()}
    if not any(found[name] for name in ("unet", "pose_controlnet", "face_controlnet")):
        raise UserError(
            f"{folder}: none of the official checkpoints is in it; wanted {UNET_FILE}, {POSE_FILE}, or give each file "
            "by its option (--unet, --pose-controlnet ..)"
        )
    return OfficialFiles(**found)


def _only(folder: Path, name: str, patterns: Iterable[str]) -> Path | None:
    for pattern in patterns:
        hits = sorted(folder.glob(pattern))
        if len(hits) > 1:
            option = name.replace("_", "-")
            raise UserError(
                f"{folder}: {len(hits)} candidates for the {name.replace('_', ' ')}: {hits[0].name}, {hits[1].name}; "
                f"wanted one, say which with --{option}"
            )
        if hits:
            return hits[0]
    return None
