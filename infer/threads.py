"""Work beside the main thread: something made while it does something else, and things done with what it makes."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from queue import Queue, SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

Made = TypeVar("Made")
Item = TypeVar("Item")

#: Has something told by the thread that waits for the result; raises `Stopped` once nobody waits any more.
Tell = Callable[[Callable[[], None]], None]


class Stopped(Exception):
    """The result is no longer wanted."""


class Meanwhile(Generic[Made]):
    """Makes something in a thread of its own while the `with` block does something else.

    What the work has to tell waits until `result` is called and is told there, in its order and by the caller's
    thread, as if the work were only done then. Leaving the block stops the work the next time it tells something.

    Args:
        make: called with a `Tell`.
        beside: false runs `make` within `result`, in the caller's thread.
    """

    def __init__(self, make: Callable[[Tell], Made], *, beside: bool = True) -> None:
        self._make, self._beside = make, beside
        self._told: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._made: list[Made] = []
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="xdyna-meanwhile")
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> Self:
        if self._beside:
            self._filters.__enter__()  # both threads change the filters; the end finds them as they were
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beside:
            self._stop.set()
            _join(self._thread)
            self._filters.__exit__(kind, error, trace)

    def result(self) -> Made:
        """Wait, pass on what is told, and return what was made or raise what went wrong."""
        if not self._beside:
            return self._make(lambda say: say())
        while (say := self._told.get()) is not None:
            say()
        if self._error is not None:
            raise self._error
        return self._made[0]

    def _run(self) -> None:
        def tell(say: Callable[[], None]) -> None:
            if self._stop.is_set():
                raise Stopped
            self._told.put(say)

        try:
            self._made.append(self._make(tell))
        except BaseException as error:  # it belongs to whoever waits
            self._error = error
        finally:
            self._told.put(None)


class Ahead(Generic[Item]):
    """Hands items on to a function in a thread of its own, in their order, so that the next is made meanwhile.

    An error of the function is raised by the next `put` or at the end of the `with` block. A block that ends in an
    error, Ctrl-C included, drops the items that wait; either way the thread has ended after the block.

    Args:
        do: called with each item.
        most: items that may wait; `put` blocks at more.
        beside: false calls `do` within `put`.
    Attributes:
        num_done: items handed on so far.
    """

    def __init__(self, do: Callable[[Item], None], *, most: int = 8, beside: bool = True) -> None:
        self.num_done = 0
        self._do, self._beside = do, beside
        self._waiting: Queue[tuple[Item] | None] = Queue(most)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="xdyna-ahead")

    def __enter__(self) -> Self:
        if self._beside:
            self._thread.start()
        return self

    def put(self, item: Item) -> None:
        """Hand on one item."""
        if not self._beside:
            self._do(item)
            self.num_done += 1
            return
        if self._error is not None:
            raise self._error
        self._waiting.put((item,))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._beside:
            return
        try:
            self._dropping = error is not None
            self._waiting.put(None)
            self._thread.join()
        except BaseException:  # Ctrl-C while the last items are worked on
            self._dropping = True
            self._waiting.put(None)
            _join(self._thread)
            raise
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._dropping or self._error is not None:
                continue  # so that whoever puts never waits for ever
            try:
                self._do(item[0])
                self.num_done += 1
            except BaseException as error:  # raised by `put` or `__exit__`
                self._error = error


def _join(thread: threading.Thread) -> None:
    """Wait for a thread whatever comes; Ctrl-C in between is raised after it."""
    interrupted: BaseException | None = None
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
