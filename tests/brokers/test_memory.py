"""The memory broker: the contract, and that it is the life of one process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

import sseflask.brokers.base
import sseflask.brokers.memory
from sseflask.brokers import Broker, MemoryBroker
from tests.brokers.contract import HISTORY_SECONDS, BrokerContract, Clock, InlineWaker, Open, Reader, event, kept


class FakeTime:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The second."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds


def blocks() -> int:
    """The blocks of memory that are in use."""
    gc.collect()
    return sys.getallocatedblocks()


class TestMemoryBroker(BrokerContract):
    """What every broker promises."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The monotonic clock of the broker's modules."""
        fake = FakeTime()
        monkeypatch.setattr(sseflask.brokers.memory, "time", fake)
        return fake

    @pytest.fixture
    def open_broker(self, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]]) -> Open:
        """Opens memory brokers."""

        def make(**options: Any) -> Broker:
            settings = {"history": 256, "history_seconds": HISTORY_SECONDS, "history_bytes": 1 << 26, **options}
            return MemoryBroker(waker, chores.append, **settings)

        return make

    def test_new_epoch(self, open_broker: Open) -> None:
        """Each is a new life (DELIVERY 15): a position of the one before is reset, and replays what the new one retains."""
        first, second = open_broker(), open_broker()
        old = first.publish("news", event("old"))
        second.publish("news", event("new"))
        assert first.position.epoch != second.position.epoch
        with second.emitter.lock:
            found = second.log.resume(["news"], old)
        assert (found.cursor, found.reset) == (0, "epoch")
        assert kept(second, "news") == ["new"]

    def test_tokens_go(self, broker: Broker, clock: Clock) -> None:
        """Tokens of a minute ago take no memory."""

        def use(rounds: int) -> int:
            for round_number in range(rounds):
                clock.advance(61)
                for number in range(1000):
                    broker.publish("news", event(), token=f"{round_number} {number}")
                broker.expire(clock.now)
            return blocks()

        assert -use(2) + use(20) < 1000

    def test_100_000_channels(self, broker: Broker, clock: Clock, waker: InlineWaker) -> None:
        """100,000 channels created, used and expired leave memory where it was."""

        def use(first: int, last: int) -> None:
            for number in range(first, last):
                name = f"channel {number}"
                reader = Reader(broker, name) if number % 4 == 0 else None
                listener = broker.emitter.on(name, lambda one: None) if number % 4 == 1 else None
                broker.publish(name, payload)
                if reader is not None:
                    reader.leave()
                if listener is not None:
                    broker.emitter.off(name, listener)
                if number % 5000 == 4999:
                    clock.advance(HISTORY_SECONDS + 1)
                    broker.expire(clock.now)
                    waker.woken.clear()

        payload = event("x" * 100)
        # Fills the table of last numbers, which is bounded.
        use(0, 10_000)
        before = blocks()
        use(10_000, 110_000)
        assert blocks() - before < 2000
        assert broker.emitter.channels() == []
        assert len(broker.log) == 0 and broker.log.size == 0
        assert not broker.expire(clock.now)
