"""Tensor files read and written one tensor at a time, so that 5 GB need little more memory than 5 GB."""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xdyna.checkpoints.key_maps import clean_key
from xdyna.errors import UserError

#: safetensors' dtype words.
DTYPE_WORDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {word: dtype for dtype, word in DTYPE_WORDS.items()}
_MAX_HEADER = 100_000_000


class TensorFile:
    """The tensors of one file, by name, read on demand: safetensors, or a torch archive holding nothing but tensors.

    A `state_dict` wrapper is opened, nested dictionaries become dotted names, and with `clean` the text `module.` is
    removed from names. Torch archives are memory-mapped; files of torch before 1.6 are read whole.

    Raises:
        UserError: no such file, not a tensor file, damaged, or a pickle that would run code (it is never run).
    """

    def __init__(self, path: Path, *, clean: bool = True) -> None:
        self.path = path
        stored: dict[str, _Lazy] = _open(path)
        self._tensors: dict[str, _Lazy] = {}
        for key, lazy in stored.items():
            name = clean_key(key) if clean else key
            if name in self._tensors:
                raise UserError(
                    f"{path}: two tensors are named {name} once 'module.' is removed; wanted each name once"
                )
            self._tensors[name] = lazy

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype

    def read(self, key: str) -> Tensor:
        """One tensor, contiguous, on the CPU.

        Raises:
            UserError: it holds a value that is not finite.
        """
        tensor = self._tensors[key].load().contiguous()
        check_finite(tensor, f"{self.path}: {key}")
        return tensor


def check_finite(tensor: Tensor, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        UserError: naming `name` and how many values are at fault.
    """
    if not tensor.is_floating_point() or torch.isfinite(tensor).all():
        return
    bad = int((~torch.isfinite(tensor)).sum())
    raise UserError(
        f"{name} holds {bad} of {tensor.numel()} values that are NaN or infinite; wanted finite weights: "
        "the file is damaged or its training diverged, get it again"
    )


@dataclass(frozen=True)
class _Lazy:
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


def _open(path: Path) -> dict[str, _Lazy]:
    """Tell the format by the first bytes, not by the suffix."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted a checkpoint (.safetensors, .ckpt, .bin, .pth)")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    header_length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_length < size:
        return _open_safetensors(path, header_length, size)
    if size == 0 or head.startswith((b"<!DOCTYP", b"<html", b"version ")):
        what = "empty" if size == 0 else "a web page or a Git LFS pointer"
        raise UserError(f"{path}: {what}, not a checkpoint; download it again")
    return _open_torch(path, mapped=head.startswith(b"PK"))


def _open_safetensors(path: Path, header_length: int, size: int) -> dict[str, _Lazy]:
    damaged = UserError(f"{path}: damaged or cut short ({size:,} bytes); wanted a whole safetensors file, get it again")
    if header_length > _MAX_HEADER:
        raise damaged
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(header_length))
        header.pop("__metadata__", None)
        return {key: _safetensors_entry(path, entry, 8 + header_length, size) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None


def _safetensors_entry(path: Path, entry: dict[str, Any], data_start: int, size: int) -> _Lazy:
    dtype, shape = _DTYPES[entry["dtype"]], tuple(int(side) for side in entry["shape"])
    start, end = entry["data_offsets"]
    if end - start != math.prod(shape) * dtype.itemsize or start < 0 or data_start + end > size:
        raise ValueError("offsets")

    def load() -> Tensor:
        # Read, not mapped: pages of a mapping count as memory in use for as long as the file is open.
        buffer = bytearray(end - start)
        with path.open("rb") as file:
            file.seek(data_start + start)
            file.readinto(buffer)
        return torch.frombuffer(buffer, dtype=dtype).reshape(shape) if buffer else torch.empty(shape, dtype=dtype)

    return _Lazy(shape, dtype, load)


def _open_torch(path: Path, *, mapped: bool) -> dict[str, _Lazy]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is said below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_unpickling_reason(str(error))}; wanted a file of tensors only") from None
    except Exception:  # the unpickler meets damage with any kind of error
        what = "damaged or cut short" if mapped else "not a checkpoint, or damaged"
        raise UserError(
            f"{path}: {what}; wanted a whole .ckpt, .bin, .pth or .safetensors file, get it again"
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}; wanted a dictionary of tensors")
    return {key: _lazy(tensor) for key, tensor in _flatten(content)}


def _lazy(tensor: Tensor) -> _Lazy:
    return _Lazy(tuple(tensor.shape), tensor.dtype, tensor.detach)


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors under dotted names; epochs, step counts and the like are no tensors and are left out."""
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")


def _unpickling_reason(text: str) -> str:
    """What torch's safe unpickler stumbled on, without its advice to switch the safety off."""
    if match := re.search(r"(?:GLOBAL|global) ([\w.]+)", text):
        return f"refused: this pickle wants to run code ({match[1]})"
    return "refused: not a checkpoint, or a pickle that wants to build more than tensors"


@dataclass(frozen=True)
class Entry:
    """A tensor still to be made: its place in the header is known before its values are."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_safetensors(path: Path, entries: list[Entry]) -> None:
    """Write a safetensors file holding one tensor in memory at a time.

    Raises:
        ValueError: an entry makes a tensor of another shape or dtype than it announced.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        size = math.prod(entry.shape) * entry.dtype.itemsize
        header[entry.key] = {
            "dtype": DTYPE_WORDS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in entries:
            tensor = entry.make()
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                got = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"{entry.key}: got {got}, wanted {entry.shape} {entry.dtype}")
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
