"""How many bytes of tensors are alive, followed operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of all tensors that operations make in a `with` block, until they are gone.

    Tensors need not have numbers: on the meta device the bytes they would take are followed.

    Args:
        known: tensors that were there before, such as weights: neither they nor views of them count.
        device: only tensors of this type of device count; all by default.
    Attributes:
        now: bytes alive.
        peak: the most so far.
    """

    def __init__(self, known: Iterable[Tensor] = (), device: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._device = device
        storages = [tensor.untyped_storage() for tensor in known]
        self._known: dict[int, weakref.ref[Any]] = {id(storage): weakref.ref(storage) for storage in storages}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor) and self._device in (None, value.device.type):
                self._add(value.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key = id(storage)
        if key in self._known and self._known[key]() is storage:
            return  # a view of what is counted already
        count = storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= count

        self._known[key] = weakref.ref(storage, gone)
        self.now += count
        self.peak = max(self.peak, self.now)
