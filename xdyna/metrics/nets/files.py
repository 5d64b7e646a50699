"""Weights read from files of tensors; what would run code is refused."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from xdyna.errors import UserError

#: Names under which trainers keep the weights in their files.
WRAPPERS = ("state_dict", "model", "module")

Net = TypeVar("Net", bound=nn.Module)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a network with its code, which loading it would run."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name: safetensors, or a torch file that holds nothing but data.

    Raises:
        UserError: damaged, something else, or a file that wants to run code (it is never run).
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_torchscript(path):
        raise UserError(f"{path}: is a TorchScript archive, which holds code; wanted a file of tensors only")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        what = "refused: damaged, or it would build more than tensors"
        raise UserError(f"{path}: {what}; wanted a file of tensors only") from None
    except Exception as error:  # the unpickler meets damage with any kind of error
        raise UserError(f"{path}: damaged or not weights ({type(error).__name__}); get it again") from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, wanted a dictionary of tensors")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); get it again") from None


def below(tensors: Mapping[str, Tensor], landmark: str, path: Path) -> dict[str, Tensor]:
    """The tensors of one network, named from its own root.

    Args:
        tensors: maybe under a prefix (`model.`), maybe among others.
        landmark: a name that the network has, by which the prefix is found.
        path: of the file, for the message.

    Raises:
        UserError: no name ends in the landmark.
    """
    prefix = next((key.removesuffix(landmark) for key in tensors if f".{key}".endswith(f".{landmark}")), None)
    if prefix is None:
        some = ", ".join(list(tensors)[:3]) or "none"
        raise UserError(f"{path}: has no tensor {landmark}, but {some}; wanted the weights of another network")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def filled(make: Callable[[], Net], tensors: Mapping[str, Tensor], path: Path) -> Net:
    """A network with the weights of a file, in evaluation mode and frozen.

    Args:
        make: builds it; its own first weights are never drawn.
        tensors: its state, every name of it; what it does not have may be there too.
        path: for the message.

    Raises:
        UserError: a tensor is missing, has another shape, or holds what is not finite.
    """
    with torch.device("meta"):
        network = make()
    wanted = network.state_dict()
    given = {key: tensors[key] for key in wanted if key in tensors}
    # Old files do not count batches; in evaluation nobody asks.
    given |= {key: torch.zeros((), dtype=torch.int64) for key in wanted if _is_count(key) and key not in given}
    if missing := [key for key in wanted if key not in given]:
        raise UserError(f"{path}: lacks {len(missing)} of {len(wanted)} tensors, {_some(missing)}; wanted all of them")
    for key, tensor in given.items():
        if tensor.shape != wanted[key].shape:
            raise UserError(f"{path}: {key} is {list(tensor.shape)}, wanted {list(wanted[key].shape)}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {key} holds values that are not finite; get the file again")
    # Copies: a converted half-precision file would otherwise make a half-precision network.
    network.load_state_dict({key: value.to(wanted[key].dtype) for key, value in given.items()}, assign=True)
    return network.requires_grad_(False).eval()


def channels(tensors: Mapping[str, Tensor], key: str, path: Path) -> int:
    """Output channels of a layer by its weight: by these the width of a network is told.

    Raises:
        UserError: there is no such tensor.
    """
    if key not in tensors:
        raise UserError(f"{path}: has no tensor {key}; wanted the weights of another network")
    return int(tensors[key].shape[0])


def _is_count(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (" and more" if len(keys) > 3 else "")
