"""What frozen models make of pictures, kept on disk: latents and embeddings are computed once and read afterwards.

One safetensors file per picture, not per clip: clips of one video overlap in ever other ways, its frames are the same
each time, so the cache never grows beyond the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xdyna.errors import UserError
from xdyna.files import written_whole

Array = NDArray[Any]


class TensorCache:
    """Results of one frozen model by the content of what it was given.

    A file's name is a hash of the picture, of the model's weights and settings, and of `note`; with another model
    nothing is found. A file that is damaged is made anew. Several processes may share a folder.

    Args:
        folder: made if missing.
        model: whose results these are; it must not change afterwards.
        note: what else the results depend on, such as the precision of the arithmetic.
        used: False: the folder is neither made, read nor written, and every result computed.
    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, model: nn.Module, note: str = "", *, used: bool = True) -> None:
        self.folder, self.used = folder, used
        self._made_by = hashlib.sha256(f"{model_hash(model)} {note}".encode()).digest()
        try:
            if used:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache {folder}: cannot be made: {error.strerror or error}") from None

    def fetch(self, pictures: Sequence[Array], compute: Callable[[Array], Tensor]) -> Tensor:
        """The model's results for some pictures.

        What is missing is computed picture by picture: results then do not depend on what a picture was batched with,
        and a resumed run finds the very same.

        Args:
            pictures: N arrays.
            compute: gives the result for one of them.
        Returns:
            [N, ..] on the CPU.
        Raises:
            UserError: the disk is full.
        """
        return torch.stack([self._one(picture, compute) for picture in pictures])

    def path(self, picture: Array) -> Path:
        """Where the result for a picture lies."""
        content = hashlib.sha256(self._made_by)
        content.update(f"{picture.dtype} {picture.shape}".encode())
        content.update(np.ascontiguousarray(picture).data)
        name = content.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _one(self, picture: Array, compute: Callable[[Array], Tensor]) -> Tensor:
        if not self.used:
            return compute(picture).detach().cpu().contiguous()
        path = self.path(picture)
        try:
            found: Tensor = load_file(path)["value"]
            return found
        except (FileNotFoundError, SafetensorError, KeyError):
            pass  # not there yet, or damaged
        value = compute(picture).detach().cpu().contiguous()
        path.parent.mkdir(exist_ok=True)
        with written_whole(path) as part:
            save_file({"value": value}, part)
        return value


def model_hash(model: nn.Module) -> str:
    """Hash of a model's weights, buffers and settings."""
    config: Any = getattr(model, "config", {})
    settings = config if isinstance(config, Mapping) else config.to_dict()
    own = {key: value for key, value in settings.items() if not key.startswith("_")}  # "_": version and place
    found = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
