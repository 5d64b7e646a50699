"""How a base starts its clips: what is trained on top of it has to start the same way."""

from __future__ import annotations

import json
from typing import TypeVar

from xdyna.configs.clips import ClipConfig
from xdyna.infer.load import INDEX
from xdyna.train.parts import Parts

ConfigT = TypeVar("ConfigT", bound=ClipConfig)

_SETTINGS = ("shared_noise", "start_keep")


def started_as_base(cfg: ConfigT, parts: Parts) -> ConfigT:
    """The same settings with the start that the base's pipeline was saved with, wherever none was asked for."""
    path = parts.folder / INDEX if parts.folder else None
    index = json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
    own = {key: index[key] for key in _SETTINGS if key in index and key not in cfg.model_fields_set}
    return cfg.model_copy(update=own)
