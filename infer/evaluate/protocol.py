"""A protocol with the versions of what carries it out, and the hash of both that stands beside every number."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xdyna.configs import load_config
from xdyna.configs.evaluate import ProtocolConfig

logger = logging.getLogger("xdyna")

DEFAULT = "protocol/v1"
SHORT = 12  # letters of the hash that are printed


def protocol_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping as canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Of everything that a number passes through; builds of one version for CPU and GPU count as the same."""
    import av
    import cv2
    import numpy as np
    import PIL
    import torch

    import xdyna

    parts = ("libavcodec", "libavformat", "libswscale")
    ffmpeg = {name: ".".join(map(str, av.library_versions[name])) for name in parts}
    return {
        "xdyna": xdyna.__version__,
        "av": av.__version__,
        **ffmpeg,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "torch": torch.__version__.split("+")[0],
    }


@dataclass(frozen=True)
class Protocol:
    """How clips are read, and by which versions of which libraries.

    Attributes:
        config: the file's content.
        versions: library name -> version.
    """

    config: ProtocolConfig
    versions: Mapping[str, str] = field(default_factory=library_versions)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON of config and versions, in hexadecimal."""
        return protocol_hash(self.to_json())

    @property
    def label(self) -> str:
        """What is printed with every number: version and the beginning of the hash."""
        return f"{self.config.version}:{self.hash[:SHORT]}"

    def to_json(self) -> dict[str, Any]:
        """For the header of results."""
        return {"config": self.config.model_dump(mode="json"), "versions": dict(self.versions)}

    def line(self) -> str:
        """One line for the user."""
        config = self.config
        size = f"{config.size[0]}x{config.size[1]}" if config.size else "the truth's size"
        return (
            f"protocol {self.label}: {config.fps:g} fps, clips of {config.frames} frames, at most {config.clips} a "
            f"video (seed {config.seed}), {size}, crop {config.crop}, filter {config.filter}, masks {config.masks}, "
            f"av {self.versions['av']}"
        )


def load_protocol(name_or_path: str | Path = DEFAULT) -> Protocol:
    """Read a protocol by name (`v1`, `protocol/v1`) or file.

    Raises:
        UserError: no such file, an unknown or missing key, a value of the wrong kind.
    """
    name = str(name_or_path)
    if "/" not in name and not Path(name).suffix:
        name = f"protocol/{name}"
    protocol = Protocol(load_config(ProtocolConfig, name))
    if protocol.config.av != protocol.versions["av"]:
        logger.warning(
            "protocol %s is for av %s and here is %s: its numbers go with no others, their hash differs; run: "
            "pip install av==%s", protocol.label, protocol.config.av, protocol.versions["av"], protocol.config.av,
        )  # fmt: skip
    return protocol
