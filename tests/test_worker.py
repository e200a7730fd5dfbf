"""What a worker does beside its streams: lets requests in, and keeps the garbage collector away from what waits."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import gevent
import gevent.hub
import pytest

from sseflask.worker.collector import GROWTH, Collector
from sseflask.worker.entrance import TURN_SECONDS, Entrance


def in_a_hub(work: Callable[[], None]) -> None:
    """Does some work in a thread, and a hub, of its own."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def work_for(seconds: float) -> None:
    """Keeps the processor."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


class TestEntrance:
    """Requests that are ready in the same turn of the loop."""

    def test_storm(self) -> None:
        """Of many requests a turn serves some; all are served, in their order, and other greenlets run in between."""

        def storm() -> None:
            entrance, served, turns = Entrance(), list[int](), list[int]()

            def request(number: int) -> None:
                entrance.enter()
                work_for(TURN_SECONDS / 4)
                served.append(number)
                turns.append(gevent.get_hub().loop.iteration)

            greenlets = [gevent.spawn(request, number) for number in range(40)]
            gevent.joinall(greenlets, timeout=20)
            assert served == list(range(40))
            assert max(turns.count(turn) for turn in turns) < 10
            assert len(entrance) == 0

        in_a_hub(storm)

    def test_calm(self) -> None:
        """A request that comes alone doesn't wait."""

        def calm() -> None:
            entrance = Entrance()
            for _ in range(3):
                entrance.enter()
            assert len(entrance) == 0

        in_a_hub(calm)

    def test_killed(self) -> None:
        """A request that is ended while it waits is forgotten, and those behind it come in."""

        def kill() -> None:
            entrance, served = Entrance(), list[int]()

            def request(number: int) -> None:
                entrance.enter()
                work_for(2 * TURN_SECONDS)
                served.append(number)

            def end(waiting: gevent.Greenlet) -> None:
                assert len(entrance) == 3
                waiting.kill(block=False)

            greenlets = [gevent.spawn(request, number) for number in range(4)]
            # It runs behind them in the same turn, when all but the first wait.
            ending = gevent.spawn(end, greenlets[2])
            gevent.joinall([*greenlets, ending], timeout=20)
            assert ending.exception is None
            assert served == [0, 1, 3]

        in_a_hub(kill)


class TestCollector:
    """What a full collection need not look at."""

    @pytest.fixture(autouse=True)
    def unfrozen(self) -> Iterator[None]:
        """Leaves nothing put aside."""
        gc.unfreeze()
        yield
        gc.unfreeze()

    def test_growth(self) -> None:
        """What a worker holds is put aside as its streams become more, and taken back when most have gone."""
        collector = Collector()
        collector.tend(GROWTH - 1)
        assert gc.get_freeze_count() == 0
        collector.tend(GROWTH)
        first = gc.get_freeze_count()
        assert first > 0
        held: list[list[int]] = [[] for _ in range(1000)]
        collector.tend(2 * GROWTH)
        assert gc.get_freeze_count() >= first + len(held)
        collector.tend(GROWTH)
        assert gc.get_freeze_count() > 0
        collector.tend(GROWTH - 1)
        assert gc.get_freeze_count() == 0

    def test_disabled(self) -> None:
        """Who has turned the collector off is left alone."""
        gc.disable()
        try:
            Collector().tend(10 * GROWTH)
            assert gc.get_freeze_count() == 0
        finally:
            gc.enable()
