"""The SQLite broker: the contract, over a file in a directory of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sseflask.brokers import Broker, SharedBroker
from sseflask.brokers.sqlite import SQLiteStore
from sseflask.brokers.store import Reading
from sseflask.testing import FakeClock
from tests.brokers.contract import HISTORY_SECONDS, BrokerContract, Clock, InlineWaker, Open, event, resumed


class TestSQLiteBroker(BrokerContract):
    """What every broker promises."""

    native_events = 2_500

    @pytest.fixture
    def clock(self) -> Iterator[Clock]:
        """The time of the broker's modules."""
        with FakeClock() as clock:
            yield clock

    @pytest.fixture
    def open_broker(
        self, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]], tmp_path: Path
    ) -> Iterator[Open]:
        """Opens brokers, each with a file of its own."""
        made: list[Broker] = []

        def make(*, path: str | None = None, **options: Any) -> Broker:
            settings = {"history": 256, "history_seconds": HISTORY_SECONDS, "history_bytes": 1 << 26, "timeout": 5.0, **options}
            store = SQLiteStore(path or str(tmp_path / f"{len(made)}.db"), **settings)
            broker = SharedBroker(store, waker, chores.append, **settings)
            broker.open()
            made.append(broker)
            return broker

        yield make
        for broker in made:
            broker.close()

    def test_too_much_for_the_process(
        self, waker: InlineWaker, chores: list[Callable[[float], bool]], tmp_path: Path, clock: Clock
    ) -> None:
        """A history that the file has, and for which this process has no room, is read once for each who asks, who is told."""
        bounds = {"history": 256, "history_seconds": HISTORY_SECONDS, "timeout": 5.0}
        store = SQLiteStore(str(tmp_path / "large.db"), history_bytes=1 << 26, **bounds)
        broker = SharedBroker(store, waker, chores.append, history_bytes=1 << 16, **bounds)
        try:
            first = broker.publish("news", event("x" * 2000))
            for _ in range(100):
                broker.publish("news", event("x" * 2000))
            reads = 0
            read = store.read

            def counting(after: Mapping[str, int | None]) -> Mapping[str, Reading]:
                nonlocal reads
                reads += 1
                return read(after)

            store.read = counting  # type: ignore[method-assign]
            assert resumed(broker, ["news"], first).reset == "history"
            # As it is first opened, in the life that it then finds, and for all that is retained.
            assert reads == 3
        finally:
            broker.close()
