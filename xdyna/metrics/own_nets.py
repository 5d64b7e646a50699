"""Files of the small networks that we train and ship: half precision, with their kind and shape in the metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xdyna.errors import UserError


def save_net(net: nn.Module, path: Path, kind: str, shape: Any, notes: dict[str, Any]) -> None:
    """Write a safetensors file; the shape (a dataclass) and the notes go into its metadata."""
    tensors = {key: value.detach().half().contiguous().cpu() for key, value in net.state_dict().items()}
    about = {"kind": kind, "config": json.dumps(asdict(shape)), "notes": json.dumps(notes)}
    save_file(tensors, path, metadata=about)


def read_net(path: Path, kind: str, wanted: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The shape as it was written, and the tensors in float32.

    Args:
        path: of the file.
        kind: that it must say it is.
        wanted: what a missing file should have been, for the message.

    Raises:
        UserError: no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted {wanted}")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from error
    if about.get("kind") != kind:
        raise UserError(f"{path}: holds {about.get('kind', 'something unnamed')!r}, wanted {kind!r}")
    shape: dict[str, Any] = json.loads(about["config"])
    return shape, tensors
