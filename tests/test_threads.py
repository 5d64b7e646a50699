"""Work beside the main thread: order, errors, stopping."""

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from xdyna.infer.threads import Ahead, Meanwhile, Stopped, Tell


@pytest.mark.parametrize("beside", [True, False])
def test_what_is_told_waits_for_the_result(beside: bool) -> None:
    heard: list[tuple[int, threading.Thread]] = []

    def make(tell: Tell) -> str:
        for number in range(3):
            tell(lambda number=number: heard.append((number, threading.current_thread())))
        return "made"

    with Meanwhile(make, beside=beside) as meanwhile:
        assert heard == []
        assert meanwhile.result() == "made"
    assert heard == [(number, threading.current_thread()) for number in range(3)]


@pytest.mark.parametrize("beside", [True, False])
def test_an_error_comes_after_what_was_told(beside: bool) -> None:
    heard: list[str] = []

    def make(tell: Tell) -> None:
        tell(partial(heard.append, "before"))
        raise KeyError("cause")

    with Meanwhile(make, beside=beside) as meanwhile, pytest.raises(KeyError, match="cause"):
        meanwhile.result()
    assert heard == ["before"]


def test_leaving_the_block_stops_the_work() -> None:
    begun, ended = threading.Event(), []

    def make(tell: Tell) -> None:
        try:
            while True:
                tell(begun.set)
                time.sleep(0.001)
        except Stopped:
            ended.append(True)
            raise

    with pytest.raises(ZeroDivisionError), Meanwhile(make):
        raise ZeroDivisionError
    assert ended == [True]
    assert not begun.is_set(), "nobody waited, so nothing was told"


@pytest.mark.parametrize("beside", [True, False])
def test_items_are_done_in_order(beside: bool) -> None:
    done: list[int] = []
    with Ahead(done.append, most=2, beside=beside) as ahead:
        for number in range(50):
            ahead.put(number)
    assert done == list(range(50))
    assert ahead.num_done == 50


def test_only_so_many_items_wait() -> None:
    gate, put = threading.Event(), []
    with Ahead(lambda item: gate.wait(), most=3) as ahead:

        def fill() -> None:
            for number in range(10):
                ahead.put(number)
                put.append(number)

        filler = threading.Thread(target=fill)
        filler.start()
        while len(put) < 4:  # one at work, three waiting
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(put) == 4
        gate.set()
        filler.join()
    assert ahead.num_done == 10


def failing(at: int, done: list[int]) -> Callable[[int], None]:
    def do(item: int) -> None:
        if item == at:
            raise OSError("disk")
        done.append(item)

    return do


def test_an_error_reaches_who_puts() -> None:
    done: list[int] = []

    def put_for_ever() -> None:
        with Ahead(failing(2, done), most=1) as ahead:
            for number in range(10**9):
                ahead.put(number)

    with pytest.raises(OSError, match="disk"):
        put_for_ever()
    assert done == [0, 1]


def test_an_error_of_the_last_item_reaches_the_end_of_the_block() -> None:
    with pytest.raises(OSError, match="disk"), Ahead(failing(0, [])) as ahead:
        ahead.put(0)


def test_a_block_that_fails_drops_what_waits() -> None:
    gate, done = threading.Event(), []

    def do(item: int) -> None:
        gate.wait()
        done.append(item)

    def interrupted() -> None:
        with Ahead(do) as ahead:
            for number in range(5):
                ahead.put(number)
            threading.Timer(0.05, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done in ([], [0]), "at most the one at work"
