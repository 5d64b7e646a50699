"""Several processes at one job, or at one manifest, as `torchrun` and `accelerate launch` start them.

What they tell each other goes over gloo, on GPUs too: a step's predictions are a few megabytes for each window, little
beside the work they stand for, and a process that ends breaks gloo's connections, so that the others notice at once
where NCCL's would wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from xdyna.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Value = TypeVar("Value")
Item = TypeVar("Item")

#: How long the processes of a launch wait for each other at the start, seconds.
START_S = 300
#: The first process alone writes the result; the others wait for as long as that may take.
_WORK_S = 24 * 3600
_FAILED, _STATUS, _HEARD = (f"xdyna/{name}" for name in ("failed", "status", "heard"))


class Lost(UserError):
    """Another process is gone."""


class Team:
    """The processes of a launch, seen from one of them. A team of one needs no launcher and tells nobody anything.

    All processes make the same calls in the same order; a call returns once all that it needs have made it.

    Args:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine, which chooses its GPU.
        store: what they share before and after they can talk; None for a team of one.
    Raises:
        UserError: the others do not come.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int | None = None, store: Any = None) -> None:
        self.rank, self.size, self._local_rank, self._store = rank, size, local_rank, store
        self._open = size > 1
        if size == 1:
            return
        import torch.distributed as dist

        with _together(rank, size):
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=_WORK_S))

    @classmethod
    def launched(cls) -> Team:
        """The processes that the environment tells of: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.

        Raises:
            UserError: the others do not come.
        """
        size = launched_processes()
        if size == 1:
            return cls()
        from torch.distributed.rendezvous import rendezvous

        rank = int(os.environ["RANK"])
        with _together(rank, size):
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=START_S)))
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", rank)), store)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait=error is None)

    def close(self, *, wait: bool = True) -> None:
        """Part from the others.

        Args:
            wait: until all have come so far; else they find this process gone.
        """
        if not self._open:
            return
        if wait:
            self.gather(None)
        import torch.distributed as dist

        self._open = False
        with suppress(RuntimeError):
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def alone(self) -> Team:
        """This process by itself, on its own GPU."""
        return Team(local_rank=self._local_rank)

    def device(self, device: torch.device) -> torch.device:
        """The device of this process where a job asked for one: each process of a machine takes the next GPU."""
        if self._local_rank is None or device.type != "cuda" or device.index is not None:
            return device
        import torch

        mine = torch.device("cuda", self._local_rank % torch.cuda.device_count())
        torch.cuda.set_device(mine)
        return mine

    # --- telling each other -----------------------------------------------------------------------------------------

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """The value that process `source` has."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value if self.rank == source else None]
        with _noticed():
            dist.broadcast_object_list(values, src=source)
        return values[0]  # type: ignore[return-value]

    def receive(self) -> Any:
        """What the first process broadcasts."""
        return self.broadcast(None)

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _noticed():
            dist.all_gather_object(values, value)
        return values

    def broadcast_tensor(self, tensor: Tensor, source: int) -> Tensor:
        """Process `source`'s tensor, on the host; the others pass one of its shape and type, whose values are lost."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist

        tensor = tensor.cpu().contiguous()
        with _noticed():
            dist.broadcast(tensor, src=source)
        return tensor

    def shared(self, items: Sequence[Item], name: str) -> Iterator[Item]:
        """Items for this process: each goes to the process that asks for it first, in order.

        Args:
            items: the same in all processes.
            name: another one for each list.
        """
        if self.size == 1:
            yield from items
            return
        while (number := self._store.add(f"xdyna/shared/{name}", 1) - 1) < len(items):
            yield items[number]

    # --- failing ----------------------------------------------------------------------------------------------------

    def fails_first(self) -> bool:
        """Whether no other process has failed so far: this one tells why, and calls `told`."""
        if self.size == 1:
            return True
        with suppress(RuntimeError):
            return bool(self._store.add(_FAILED, 1) == 1)
        return False  # what they share went with the process that had it, which said why, or was killed

    def told(self, status: int) -> None:
        """Let the others end with this exit status, and part from them.

        The first process may hold the store: it waits a moment, so that the others can look into it.
        """
        if self.size == 1:
            return
        with suppress(RuntimeError):
            self._store.set(_STATUS, str(status))
            self.close(wait=False)
            end_s = time.monotonic() + (10 if self.leads else 0)
            while time.monotonic() < end_s and self._store.add(_HEARD, 0) < self.size - 1:
                time.sleep(0.05)

    def status_told(self, wait_s: float = 10.0) -> int:
        """The exit status of the process that failed first; 1 where it does not tell."""
        end_s = time.monotonic() + wait_s
        with suppress(RuntimeError):
            while time.monotonic() < end_s:
                if self._store.check([_STATUS]):
                    status = int(self._store.get(_STATUS))
                    self._store.add(_HEARD, 1)
                    return status
                time.sleep(0.05)
        return 1


def launched_processes() -> int:
    """How many processes a launcher has started, 1 without one."""
    known = all(os.environ.get(name, "").isdecimal() for name in ("RANK", "WORLD_SIZE"))
    return int(os.environ["WORLD_SIZE"]) if known and os.environ.get("MASTER_ADDR") else 1


@contextmanager
def _together(rank: int, size: int) -> Iterator[None]:
    """Say what is wrong where processes do not find each other."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {rank} of {size}: the others were not found ({error}); start all with torchrun or accelerate "
            "launch, or unset RANK and WORLD_SIZE to run alone"
        ) from error


@contextmanager
def _noticed() -> Iterator[None]:
    """Say that another process is gone where talking to it fails."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(
            "another process of this launch is gone without a word (killed, or its machine was lost); start the same "
            "command again: it goes on from what was saved"
        ) from error
