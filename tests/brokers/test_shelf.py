"""The store of docs/contribute/adding-a-broker.md keeps the contract; this is how one's tests are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sseflask.brokers.shared
import sseflask.brokers.tasks
from sseflask.brokers import Broker, SharedBroker
from tests.brokers import shelf
from tests.brokers.contract import HISTORY_SECONDS, BrokerContract, Clock, InlineWaker, Open
from tests.brokers.contract_tasks import OpenPair, SharedTaskContract
from tests.brokers.test_sqlite import ShiftedTime
from tests.live.process import wait_until

Make = Callable[[int, dict[str, Any]], list[Broker]]

BOUNDS = {"history": 256, "history_seconds": HISTORY_SECONDS, "history_bytes": 1 << 26}


class Shelves:
    """How a shelf is made, and how its time goes by."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """A clock that goes on by itself, and further when a test says so."""
        shifted = ShiftedTime()
        for module in (shelf, sseflask.brokers.shared, sseflask.brokers.tasks):
            monkeypatch.setattr(module, "time", shifted)
        return shifted

    @pytest.fixture
    def make(self, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]]) -> Iterator[Make]:
        """Makes so many brokers on one store, and closes them."""
        made: list[Broker] = []

        def make_some(count: int, options: dict[str, Any]) -> list[Broker]:
            bounds: dict[str, Any] = {**BOUNDS, **options}
            store = shelf.ShelfStore(**bounds)
            brokers: list[Broker] = [SharedBroker(store, waker, chores.append, timeout=5.0, **bounds) for _ in range(count)]
            for broker in brokers:
                broker.open()
            made.extend(brokers)
            return brokers

        yield make_some
        for broker in made:
            broker.close()


class TestShelf(Shelves, BrokerContract):
    """What every broker promises."""

    native_events = 500

    @pytest.fixture
    def open_broker(self, make: Make) -> Open:
        """Opens brokers, each with a store of its own."""
        return lambda **options: make(1, options)[0]


class TestShelfTasks(Shelves, SharedTaskContract):
    """What every broker promises of tasks, and of channels that keep all."""

    @pytest.fixture
    def open_pair(self, make: Make) -> OpenPair:
        """Opens two brokers on one store, as two processes have them."""

        def open_two(**options: float) -> tuple[Broker, Broker]:
            one, other = make(2, options)
            return one, other

        return open_two

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """The other broker looks for news ten times a second."""
        wait_until(condition, 20)
