"""The memory broker: the contract, and that it is the life of one process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

import sseflask.brokers.base
import sseflask.brokers.memory
import sseflask.brokers.tasks
from sseflask.brokers import Broker, MemoryBroker
from sseflask.brokers.base import WAITING_EVENTS
from sseflask.brokers.tasks import REMEMBERED_SECONDS
from sseflask.emitter import Channel
from sseflask.ring import ENTRY_BYTES, KEEP_ALL
from tests.brokers.contract import HISTORY_SECONDS, BrokerContract, Clock, InlineWaker, Open, Reader, event, kept
from tests.brokers.contract_tasks import OpenPair, TaskContract
from tests.live.process import wait_until


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
        monkeypatch.setattr(sseflask.brokers.tasks, "time", fake)
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

    def test_the_collector_rests(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        """While an event is numbered and kept, nothing that the garbage collector finalises can publish; then it is as before."""
        seen: list[bool] = []
        append = broker.log.append

        def watched(*args: Any) -> Any:
            seen.append(gc.isenabled())
            return append(*args)

        monkeypatch.setattr(broker.log, "append", watched)
        broker.publish("news", event())
        # A moment's lock of another thread keeps it off, too.
        wait_until(gc.isenabled, 5, "the collector is on again")
        gc.disable()
        try:
            broker.publish("news", event())
            seen.append(gc.isenabled())
        finally:
            gc.enable()
        assert seen == [False, False, False]

    def test_failing_append(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        """A publish that fails leaves nothing locked, and the collector on."""
        with monkeypatch.context() as patch:
            patch.setattr(broker.log, "append", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                broker.publish("news", event())
        wait_until(gc.isenabled, 5, "the collector is on again")
        broker.publish("news", event())
        assert kept(broker, "news") == ["x"]

    def test_release(self, broker: Broker, clock: Clock) -> None:
        """A channel is there until nobody listens and its history has expired, whichever comes last."""
        reader, other = Reader(broker, "news"), Reader(broker, "news")
        position = broker.publish("news", event())
        clock.advance(HISTORY_SECONDS + 1)
        broker.expire(clock.now)
        reader.leave()
        assert broker.emitter.channels() == ["news"]
        other.leave()
        assert broker.emitter.channels() == []
        with broker.emitter.lock:
            assert broker.log.resume(["news"], position).reset is None
        last = Reader(broker, "news")
        broker.publish("news", event())
        last.leave()
        assert broker.emitter.channels() == ["news"]
        clock.advance(HISTORY_SECONDS + 1)
        broker.expire(clock.now)
        assert broker.emitter.channels() == []

    def test_expiry_is_seen_to(self, broker: Broker, clock: Clock, chores: list[Callable[[float], bool]]) -> None:
        """A broker asks to be called each second while it keeps something, once, and asks again when it does so again."""
        assert chores == []
        for _ in range(3):
            broker.publish("news", event())
        assert len(chores) == 1
        assert chores[0](clock.now)
        clock.advance(HISTORY_SECONDS + 1)
        assert not chores.pop()(clock.now)
        broker.publish("news", event())
        assert len(chores) == 1

    def test_bytes(self, open_broker: Open) -> None:
        """All channels of a process together keep so many bytes; the last events of those published to least recently go first."""
        broker = open_broker(history_bytes=100 * (ENTRY_BYTES + 1000))
        for number in range(300):
            broker.publish(f"c{number % 50}", event("x" * 900))
        names = broker.emitter.channels()
        assert broker.log.size <= 100 * (ENTRY_BYTES + 1000)
        assert 80 <= len(kept(broker, *names)) <= 110
        assert kept(broker, "c49")

    # Ends (DELIVERY 11).

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


class TestMemoryTasks(TaskContract):
    """What every broker promises of tasks, and of channels that keep all."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The monotonic clock of the broker's modules."""
        fake = FakeTime()
        monkeypatch.setattr(sseflask.brokers.memory, "time", fake)
        monkeypatch.setattr(sseflask.brokers.tasks, "time", fake)
        return fake

    @pytest.fixture
    def open_pair(self, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]]) -> OpenPair:
        """Opens one, which is both."""

        def make(**options: Any) -> tuple[Broker, Broker]:
            settings = {"history": 256, "history_seconds": HISTORY_SECONDS, "history_bytes": 1 << 26, **options}
            broker = MemoryBroker(waker, chores.append, **settings)
            return broker, broker

        return make

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Nothing is to be waited for."""
        assert condition()

    def test_expiry_is_seen_to(self, broker: Broker, clock: Clock, chores: list[Callable[[float], bool]]) -> None:
        """While a run keeps all, the broker goes on asking to be called, until nobody has worked on it for long."""
        broker.publish("run", event(), history=KEEP_ALL)
        for _ in range(3):
            clock.advance(HISTORY_SECONDS)
            assert chores[0](clock.now)
        clock.advance(REMEMBERED_SECONDS)
        assert not chores[0](clock.now)


class BusyWaker(InlineWaker):
    """Is in the middle of sending whenever it is told of something.

    Attributes:
        gave_way: How many entries waited each time that a publisher let it go on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gave_way: list[int] = []
        self._channels: list[Channel] = []

    def wake(self, channel: Channel) -> None:
        """Has no time for it."""
        channel.waiting += 1
        self._channels.append(channel)

    def give_way(self) -> bool:
        """Gets round to the channels that it was told of."""
        self.gave_way.append(self._channels[-1].waiting)
        for channel in self._channels:
            channel.waiting = 0
            super().wake(channel)
        return True


class TestPace:
    """A publisher that is faster than the streams can be served."""

    @pytest.fixture
    def waker(self) -> BusyWaker:
        """A busy one."""
        return BusyWaker()

    @pytest.fixture
    def broker(self, waker: BusyWaker) -> MemoryBroker:
        """One that tells it."""
        return MemoryBroker(waker, lambda chore: None, history=256, history_seconds=HISTORY_SECONDS, history_bytes=1 << 26)

    def test_waits(self, waker: BusyWaker, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        """While streams are sending, so many events wait for their turn and no more: then their publisher waits."""
        monkeypatch.setattr(sseflask.brokers.base, "WAITING_DELIVERIES", 8)
        readers = [Reader(broker, "news") for _ in range(2)]
        for number in range(2 * WAITING_EVENTS + 2):
            broker.publish("news", event(str(number)))
        assert waker.gave_way == [WAITING_EVENTS, WAITING_EVENTS]
        assert [reader.data for reader in readers] == [[str(number) for number in range(2 * WAITING_EVENTS)]] * 2

    def test_few_streams(self, waker: BusyWaker, broker: MemoryBroker) -> None:
        """It doesn't for a few streams, whose turn takes no time."""
        reader = Reader(broker, "news")
        for _ in range(60):
            broker.publish("news", event())
        assert waker.gave_way == []
        reader.leave()
