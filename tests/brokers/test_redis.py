"""The Redis broker: the contract, over a real redis-server, and what several processes' brokers on one Redis promise."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pytest

import sseflask.brokers.redis
import sseflask.brokers.redis_follower
import sseflask.brokers.shared
from sseflask import ServerSentEvent
from sseflask.brokers import Broker, SharedBroker
from sseflask.brokers.redis import RedisStore
from sseflask.brokers.store import Reading
from sseflask.emitter import Channel
from tests.brokers.contract import HISTORY_SECONDS, BrokerContract, Clock, InlineWaker, Open, Reader, event, kept, parsed, resumed
from tests.brokers.contract_tasks import OpenPair, SharedTaskContract
from tests.live.process import wait_until
from tests.redis import RedisServer, needs_redis

pytestmark = needs_redis

SETTLING_SECONDS = 10.0
#: Makes a broker's key prefix its own.
prefixes = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that keeps nothing on disk, for all tests of this file."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.close()


class AgedTime:
    """Stands for the module `time`; letting time pass moves its clock, and makes all that Redis keeps so much older.

    Redis's own clock can't be moved: instead its keys expire the sooner, and the entries of its streams bear earlier times.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._ahead = 0.0

    @property
    def now(self) -> float:
        """The second."""
        return self.monotonic()

    def monotonic(self) -> float:
        """The second."""
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self._ahead += seconds
        for key in list(self._client.scan_iter()):
            left = self._client.pttl(key)
            if self._client.type(key) == b"stream":
                self._age(key, int(seconds * 1000))
            if key.endswith(b":tasks"):
                for task_id, beat in self._client.zrange(key, 0, -1, withscores=True):
                    self._client.zadd(key, {task_id: beat - int(seconds * 1000)})
            if left >= 0:
                self._client.pexpire(key, left - int(seconds * 1000))

    def _age(self, key: bytes, milliseconds: int) -> None:
        entries = self._client.xrange(key)
        self._client.delete(key)
        for number, fields in entries:
            self._client.xadd(key, {**fields, b"t": int(fields[b"t"]) - milliseconds}, id=number)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def aged_clock(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AgedTime:
    """The time of the broker's modules, and of what an empty Redis keeps."""
    server.client.flushall()
    aged = AgedTime(server.client)
    for module in (sseflask.brokers.shared, sseflask.brokers.redis, sseflask.brokers.redis_follower):
        monkeypatch.setattr(module, "time", aged)
    return aged


class SettledBroker(SharedBroker):
    """Returns from `publish` when this process's own readers have been told, so that a test can look at once.

    Redis gives its word of an event to all processes alike, a moment after the publisher has its id.
    """

    def __init__(self, store: RedisStore, *arguments: Any, **options: Any) -> None:
        super().__init__(store, *arguments, **options)
        self._told_up_to: dict[str, int] = {}
        self._is_told = threading.Condition()
        self._teller: threading.Thread | None = None

    def publish(self, channel: str, event: ServerSentEvent, **options: Any) -> str:
        """Publishes, and waits."""
        event_id = super().publish(channel, event, **options)
        with self.emitter.lock:
            is_followed = channel in self.log
        # The thread that tells can't wait for itself.
        if is_followed and threading.current_thread() is not self._teller:
            last = self.store.read({channel: None})[channel].last
            with self._is_told:
                told = self._is_told.wait_for(lambda: self._told_up_to.get(channel, 0) >= last, SETTLING_SECONDS)
            assert told, f"{channel} stands at {self._told_up_to.get(channel)}, not at {last}"
        return event_id

    def _tell_all(self, told: Iterable[Channel]) -> None:
        """Tells, and lets the publishers go on."""
        if "redis" in threading.current_thread().name:
            self._teller = threading.current_thread()
        lasts = self._lasts()
        try:
            super()._tell_all(told)
        finally:
            with self._is_told:
                self._told_up_to |= lasts
                self._is_told.notify_all()

    def _lasts(self) -> dict[str, int]:
        with self.emitter.lock:
            return {name: ring.last for name in self.log.names() if (ring := self.log.find(name)) is not None}


class TestRedisBroker(BrokerContract):
    """What every broker promises."""

    #: A network round trip, and a word from Redis, for each.
    native_events: ClassVar[int] = 1_000

    @pytest.fixture
    def clock(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The time of the broker's modules, and of what Redis keeps."""
        return aged_clock(server, monkeypatch)

    @pytest.fixture
    def open_broker(
        self, server: RedisServer, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]]
    ) -> Iterator[Open]:
        """Opens brokers, each with keys of its own unless a prefix is given."""
        made: list[Broker] = []

        def make(*, prefix: str | None = None, **options: Any) -> Broker:
            settings = {"history": 256, "history_seconds": HISTORY_SECONDS, "history_bytes": 1 << 26, "timeout": 5.0, **options}
            store = RedisStore(
                server.url,
                prefix=prefix or f"test-{next(prefixes)}",
                **{name: value for name, value in settings.items() if name != "history_bytes"},
            )
            broker = SettledBroker(store, waker, chores.append, **settings)
            broker.open()
            made.append(broker)
            return broker

        yield make
        for broker in made:
            broker.close()

    def test_listener_that_publishes(self, broker: Broker) -> None:
        """What a listener publishes comes after what it heard, for streams and listeners alike."""
        heard: list[str | None] = []
        reader = Reader(broker, "news")

        def answer(one: ServerSentEvent) -> None:
            if one.data == "question":
                broker.publish("news", event("answer"))

        broker.emitter.on("news", answer)
        broker.emitter.on("news", lambda one: heard.append(one.data))
        broker.publish("news", event("question"))
        wait_until(lambda: heard == reader.data == ["question", "answer"], SETTLING_SECONDS)

    def test_listener_that_is_interrupted(self, broker: Broker) -> None:
        """A listener that raises what ends a greenlet ends neither the streams' events nor the publisher: both go on."""
        reader, heard = Reader(broker, "news"), list[str | None]()

        class Interrupted(BaseException):
            """As a time-out of gevent's."""

        def interrupt(one: ServerSentEvent) -> None:
            broker.emitter.off("news", interrupt)
            raise Interrupted

        broker.emitter.on("news", interrupt)
        broker.emitter.on("news", lambda one: heard.append(one.data))
        broker.publish("news", event("1"))
        broker.publish("news", event("2"))
        assert reader.data == heard == ["1", "2"]


class TestRedisTasks(SharedTaskContract):
    """What every broker promises of tasks, and of channels that keep all."""

    @pytest.fixture
    def clock(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The time of the broker's modules, and of what Redis keeps."""
        return aged_clock(server, monkeypatch)

    @pytest.fixture
    def open_pair(
        self, server: RedisServer, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]]
    ) -> Iterator[OpenPair]:
        """Opens two on the same keys, as two processes have them."""
        made: list[Broker] = []

        def make(*, history_bytes: int = 1 << 26, **options: Any) -> tuple[Broker, Broker]:
            settings = {"history": 256, "history_seconds": HISTORY_SECONDS, "timeout": 5.0, **options}
            prefix = f"pair-{next(prefixes)}"
            one, other = (
                SettledBroker(
                    RedisStore(server.url, prefix=prefix, **settings),
                    waker,
                    chores.append,
                    history_bytes=history_bytes,
                    **settings,
                )
                for _ in range(2)
            )
            for broker in (one, other):
                broker.open()
                made.append(broker)
            return one, other

        yield make
        for broker in made:
            broker.close()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Redis pushes what the other has published."""
        wait_until(condition, SETTLING_SECONDS)


class TestTwoBrokers:
    """Two processes' brokers on one Redis, here in one."""

    @pytest.fixture
    def waker(self) -> InlineWaker:
        """Tells readers of new entries."""
        return InlineWaker()

    @pytest.fixture
    def open_broker(self, server: RedisServer, waker: InlineWaker) -> Iterator[Open]:
        """Opens brokers that share their keys."""
        made: list[Broker] = []
        prefix = f"shared-{next(prefixes)}"

        def make(**options: Any) -> Broker:
            settings = {"history": 256, "history_seconds": HISTORY_SECONDS, "timeout": 5.0, **options}
            store = RedisStore(server.url, prefix=prefix, **settings)
            broker = SharedBroker(store, waker, lambda chore: None, history_bytes=1 << 26, **settings)
            broker.open()
            made.append(broker)
            return broker

        yield make
        for broker in made:
            broker.close()

    def test_one_log(self, open_broker: Open) -> None:
        """Both give numbers of one life and one order, and each one's readers read what the other publishes."""
        brokers = [open_broker(), open_broker()]
        readers = [Reader(broker, "news") for broker in brokers]
        ids = [brokers[number % 2].publish("news", event(str(number))) for number in range(100)]
        numbers = [parsed(one).seq for one in ids]
        assert numbers == sorted(set(numbers))
        assert len({parsed(one).epoch for one in ids}) == 1
        expected = [str(number) for number in range(100)]
        wait_until(lambda: [reader.data for reader in readers] == [expected, expected], SETTLING_SECONDS)
        assert [reader.missed for reader in readers] == [0, 0]

    def test_position_of_the_other(self, open_broker: Open) -> None:
        """A position that the other has given is good here, also where this process hasn't heard of it yet."""
        first, second = open_broker(), open_broker()
        Reader(second, "elsewhere")
        position = first.publish("news", event("1"))
        first.publish("news", event("2"))
        found = resumed(second, ["news"], position)
        assert (found.reset, found.cursor) == (None, parsed(position).seq)
        assert kept(second, "news") == ["1", "2"]

    def test_listener_that_adds_one(self, open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """A listener that adds one keeps nobody waiting; the new one hears as soon as its channel can be followed."""
        monkeypatch.setattr(sseflask.brokers.shared, "HOUSEKEEPING_SECONDS", 60.0)
        first, second = open_broker(), open_broker()
        took: list[float] = []
        heard: list[str | None] = []

        def ask(_: ServerSentEvent) -> None:
            began = time.monotonic()
            second.emitter.on("answer", lambda one: heard.append(one.data))
            took.append(time.monotonic() - began)

        second.emitter.on("question", ask)
        first.publish("question", event("?"))
        wait_until(lambda: "answer" in second.log, SETTLING_SECONDS)
        assert took[0] < 1
        first.publish("answer", event("!"))
        wait_until(lambda: heard == ["!"], SETTLING_SECONDS)

    def test_token_of_the_other(self, open_broker: Open) -> None:
        """A token that the one has seen stores nothing at the other."""
        first, second = open_broker(), open_broker()
        assert first.publish("news", event("once"), token="t") == second.publish("news", event("once"), token="t")
        assert kept(second, "news") == ["once"]

    def test_count(self, open_broker: Open) -> None:
        """Each counts the streams of both."""
        first, second = open_broker(), open_broker()
        readers = [Reader(first, "news"), Reader(first, "news"), Reader(second, "news")]
        wait_until(lambda: (first.count("news"), second.count("news")) == (3, 3), SETTLING_SECONDS)
        readers[0].leave()
        readers[2].leave()
        assert second.count("news") <= 2
        wait_until(lambda: (first.count("news"), second.count("news")) == (1, 1), SETTLING_SECONDS)

    def test_count_after_a_failure(self, open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """What would end a greenlet ends the broker's own thread no more than any failure does: it goes on counting."""
        first, second = open_broker(), open_broker()
        assert isinstance(first, SharedBroker)
        failed: list[str] = []

        class Interrupted(BaseException):
            """As a time-out of gevent's, raised by a listener."""

        def fail(process: str, counts: Mapping[str, int], seconds: float) -> None:
            monkeypatch.undo()
            failed.append(process)
            raise Interrupted

        monkeypatch.setattr(first.store, "report", fail)
        Reader(first, "news")
        wait_until(lambda: second.count("news") == 1, SETTLING_SECONDS)
        assert len(failed) == 1

    def test_deleted_stream(self, server: RedisServer, open_broker: Open) -> None:
        """A reader whose process has heard everything misses nothing by a deleted key; who comes from before it is told."""
        first, second = open_broker(), open_broker()
        reader = Reader(first, "news")
        before = str(first.position)
        first.publish("news", event("1"))
        for key in server.client.scan_iter("{shared-*}:stream:*"):
            server.client.delete(key)
        first.publish("news", event("2"))
        wait_until(lambda: reader.data == ["1", "2"], SETTLING_SECONDS)
        assert reader.missed == 0
        assert resumed(second, ["news"], before).reset == "history"
        assert kept(second, "news") == ["2"]

    def test_flushed(self, server: RedisServer, open_broker: Open) -> None:
        """A Redis that has lost everything begins another life, which readers are told of; what comes next they read."""
        first, second = open_broker(), open_broker()
        reader = Reader(first, "news")
        position = first.publish("news", event("1"))
        wait_until(lambda: reader.data == ["1"], SETTLING_SECONDS)
        server.client.flushall()
        assert parsed(second.publish("news", event("2"))).epoch != parsed(position).epoch
        wait_until(lambda: reader.data == ["1", "2"], SETTLING_SECONDS)
        assert reader.missed == 1
        assert resumed(first, ["news"], position).reset == "epoch"
        assert kept(second, "news") == ["2"]

    def test_listening_is_cut_off(self, server: RedisServer, open_broker: Open) -> None:
        """A reader whose process can't listen for a while misses nothing that the store still has."""
        first, second = open_broker(), open_broker()
        reader = Reader(first, "news")
        for number in range(5):
            second.publish("news", event(str(number)))
            server.client.client_kill_filter(_type="pubsub")
        wait_until(lambda: reader.data == ["0", "1", "2", "3", "4"], SETTLING_SECONDS)
        assert reader.missed == 0

    def test_listening_is_cut_off_while_a_channel_is_read(
        self, server: RedisServer, open_broker: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a channel gets while it is first read, and its process can't listen, its readers get at once."""
        first, second = open_broker(), open_broker()
        assert isinstance(first, SharedBroker)
        Reader(first, "elsewhere")
        read = first.store.read

        def cutting_off(after: Mapping[str, int | None]) -> Mapping[str, Reading]:
            found = read(after)
            if after == {"news": None}:
                monkeypatch.undo()
                server.client.client_kill_filter(_type="pubsub")
                second.publish("news", event("1"))
                wait_until(lambda: first.reconnects, SETTLING_SECONDS)
            return found

        monkeypatch.setattr(first.store, "read", cutting_off)
        before = first.position.seq
        reader = Reader(first, "news")
        reader.cursor = before
        reader.pump(0.0)
        wait_until(lambda: reader.data == ["1"], SETTLING_SECONDS)
        assert reader.missed == 0
